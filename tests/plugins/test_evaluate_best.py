"""`phitui build --scheme best` and the figures in `phitui schemes`, with the real quantizer, evaluator and jobs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("llama_cpp")
pytest.importorskip("gguf")

from phitui.__main__ import main
from phitui.testing.bytewise import write_bytewise


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PHITUI_PLUGINS", "convert,quantize,evaluate")
    return write_bytewise(tmp_path / "tiny-F32.gguf")


def phitui(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> Any:
    assert main([*arguments, "--json"]) == code
    return json.loads(capsys.readouterr().out)


def test_measured_chosen_built_and_listed(model: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    bars = ("--scheme", "best", "--max-kld", "0.01", "--among", "Q8_0,Q4_0,Q5_0")
    error = phitui(capsys, "build", str(model), *bars, code=1)["error"]
    assert "nothing was measured yet" in error["message"]
    assert "--measure" in error["hint"]

    out = tmp_path / "best.gguf"
    result = phitui(capsys, "build", str(model), *bars, "--measure", "--chunks", "2", "--out", str(out))
    found = {candidate["scheme"]: candidate["kld_mean"] for candidate in result["best"]["candidates"]}
    good = [name for name in ("Q4_0", "Q5_0", "Q8_0") if found[name] is not None and found[name] < 0.009]
    assert result["scheme"] == good[0]
    assert 0 < found["Q8_0" if found["Q8_0"] is not None else "Q5_0"] < 0.01
    assert out.stat().st_size == result["size"]
    assert "KLD" in result["best"]["explanation"][0]
    assert "best" in phitui(capsys, "jobs", "show", result["job"])["argv"]

    rows = {row["scheme"]: row for row in phitui(capsys, "schemes", str(model))["schemes"]}
    figure = rows[result["scheme"]]["figure"]
    assert figure["kld_mean"] == result["best"]["kld_mean"]
    assert figure["quality"]["facts"]["chunks"] == "2"
    assert figure["quality"]["reference"] == model.name
    assert rows["F32"]["figure"]["is_reference"]
    assert main(["schemes", str(model)]) == 0
    shown = capsys.readouterr().out
    assert "just now" in shown or "min ago" in shown
    assert "compared with tiny-F32.gguf" in shown

    again = phitui(capsys, "build", str(model), *bars, "--dry-run")
    assert (again["scheme"], again["best"]["scheme"]) == (result["scheme"], result["scheme"])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--scheme", "best"], "needs to know what is good enough"),
        (["--scheme", "best", "--max-size", "huge"], "is no size"),
        (["--scheme", "Q8_0", "--max-kld", "0.1"], "--max-kld goes with --scheme best"),
        (["--scheme", "best", "--max-kld", "0.1", "--among", "Q99"], "there is no scheme"),
        (["--scheme", "best", "--max-kld", "0.1", "--measure", "--dry-run"], "exclude each other"),
    ],
)
def test_mistakes(model: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str) -> None:
    error = phitui(capsys, "build", str(model), *arguments, code=2)["error"]
    assert words in error["message"]
    assert error["hint"]
