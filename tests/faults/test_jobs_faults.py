"""What can happen to a job's process, its starter and its files: each with real detached processes."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import pty
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from phitui.errors import PhituiError
from phitui.jobs import Job, Jobs, journal, launch, lock

TASKS = "phitui.testing.tasks:"
STARTER = """
import sys, json
from pathlib import Path
from phitui.jobs import Jobs
jobs = Jobs(Path(sys.argv[1]))
job = jobs.start("test", "phitui.testing.tasks:" + sys.argv[2], json.loads(sys.argv[3]), "x", key=sys.argv[4])
print(job.id, flush=True)
"""


@pytest.fixture
def jobs(tmp_path: Path) -> Iterator[Jobs]:
    jobs = Jobs(tmp_path / "jobs")
    yield jobs
    for job in jobs.list():
        if job.live:
            jobs.cancel(job.id)


def start(jobs: Jobs, task: str, request: dict[str, Any] | None = None, **more: Any) -> Job:
    return jobs.start("test", TASKS + task, request or {}, f"Test {task}", **more)


def started(jobs: Jobs, task: str, request: dict[str, Any] | None = None) -> Job:
    """A job whose task is running."""
    job = start(jobs, task, request)
    for _ in range(400):
        job = jobs.get(job.id)
        if job.state == "running" and "attempt" in jobs.log(job.id):
            time.sleep(0.1)
            return job
        time.sleep(0.02)
    raise AssertionError(job)


def gone(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


# ---- the starter and its terminal


def test_a_job_outlives_the_terminal_and_the_session_of_its_starter(jobs: Jobs, tmp_path: Path) -> None:
    """The starter leads a session on its own terminal; the terminal hangs up, then the starter is killed."""
    controller, terminal = pty.openpty()
    take_terminal = "import fcntl, signal, termios\nfcntl.ioctl(0, termios.TIOCSCTTY, 0)\n"
    take_terminal += "signal.signal(signal.SIGHUP, signal.SIG_DFL)\n"  # under nohup it would be ignored
    script = take_terminal + STARTER + "import time; time.sleep(60)"
    request = json.dumps({"steps": 20, "pause": 0.05})
    starter = subprocess.Popen(
        [sys.executable, "-c", script, str(jobs.directory), "count", request, ""],
        stdin=terminal,
        stdout=subprocess.PIPE,
        stderr=terminal,
        start_new_session=True,
    )
    os.close(terminal)
    assert starter.stdout is not None
    name = starter.stdout.readline().decode().strip()
    os.close(controller)  # the line drops: SIGHUP to everything on this terminal
    assert starter.wait(10) == -signal.SIGHUP
    job = jobs.wait(name, 20)
    assert job.state == "done" and job.progress.done == 20


def test_hangup_to_the_runner_itself_is_ignored(jobs: Jobs, wait_until: Callable[..., None]) -> None:
    job = started(jobs, "count", {"steps": 10, "pause": 0.05})
    assert job.pid
    os.kill(job.pid, signal.SIGHUP)
    assert jobs.wait(job.id, 20).state == "done"


def test_a_long_living_starter_gets_no_zombies(jobs: Jobs, wait_until: Callable[..., None]) -> None:
    job = started(jobs, "sleep", {"seconds": 60})
    assert job.pid
    os.kill(job.pid, signal.SIGKILL)
    wait_until(lambda: not psutil.pid_exists(job.pid or 0))


def test_a_relative_home_means_the_same_place_in_the_job(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PHITUI_HOME", "here")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(("lib", "/abs")))
    environment = launch._environment()
    assert environment["PHITUI_HOME"] == str(tmp_path / "here")
    assert environment["PYTHONPATH"] == os.pathsep.join((str(tmp_path / "lib"), "/abs"))
    assert environment["GGML_NO_BACKTRACE"] == "1"


def test_nothing_of_the_current_directory_is_imported(
    jobs: Jobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "json.py").write_text("raise SystemExit('wrong json')")
    monkeypatch.chdir(tmp_path)
    assert jobs.wait(start(jobs, "echo").id, 20).state == "done"


# ---- the runner's death


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
def test_a_killed_job_is_interrupted_and_resumes(
    jobs: Jobs, tmp_path: Path, number: signal.Signals, wait_until: Callable[..., None]
) -> None:
    memory = tmp_path / "memory"
    job = started(jobs, "count", {"steps": 40, "pause": 0.05, "memory": str(memory)})
    wait_until(memory.exists)
    assert job.pid
    os.kill(job.pid, number)
    dead = jobs.wait(job.id, 10)
    assert dead.state == "interrupted" and dead.pid is None
    assert dead.error and "jobs resume" in dead.error["hint"]
    assert list(Jobs(jobs.directory).follow(job.id))[-1].state == "interrupted"
    jobs.resume(job.id)
    ended = jobs.wait(job.id, 20)
    assert ended.state == "done" and ended.result and ended.result["first"] > 0


@pytest.mark.parametrize("how", ["hard exit", "abort"])
def test_an_end_without_a_word_is_interrupted(jobs: Jobs, how: str) -> None:
    job = jobs.wait(start(jobs, "fail", {"how": how}).id, 20)
    assert job.state == "interrupted"
    assert ("Fatal Python error: Aborted" in jobs.log(job.id)) == (how == "abort")


def test_a_child_forked_by_the_task_does_not_keep_the_job_alive(jobs: Jobs) -> None:
    job = jobs.wait(start(jobs, "leave_child", {"seconds": 5}).id, 3)
    assert job.state == "done" and job.result
    time.sleep(0.3)
    assert not lock.held(job.directory / "lock") and not gone(job.result["child"])
    os.kill(job.result["child"], signal.SIGKILL)


def test_a_reused_process_id_is_neither_alive_nor_signalled(jobs: Jobs) -> None:
    """The journal names a process that lives, but that is not the runner: this very test."""
    directory = jobs.directory / "1reused"
    directory.mkdir(parents=True)
    values = {"id": "1reused", "kind": "t", "title": "t", "task": TASKS + "echo", "created": 1.0, "request": {}}
    journal.write_request(directory, values)
    (directory / "lock").touch()
    journal.write_state(directory, state="running", attempt=1, started=1.0, pid=os.getpid())
    assert jobs.get("1reused").state == "interrupted"
    assert jobs.get("1reused").pid is None
    assert jobs.cancel("1reused").state == "interrupted"
    from phitui.jobs import manager

    manager._signal(Job("1reused", "t", "t", "running", directory, pid=os.getpid()), signal.SIGKILL)
    assert jobs.wait(jobs.resume("1reused").id, 20).state == "done"


# ---- cancel


@pytest.mark.parametrize(
    ("task", "request_"),
    [
        ("count", {"steps": 1000, "pause": 0.05}),
        ("sleep", {"seconds": 60}),  # never looks
        ("stuck", {"seconds": 60}),  # no Python thread can run
        ("deaf", {"seconds": 60}),  # swallows Cancelled and goes on
    ],
)
def test_cancel_takes_effect_within_a_second(
    jobs: Jobs, task: str, request_: dict[str, Any], wait_until: Callable[..., None]
) -> None:
    job = started(jobs, task, request_)
    begin = time.monotonic()
    ended = jobs.cancel(job.id)
    took = time.monotonic() - begin
    assert ended.state == "cancelled" and ended.error is None
    assert took < 1.4  # 1.0 on an idle machine; tests run in parallel
    wait_until(lambda: gone(job.pid or 0))
    assert Jobs(jobs.directory).get(job.id).state == "cancelled"


def test_terminate_cancels_like_the_cancel_file(jobs: Jobs) -> None:
    job = started(jobs, "sleep", {"seconds": 60})
    assert job.pid
    os.kill(job.pid, signal.SIGTERM)
    assert jobs.wait(job.id, 5).state == "cancelled"


def test_the_cancel_file_alone_is_enough(jobs: Jobs) -> None:
    job = started(jobs, "count", {"steps": 1000, "pause": 0.05})
    (job.directory / journal.CANCEL).touch()
    assert jobs.wait(job.id, 5).state == "cancelled"


def test_cancel_of_a_stopped_process(jobs: Jobs) -> None:
    job = started(jobs, "count", {"steps": 1000, "pause": 0.05})
    assert job.pid
    os.kill(job.pid, signal.SIGSTOP)
    assert jobs.cancel(job.id).state == "cancelled"


def test_cancel_ends_the_children_of_a_task_that_does_not_react(jobs: Jobs, wait_until: Callable[..., None]) -> None:
    job = started(jobs, "with_child", {"seconds": 60})
    child = int(jobs.log(job.id).split("child ")[1].split()[0])
    jobs.cancel(job.id)
    wait_until(lambda: gone(child))


def test_a_failure_caused_by_the_cancel_is_a_cancel(jobs: Jobs) -> None:
    job = started(jobs, "trip", {"seconds": 60})
    assert jobs.cancel(job.id).state == "cancelled"


# ---- two at once


def test_of_many_starters_with_one_key_one_wins(jobs: Jobs) -> None:
    command = [sys.executable, "-c", STARTER, str(jobs.directory), "sleep", '{"seconds": 60}', "/out.gguf"]
    starters = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(4)]
    names = {starter.communicate(timeout=30)[0].decode().strip() for starter in starters}
    assert len(names) == 1 and len(jobs.list()) == 1


def test_of_many_resumes_one_wins(jobs: Jobs) -> None:
    job = started(jobs, "sleep", {"seconds": 60})
    jobs.cancel(job.id)
    script = STARTER.split("job =", maxsplit=1)[0] + "job = jobs.resume(sys.argv[2])\nprint(job.attempt)"
    command = [sys.executable, "-c", script, str(jobs.directory), job.id]
    resumers = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) for _ in range(4)]
    answers = [resumer.communicate(timeout=30) for resumer in resumers]
    assert [out.decode().strip() for out, _ in answers if out] == ["2"]
    assert sum(b"it is running" in err for _, err in answers) == 3
    states = [event.state for event in journal.EventReader(job.directory).read() if event.type == "state"]
    assert states.count("queued") == 2


def test_a_second_runner_by_hand_leaves_at_once(jobs: Jobs) -> None:
    job = started(jobs, "sleep", {"seconds": 60})
    command = [sys.executable, "-m", "phitui.jobs.runner", str(job.directory)]
    second = subprocess.run(command, capture_output=True, timeout=20, check=False)
    assert second.returncode == 1 and b"already running" in second.stderr
    assert jobs.get(job.id).live


def test_lookers_do_not_keep_a_resume_from_winning(jobs: Jobs) -> None:
    """Looking takes a shared lock for a moment; the lock's taker has the patience for that."""
    file = jobs.directory / "lock"
    jobs.directory.mkdir(parents=True)
    looker = os.open(file, os.O_RDWR | os.O_CREAT)
    fcntl.flock(looker, fcntl.LOCK_SH)
    assert not lock.held(file)
    assert lock.acquire(file, 0.0) is None
    pid = os.fork()
    if pid == 0:
        time.sleep(0.1)
        os._exit(0)
    os.close(looker)  # the forked child keeps it for 0.1 s
    held = lock.acquire(file, 5.0)
    assert held is not None and lock.held(file)
    os.close(held)
    os.waitpid(pid, 0)
    assert not lock.held(file)


# ---- disks and files


def test_a_journal_that_cannot_grow_does_not_stop_the_work(jobs: Jobs, tmp_path: Path) -> None:
    """The disk is full for the journal: the job's end cannot be written, so it reads as interrupted, and resumes."""
    memory = tmp_path / "memory"
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (700, limit[1]))
    try:
        job = start(jobs, "count", {"steps": 20, "pause": 0.05, "memory": str(memory)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert jobs.wait(job.id, 20).state == "interrupted"
    assert memory.read_text() == "20"
    jobs.resume(job.id)
    assert jobs.wait(job.id, 20).state == "done"


def test_no_process_can_be_started(jobs: Jobs, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    monkeypatch.setattr(subprocess, "Popen", refuse)
    with pytest.raises(PhituiError, match="cannot start the job's process"):
        start(jobs, "echo")
    monkeypatch.undo()
    (job,) = jobs.list()
    assert job.state == "failed"
    assert jobs.wait(jobs.resume(job.id).id, 20).state == "done"


def test_a_torn_last_line_of_a_killed_runner(jobs: Jobs) -> None:
    job = started(jobs, "sleep", {"seconds": 60})
    assert job.pid
    os.kill(job.pid, signal.SIGKILL)
    with (job.directory / journal.EVENTS).open("ab") as file:
        file.write(b'{"time": 1, "type": "state", "state": "do')
    assert jobs.wait(job.id, 5).state == "interrupted"
    jobs.resume(job.id)
    assert jobs.cancel(job.id).state == "cancelled"


def test_a_directory_removed_under_a_follower_ends_it(jobs: Jobs) -> None:
    job = jobs.wait(start(jobs, "echo").id, 20)
    follower = jobs.follow(job.id)
    next(follower)
    Jobs(jobs.directory).remove(job.id)
    assert [event.state for event in follower][-1:] == ["done"]
