"""Where llama-cpp-python and its native libraries are. Finding them loads nothing."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from phitui.api import Availability, Unavailable, native_library

INSTALL = "pip install 'phitui[llama]'   (phitui doctor prints the command for this machine's GPU)"


def available() -> Availability:
    """Whether llama-cpp-python is installed with a libggml-base that can be opened."""
    if find_spec("llama_cpp") is None:
        return Availability(False, "llama-cpp-python is not installed", INSTALL)
    try:
        ggml_base()
    except Unavailable as error:
        return Availability(False, error.message, error.hint)
    return Availability()


def ggml_base() -> Path:
    """The libggml-base that libllama itself links. Raises Unavailable if there is none."""
    return native_library("ggml-base")
