"""`phitui worker`: lend this machine's devices to a phitui (or llama.cpp) on another one."""

from __future__ import annotations

import contextlib
import os
import platform
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import FrameType
from typing import Any

from phitui.api import Availability, Cancelled, EngineError, Phitui, Say, UsageError, Worker, option, parse_size
from phitui_rpc import address, process
from phitui_rpc.library import INSTALL, has_rpc

PORT = 50052
"""llama.cpp's own default."""
_MOMENT = 0.3
"""Seconds within which a greeting is over."""
_STEADY = 10.0
"""Seconds a server must have lived to be started again when it dies."""


@dataclass(frozen=True)
class WorkerOptions:
    host: str = option("127.0.0.1", help="IPv4 address to listen on")
    port: int = option(PORT, help="port to listen on; 0 takes a free one", minimum=0, maximum=65535)
    device: tuple[str, ...] = option((), help="a device to lend (CPU, CUDA0, ...), repeatable; all GPUs, else the CPU")
    mem: tuple[str, ...] = option((), help="lend at most so much memory (8GiB), of all or of each --device")
    threads: int | None = option(None, help="threads of the CPU device; all physical cores if not given", minimum=1)
    cache: bool = option(False, help="keep tensors on disk, so that the same model loads faster again")
    i_know: bool = option(False, help="serve on an address that other machines reach, without password or encryption")


class WorkerCommand:
    name = "worker"
    title = "lend this machine's devices to other machines (RPC)"
    options = WorkerOptions

    def available(self) -> Availability:
        if has_rpc() or process.program():
            return Availability()
        return Availability(False, "llama-cpp-python here is missing, or was built without RPC", INSTALL)

    def run(self, phitui: Phitui, options: WorkerOptions, say: Say) -> Mapping[str, Any]:
        """Serve until told to end (Ctrl-C, SIGTERM): then Cancelled is raised. Announces what is lent once it is."""
        host, port = address.resolve(options.host, options.port, options.i_know)
        limits = tuple(_size(text) for text in options.mem)
        threads = options.threads or _cores()
        cache = _cache(phitui) if options.cache else None
        offer = process.Offer(host, port, options.device, limits, threads, cache)
        with _ends_on_signals():
            server = process.Server(offer)
            try:
                worker = server.start()
                document = _document(server, worker, options)
                for line in _introduction(document, options.i_know):
                    say(line)
                phitui.announce(document)
                _serve(server, say)
            finally:
                server.end()
        raise AssertionError  # _serve never returns


def _cores() -> int:
    import psutil

    return psutil.cpu_count(logical=False) or os.cpu_count() or 1


def _size(text: str) -> int:
    size = parse_size(text)
    if size is None:
        raise UsageError(f"--mem {text!r} is no size", "for example: --mem 8GiB")
    return size


def _cache(phitui: Phitui) -> str:
    folder = phitui.cache_dir / "rpc"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"no cache can be kept in {folder}: {error.strerror}", "leave --cache away") from None
    return str(folder)


def _document(server: process.Server, worker: Worker, options: WorkerOptions) -> dict[str, Any]:
    """What --json prints once the worker answers; sizes are bytes."""
    devices = [dict(device) for device in server.devices]
    if not devices:  # llama.cpp's own program names no devices to us, but it tells their memory
        devices = [
            {"name": f"device {n}", "free": free, "total": total} for n, (free, total) in enumerate(worker.memory)
        ]
    return {
        "endpoint": server.offer.endpoint,
        "host": server.offer.host,
        "port": server.offer.port,
        "pid": os.getpid(),
        "server_pid": server.pid,
        "protocol": worker.version,
        "threads": server.offer.threads,
        "devices": devices,
    }


def _introduction(document: Mapping[str, Any], exposed: bool) -> Iterator[str]:
    yield f"serving on {document['endpoint']} (RPC protocol {document['protocol']})"
    for device in document["devices"]:
        about = f"  {device['description']}" if device.get("description") else ""
        yield f"  {device['name']:<8} {_shown(device['free'])} of {_shown(device['total'])} free{about}"
    port = document["port"]
    if exposed and not document["host"].startswith("127."):
        here = platform.node() if document["host"] == "0.0.0.0" else document["host"]  # noqa: S104  (only compared)
        yield f"! {address.DANGER}"
        yield f"on the other machine:  phitui chat MODEL --rpc {here}:{port}"
    else:
        yield f"on the other machine:  ssh -N -L {port}:127.0.0.1:{port} user@this-host"
        yield f"                       phitui chat MODEL --rpc 127.0.0.1:{port}"
    yield "Ctrl-C ends it; it serves one program at a time"


def _serve(server: process.Server, say: Say) -> None:
    """Say who comes and goes; start a server that dies again. Never returns; raises Cancelled or EngineError.

    Who only asks what there is comes and goes within a moment, and is not spoken of.
    """
    began = time.monotonic()
    peers, told = "", False
    while True:
        try:
            line = server.line(_MOMENT if peers and not told else 1.0)
        except EngineError as error:
            if time.monotonic() - began < _STEADY:
                raise
            say(f"{_now()} {error.message}")
            server.end()
            server.start()
            say(f"{_now()} started again")
            began, peers, told = time.monotonic(), "", False
            continue
        if line is None and peers and not told:
            say(f"{_now()} connected: {peers}")
            told = True
        elif line == "Accepted client connection":
            peers, told = ", ".join(server.peers()) or "somebody", False
        elif line == "Client connection closed":
            if told:
                say(f"{_now()} connection closed")
            peers, told = "", False
        elif line and "error" in line.lower():
            say(f"{_now()} {line}")


def _shown(size: int) -> str:
    return f"{size / 1024**3:.1f} GiB" if size >= 1024**3 else f"{size / 1024**2:.0f} MiB"


def _now() -> str:
    return time.strftime("%H:%M:%S")


@contextlib.contextmanager
def _ends_on_signals() -> Iterator[None]:
    """SIGINT and SIGTERM raise Cancelled here; only the main thread can have handlers."""

    def end(_number: int, _frame: FrameType | None) -> None:
        raise Cancelled("ended; nothing is lent any more")

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, end) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
