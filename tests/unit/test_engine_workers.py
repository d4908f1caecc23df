"""Greeting RPC workers: what is there, what is not, and what only looks like one; never longer than the patience."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from phitui.engine import workers
from phitui.engine.workers import Worker, ask_workers, blame, hold, known_workers, let_go, split
from phitui.errors import Unavailable, UsageError

Talk = Callable[[socket.socket], None]


@pytest.fixture(autouse=True)
def blank(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "_book", {})
    monkeypatch.setattr(workers, "_held", set())


@pytest.fixture
def serve() -> Iterator[Callable[[Talk], str]]:
    """Serve connections with a function; gives HOST:PORT."""
    listening: list[socket.socket] = []

    def start(talk: Talk) -> str:
        server = socket.create_server(("127.0.0.1", 0))
        listening.append(server)

        def run() -> None:
            while True:
                try:
                    link, _ = server.accept()
                except OSError:
                    return
                with link, contextlib.suppress(OSError):
                    talk(link)

        threading.Thread(target=run, daemon=True).start()
        return f"127.0.0.1:{server.getsockname()[1]}"

    yield start
    for server in listening:
        server.close()


def read(link: socket.socket) -> tuple[int, bytes]:
    """One request: its command and data."""
    head = link.recv(9, socket.MSG_WAITALL)
    if len(head) < 9:
        raise ConnectionError
    command, size = struct.unpack("<BQ", head)
    return command, link.recv(size, socket.MSG_WAITALL) if size else b""


def reply(link: socket.socket, data: bytes) -> None:
    link.sendall(struct.pack("<Q", len(data)) + data)


def today(link: socket.socket) -> None:
    """Two devices, in protocol 7."""
    sizes = [(3 << 30, 8 << 30), (1 << 30, 2 << 30)]
    while True:
        command, data = read(link)
        if command == 14:
            assert len(data) == 24
            reply(link, bytes([7, 0, 1, 0]) + bytes(24))
        elif command == 15:
            reply(link, struct.pack("<I", 2))
        elif command == 11:
            reply(link, struct.pack("<QQ", *sizes[struct.unpack("<I", data)[0]]))


def old(link: socket.socket) -> None:
    """Protocol 3 wants an empty greeting and hangs up at any other."""
    command, data = read(link)
    if command == 14 and not data:
        reply(link, bytes([3, 6, 0]))
        read(link)


def newer(link: socket.socket) -> None:
    """A later protocol that greets alike, but counts its devices in other words."""
    read(link)
    reply(link, bytes([9, 1, 0, 0]) + bytes(40))


def test_what_a_worker_lends(serve: Callable[[Talk], str]) -> None:
    endpoint = serve(today)
    memory = ((3 << 30, 8 << 30), (1 << 30, 2 << 30))
    assert ask_workers([endpoint, endpoint]) == [Worker(endpoint, "ready", version="7.0.1", memory=memory)]


def test_other_versions(serve: Callable[[Talk], str]) -> None:
    before, after = ask_workers([serve(old), serve(newer)])
    assert before.state == "foreign"
    assert "3.6.0" in before.why
    assert (after.state, after.version, after.memory) == ("ready", "9.1.0", ())
    assert "same llama-cpp-python" in before.refusal().hint


def http(link: socket.socket) -> None:
    """Waits for the end of a line, as servers of text do."""
    while b"\n" not in link.recv(64):
        pass
    link.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")


def ssh(link: socket.socket) -> None:
    link.sendall(b"SSH-2.0-something\r\n")
    link.recv(64)


def gibberish(link: socket.socket) -> None:
    link.recv(64)
    link.sendall(b"\x1b[2J\xff\xfe\xfd\xfc\xfb")


def mumbles(link: socket.socket) -> None:
    link.recv(64)
    link.sendall(b"abc")


@pytest.mark.parametrize(
    ("talk", "words"),
    [
        (http, "speaks HTTP"),
        (ssh, "speaks SSH"),
        (gibberish, r"\\x1b\[2J"),
        (mumbles, "answered 'abc'"),
        (lambda link: None, "hung up"),
    ],
)
def test_something_else_listens(serve: Callable[[Talk], str], talk: Talk, words: str) -> None:
    (worker,) = ask_workers([serve(talk)], 1.0)
    assert worker.state == "foreign"
    with pytest.raises(Unavailable, match=words):
        raise worker.refusal()
    assert "\x1b" not in str(worker.refusal())


def test_nothing_listens_and_nothing_is_said(serve: Callable[[Talk], str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            nowhere = f"127.0.0.1:{free.getsockname()[1]}"
        began = time.monotonic()
        silent = f"127.0.0.1:{deaf.getsockname()[1]}"
        gone, busy, ready = ask_workers([nowhere, silent, serve(today)], 0.6)
    assert time.monotonic() - began < 1.2
    assert (gone.state, busy.state, ready.state) == ("gone", "busy", "ready")
    assert "refused" in gone.why
    assert "phitui worker --port" in gone.refusal().hint
    assert "one program at a time" in busy.refusal().message


def test_a_name_that_takes_long_to_look_up_is_left_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(*_: object) -> None:
        time.sleep(2)
        raise socket.gaierror

    monkeypatch.setattr(socket, "getaddrinfo", slow)
    began = time.monotonic()
    (worker,) = ask_workers(["far-away.example:50052"], 0.3)
    assert time.monotonic() - began < 1
    assert worker.state == "gone"


def test_giving_up_resets_the_connection() -> None:
    """A worker that answers a connection closed by FIN gets SIGPIPE, which ends llama.cpp's own ggml-rpc-server."""
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        (worker,) = ask_workers([f"127.0.0.1:{deaf.getsockname()[1]}"], 0.3)
        assert worker.state == "busy"
        link, _ = deaf.accept()
        with link:
            link.recv(64)
            with pytest.raises(ConnectionResetError):
                link.sendall(bytes(8))


@pytest.mark.parametrize(
    "text", ["", "host", "host:", ":1", "host:0", "host:65536", "host:１", "u@host:1", "http://h:1"]
)
def test_what_is_not_host_and_port(text: str) -> None:
    with pytest.raises(UsageError, match="is not HOST:PORT"):
        split(text)


@pytest.mark.parametrize("host", ["no..name", "x" * 300])
def test_names_that_no_host_has(host: str) -> None:
    (worker,) = ask_workers([f"{host}:50052"], 1.0)
    assert worker.state == "gone"


def test_ipv6_is_told_apart() -> None:
    with pytest.raises(UsageError, match="IPv6"):
        split("[::1]:50052")


def test_what_is_known_costs_nothing(serve: Callable[[Talk], str], monkeypatch: pytest.MonkeyPatch) -> None:
    asked = 0

    def counted(link: socket.socket) -> None:
        nonlocal asked
        asked += 1
        today(link)

    endpoint = serve(counted)
    first = known_workers([endpoint])
    assert known_workers([endpoint]) == first
    assert asked == 1
    monkeypatch.setattr(workers, "STALE", 0.0)
    assert known_workers([endpoint]) == first  # at once, and asked again in the background
    end = time.monotonic() + 5
    while asked < 2 and time.monotonic() < end:
        time.sleep(0.01)
    assert asked == 2


def test_a_worker_of_our_own_is_not_asked_but_keeps_its_memory(serve: Callable[[Talk], str]) -> None:
    endpoint = serve(today)
    (before,) = known_workers([endpoint])
    hold([endpoint])
    (held,) = known_workers([endpoint])
    assert (held.state, held.memory) == ("busy", before.memory)
    let_go([endpoint])
    assert known_workers([endpoint]) == [before]


def test_blame_names_only_those_that_do_not_answer(serve: Callable[[Talk], str]) -> None:
    alive = serve(today)
    hold([alive, "127.0.0.1:1"])
    assert [worker.endpoint for worker in blame([alive, "127.0.0.1:1"])] == ["127.0.0.1:1"]
    assert blame([]) == []


def test_blame_of_one_that_is_gone_leaves_out_those_that_are_slow() -> None:
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        slow = f"127.0.0.1:{deaf.getsockname()[1]}"
        assert [worker.endpoint for worker in blame([slow, "127.0.0.1:1"])] == ["127.0.0.1:1"]
        assert [worker.state for worker in blame([slow])] == ["busy"]
