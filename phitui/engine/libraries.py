"""Where llama-cpp-python keeps llama.cpp's shared libraries. Pure path finding: nothing is imported and nothing loaded.

A wheel holds each library under several names, as separate files (libggml.so, .so.0, .so.0.25.3). Whoever opens another
one than libllama itself links gets a second copy with a device registry of its own, so there is one answer for all.
"""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec
from pathlib import Path

from phitui.errors import Unavailable

INSTALL = "pip install 'phitui[llama]'   (phitui doctor prints the command for this machine's GPU)"


def library_folder() -> Path | None:
    """The directory of the libraries, None where llama-cpp-python is not installed. LLAMA_CPP_LIB_PATH may move it."""
    moved = os.environ.get("LLAMA_CPP_LIB_PATH")
    if moved:
        return Path(moved)
    spec = find_spec("llama_cpp")
    roots = [Path(root) for root in (spec.submodule_search_locations or [])] if spec else []
    return next((folder for root in roots for folder in (root / "lib", root) if folder.is_dir()), None)


def native_library(name: str) -> Path:
    """The file of "ggml", "ggml-base" or "ggml-rpc" under the name that libllama links.

    Raises Unavailable where llama-cpp-python is missing or was built without that library.
    """
    folder = library_folder()
    if folder is None:
        raise Unavailable("llama-cpp-python is not installed", INSTALL)
    found = next((path for pattern in _patterns(name) for path in sorted(folder.glob(pattern), key=_length)), None)
    if found is None:
        raise Unavailable(f"llama-cpp-python has no lib{name} in {folder}: its build is incomplete", INSTALL)
    return found


def _patterns(name: str) -> tuple[str, ...]:
    """The names of a library, the one that others link first: a version of one number on Linux and macOS."""
    if sys.platform == "win32":
        return f"{name}.dll", f"lib{name}.dll"
    if sys.platform == "darwin":
        return f"lib{name}.[0-9]*.dylib", f"lib{name}.dylib"
    return f"lib{name}.so.[0-9]*", f"lib{name}.so"


def _length(path: Path) -> tuple[int, str]:
    return len(path.name), path.name
