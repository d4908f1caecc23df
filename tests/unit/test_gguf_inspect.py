"""`phitui inspect` on what this room reads: a checkpoint, the GGUF made of it, and files that are neither."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from phitui.__main__ import main
from phitui.domain.tensors import FilePlan, SourceTensor, TensorType, Value, place
from phitui.gguf.safetensors import open_checkpoint
from phitui.gguf.writer import write_gguf
from phitui.testing.checkpoints import write_checkpoint


def inspected(capsys: pytest.CaptureFixture[str], source: Path) -> dict[str, object]:
    assert main(["inspect", str(source), "--json"]) == 0
    document: dict[str, object] = json.loads(capsys.readouterr().out)
    return document


def test_a_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    document = inspected(capsys, write_checkpoint(tmp_path / "Phi-3-tiny"))
    keys = ("name", "architecture", "layers", "context_length", "vocabulary", "chat_format", "scheme")
    assert [document[key] for key in keys] == ["Phi-3-tiny", "phi3", 2, 4096, 640, "phi-3", "BF16"]
    assert document["rope"] == {"dimensions": 64, "base": 10000.0, "scaling": "none", "original_context": None}
    assert main(["inspect", str(tmp_path / "Phi-3-tiny")]) == 0
    text = capsys.readouterr().out
    assert "architecture  phi3" in text and "convertible" in text


def test_a_gguf(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = open_checkpoint(write_checkpoint(tmp_path / "phi")).tensors["model.embed_tokens.weight"]
    tensor = SourceTensor("token_embd.weight", (256, 640), TensorType.BF16, (found.extent,))
    metadata = {"general.architecture": Value.string("phi3"), "general.file_type": Value.u32(32)}
    write_gguf(FilePlan("BF16", metadata, place([(tensor, TensorType.BF16, None)])), tmp_path / "tiny.gguf")
    document = inspected(capsys, tmp_path / "tiny.gguf")
    assert (document["name"], document["scheme"], document["parameters"]) == ("tiny", "BF16", 640 * 256)
    assert document["size"] == (tmp_path / "tiny.gguf").stat().st_size
    assert document["tied_embeddings"] is True


def test_what_is_neither(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(b"GGUF" + bytes(3))
    assert main(["inspect", str(path), "--json"]) == 1
    assert "ends in the middle" in json.loads(capsys.readouterr().out)["error"]["message"]
