"""Starting, looking at, following and removing jobs: with real detached processes."""

from __future__ import annotations

import json
import os
import stat
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from phitui.errors import PhituiError, UsageError
from phitui.jobs import Event, Job, Jobs, journal

TASKS = "phitui.testing.tasks:"


@pytest.fixture
def jobs(tmp_path: Path) -> Jobs:
    return Jobs(tmp_path / "state" / "jobs")


def start(jobs: Jobs, task: str, request: dict[str, Any] | None = None, **more: Any) -> Job:
    return jobs.start("test", TASKS + task, request or {}, f"Test {task}", **more)


def make_ended(jobs: Jobs, name: str, created: float = 1.0, **request: Any) -> Path:
    """A job as if it had run long ago."""
    directory = jobs.directory / name
    directory.mkdir(parents=True)
    values = {"id": name, "kind": "test", "title": name, "task": TASKS + "echo", "created": created, "request": request}
    journal.write_request(directory, values)
    (directory / "lock").touch()
    done = {"time": created, "type": "state", "state": "done", "attempt": 1, "started": created, "result": {"n": 1}}
    (directory / "events.jsonl").write_text(json.dumps(done) + "\n")
    return directory


def test_a_job_runs_apart_and_tells_its_result(jobs: Jobs) -> None:
    job = start(jobs, "echo", {"a": "é"}, argv=["phitui", "echo"])
    assert job.live and job.request == {"a": "é"} and job.argv == ("phitui", "echo")
    ended = jobs.wait(job.id, 20)
    assert ended.state == "done" and ended.pid is None and ended.error is None
    assert ended.result is not None
    assert ended.result["request"] == {"a": "é"}
    assert ended.result["cwd"] == "/"
    assert ended.result["sid"] == ended.result["pid"] != os.getpid()
    assert ended.started and ended.finished and ended.created <= ended.started <= ended.finished


def test_files_are_private(jobs: Jobs) -> None:
    job = jobs.wait(start(jobs, "echo").id, 20)
    assert stat.S_IMODE(job.directory.stat().st_mode) == 0o700
    assert stat.S_IMODE(jobs.directory.stat().st_mode) == 0o700
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in job.directory.iterdir()}
    assert modes == dict.fromkeys(("request.json", "events.jsonl", "log", "lock"), 0o600)


def test_progress_is_thinned_but_its_end_is_kept(jobs: Jobs) -> None:
    job = start(jobs, "count", {"steps": 100, "pause": 0.01})
    events = list(jobs.follow(job.id))
    seen = [event.progress.done for event in events if event.progress]
    took = jobs.get(job.id)
    assert took.started and took.finished
    assert 2 <= len(seen) <= (took.finished - took.started) * 5 + 3
    assert seen == sorted(seen) and seen[-1] == 100
    rates = [event.progress.rate for event in events if event.progress][1:]
    assert all(rate > 0 for rate in rates)


def test_log_holds_stdout_stderr_and_native_output_and_notes(jobs: Jobs) -> None:
    job = jobs.wait(start(jobs, "chatter").id, 20)
    log = jobs.log(job.id)
    assert "from print\n" in log and "from native code\n" in log
    noted = jobs.wait(start(jobs, "echo").id, 20)
    assert "hello" in jobs.log(noted.id)
    assert jobs.log(noted.id, last_bytes=6) == "hello\n"
    assert "".join(jobs.follow_log(noted.id)) == jobs.log(noted.id)


def test_follow_gives_every_event_and_ends(jobs: Jobs) -> None:
    job = start(jobs, "echo")
    events = list(jobs.follow(job.id))
    assert [event.state or event.text for event in events] == ["queued", "running", "hello", "done"]
    assert events[-1].result is not None
    assert [event.state for event in jobs.follow(job.id, new_only=True)] == ["done"]


def test_two_viewers_see_the_same(jobs: Jobs) -> None:
    job = start(jobs, "count", {"steps": 20, "pause": 0.02})
    seen: dict[int, list[Event]] = {}
    viewers = [Jobs(jobs.directory), Jobs(jobs.directory)]
    threads = [
        threading.Thread(target=lambda n=n, v=v: seen.update({n: list(v.follow(job.id))}))
        for n, v in enumerate(viewers)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert seen[0] == seen[1] and seen[0][-1].state == "done"


def test_expected_failures_keep_message_and_hint(jobs: Jobs) -> None:
    job = jobs.wait(start(jobs, "fail", {"how": "expected"}).id, 20)
    assert job.state == "failed"
    assert job.error == {"message": "the disk is made of cheese", "hint": "buy another"}
    assert "Traceback" not in jobs.log(job.id)


@pytest.mark.parametrize(("how", "word"), [("unexpected", "surprise"), ("exit", "3")])
def test_unexpected_failures_leave_the_traceback_in_the_log(jobs: Jobs, how: str, word: str) -> None:
    job = jobs.wait(start(jobs, "fail", {"how": how}).id, 20)
    assert job.state == "failed" and job.error is not None
    assert word in job.error["message"]
    assert str(job.directory / "log") in job.error["hint"]
    assert "Traceback" not in json.dumps(job.error)
    assert "Traceback" in jobs.log(job.id)


def test_a_task_that_does_not_exist_is_a_failure(jobs: Jobs) -> None:
    assert jobs.wait(start(jobs, "nothing").id, 20).state == "failed"
    job = jobs.start("test", "phitui.actions.nothing:run", {}, "x")
    assert jobs.wait(job.id, 20).state == "failed"


@pytest.mark.parametrize(
    "task", ["os:system", "phitui.jobs.runner:main", "phitui.actions:x", "phitui.actions.a:b.c", ""]
)
def test_only_actions_are_tasks(jobs: Jobs, task: str) -> None:
    with pytest.raises(UsageError):
        jobs.start("test", task, {}, "x")
    assert jobs.list() == []


def test_the_runner_refuses_a_request_that_names_another_function(jobs: Jobs, tmp_path: Path) -> None:
    directory = make_ended(jobs, "1abc")
    values = json.loads((directory / "request.json").read_text()) | {"task": "os:abort"}
    (directory / "request.json").write_text(json.dumps(values))
    journal.write_state(directory, state="failed", attempt=1, error={"message": "x", "hint": ""})
    job = jobs.wait(jobs.resume("1abc").id, 20)
    assert job.state == "failed" and job.error and "not a task" in job.error["message"]


def test_a_request_must_be_json_and_leaves_nothing_if_not(jobs: Jobs) -> None:
    with pytest.raises(UsageError):
        start(jobs, "echo", {"path": Path("/")})
    assert [path.name for path in jobs.directory.iterdir()] == [".start"]


def test_an_unwritable_place_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(PhituiError, match="cannot keep jobs"):
        start(Jobs(tmp_path / "file" / "jobs"), "echo")


def test_the_same_work_twice_is_one_job(jobs: Jobs) -> None:
    first = start(jobs, "sleep", {"seconds": 60}, key="/out.gguf")
    assert start(jobs, "sleep", {"seconds": 60}, key="/out.gguf").id == first.id
    with pytest.raises(PhituiError, match=r"already working on /out\.gguf"):
        start(jobs, "sleep", {"seconds": 61}, key="/out.gguf")
    other = start(jobs, "sleep", {"seconds": 60}, key="/other.gguf")
    assert other.id != first.id
    jobs.cancel(first.id)
    again = start(jobs, "sleep", {"seconds": 60}, key="/out.gguf")
    assert again.id != first.id
    with pytest.raises(PhituiError, match=rf"job {again.id} .* is already working"):
        jobs.resume(first.id)
    jobs.cancel(other.id)
    jobs.cancel(again.id)
    assert jobs.resume(first.id).id == first.id
    jobs.cancel(first.id)


def test_resume_goes_on_where_the_task_stopped(jobs: Jobs, tmp_path: Path) -> None:
    job = start(jobs, "count", {"steps": 30, "pause": 0.05, "memory": str(tmp_path / "memory")})
    while not (tmp_path / "memory").exists():
        time.sleep(0.02)
    assert jobs.cancel(job.id).state == "cancelled"
    assert jobs.resume(job.id).attempt == 2
    with pytest.raises(PhituiError, match=r"cannot resume .* it is running"):
        jobs.resume(job.id)
    ended = jobs.wait(job.id, 20)
    assert ended.state == "done" and ended.result and ended.result["first"] > 0
    with pytest.raises(PhituiError, match="is done"):
        jobs.resume(job.id)
    states = [event.state for event in jobs.follow(job.id) if event.state]
    assert states == ["queued", "running", "cancelled", "queued", "running", "done"]


def test_cancel_before_the_task_begins(jobs: Jobs) -> None:
    job = start(jobs, "sleep", {"seconds": 60})
    assert jobs.cancel(job.id).state == "cancelled"


def test_cancel_of_an_ended_job_changes_nothing(jobs: Jobs) -> None:
    job = jobs.wait(start(jobs, "echo").id, 20)
    assert jobs.cancel(job.id) == job


def test_wait_returns_a_running_job_after_its_timeout(jobs: Jobs) -> None:
    job = start(jobs, "sleep", {"seconds": 60})
    assert jobs.wait(job.id, 0.3).live
    jobs.cancel(job.id)


def test_remove_only_after_the_end(jobs: Jobs) -> None:
    job = start(jobs, "sleep", {"seconds": 60})
    with pytest.raises(PhituiError, match="cannot remove"):
        jobs.remove(job.id)
    jobs.cancel(job.id)
    jobs.remove(job.id)
    assert jobs.list() == [] and not job.directory.exists()
    with pytest.raises(PhituiError, match="there is no job"):
        jobs.get(job.id)


def test_ids_may_be_shortened_while_unique(jobs: Jobs) -> None:
    make_ended(jobs, "1aaaaaaabb")
    make_ended(jobs, "1aaaaaaacd")
    make_ended(jobs, "1abbbbbbxy")
    assert jobs.get("1ab").id == "1abbbbbbxy"
    assert jobs.get("CD").id == "1aaaaaaacd"
    with pytest.raises(UsageError, match="2 jobs match"):
        jobs.get("1aa")


@pytest.mark.parametrize("name", ["", "..", "../x", "/etc", "a b", "zzz", ".keys", "*"])
def test_unknown_ids_are_a_clear_error(jobs: Jobs, name: str) -> None:
    make_ended(jobs, "1aaaaaaabb")
    with pytest.raises(PhituiError, match="there is no job"):
        jobs.get(name)


def test_no_jobs_yet(jobs: Jobs) -> None:
    assert jobs.list() == []
    assert not jobs.directory.exists()


def test_list_is_newest_first_and_skips_what_is_no_job(jobs: Jobs) -> None:
    for number in range(3):
        make_ended(jobs, f"1a{number}", created=float(number))
    (jobs.directory / "stray").mkdir()
    broken = make_ended(jobs, "1b")
    (broken / "request.json").write_text("{")
    assert [job.id for job in jobs.list()] == ["1a2", "1a1", "1a0"]


def test_a_thousand_jobs_are_listed_quickly(jobs: Jobs) -> None:
    for number in range(1000):
        make_ended(jobs, f"1z{number:04}", created=float(number))
    begin = time.perf_counter()
    assert len(jobs.list()) == 1000
    cold = time.perf_counter() - begin
    begin = time.perf_counter()
    assert len(jobs.list()) == 1000
    warm = time.perf_counter() - begin
    assert cold < 2.0 and warm < 0.5  # about 0.1 and 0.02 on the reference machine


def test_a_looker_sees_changes_made_by_others(jobs: Jobs) -> None:
    job = start(jobs, "sleep", {"seconds": 60})
    assert jobs.list()[0].live
    Jobs(jobs.directory).cancel(job.id)
    assert jobs.list()[0].state == "cancelled"
    Jobs(jobs.directory).remove(job.id)
    assert jobs.list() == []


def test_many_threads_may_look_at_once(jobs: Jobs) -> None:
    job = start(jobs, "count", {"steps": 20, "pause": 0.02})
    problems: list[BaseException] = []

    def look() -> None:
        try:
            while jobs.list()[0].live:
                pass
        except BaseException as error:
            problems.append(error)

    threads = [threading.Thread(target=look) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert not problems and jobs.get(job.id).state == "done"


def test_left_overs_of_a_crash_are_cleared(jobs: Jobs) -> None:
    for name in (".1aaaaaaaaa", ".1aaaaaaaab.removed"):
        (jobs.directory / name).mkdir(parents=True)
    job = start(jobs, "echo")
    jobs.wait(job.id, 20)
    assert {path.name for path in jobs.directory.iterdir()} == {job.id, ".start"}
