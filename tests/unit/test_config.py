"""Configuration: defaults, typos with the line, and where things are."""

from __future__ import annotations

from pathlib import Path

import pytest

from phitui import config
from phitui.errors import PhituiError


def write(home: Path, text: str) -> Path:
    file = config.paths().config_file
    file.parent.mkdir(parents=True)
    file.write_text(text)
    return file


def test_defaults_without_a_file(home: Path) -> None:
    assert config.load().folders == ()
    assert config.paths().jobs == home / "phitui" / "state" / "jobs"


def test_values(home: Path) -> None:
    write(home, 'folders = ["/models"]\nthreads = 4\n')
    loaded = config.load()
    assert loaded.folders == ("/models",)
    assert loaded.threads == 4
    assert config.plugin_folders() == (config.paths().models, Path("/models"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("threads = = 4", r"config\.toml: .*line 1"),
        ("fodlers = []", "fodlers"),
        ("threads = 0", "out of range"),
        ('threads = "many"', "threads"),
    ],
)
def test_mistakes_are_named(home: Path, text: str, message: str) -> None:
    write(home, text)
    with pytest.raises(PhituiError, match=message):
        config.load()


def test_modelfiles_are_found() -> None:
    assert config.modelfiles().is_dir()
