"""Plans and chats with real workers on loopback: devices, answers, and workers that die, hang or are busy."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from phitui_rpc import library
from phitui_rpc.backend import RpcBackend

from phitui.actions.chat import Chat, ChatRequest, open_chat
from phitui.actions.context import Context
from phitui.actions.doctor import doctor
from phitui.actions.plan import devices, plan
from phitui.domain.chat import Sampling, TextChunk
from phitui.domain.offload import PlanRequest
from phitui.engine import workers
from phitui.errors import EngineError, Unavailable, UsageError
from phitui.testing.bytewise import write_bytewise
from phitui.testing.scripted import write_scripted

pytestmark = pytest.mark.skipif(not library.has_rpc(), reason="no llama-cpp-python with RPC here")


class Lender:
    """One `phitui worker` of this test."""

    def __init__(self) -> None:
        line = [sys.executable, "-m", "phitui", "worker", "--json", "--port", "0", "--threads", "1"]
        self.process = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        assert self.process.stdout is not None
        document = json.loads(self.process.stdout.readline())
        self.endpoint: str = document["endpoint"]
        self.server: int = document["server_pid"]

    def kill(self) -> None:
        self.process.kill()
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.server, signal.SIGKILL)
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()
        end = time.monotonic() + 5
        while workers.ask_workers([self.endpoint], 0.5)[0].state == "ready" and time.monotonic() < end:
            time.sleep(0.02)


@pytest.fixture
def lend() -> Iterator[Callable[[], Lender]]:
    started: list[Lender] = []

    def factory() -> Lender:
        started.append(Lender())
        return started[-1]

    yield factory
    for each in started:
        with contextlib.suppress(ProcessLookupError):
            os.kill(each.server, signal.SIGCONT)
        each.kill()


@pytest.fixture(autouse=True)
def blank(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "_book", {})
    monkeypatch.setattr(workers, "_held", set())


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_bytewise(tmp_path / "tiny.gguf", layers=4)


@pytest.fixture
def endless(tmp_path: Path) -> Path:
    """A model whose answer fills any context."""
    return write_scripted(tmp_path / "endless.gguf", "on and on it goes ", loop=True, context=1 << 17, layers=3)


@pytest.fixture
def talk(context: Context, model: Path) -> Iterator[Callable[..., Chat]]:
    opened: list[Chat] = []

    def factory(*rpc: str, tokens: int | None = None, **settings: Any) -> Chat:
        sampling = Sampling(temperature=0, max_tokens=tokens)
        wanted = {"model": str(model), "context": 4096} | settings
        request = ChatRequest(sampling=sampling, rpc=rpc, threads=1, **wanted)
        opened.append(open_chat(context, request))
        return opened[-1]

    yield factory
    for chat in opened:
        chat.close()


def configure(context: Context, *endpoints: str) -> None:
    context.paths.config_file.parent.mkdir(parents=True, exist_ok=True)
    context.paths.config_file.write_text(f"workers = {json.dumps(endpoints)}\n")


def text_of(chat: Chat, question: str = "hello") -> str:
    return "".join(chunk.text for chunk in chat.ask(question) if isinstance(chunk, TextChunk))


def nowhere() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{free.getsockname()[1]}"


def test_two_workers_give_the_answer_of_one_machine(lend: Callable[[], Lender], talk: Callable[..., Chat]) -> None:
    alone = text_of(talk(tokens=40))
    first, second = lend(), lend()
    chat = talk(first.endpoint, second.endpoint, tokens=40)
    assert chat.plan is not None
    assert [(row.name, row.kind) for row in chat.plan.devices] == [
        ("RPC0", "remote"),
        ("RPC1", "remote"),
        ("CPU", "cpu"),
    ]
    assert chat.info.layers_offloaded == chat.info.layers_total == 5
    assert text_of(chat) == alone
    again = plan(Context(), PlanRequest(model=str(chat.process.model), rpc=(first.endpoint, second.endpoint)))
    for row in again.devices[:2]:  # what the load took was what was planned, on each of them
        assert row.learned < 64 * 1024
    assert len(alone) > 10


def test_a_worker_that_is_killed_mid_answer(
    lend: Callable[[], Lender], talk: Callable[..., Chat], endless: Path
) -> None:
    first, second = lend(), lend()
    chat = talk(first.endpoint, second.endpoint, model=str(endless), context=65536)
    chat.sampling = Sampling(temperature=0, max_tokens=8)
    before = text_of(chat)
    chat.sampling = Sampling(temperature=0)
    answer = chat.ask("and now at length")
    next(answer)
    second.kill()
    with pytest.raises(EngineError) as caught:
        for _ in answer:
            pass
    assert f"the RPC worker {second.endpoint} does not answer: connection refused" in caught.value.message
    assert first.endpoint not in caught.value.message
    assert "restart without it" in caught.value.hint
    assert chat.lost == (second.endpoint,)
    with pytest.raises(Unavailable, match=second.endpoint):
        chat.restart()
    assert chat.lost == (second.endpoint,)
    info = chat.restart(without=chat.lost)
    assert chat.process.settings.rpc == (first.endpoint,)
    assert info.layers_offloaded == info.layers_total
    assert chat.lost == ()
    chat.sampling = Sampling(temperature=0, max_tokens=8)
    assert text_of(chat, "go on")
    assert [message.content for message in chat.messages][:2] == ["hello", before]
    assert len(chat.messages) == 4


def test_without_any_worker_the_chat_goes_on_here(lend: Callable[[], Lender], talk: Callable[..., Chat]) -> None:
    only = lend()
    chat = talk(only.endpoint, tokens=8)
    only.kill()
    with pytest.raises(EngineError, match=only.endpoint):
        text_of(chat)
    assert chat.restart(without=chat.lost).layers_offloaded == 0
    assert text_of(chat)


def test_a_worker_that_hangs_can_be_stopped(
    lend: Callable[[], Lender], talk: Callable[..., Chat], endless: Path
) -> None:
    only = lend()
    chat = talk(only.endpoint, model=str(endless), context=65536)
    answer = chat.ask("at length")
    next(answer)
    os.kill(only.server, signal.SIGSTOP)
    stopped: list[float] = []

    def stop() -> None:
        stopped.append(time.monotonic())
        chat.stop()

    threading.Timer(0.5, stop).start()
    with pytest.raises(EngineError) as caught:
        for _ in answer:
            pass
    assert time.monotonic() - stopped[0] < 3.5
    assert f"the RPC worker {only.endpoint} says nothing any more" in caught.value.message
    assert chat.lost == (only.endpoint,)
    began = time.monotonic()
    with pytest.raises(Unavailable, match="one program at a time"):
        chat.restart()
    assert time.monotonic() - began < 5
    os.kill(only.server, signal.SIGCONT)
    chat.restart()
    chat.sampling = Sampling(temperature=0, max_tokens=4)
    assert text_of(chat)


def test_the_plan_place_beside_a_chat(lend: Callable[[], Lender], talk: Callable[..., Chat], context: Context) -> None:
    """A worker that serves our own chat cannot be asked; the plan still comes at once, with what it said before."""
    only = lend()
    chat = talk(only.endpoint, tokens=8)
    request = PlanRequest(model=str(chat.process.model), rpc=(only.endpoint,), context=1024)
    began = time.monotonic()
    made = plan(context, request)
    assert time.monotonic() - began < 1.5
    assert made.devices[0].name == "RPC0"
    assert made.how["compute"] == "estimated"
    assert any("serves a model now" in warning for warning in made.warnings)
    assert text_of(chat)
    chat.close()
    assert plan(context, request).how["compute"] == "measured"


def test_a_chat_asks_again_what_a_plan_remembers(
    lend: Callable[[], Lender], talk: Callable[..., Chat], context: Context, model: Path
) -> None:
    only = lend()
    away = workers.Worker(only.endpoint, "gone", "does not answer: it was off a second ago")
    workers._book[only.endpoint] = (time.monotonic() - 1, away)
    with pytest.raises(Unavailable, match="a second ago"):
        plan(context, PlanRequest(model=str(model), rpc=(only.endpoint,)))
    assert talk(only.endpoint).info.layers_offloaded == 5


def test_a_worker_that_serves_another_program(
    lend: Callable[[], Lender], talk: Callable[..., Chat], model: Path
) -> None:
    only = lend()
    host, port = only.endpoint.split(":")
    with socket.create_connection((host, int(port))):
        began = time.monotonic()
        with pytest.raises(Unavailable, match="one program at a time"):
            talk(only.endpoint)
        assert time.monotonic() - began < 4


def test_named_workers_must_be_there(talk: Callable[..., Chat], context: Context, model: Path) -> None:
    away, other = nowhere(), nowhere()
    began = time.monotonic()
    with pytest.raises(Unavailable) as caught:
        talk(away, other)
    assert time.monotonic() - began < 3
    assert away in caught.value.message
    assert other in caught.value.message
    assert "phitui worker --port" in caught.value.hint
    with pytest.raises(UsageError, match="HOST:PORT"):
        plan(context, PlanRequest(model=str(model), rpc=("somewhere",)))
    with pytest.raises(UsageError, match="--no-rpc"):
        plan(context, PlanRequest(model=str(model), rpc=(away,), no_rpc=True))


@pytest.mark.parametrize(("spare", "words"), [(24, r"protocol \(9\.1\.0\)"), (40, "another protocol")])
def test_a_worker_of_another_version(context: Context, model: Path, spare: int, words: str) -> None:
    """It greets alike; llama.cpp then ends its process, which is the probe's and not this one."""

    def talk(link: socket.socket) -> None:
        answers = {14: bytes([9, 1, 0, 0]) + bytes(spare), 15: b"\1\0\0\0", 11: bytes(7) + b"\1" + bytes(7) + b"\1"}
        with link, contextlib.suppress(OSError):
            while len(head := link.recv(9, socket.MSG_WAITALL)) == 9:
                link.recv(int.from_bytes(head[1:], "little"), socket.MSG_WAITALL)
                link.sendall(len(answers[head[0]]).to_bytes(8, "little") + answers[head[0]])

    def run(server: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=talk, args=(server.accept()[0],), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=run, args=(server,), daemon=True).start()
        endpoint = f"127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(Unavailable, match=words) as caught:
            plan(context, PlanRequest(model=str(model), rpc=(endpoint,)))
    assert endpoint in caught.value.message
    assert "same version" in caught.value.hint


def test_configured_workers_are_used_and_those_away_are_named(
    lend: Callable[[], Lender], context: Context, model: Path
) -> None:
    here, away = lend(), nowhere()
    configure(context, away, here.endpoint)
    made = plan(context, PlanRequest(model=str(model)))
    assert made.rpc == (here.endpoint,)
    assert [row.name for row in made.devices] == ["RPC0", "CPU"]
    assert any(away in warning and "refused" in warning for warning in made.warnings)
    assert plan(context, PlanRequest(model=str(model), no_rpc=True)).rpc == ()
    assert [device.kind for device in devices(context)] == ["cpu"], "a plan asks for workers itself"


def test_the_doctor_shows_configured_workers(lend: Callable[[], Lender], context: Context) -> None:
    here, away = lend(), nowhere()
    configure(context, here.endpoint, away)
    report = doctor(context)
    remote = [device for device in report["devices"] if device["kind"] == "remote"]
    assert [(device["name"], device["description"]) for device in remote] == [("RPC0", here.endpoint)]
    assert remote[0]["free"] > 0
    assert any(away in problem["what"] for problem in report["problems"])
    assert len({device["name"] for device in report["devices"]}) == len(report["devices"])


def test_a_broken_configuration_is_said(context: Context) -> None:
    configure(context, "somewhere")
    with pytest.raises(UsageError, match="HOST:PORT"):
        RpcBackend().probe()
    assert any("HOST:PORT" in problem["what"] for problem in doctor(context)["problems"])


def test_an_engine_without_rpc_plans_without_configured_workers(
    lend: Callable[[], Lender], context: Context, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    configure(context, lend().endpoint)
    monkeypatch.setenv("PHITUI_PLUGINS", "rpc")
    made = plan(context, PlanRequest(model=str(model)))
    assert made.rpc == ()
    assert any("no engine here can use RPC workers" in warning for warning in made.warnings)


def test_a_chat_says_once_what_it_does_without(context: Context, model: Path) -> None:
    away = nowhere()
    configure(context, away)
    line = [sys.executable, "-m", "phitui", "chat", str(model), "-p", "hello", "--max-tokens", "2"]
    done = subprocess.run(line, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count(f"planned without the RPC worker {away}") == 1
    quiet = subprocess.run([*line, "--no-rpc"], capture_output=True, text=True, timeout=60, check=False)
    assert quiet.returncode == 0, quiet.stderr
    assert away not in quiet.stderr


def test_from_the_command_line(lend: Callable[[], Lender], model: Path) -> None:
    only = lend()
    line = [sys.executable, "-m", "phitui", "chat", str(model), "--rpc", only.endpoint, "--json"]
    done = subprocess.run(
        [*line, "-p", "hello", "--temp", "0", "--max-tokens", "4"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["layers_offloaded"] == 5
    only.kill()
    done = subprocess.run([*line, "-p", "hello"], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert only.endpoint in json.loads(done.stdout)["error"]["message"]
