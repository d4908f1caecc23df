"""Pushes: refused before a job starts where they would fail, and done by whatever exporter can do it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from phitui.__main__ import main
from phitui.actions import push as actions
from phitui.actions.context import Context
from phitui.actions.lineage import hash_store
from phitui.actions.push import PushRequest
from phitui.api import Availability, Bundle, Delivery, ExportModel, JobContext, OutputExists, option
from phitui.errors import PhituiError, UsageError
from phitui.store.hashes import sha256_of
from phitui.testing.bytewise import write_bytewise
from phitui.testing.ollama_server import Ollama, ollama_server


@dataclass(frozen=True)
class Options:
    text: str = option("hello", help="what to say")
    file: Path | None = option(None, help="a file")


class Exporter:
    """One that only writes files."""

    name, title, options = "writer", "Writer", Options

    def available(self) -> Availability:
        return Availability()

    def preview(self, model: ExportModel, options: Options, out: Path) -> Bundle:
        return Bundle(())


class Pusher(Exporter):
    name, title = "pusher", "Pusher"

    def __init__(self) -> None:
        self.error: Exception | None = None
        self.pushed: list[tuple[Path, Options, Delivery, str]] = []

    def destination(self, model: ExportModel, options: Options, url: str, overwrite: bool) -> str:
        if self.error:
            raise self.error
        return url or "http://usual"

    def push(self, model: ExportModel, options: Options, delivery: Delivery, job: JobContext) -> Mapping[str, Any]:
        self.pushed.append((model.path, options, delivery, delivery.sha256(model.path)))
        return {"name": "x", "url": delivery.url}


class Job:
    def progress(self, done: int, total: int, text: str = "") -> None:
        """Nobody looks."""

    def note(self, text: str) -> None:
        """Nobody listens."""

    def check(self) -> None:
        """Never stops."""


@pytest.fixture
def pusher(context: Context, monkeypatch: pytest.MonkeyPatch) -> Pusher:
    exporter = Pusher()
    context.registry.exporters[:] = [Exporter(), exporter]
    monkeypatch.setattr(actions, "Context", lambda: context)
    return exporter


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_bytewise(tmp_path / "tiny.gguf")


@pytest.fixture
def ollama(tmp_path: Path) -> Iterator[Ollama]:
    with ollama_server(tmp_path / "server") as running:
        yield running


def test_a_pusher_is_given_model_options_and_hashes(context: Context, pusher: Pusher, model: Path) -> None:
    request = {"model": str(model), "to": "pusher", "url": "http://a", "options": {"text": "x"}, "test": False}
    told = actions.run(request, Job())
    ((path, options, delivery, sha256),) = pusher.pushed
    assert (path, options.text, delivery.url, delivery.test) == (model, "x", "http://a", False)
    assert sha256 == sha256_of(model).sha256
    assert (told["name"], told["to"], told["path"]) == ("x", "pusher", str(model))


def test_a_remembered_hash_is_not_taken_again(context: Context, pusher: Pusher, model: Path) -> None:
    import os

    os.utime(model, (1e9, 1e9))
    with hash_store(context) as store:
        store.put(model, "f" * 64)
    actions.run({"model": str(model), "to": "pusher", "url": "u"}, Job())
    assert pusher.pushed[0][3] == "f" * 64


def test_refused_before_a_job_starts(context: Context, pusher: Pusher, model: Path) -> None:
    with pytest.raises(UsageError, match="writer only writes files") as caught:
        actions.start(context, PushRequest(str(model), "writer"))
    assert "pusher" in caught.value.hint
    with pytest.raises(UsageError, match="no export target is named"):
        actions.start(context, PushRequest(str(model), "nowhere"))
    with pytest.raises(UsageError, match="unknown option"):
        actions.start(context, PushRequest(str(model), "pusher", options={"no": 1}))
    pusher.error = OutputExists("it is there")
    with pytest.raises(OutputExists):
        actions.start(context, PushRequest(str(model), "pusher"))
    pusher.error = ZeroDivisionError("oh")
    with pytest.raises(PhituiError, match="target pusher failed: ZeroDivisionError: oh"):
        actions.start(context, PushRequest(str(model), "pusher"))
    assert not context.paths.jobs.exists()


def test_the_job_can_be_repeated_from_anywhere(
    context: Context, pusher: Pusher, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(model.parent)
    job = actions.start(context, PushRequest("tiny.gguf", "pusher", options={"file": "a b"}, test=False))
    assert job.request["model"] == str(model)
    assert job.request["options"] == {"file": str(model.parent / "a b")}
    assert job.request["url"] == "http://usual"
    assert job.argv == (
        *("phitui", "export", str(model), "--to", "pusher", "--push", "http://usual"),
        *("--file", str(model.parent / "a b"), "--no-test"),
    )


def test_on_the_command_line(
    ollama: Ollama, model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OLLAMA_HOST", ollama.url)
    assert main(["export", str(model), "--to", "ollama", "--push", "--name", "tiny", "--num-ctx", "64"]) == 0
    shown = capsys.readouterr()
    assert shown.out.startswith(f"tiny at {ollama.url}  ")
    assert "asked: Say hello.\nanswer: 2 words.  (20.0 tokens/s)" in shown.out
    assert f"OLLAMA_HOST={ollama.url} ollama run tiny" in shown.out
    assert "writing manifest" in shown.err
    assert ollama.models["tiny:latest"]["parameters"]["num_ctx"] == 64
    again = ["export", str(model), "--to", "ollama", "--name", "tiny", "--no-test", "--json", "--push", "auto"]
    assert main(again) == 2
    assert "has a model tiny already" in json.loads(capsys.readouterr().out)["error"]["message"]
    assert main([*again, "--overwrite"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["present"], document["sent"]) == (model.stat().st_size, 0)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--push", "--preview"], "--preview and --push exclude each other"),
        (["--push", "--out", "x"], "--out and --push exclude each other"),
        (["--no-test"], "--no-test goes with --push only"),
        (["--detach"], "--detach goes with --push only"),
    ],
)
def test_flags_that_say_nothing_together(
    model: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], says: str
) -> None:
    assert main(["export", str(model), "--to", "ollama", *arguments]) == 2
    assert says in capsys.readouterr().err
