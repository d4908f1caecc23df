"""`phitui jobs` and the follower of foreground commands."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from phitui.__main__ import main
from phitui.actions import jobs as actions
from phitui.actions.context import Context
from phitui.cli.follow import _Screen, duration, follow_job, progress_text
from phitui.errors import Cancelled, PhituiError
from phitui.jobs import Event, Job, Progress

CLI = [sys.executable, "-m", "phitui", "jobs"]


def start(context: Context, task: str, request: dict[str, Any] | None = None) -> Job:
    return actions.jobs(context).start("test", f"phitui.testing.tasks:{task}", request or {}, f"Test {task}")


def ended(context: Context, task: str, request: dict[str, Any] | None = None) -> Job:
    return actions.wait_job(context, start(context, task, request).id, 20)


def document(capsys: pytest.CaptureFixture[str]) -> Any:
    return json.loads(capsys.readouterr().out)


def test_nothing_yet(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["jobs"]) == 0
    assert "no jobs yet" in capsys.readouterr().out
    assert main(["jobs", "list", "--json"]) == 0
    assert document(capsys) == {"jobs": []}


def test_list_shows_state_and_title(context: Context, capsys: pytest.CaptureFixture[str]) -> None:
    job = ended(context, "count", {"steps": 3})
    for arguments in (["jobs"], ["jobs", "list"]):
        assert main(arguments) == 0
        shown = capsys.readouterr().out
        assert job.id in shown and "done" in shown and "100 %" in shown and "Test count" in shown
    assert main(["jobs", "--json"]) == 0
    assert [entry["id"] for entry in document(capsys)["jobs"]] == [job.id]


def test_show_keeps_the_contract(context: Context, capsys: pytest.CaptureFixture[str]) -> None:
    job = ended(context, "count", {"steps": 3})
    assert main(["jobs", "show", job.id, "--json"]) == 0
    shown = document(capsys)
    assert {"id", "state", "pid", "request", "progress", "error"} <= set(shown)
    assert (shown["state"], shown["request"], shown["pid"], shown["error"]) == ("done", {"steps": 3}, None, None)
    assert shown["progress"]["done"] == shown["progress"]["total"] == 3
    assert main(["jobs", "show", job.id]) == 0
    text = capsys.readouterr().out
    assert "Test count" in text and str(job.directory) in text


def test_json_counts_wherever_it_stands(context: Context, capsys: pytest.CaptureFixture[str]) -> None:
    job = ended(context, "echo")
    assert main(["jobs", "--json", "show", job.id]) == 0
    assert document(capsys)["id"] == job.id


def test_titles_cannot_move_the_cursor(context: Context, capsys: pytest.CaptureFixture[str]) -> None:
    job = actions.jobs(context).start("t", "phitui.testing.tasks:echo", {"x": "\x1b[2J"}, "evil \x1b]0;x\x07")
    actions.wait_job(context, job.id, 20)
    main(["jobs"])
    main(["jobs", "show", job.id])
    assert "\x1b" not in capsys.readouterr().out


@pytest.mark.parametrize(("how", "state"), [("expected", "failed"), ("hard exit", "interrupted")])
def test_wait_for_a_failure_exits_1(context: Context, capsys: pytest.CaptureFixture[str], how: str, state: str) -> None:
    job = start(context, "fail", {"how": how})
    assert main(["jobs", "wait", job.id]) == 1
    captured = capsys.readouterr()
    assert captured.out == "" and "error: " in captured.err and "try: " in captured.err
    assert main(["jobs", "wait", job.id, "--json"]) == 1
    shown = document(capsys)
    assert shown["state"] == state and shown["error"]["message"] and shown["error"]["hint"]


def test_wait_for_a_good_end_exits_0_with_progress_on_stderr(
    context: Context, capsys: pytest.CaptureFixture[str]
) -> None:
    job = start(context, "count", {"steps": 5, "pause": 0.1})
    assert main(["jobs", "wait", job.id, "--json"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["result"] == {"first": 0, "steps": 5}
    assert "/ 5" in captured.err


def test_cancel_then_wait_exits_130(context: Context, capsys: pytest.CaptureFixture[str]) -> None:
    job = start(context, "count", {"steps": 1000, "pause": 0.05})
    assert main(["jobs", "cancel", job.id, "--json"]) == 0
    assert document(capsys)["state"] == "cancelled"
    assert main(["jobs", "cancel", job.id]) == 0
    assert main(["jobs", "wait", job.id, "--json"]) == 130
    assert main(["jobs", "wait", job.id]) == 130
    assert f"phitui jobs resume {job.id}" in capsys.readouterr().err


def test_resume(context: Context, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    job = start(context, "count", {"steps": 20, "pause": 0.05, "memory": str(tmp_path / "memory")})
    actions.cancel_job(context, job.id)
    assert main(["jobs", "resume", job.id, "--detach", "--json"]) == 0
    assert document(capsys)["attempt"] == 2
    assert main(["jobs", "resume", job.id, "--json"]) == 1
    assert "it is running" in document(capsys)["error"]["message"]
    actions.cancel_job(context, job.id)
    assert main(["jobs", "resume", job.id, "--json"]) == 0
    shown = document(capsys)
    assert (shown["state"], shown["attempt"]) == ("done", 3)


def test_log(context: Context, capsys: pytest.CaptureFixture[str]) -> None:
    job = start(context, "chatter")
    assert main(["jobs", "log", job.id, "-f"]) == 0
    assert "from print\nfrom native code\n" in capsys.readouterr().out
    assert main(["jobs", "log", job.id, "--json"]) == 0
    assert "from native code" in document(capsys)["log"]


@pytest.mark.parametrize("more", [[], ["--json"]])
def test_a_job_that_finds_the_request_wrong_exits_2(context: Context, more: list[str]) -> None:
    job = ended(context, "fail", {"how": "usage"})
    assert main(["jobs", "wait", job.id, *more]) == 2


def test_remove_all_that_have_ended(context: Context, capsys: pytest.CaptureFixture[str]) -> None:
    gone = [ended(context, "echo"), ended(context, "fail", {"how": "expected"})]
    running = start(context, "sleep", {"seconds": 60})
    assert main(["jobs", "remove", "--ended", "--json"]) == 0
    assert {entry["id"] for entry in document(capsys)["removed"]} == {job.id for job in gone}
    assert [job.id for job in actions.list_jobs(context)] == [running.id]
    actions.cancel_job(context, running.id)
    assert main(["jobs", "remove"]) == 2


def test_remove(context: Context, capsys: pytest.CaptureFixture[str]) -> None:
    job = ended(context, "echo")
    assert main(["jobs", "remove", job.id]) == 0
    assert main(["jobs", "show", job.id]) == 1
    assert "there is no job" in capsys.readouterr().err


@pytest.mark.parametrize("verb", ["show", "log", "wait", "cancel", "resume", "remove"])
def test_an_unknown_job_is_one_json_error(capsys: pytest.CaptureFixture[str], verb: str) -> None:
    assert main(["jobs", verb, "nothing", "--json"]) == 1
    assert document(capsys)["error"]["hint"] == "phitui jobs list"


def test_a_verb_without_an_id_is_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["jobs", "wait"]) == 2


def on_terminal(arguments: list[str]) -> tuple[subprocess.Popen[bytes], int]:
    controller, terminal = pty.openpty()
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "60"}
    process = subprocess.Popen(CLI + arguments, stdin=terminal, stdout=terminal, stderr=terminal, env=environment)
    os.close(terminal)
    return process, controller


def painted(controller: int, until: bytes) -> bytes:
    seen = b""
    end = time.monotonic() + 15
    while until not in seen and time.monotonic() < end:
        try:
            seen += os.read(controller, 4096)
        except OSError:
            break
    return seen


def test_ctrl_c_in_a_foreground_command_cancels_the_job(context: Context) -> None:
    job = ended(context, "fail", {"how": "expected"})
    request = json.loads((job.directory / "request.json").read_text())
    request |= {"task": "phitui.testing.tasks:count", "request": {"steps": 1000, "pause": 0.05}}
    (job.directory / "request.json").write_text(json.dumps(request))
    process, controller = on_terminal(["resume", job.id])
    assert b"\r" in painted(controller, b"/ 1000")
    process.send_signal(signal.SIGINT)
    assert b"cancelling" in painted(controller, b"was cancelled")
    assert process.wait(10) == 130
    os.close(controller)
    assert actions.get_job(Context(), job.id).state == "cancelled"


def test_ctrl_c_in_wait_leaves_the_job_running(context: Context) -> None:
    job = start(context, "count", {"steps": 1000, "pause": 0.05})
    process, controller = on_terminal(["wait", job.id])
    painted(controller, b"/ 1000")
    process.send_signal(signal.SIGINT)
    assert process.wait(10) == 130
    os.close(controller)
    assert actions.get_job(context, job.id).live
    actions.cancel_job(context, job.id)


def test_follow_returns_the_job_whatever_its_end(context: Context) -> None:
    assert follow_job(context, start(context, "echo").id).state == "done"
    assert follow_job(context, start(context, "fail", {"how": "expected"}).id, as_json=True).state == "failed"


def test_outcome_turns_an_end_into_a_result_or_an_error(context: Context) -> None:
    assert actions.outcome(ended(context, "count", {"steps": 1})) == {"first": 0, "steps": 1}
    with pytest.raises(PhituiError, match="cheese") as failed:
        actions.outcome(ended(context, "fail", {"how": "expected"}))
    assert failed.value.hint == "buy another"
    with pytest.raises(Cancelled):
        actions.outcome(actions.cancel_job(context, start(context, "sleep", {"seconds": 60}).id))


@pytest.mark.parametrize(
    ("progress", "text"),
    [
        (Progress(), ""),
        (Progress(0, 0, "reading"), "reading"),
        (Progress(3, 12, "layer 3", 1.5, 6.0), "25 %  3 / 12  6 s left  layer 3"),
        (Progress(1 << 30, 1 << 31, "x", 1 << 20, 1024.0), "50 %  1.00 GiB / 2.00 GiB  1.00 MiB/s  17 min 4 s left  x"),
        (Progress(5, 4, "\x1b[2J"), "100 %  5 / 4  \\x1b[2J"),
    ],
)
def test_progress_for_people(progress: Progress, text: str) -> None:
    assert progress_text(progress) == text


@pytest.mark.parametrize(("seconds", "text"), [(3.6, "4 s"), (200, "3 min 20 s"), (7500, "2 h 5 min")])
def test_duration_for_people(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_a_line_never_wraps_on_a_narrow_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    screen = _Screen(terminal=True)
    screen.show(Event(0.0, "progress", progress=Progress(1, 2, "a very long text that goes on and on")))
    screen.clear()
    assert capsys.readouterr().err == "\r50 %  1 / 2  a very\r"  # escapes are left out where there is no terminal
