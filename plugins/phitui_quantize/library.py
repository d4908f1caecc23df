"""Where llama-cpp-python and its native libraries are. Finding them loads nothing."""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec
from pathlib import Path

from phitui.api import Availability, Unavailable

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
    """The libggml-base that libllama itself links.

    A wheel holds the library under several names. Opening another than the one libllama links (the SONAME, such as
    libggml-base.so.0) would load a second copy. Raises Unavailable if there is none.
    """
    found = [path for folder in _folders() for path in sorted(folder.glob("*ggml-base*"), key=_preference)]
    if not found:
        raise Unavailable("llama-cpp-python has no libggml-base: its build is incomplete", INSTALL)
    return found[0]


def _folders() -> list[Path]:
    given = os.environ.get("LLAMA_CPP_LIB_PATH")
    if given:
        return [Path(given)]
    spec = find_spec("llama_cpp")
    roots = [Path(root) for root in (spec.submodule_search_locations or [])] if spec else []
    return [folder for root in roots for folder in (root / "lib", root) if folder.is_dir()]


def _preference(path: Path) -> tuple[bool, str]:
    """Sort key: names that end in one version number first (libggml-base.so.0, libggml-base.0.dylib)."""
    name = path.name
    if sys.platform == "darwin":
        version = name.removeprefix("libggml-base").removesuffix(".dylib").strip(".")
    else:
        version = name.partition(".so")[2].strip(".")
    return not version.isdigit(), name
