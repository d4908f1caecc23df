"""RPC workers as this side sees them: is one there, is it free, which protocol does it speak, what does it lend.

Plain sockets and no native code: ggml's own client waits for ever for a worker that is busy or hangs, and ends the
whole process where something else answers. So everybody asks here first.

The greeting is the one message that every version of the protocol has (HELLO, number 14, "must be always 14"). A worker
serves one program at a time; others can connect, but hear nothing until it is free. Whoever gives up waiting resets the
connection: a worker that later answers a closed one would be killed by SIGPIPE (seen with ggml-rpc-server).
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from phitui.domain.text import visible
from phitui.errors import Unavailable, UsageError

PATIENCE = 2.5
"""Seconds within which every worker must have answered; all of them are asked at the same time."""
BLAME_PATIENCE = 0.7
"""The same after an engine's death; an engine that hangs has had its two seconds already."""
STALE = 3.0
"""Seconds after which what is known of a worker is asked again, in the background."""
FORGOTTEN = 120.0
"""Seconds after which it is no longer used at all."""

State = Literal["ready", "busy", "gone", "foreign"]
_HELLO, _DEVICE_COUNT, _DEVICE_MEMORY = 14, 15, 11
_GREETINGS = (24, 0)  # bytes of capabilities that a HELLO carries: since protocol 4, and before
_MOST_DEVICES = 64


@dataclass(frozen=True)
class Worker:
    """What one worker answered. `memory` is (free, total) bytes per device; empty where its protocol is not known.

    "busy": it takes connections but says nothing (it serves another program, or hangs). "gone": nothing listens there.
    "foreign": something else listens, or another version of the protocol. `why` is a clause for people.
    """

    endpoint: str
    state: State
    why: str = ""
    version: str = ""
    memory: tuple[tuple[int, int], ...] = ()

    def refusal(self) -> Unavailable:
        """The error for whoever needs this worker now."""
        host, port = split(self.endpoint)
        start = f"start it there: phitui worker --port {port}"
        if host in ("127.0.0.1", "localhost"):
            start += f"; behind a tunnel, look whether that is up: ssh -N -L {port}:127.0.0.1:{port} user@its-host"
        hints = {
            "gone": start,
            "busy": "close the other chat or program that uses it; if there is none, end it and start it again there",
            "foreign": "start one there, of the same llama-cpp-python as here: phitui worker",
        }
        return Unavailable(f"the RPC worker {self.endpoint} {self.why}", hints.get(self.state, ""))


def split(endpoint: str) -> tuple[str, int]:
    """HOST and PORT. Raises UsageError; ggml's RPC knows names and IPv4 addresses."""
    host, _, port = endpoint.strip().rpartition(":")
    if not host or not port.isascii() or not port.isdigit() or not 0 < int(port) < 65536 or set(host) & set("/@ "):
        raise UsageError(f"{visible(endpoint)!r} is not HOST:PORT", "for example: --rpc 127.0.0.1:50052")
    if ":" in host:
        raise UsageError(
            f"{visible(endpoint)!r} is an IPv6 address, which llama.cpp's RPC does not speak",
            "use an IPv4 address or a name, or a tunnel: --rpc 127.0.0.1:50052",
        )
    return host, int(port)


def ask_workers(endpoints: Sequence[str], seconds: float = PATIENCE) -> list[Worker]:
    """Ask all of them now, at the same time; takes `seconds` at most. Raises UsageError for what is not HOST:PORT."""
    for endpoint in endpoints:
        split(endpoint)
    found: dict[str, Worker] = {}
    deadline = time.monotonic() + seconds

    def one(endpoint: str) -> None:
        found[endpoint] = _ask(endpoint, deadline)

    threads = [threading.Thread(target=one, args=(each,), daemon=True) for each in dict.fromkeys(endpoints)]
    for thread in threads:
        thread.start()
    for thread in threads:  # looking up a host's name cannot be told to hurry, but it can be left behind
        thread.join(max(0.0, deadline + 0.2 - time.monotonic()))
    silent = {each: Worker(each, "gone", f"was not found within {seconds:.1f} s") for each in endpoints}
    now = time.monotonic()
    for worker in (answers := [found.get(each, silent[each]) for each in dict.fromkeys(endpoints)]):
        _remember(worker, now)
    return answers


def known_workers(endpoints: Sequence[str], seconds: float = PATIENCE) -> list[Worker]:
    """The same, from what is known already: only the first time costs a wait. A slider can ask with every step."""
    now = time.monotonic()
    entries = {each: _book.get(each) for each in dict.fromkeys(endpoints)}
    ages = {each: now - entry[0] if entry else FORGOTTEN + 1 for each, entry in entries.items() if each not in _held}
    if missing := [each for each, age in ages.items() if age > FORGOTTEN]:
        ask_workers(missing, seconds)
    stale = [each for each, age in ages.items() if STALE < age <= FORGOTTEN]
    if stale and _refreshing.acquire(blocking=False):
        threading.Thread(target=_refresh, args=(stale, seconds), daemon=True).start()
    return [_book[each][1] for each in entries if each in _book]


def hold(endpoints: Sequence[str]) -> None:
    """Note that this process uses these workers now: whoever asks them would wait in vain until `let_go`."""
    _held.update(endpoints)
    for endpoint in endpoints:
        _remember(Worker(endpoint, "busy", "serves a model that is loaded here"), time.monotonic())


def let_go(endpoints: Sequence[str]) -> None:
    """They are free again; what is known of them is asked anew."""
    for endpoint in endpoints:
        if endpoint in _held:
            _held.discard(endpoint)
            _book.pop(endpoint, None)


def blame(endpoints: Sequence[str]) -> list[Worker]:
    """Which of the workers that an engine used can have been its end: those that are gone, else those that hang.

    Beside one that is gone, another that says nothing yet is only finishing the work that nobody waits for any more.
    """
    let_go(endpoints)
    suspects = [worker for worker in ask_workers(endpoints, BLAME_PATIENCE) if worker.state != "ready"]
    return [worker for worker in suspects if worker.state != "busy"] or suspects


def accusation(lost: Sequence[Worker]) -> tuple[str, str]:
    """What to say of them, and what to do."""
    told = [
        f"the RPC worker {each.endpoint} "
        + ("says nothing any more: it hangs or still computes" if each.state == "busy" else each.why)
        for each in lost
    ]
    ports = " and ".join(f"phitui worker --port {split(each.endpoint)[1]}" for each in lost)
    return "; ".join(told), f"start it there again ({ports}) and restart, or restart without it; the messages are kept"


_book: dict[str, tuple[float, Worker]] = {}
_held: set[str] = set()
_refreshing = threading.Lock()


def _refresh(endpoints: Sequence[str], seconds: float) -> None:
    try:
        ask_workers(endpoints, seconds)
    finally:
        _refreshing.release()


def _remember(worker: Worker, now: float) -> None:
    """Note an answer. A worker that is busy cannot tell its memory: the figures from before are kept."""
    before = _book.get(worker.endpoint)
    if worker.state == "busy" and before and before[1].memory:
        worker = Worker(worker.endpoint, "busy", worker.why, before[1].version, before[1].memory)
    _book[worker.endpoint] = (now, worker)


def _ask(endpoint: str, deadline: float) -> Worker:
    """One worker. Two greetings at most: a worker of before protocol 4 hangs up on the newer one."""
    seconds = max(0.0, deadline - time.monotonic())
    try:
        for capabilities in _GREETINGS:
            try:
                link = _Link(endpoint, deadline)
            except (OSError, UnicodeError) as error:
                return Worker(endpoint, "gone", f"does not answer: {_reason(error, seconds)}")
            with link:
                try:
                    return _greet(link, endpoint, capabilities)
                except TimeoutError:
                    link.reset()
                    why = f"takes connections but said nothing within {seconds:.1f} s: it serves one program at a time"
                    return Worker(endpoint, "busy", why)
                except (OSError, EOFError):
                    continue
    except _Foreign as error:
        return Worker(endpoint, "foreign", f"is not an RPC worker: {error}")
    return Worker(endpoint, "foreign", "hung up at the greeting: it is no RPC worker, or one of another llama.cpp")


def _greet(link: _Link, endpoint: str, capabilities: int) -> Worker:
    link.send(_HELLO, bytes(capabilities))
    link.nudge()
    reply = link.receive(3, 64)
    version = ".".join(str(number) for number in reply[:3])
    if capabilities == 0:
        why = f"speaks RPC protocol {version}, which is too old for the llama.cpp here"
        return Worker(endpoint, "foreign", why, version)
    memory: list[tuple[int, int]] = []
    with contextlib.suppress(EOFError, _Foreign):  # a later protocol may say this in other words
        link.send(_DEVICE_COUNT, b"")
        (count,) = struct.unpack("<I", link.receive(4, 4))
        for number in range(min(count, _MOST_DEVICES)):
            link.send(_DEVICE_MEMORY, struct.pack("<I", number))
            memory.append(struct.unpack("<QQ", link.receive(16, 16)))
    return Worker(endpoint, "ready", version=version, memory=tuple(memory))


class _Foreign(Exception):
    """What came back is not the protocol; the text says what it looks like."""


class _Link:
    """A connection with a deadline. Raises TimeoutError, EOFError (they hung up), other OSErrors and _Foreign."""

    def __init__(self, endpoint: str, deadline: float) -> None:
        self._deadline = deadline
        host, port = split(endpoint)
        address = socket.getaddrinfo(host, port, socket.AF_INET, socket.SOCK_STREAM)[0][4]
        self._socket = socket.create_connection((str(address[0]), port), self._left())

    def __enter__(self) -> _Link:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def _left(self) -> float:
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        return left

    def send(self, command: int, data: bytes) -> None:
        """A request: | command (1 byte) | size (8 bytes) | data |."""
        self._socket.settimeout(self._left())
        self._socket.sendall(struct.pack("<BQ", command, len(data)) + data)

    def nudge(self) -> None:
        """After most of the patience, end the line: a server of text, such as HTTP, waits for that."""
        self._socket.settimeout(self._left() * 0.8)
        try:
            self._socket.recv(1, socket.MSG_PEEK)
        except TimeoutError:
            self._socket.sendall(b"\r\n\r\n")

    def receive(self, least: int, most: int) -> bytes:
        """A reply: | size (8 bytes) | data |."""
        head = self._exactly(8)
        size = int.from_bytes(head, "little")
        if not least <= size <= most:
            raise _Foreign(_resembles(head))
        return self._exactly(size)

    def _exactly(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            self._socket.settimeout(self._left())
            part = self._socket.recv(count - len(data))
            if not part:
                if data:
                    raise _Foreign(_resembles(data))
                raise EOFError
            data += part
        return data

    def reset(self) -> None:
        """End the connection by RST instead of FIN (see the top of this page)."""
        with contextlib.suppress(OSError):
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def _resembles(data: bytes) -> str:
    text = visible(data.decode("ascii", "replace"))
    known = {"HTTP": "HTTP", "<!": "HTTP", "<html": "HTTP", "SSH-": "SSH", "220 ": "SMTP"}
    return next((f"it speaks {known[start]}" for start in known if text.startswith(start)), f"it answered '{text}'")


def _reason(error: OSError | UnicodeError, seconds: float) -> str:
    if isinstance(error, (socket.gaierror, UnicodeError)):
        return "there is no host of that name"
    if isinstance(error, TimeoutError):
        return f"no answer within {seconds:.1f} s"
    return (error.strerror or str(error)).lower()
