"""A new plugin with one offer of each kind: its own tests pass, and everything of it works in phitui unchanged."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from phitui.actions import scaffold
from phitui.actions.context import Context
from phitui.testing.scripted import write_scripted


@pytest.fixture
def package(context: Context, tmp_path: Path) -> Path:
    """The package with an offer of each kind, and beside it what pip install would have left."""
    made = scaffold.new_plugin(context, "my-tool", tuple(scaffold.KINDS), tmp_path / "package")
    project = tomllib.loads((made.directory / "pyproject.toml").read_text())["project"]
    info = made.directory / f"{made.module}-{project['version']}.dist-info"
    info.mkdir()
    version = f"Version: {project['version']}"
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\n{version}\n")
    points = "\n".join(f"{name} = {value}" for name, value in project["entry-points"]["phitui.plugins"].items())
    (info / "entry_points.txt").write_text(f"[phitui.plugins]\n{points}\n")
    return made.directory


def phitui(package: Path, *words: str, **more: str) -> Any:
    environment = os.environ | {"PYTHONPATH": str(package)} | more
    command = [sys.executable, "-m", "phitui", *words]
    result = subprocess.run(
        command, cwd=package.parent, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return json.loads(result.stdout) if "--json" in words else result.stdout


def test_its_own_tests_pass(package: Path) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    result = subprocess.run(
        command, cwd=package, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert result.returncode == 0, result.stdout
    assert "skipped" not in result.stdout


def test_it_is_loaded_with_all_offers(package: Path) -> None:
    report = phitui(package, "plugins", "--json")
    assert report["failures"] == []
    mine = next(plugin for plugin in report["plugins"] if plugin["name"] == "my-tool")
    assert not mine["first_party"] and mine["version"] == "0.1.0"
    assert sorted(offer["hook"] for offer in mine["offers"]) == sorted(f"{kind}s" for kind in scaffold.KINDS)
    assert all(offer["ok"] and offer["name"] == "my-tool" for offer in mine["offers"])


def test_its_name_is_taken_then(package: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "phitui", "plugins", "new", "my-tool", "--dir", str(tmp_path / "again")]
    for chosen in ({}, {"PHITUI_PLUGINS": ""}):
        environment = os.environ | {"PYTHONPATH": str(package)} | chosen
        result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
        assert result.returncode == 2
        assert "an installed plugin is already named 'my-tool'" in result.stderr


def test_export_evaluate_chat_find_and_greet(package: Path, tmp_path: Path) -> None:
    (tmp_path / "shelf").mkdir()
    model = str(write_scripted(tmp_path / "shelf" / "parrot.gguf", "Paris"))
    preview = phitui(package, "export", model, "--to", "my-tool", "--port", "9000", "--preview")
    assert "llama-server -m" in preview and "--port 9000" in preview
    measured = phitui(package, "eval", model, "--evaluator", "my-tool", "--json")
    assert measured["bytes_per_parameter"] == 4.0
    answer = phitui(package, "chat", model, "--engine", "my-tool", "-p", "say it again", "--json")
    assert answer["text"] == "say it again" and answer["finish_reason"] == "stop"
    shelf = {"MY_TOOL_MODELS": str(tmp_path / "shelf")}
    found = phitui(package, "models", "--json", **shelf)
    assert [artifact["found_by"] for artifact in found["library"]] == ["my-tool"]
    assert any(known["id"] == "example/my-tool-1b" for known in found["catalogue"])
    assert phitui(package, "my-tool", "--greeting", "Moin", **shelf) == "Moin! 1 model on this machine.\n"
    assert phitui(package, "my-tool", "--json", **shelf) == {"greeting": "Hello", "models": 1}


def test_convert_and_quantize(package: Path, tmp_path: Path) -> None:
    """The made-up architecture, by the plugin's converter and scheme, in a detached job."""
    code = (
        "import sys; from pathlib import Path; sys.path[:0] = ['tests']; import test_converter as t;"
        "t.write(Path(sys.argv[1]), t.CONFIG)"
    )
    checkpoint, out = tmp_path / "tiny", tmp_path / "tiny.gguf"
    subprocess.run([sys.executable, "-c", code, str(checkpoint)], cwd=package, check=True, timeout=60)
    words = ("--scheme", "my_tool_f16", "--keep-f32", "embed", "--name", "Mine", "--out", str(out), "--json")
    built = phitui(package, "build", str(checkpoint), *words)
    assert built["scheme"] == "MY_TOOL_F16"
    shown = phitui(package, "gguf", "show", str(out), "--json")
    assert "Mine" in json.dumps(shown)
    assert out.stat().st_size == built["size"]
