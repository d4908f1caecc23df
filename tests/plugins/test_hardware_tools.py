"""Tools that hang, flood, crash or leave children behind cost their time limit and give a sentence."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from phitui_hardware import tools


@pytest.fixture
def tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")

    def make(script: str, name: str = "some-tool") -> str:
        file = tmp_path / name
        file.write_text(f"#!/bin/sh\n{script}\n")
        file.chmod(0o755)
        return name

    return make


def test_what_a_tool_says(tool) -> None:  # type: ignore[no-untyped-def]
    assert tools.run([tool("echo one; echo two")]) == tools.Said("one\ntwo\n")
    assert tools.run([tool('echo "$1 $LC_ALL"'), "-x"]).output == "-x C\n"
    assert tools.run([tool("cat")]).output == ""


def test_a_tool_that_is_not_there_is_no_trouble(tool) -> None:  # type: ignore[no-untyped-def]
    said = tools.run(["no-such-tool-here"])
    assert (said.found, said.trouble) == (False, "")
    assert said.problem == "no-such-tool-here is not installed"


def test_a_tool_that_fails_keeps_its_words(tool) -> None:  # type: ignore[no-untyped-def]
    said = tools.run([tool("echo because >&2; exit 9")])
    assert said.output == "because"
    assert said.trouble == "some-tool failed with exit code 9"


def test_a_file_that_is_no_program(tool, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    name = tool("")
    (tmp_path / name).write_bytes(b"\x7fELF nonsense")
    assert "cannot be started" in tools.run([name]).trouble


@pytest.mark.parametrize(
    "script",
    ["sleep 60", "sleep 60 & sleep 60", "trap '' TERM INT HUP; echo half; sleep 60; sleep 60"],
    ids=["hangs", "with a child that holds its output", "ignores signals"],
)
def test_a_tool_that_hangs_costs_its_limit(tool, script: str) -> None:  # type: ignore[no-untyped-def]
    began = time.monotonic()
    said = tools.run([tool(script)], 0.3)
    assert time.monotonic() - began < 1.0
    assert said.trouble == "some-tool gave no answer within 0.3 s"


def test_a_child_left_behind_does_not_delay_the_answer(tool) -> None:  # type: ignore[no-untyped-def]
    began = time.monotonic()
    assert tools.run([tool("sleep 60 & echo done")], 5).output == "done\n"
    assert time.monotonic() - began < 1.0


def test_a_tool_that_floods_is_stopped(tool) -> None:  # type: ignore[no-untyped-def]
    began = time.monotonic()
    said = tools.run([tool("yes")], 5)
    assert time.monotonic() - began < 3
    assert said.trouble == "some-tool wrote more than 1 MiB and was stopped"
    assert len(said.output) < 4 * tools.MOST_OUTPUT
