"""A job that was killed after the rename, but before it could say so, is done when it is resumed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from phitui.actions import build
from phitui.actions.context import Context
from phitui.errors import PhituiError, UsageError
from phitui.testing.checkpoints import write_checkpoint


class Silent:
    """A job context that only keeps notes."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def progress(self, done: int, total: int, text: str = "") -> None: ...
    def check(self) -> None: ...
    def note(self, text: str) -> None:
        self.notes.append(text)


@pytest.fixture
def request_(tmp_path: Path, context: Context) -> dict[str, Any]:
    source = write_checkpoint(tmp_path / "tiny")
    asked = build.normalized(context, build.BuildRequest(str(source), "BF16", str(tmp_path / "tiny.gguf")))
    values: dict[str, Any] = json.loads(json.dumps(asked.__dict__))
    return values


def test_resumed_after_the_rename_is_done(request_: dict[str, Any]) -> None:
    first = build.run(request_, Silent())
    out = Path(first["path"])
    stamp = out.stat().st_mtime_ns
    job = Silent()
    again = build.run(request_, job)
    assert again["size"] == again["resumed_bytes"] == first["size"]
    assert out.stat().st_mtime_ns == stamp, "the file was not written again"
    assert any("complete" in note for note in job.notes)


@pytest.mark.parametrize("damage", ["other", "shorter"])
def test_another_file_of_that_name_is_not_taken_for_it(request_: dict[str, Any], damage: str) -> None:
    out = Path(build.run(request_, Silent())["path"])
    data = out.read_bytes()
    out.write_bytes(b"X" + data[1:] if damage == "other" else data[:-1])
    with pytest.raises((UsageError, PhituiError), match=r"there already|exists"):
        build.run(request_, Silent())
