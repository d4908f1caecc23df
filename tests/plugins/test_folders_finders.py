"""What is found in folders and in the Hugging Face cache, and what is left alone."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from phitui_folders.finders import Folders, HuggingFace, artifacts, cache_folder

from phitui.api import Artifact


def found(folder: Path) -> dict[str, Artifact]:
    return {artifact.name: artifact for artifact in artifacts(folder, "test", set())}


def checkpoint(folder: Path, size: int = 10) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text('{"architectures": ["Phi3ForCausalLM"]}')
    (folder / "model-00001-of-00002.safetensors").write_bytes(bytes(size))
    (folder / "model-00002-of-00002.safetensors").write_bytes(bytes(size))
    return folder


def test_ggufs_and_checkpoints(tmp_path: Path) -> None:
    (tmp_path / "a.gguf").write_bytes(bytes(3))
    (tmp_path / "deep" / "er").mkdir(parents=True)
    (tmp_path / "deep" / "er" / "B.GGUF").write_bytes(bytes(4))
    checkpoint(tmp_path / "Phi-tiny")
    here = found(tmp_path)
    assert {name: (a.kind, a.size) for name, a in here.items()} == {
        "a.gguf": ("gguf", 3),
        "B.GGUF": ("gguf", 4),
        "Phi-tiny": ("checkpoint", 20),
    }
    assert here["Phi-tiny"].path == tmp_path / "Phi-tiny"
    assert here["a.gguf"].architecture == ""


@pytest.mark.parametrize(
    "name", ["a.gguf.partial", "a.gguf.partial.journal", "a.gguf.incomplete", "a.txt", ".hidden/a.gguf"]
)
def test_left_out(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"GGUF")
    assert not found(tmp_path)


def test_a_config_without_weights_is_no_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert not found(tmp_path)


def test_split_files_are_one_model(tmp_path: Path) -> None:
    for n in (1, 2, 3):
        (tmp_path / f"m-{n:05}-of-00003.gguf").write_bytes(bytes(n))
    (tmp_path / "m-00001-of-00002.gguf").write_bytes(bytes(7))
    assert {name: a.size for name, a in found(tmp_path).items()} == {
        "m-00001-of-00003.gguf": 6,
        "m-00001-of-00002.gguf": 7,
    }


def test_loops_and_dangling_links(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "m.gguf").write_bytes(bytes(1))
    (tmp_path / "a" / "up").symlink_to(tmp_path)
    (tmp_path / "self.gguf").symlink_to(tmp_path / "self.gguf")
    (tmp_path / "gone.gguf").symlink_to(tmp_path / "nowhere")
    (tmp_path / "pipe.gguf").mkdir()
    os.mkfifo(tmp_path / "fifo.gguf")
    assert list(found(tmp_path)) == ["m.gguf"]


def test_a_folder_that_cannot_be_read(tmp_path: Path) -> None:
    assert not found(tmp_path / "missing")
    (tmp_path / "file").write_text("")
    assert not found(tmp_path / "file")


def test_own_and_configured_folders(tmp_path: Path, home: Path) -> None:
    own = home / "phitui" / "data" / "models"
    own.mkdir(parents=True)
    (own / "mine.gguf").write_bytes(bytes(1))
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "theirs.gguf").write_bytes(bytes(1))
    config = home / "phitui" / "config" / "config.toml"
    config.parent.mkdir(parents=True)
    config.write_text(f"folders = ['{tmp_path / 'more'}']")
    assert [artifact.name for artifact in Folders().find()] == ["mine.gguf", "theirs.gguf"]


def test_hugging_face_cache(home: Path) -> None:
    repo = home / "huggingface" / "hub" / "models--microsoft--Phi-tiny--x"
    checkpoint(repo / "snapshots" / "0123456789abcdef")
    (repo / "blobs").mkdir()
    (repo / "blobs" / "x.gguf").write_bytes(bytes(2))
    (repo / "snapshots" / "0123456789abcdef" / "x.gguf").symlink_to(repo / "blobs" / "x.gguf")
    (home / "huggingface" / "hub" / "datasets--a--b" / "snapshots" / "1").mkdir(parents=True)
    listed = {artifact.name: artifact for artifact in HuggingFace().find()}
    assert set(listed) == {"microsoft/Phi-tiny--x", "x.gguf"}
    assert listed["x.gguf"].path.name == "x.gguf"
    checkpoint(repo / "snapshots" / "fedcba9876543210")
    names = {artifact.name for artifact in HuggingFace().find() if artifact.kind == "checkpoint"}
    assert names == {"microsoft/Phi-tiny--x@0123456", "microsoft/Phi-tiny--x@fedcba9"}


def test_environment_of_the_cache(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cache_folder() == home / "huggingface" / "hub"
    monkeypatch.setenv("HF_HUB_CACHE", "/x/y")
    assert cache_folder() == Path("/x/y")
    monkeypatch.delenv("HF_HUB_CACHE")
    monkeypatch.delenv("HF_HOME")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_folder() == home / ".cache" / "huggingface" / "hub"


def test_the_cache_tells_the_hashes_of_large_files(home: Path) -> None:
    repo = home / "huggingface" / "hub" / "models--acme--phi"
    snapshot = repo / "snapshots" / "0123456789abcdef"
    snapshot.mkdir(parents=True)
    (repo / "blobs").mkdir()
    names = {"large.gguf": "0a" * 32, "small.gguf": "0b" * 20, "m-00001-of-00001.gguf": "0c" * 32}
    for name, blob in names.items():
        (repo / "blobs" / blob).write_bytes(b"GGUF")
        (snapshot / name).symlink_to(f"../../blobs/{blob}")
    (snapshot / "copied.gguf").write_bytes(b"GGUF")
    assert {a.name: a.sha256 for a in HuggingFace().find()} == {
        "large.gguf": "0a" * 32,
        "small.gguf": "",
        "m-00001-of-00001.gguf": "",
        "copied.gguf": "",
    }
