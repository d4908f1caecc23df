"""One answer to where llama.cpp's libraries are, found without loading any."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from phitui.engine import libraries
from phitui.engine.libraries import library_folder, native_library
from phitui.errors import Unavailable

NAMES = {
    "linux": ["libggml.so", "libggml.so.0", "libggml.so.0.25.3", "libggml-base.so.0", "libggml-base.so"],
    "darwin": ["libggml.dylib", "libggml.0.dylib", "libggml.0.25.3.dylib", "libggml-base.0.dylib"],
    "win32": ["ggml.dll", "ggml-base.dll"],
}


@pytest.mark.parametrize(
    ("platform", "name"), [("linux", "libggml.so.0"), ("darwin", "libggml.0.dylib"), ("win32", "ggml.dll")]
)
def test_the_name_that_libllama_links(
    platform: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for file in NAMES[platform]:
        (tmp_path / file).touch()
    monkeypatch.setenv("LLAMA_CPP_LIB_PATH", str(tmp_path))
    monkeypatch.setattr(sys, "platform", platform)
    assert native_library("ggml") == tmp_path / name
    assert "base" in native_library("ggml-base").name


def test_a_library_with_one_name_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAMA_CPP_LIB_PATH", str(tmp_path))
    monkeypatch.setattr(sys, "platform", "linux")
    (tmp_path / "libggml-rpc.so").touch()
    assert native_library("ggml-rpc").name == "libggml-rpc.so"
    with pytest.raises(Unavailable, match="has no libggml in"):
        native_library("ggml")


def test_without_llama_cpp_python(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LLAMA_CPP_LIB_PATH", raising=False)
    monkeypatch.setattr(libraries, "find_spec", lambda name: None)
    assert library_folder() is None
    with pytest.raises(Unavailable, match="not installed") as caught:
        native_library("ggml")
    assert "phitui[llama]" in caught.value.hint


def test_finding_imports_nothing() -> None:
    code = (
        "import sys\nfrom phitui.api import library_folder\nlibrary_folder()\n"
        "print([name for name in ('llama_cpp', 'numpy', 'ctypes') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
