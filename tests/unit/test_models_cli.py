"""phitui models: the contract of its JSON, and its table."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from phitui.__main__ import main


def test_json(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = home / "phitui" / "data" / "models"
    own.mkdir(parents=True)
    (own / "a.gguf").write_bytes(b"GGUF")
    assert main(["models", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    (row,) = document["library"]
    assert {"path", "kind", "name", "architecture", "scheme", "size", "found_by"} <= set(row)
    assert (row["path"], row["size"], row["scheme"]) == (str(own / "a.gguf"), 4, "?")
    verdicts = {known["id"]: (known["verdict"], known["reason"]) for known in document["catalogue"]}
    assert verdicts["microsoft/phi-4"][0] == "convertible"
    assert verdicts["microsoft/Phi-3-small-8k-instruct"][0] == "unsupported"
    assert "blocksparse" in verdicts["microsoft/Phi-3-small-8k-instruct"][1]


def test_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models"]) == 0
    shown = capsys.readouterr().out
    assert "nothing yet" in shown
    assert "microsoft/Phi-4-mini-instruct" in shown


def test_without_plugins(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PHITUI_PLUGINS", "")
    assert main(["models", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"library": [], "catalogue": []}
