"""The plugin author's guide is true: every hook is described, and its example works."""

from __future__ import annotations

import inspect
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from phitui import hookspecs

GUIDE = Path(__file__).parent.parent.parent / "plugins" / "README.md"
HOOKS = {
    name: function
    for name, function in inspect.getmembers(hookspecs, inspect.isfunction)
    if name.startswith("phitui_") and hasattr(function, "phitui_spec")
}


@pytest.mark.parametrize("hook", HOOKS)
def test_every_hook_is_described_with_its_arguments(hook: str) -> None:
    arguments = ", ".join(inspect.signature(HOOKS[hook]).parameters)
    assert f"### {hook}({arguments})" in GUIDE.read_text()


def test_no_hook_is_described_that_does_not_exist() -> None:
    assert set(re.findall(r"^### (phitui_\w+)\(", GUIDE.read_text(), re.M)) == set(HOOKS)


def test_the_example_works(tmp_path: Path) -> None:
    code = re.search(r"<!-- example: (\S+) -->\n```python\n(.*?)```", GUIDE.read_text(), re.S)
    assert code
    (tmp_path / code[1]).write_text(code[2])
    info = tmp_path / "phitui_plain-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: phitui-plain\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[phitui.plugins]\nplain = phitui_plain\n")
    result = subprocess.run(
        [sys.executable, "-m", "phitui", "plugins", "--json"],
        env=os.environ | {"PYTHONPATH": str(tmp_path), "PHITUI_PLUGINS": "plain"},
        capture_output=True,
        text=True,
        check=True,
    )
    report = json.loads(result.stdout)
    assert report["failures"] == []
    assert report["plugins"][0]["offers"][0]["name"] == "plain"
