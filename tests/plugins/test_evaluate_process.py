"""Workers that die, hang, are cancelled or orphaned; evaluations that go on; the command itself."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("phitui_evaluate")
if find_spec("llama_cpp") is None:
    pytest.skip("llama-cpp-python is not installed", allow_module_level=True)

from phitui_evaluate import judge as room
from phitui_evaluate.options import JudgeOptions
from phitui_evaluate.process import Worker

from phitui.__main__ import main
from phitui.actions import evaluate as actions
from phitui.actions import jobs
from phitui.actions.context import Context
from phitui.errors import Cancelled, EngineError
from phitui.testing.scripted import write_scripted

TEXT = "The quick brown fox jumps over the lazy dog. " * 60


class Watched:
    """A job that calls `when` at a chunk, and can be stopped."""

    def __init__(self, when: Callable[[Watched], None] | None = None, chunk: int = 1) -> None:
        self.notes: list[str] = []
        self.seen: list[int] = []
        self.stopping = False
        self._when, self._chunk = when, chunk

    def progress(self, done: int, total: int, text: str = "") -> None:
        if total:
            self.seen.append(done)
            if self._when is not None and done == self._chunk:
                when, self._when = self._when, None
                when(self)
        self.check()

    def note(self, text: str) -> None:
        self.notes.append(text)

    def check(self) -> None:
        if self.stopping:
            raise Cancelled


@pytest.fixture
def workers(monkeypatch: pytest.MonkeyPatch) -> list[Worker]:
    """All workers that an evaluation starts."""
    started: list[Worker] = []

    class Noted(Worker):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            started.append(self)

    monkeypatch.setattr(room, "Worker", Noted)
    return started


@pytest.fixture
def text(tmp_path: Path) -> Path:
    (tmp_path / "text.txt").write_text(TEXT)
    return tmp_path / "text.txt"


@pytest.fixture
def models(tmp_path: Path) -> tuple[Path, Path]:
    """Two that differ, with the same vocabulary."""
    sure = write_scripted(tmp_path / "sure.gguf", "abc")
    return sure, write_scripted(tmp_path / "unsure.gguf", "abc", sure=2.0)


def evaluate(models: tuple[Path, Path], job: Watched, **options: Any) -> dict[str, float]:
    values = {"ctx": 64, "threads": 1, "speed": False, "reference": models[1]} | options
    return dict(room.judge(models[0], JudgeOptions(**values), job).values)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize("which", [0, 1])
def test_a_worker_that_crashes(
    models: tuple[Path, Path], text: Path, workers: list[Worker], which: int, tmp_path: Path
) -> None:
    def crash(_: Watched) -> None:
        os.kill(workers[which].pid, signal.SIGABRT)

    with pytest.raises(EngineError, match=rf"runs {models[which].name} ended unexpectedly \(signal 6\): .+") as caught:
        evaluate(models, Watched(crash), text=text)
    assert caught.value.hint
    assert "llama" in caught.value.log_tail
    assert not any(alive(worker.pid) for worker in workers)


def test_cancelling_does_not_wait_for_native_code(models: tuple[Path, Path], text: Path, workers: list[Worker]) -> None:
    times = []

    def stop(job: Watched) -> None:
        os.kill(workers[0].pid, signal.SIGSTOP)  # as deaf as a long computation
        job.stopping = True
        times.append(time.monotonic())

    with pytest.raises(Cancelled):
        evaluate(models, Watched(stop), text=text)
    assert time.monotonic() - times[0] < 1
    assert not any(alive(worker.pid) for worker in workers)


def test_a_deaf_worker_is_noticed_while_reading(models: tuple[Path, Path], text: Path, workers: list[Worker]) -> None:
    import threading

    job = Watched()

    def stop(_: Watched) -> None:
        os.kill(workers[1].pid, signal.SIGSTOP)
        threading.Timer(0.3, lambda: setattr(job, "stopping", True)).start()

    job._when = stop
    with pytest.raises(Cancelled):
        evaluate(models, job, text=text)
    assert not any(alive(worker.pid) for worker in workers)


def test_a_stopped_evaluation_goes_on(models: tuple[Path, Path], text: Path, tmp_path: Path) -> None:
    journal = tmp_path / "state" / "x.chunks"
    whole = evaluate(models, Watched(), text=text, chunks=6)

    def stop(job: Watched) -> None:
        job.stopping = True

    with pytest.raises(Cancelled):
        evaluate(models, Watched(stop, chunk=3), text=text, chunks=6, journal=journal)
    with journal.open("ab") as file:
        file.write(b"half a chunk")
    again = Watched()
    values = evaluate(models, again, text=text, chunks=6, journal=journal)
    assert again.notes == ["3 of 6 chunks were done before"]
    assert again.seen == [3, 4, 5, 6]
    assert {**values, "seconds": 0} == {**whole, "seconds": 0}
    assert not journal.exists()


def test_chunks_of_another_evaluation_are_not_used(models: tuple[Path, Path], text: Path, tmp_path: Path) -> None:
    journal = tmp_path / "x.chunks"

    def stop(job: Watched) -> None:
        job.stopping = True

    with pytest.raises(Cancelled):
        evaluate(models, Watched(stop, chunk=2), text=text, journal=journal)
    for change in ({"ctx": 32}, {"reference": None}, {"reference": models[0]}):
        saved = journal.read_bytes()
        job = Watched()
        evaluate(models, job, **({"text": text, "journal": journal, "chunks": 2} | change))
        assert not job.notes, change
        journal.write_bytes(saved)


def test_an_orphan_ends(models: tuple[Path, Path]) -> None:
    code = (
        "import sys, time\nfrom pathlib import Path\nfrom phitui_evaluate.process import Worker\n"
        "setup = dict(context=512, outputs=1, threads=1, layers=0)\n"
        "worker = Worker(Path(sys.argv[1]), setup, lambda: None)\nworker.wait_loaded(lambda _: None)\n"
        "print(worker.pid, flush=True)\ntime.sleep(60)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code, str(models[0])], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    worker = int(parent.stdout.readline())
    assert alive(worker)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    end = time.monotonic() + 10
    while alive(worker) and time.monotonic() < end:
        time.sleep(0.02)
    assert not alive(worker)


def test_this_process_stays_free_of_native_code() -> None:
    code = (
        "import sys\nimport phitui_evaluate as p\noffer = next(iter(p.phitui_evaluators()))\n"
        "assert offer.available().ok\n"
        "assert not {'llama_cpp', 'numpy'} & set(sys.modules)\nimport phitui_evaluate.judge\n"
        "assert 'llama_cpp' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# ---- the command


def test_the_command(
    models: tuple[Path, Path], text: Path, context: Context, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["eval", str(models[0]), "--reference", str(models[1]), "--text", str(text), "--ctx", "64", "--chunks", "2"]
    assert main([*words, "--threads", "1", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert {"perplexity", "perplexity_error", "kld_mean", "kld_mean_error", "kld_max", "top1_agreement"} <= set(
        document
    )
    assert {"prompt_tokens_per_s", "decode_tokens_per_s", "source", "created", "job"} <= set(document)
    assert document["chunks"] == 2
    (measured,) = actions.measures_of(context, models[0])
    assert measured.values["perplexity"] == document["perplexity"]
    assert measured.reference == "unsure.gguf"
    assert not list((context.paths.state / "evaluations").glob("*"))
    assert main(["eval", str(models[0]), "--text", str(text), "--ctx", "64", "--no-speed"]) == 0
    assert "perplexity" in capsys.readouterr().out
    assert len(actions.measures_of(context, models[0])) == 2


def test_the_command_says_what_is_wrong(
    models: tuple[Path, Path], text: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["eval", "nowhere.gguf", "--json"]) == 2
    assert "neither a file" in json.loads(capsys.readouterr().out)["error"]["message"]
    assert main(["eval", str(models[0]), "--text", str(text), "--ctx", "2048", "--json"]) == 2
    assert "at least 4096 are needed" in json.loads(capsys.readouterr().out)["error"]["message"]


def test_a_job_can_be_cancelled(models: tuple[Path, Path], tmp_path: Path, context: Context) -> None:
    (tmp_path / "long.txt").write_text(TEXT * 200)
    request = actions.EvaluateRequest(
        str(models[0]), str(models[1]), str(tmp_path / "long.txt"), options={"threads": 1}
    )
    job = actions.start(context, request)
    assert job.kind == "eval"
    end = time.monotonic() + 30
    while jobs.get_job(context, job.id).progress.done < 1 and time.monotonic() < end:
        time.sleep(0.05)
    began = time.monotonic()
    assert jobs.cancel_job(context, job.id).state == "cancelled"
    assert time.monotonic() - began < 1.5
    assert list((context.paths.state / "evaluations").glob("*.chunks"))
