"""Models of LM Studio and of llama.cpp: where their folders are, and what of them is listed."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import pytest
from phitui_folders.programs import LlamaCpp, LmStudio, llamacpp_folder, lmstudio_folder

from phitui.actions import models
from phitui.actions.context import Context


def test_lm_studio_keeps_models_in_its_home(home: Path) -> None:
    assert lmstudio_folder() == home / ".lmstudio" / "models"
    (home / ".cache" / "lm-studio").mkdir(parents=True)
    assert lmstudio_folder() == home / ".cache" / "lm-studio" / "models"
    (home / ".lmstudio-home-pointer").write_text(f"{home}/elsewhere\n")
    assert lmstudio_folder() == home / "elsewhere" / "models"
    (home / "elsewhere").mkdir()
    settings = home / "elsewhere" / "settings.json"
    settings.write_text(json.dumps({"downloadsFolder": "~/big/models"}))
    assert lmstudio_folder() == home / "big" / "models"


@pytest.mark.parametrize("text", ["", "{", "[]", '{"downloadsFolder": 3}', '{"downloadsFolder": ""}', "[" * 99_999])
def test_settings_that_make_no_sense(home: Path, text: str) -> None:
    (home / ".lmstudio").mkdir()
    (home / ".lmstudio" / "settings.json").write_text(text)
    (home / ".lmstudio-home-pointer").write_bytes(b"\xff\xfe")
    assert lmstudio_folder() == home / ".lmstudio" / "models"


def test_lm_studio_models(home: Path) -> None:
    folder = home / ".lmstudio" / "models" / "microsoft" / "phi-4-gguf"
    folder.mkdir(parents=True)
    (folder / "phi-4-Q4_K.gguf").write_bytes(bytes(5))
    mlx = folder.parent / "phi-4-mlx"
    mlx.mkdir()
    (mlx / "config.json").write_text("{}")
    (mlx / "model.safetensors").write_bytes(bytes(9))
    (only,) = LmStudio().find()
    assert (only.name, only.size, only.found_by) == ("phi-4-Q4_K.gguf", 5, "lmstudio")


def test_llama_cpp_cache(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert llamacpp_folder() == home / ".cache" / "llama.cpp"
    monkeypatch.setenv("XDG_CACHE_HOME", str(home / "xdg"))
    assert llamacpp_folder() == home / "xdg" / "llama.cpp"
    monkeypatch.setenv("LLAMA_CACHE", str(home / "mine"))
    (home / "mine").mkdir()
    (home / "mine" / "acme_phi-4_phi-4.gguf").write_bytes(bytes(4))
    (home / "mine" / "acme_phi-4_phi-4.gguf.json").write_text("{}")
    (home / "mine" / "other.gguf.downloadInProgress").write_bytes(bytes(4))
    assert [(a.name, a.found_by) for a in LlamaCpp().find()] == [("acme_phi-4_phi-4.gguf", "llama.cpp")]


def test_a_thousand_files_are_listed_in_a_second(context: Context, home: Path) -> None:
    for number in range(1000):
        folder = home / ".lmstudio" / "models" / f"publisher{number % 50}" / f"model{number}"
        folder.mkdir(parents=True)
        (folder / "m.gguf").write_bytes(b"GGUF" + bytes([number % 251]))
    assert len(models.library(context)) == 1000  # reads the headers, once
    began = time.perf_counter()
    assert len(models.library(context)) == 1000
    assert time.perf_counter() - began < 2.0  # 0.1 s on an idle machine
