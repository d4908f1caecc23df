"""The worker's child process: serves devices of this machine by ggml's own RPC server. Native code lives and dies here.

    python -P -m phitui_rpc.server --host 127.0.0.1 --port 50052 [--device NAME]... [--mem BYTES]... [--threads N]

Standard output carries JSON lines, mixed with what ggml itself prints (two lines for every connection):

    {"event": "devices", "devices": [{"name", "description", "kind", "total", "free"}]}   then it serves until killed
    {"event": "error", "message": "...", "hint": "..."}                                   then it ends with 1

It ends when its standard input does: that is how it learns of its parent's death.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import os
import socket
import stat
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from phitui.api import Unavailable, native_library
from phitui_rpc import library

KINDS = ("cpu", "gpu", "igpu", "accel", "meta")
"""ggml_backend_dev_type in order."""
QUEUE = 16
KEEPALIVE = {"TCP_KEEPIDLE": 30, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 3}
"""A peer that is silent for a minute and does not answer the kernel's questions is gone."""
_LENT_BY_ITSELF = ("gpu", "igpu")
_POINTER = ctypes.c_void_p
_SIZE = ctypes.c_size_t
_SIZES = ctypes.POINTER(_SIZE)
_GET_MEMORY = ctypes.CFUNCTYPE(None, _POINTER, _SIZES, _SIZES)
_START = ctypes.CFUNCTYPE(None, ctypes.c_char_p, ctypes.c_char_p, _SIZE, _SIZE, ctypes.POINTER(_POINTER))


class Refused(Exception):
    """What cannot be served; `args` are (message, hint)."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until killed. Returns 1 where that is not possible."""
    parser = argparse.ArgumentParser(prog="phitui_rpc.server")
    parser.add_argument("--host", required=True)
    parser.add_argument("--port", required=True, type=int)
    parser.add_argument("--device", action="append", default=[])
    parser.add_argument("--mem", action="append", default=[], type=int)
    parser.add_argument("--threads", required=True, type=int)
    parser.add_argument("--cache-dir")
    options = parser.parse_args(arguments)
    os.environ["GGML_NO_BACKTRACE"] = "1"  # or a failed assert would start a debugger
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        ggml = Ggml()
        lent = ggml.lent(options.device)
        keep = ggml.limit(lent, options.mem)
        _say({"event": "devices", "devices": [ggml.describe(device) for device in lent]})
        threading.Thread(target=_tend, daemon=True).start()
        ggml.serve(f"{options.host}:{options.port}", lent, options.threads, options.cache_dir)
        del keep
    except Refused as error:
        _say({"event": "error", "message": error.args[0], "hint": error.args[1]})
        return 1
    except (OSError, Unavailable) as error:
        _say({"event": "error", "message": f"ggml does not load: {error}", "hint": library.INSTALL})
        return 1
    hint = "is another program using it? give another one: --port 50053"
    _say({"event": "error", "message": f"ggml cannot serve {options.host}:{options.port}", "hint": hint})
    return 1


def _say(message: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


def _end_with_parent() -> None:
    """The parent holds the other end of standard input and never writes: its end is the parent's."""
    while os.read(0, 1):
        pass
    os._exit(0)


def _tend() -> None:
    """Once ggml listens, let it do so for more than one: it keeps a queue of one, and a busy worker is asked by many.

    And let connections find out that the other machine is gone (a laptop that sleeps): ggml waits for it for ever,
    serving nobody else. Accepted sockets inherit this from the one that listens.
    """
    while (listening := _listening()) is None:
        time.sleep(0.02)
    with listening:
        listening.listen(QUEUE)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in KEEPALIVE.items():
            if hasattr(socket, name):
                listening.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _listening() -> socket.socket | None:
    """A duplicate of this process's socket that listens."""
    for name in os.listdir("/dev/fd"):  # noqa: PTH208  (descriptors, not files)
        with contextlib.suppress(OSError, ValueError):  # gone meanwhile, or no socket
            if stat.S_ISSOCK(os.fstat(int(name)).st_mode):
                found = socket.socket(fileno=os.dup(int(name)))
                if found.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                    return found
                found.close()
    return None


@dataclass(frozen=True)
class Memory:
    """What a device may lend: `limit` bytes at most (None: all that is free)."""

    kind: str
    limit: int | None
    real: Callable[[], tuple[int, int]]
    resident: int

    def now(self) -> tuple[int, int]:
        """(free, total) in bytes."""
        free, total = self.real()
        if self.kind == "cpu":
            import psutil

            free = min(free, int(psutil.virtual_memory().available))
        if self.limit is not None:
            total = min(total, self.limit)
            free = min(free, max(0, self.limit - self._used()))
        return free, total

    def _used(self) -> int:
        """Bytes lent already: for RAM what this process has grown by, else what the device has lost since the start."""
        if self.kind != "cpu":
            return max(0, self.resident - self.real()[0])
        return max(0, _resident() - self.resident)


def _resident() -> int:
    import psutil

    return int(psutil.Process().memory_info().rss)


class Ggml:
    """The functions of ggml that a worker needs. Raises Refused without RPC, OSError where a library does not load."""

    def __init__(self) -> None:
        if not library.has_rpc():
            raise Refused("llama-cpp-python here was built without RPC", library.INSTALL)
        import llama_cpp  # noqa: F401  (it loads what its libraries need first, such as CUDA's that pip installed)

        self._base = ctypes.CDLL(str(native_library("ggml-base")))
        self._ggml = ctypes.CDLL(str(native_library("ggml")))
        for name, result in (
            ("ggml_backend_dev_name", ctypes.c_char_p),
            ("ggml_backend_dev_description", ctypes.c_char_p),
            ("ggml_backend_dev_type", ctypes.c_int),
        ):
            function = getattr(self._base, name)
            function.restype, function.argtypes = result, [_POINTER]
        self._base.ggml_backend_dev_memory.argtypes = [_POINTER, _SIZES, _SIZES]
        self._base.ggml_backend_dev_memory.restype = None
        self._base.ggml_backend_reg_get_proc_address.argtypes = [_POINTER, ctypes.c_char_p]
        self._base.ggml_backend_reg_get_proc_address.restype = _POINTER
        self._ggml.ggml_backend_dev_count.restype = _SIZE
        self._ggml.ggml_backend_dev_get.argtypes, self._ggml.ggml_backend_dev_get.restype = [_SIZE], _POINTER
        self._ggml.ggml_backend_reg_by_name.argtypes = [ctypes.c_char_p]
        self._ggml.ggml_backend_reg_by_name.restype = _POINTER

    def describe(self, device: int) -> dict[str, Any]:
        free, total = self.memory(device)
        return {
            "name": self._base.ggml_backend_dev_name(device).decode("utf-8", "replace"),
            "description": self._base.ggml_backend_dev_description(device).decode("utf-8", "replace").strip(),
            "kind": self._kind(device),
            "total": total,
            "free": free,
        }

    def memory(self, device: int) -> tuple[int, int]:
        """(free, total) of a device as ggml says it, in bytes."""
        free, total = _SIZE(0), _SIZE(0)
        self._base.ggml_backend_dev_memory(device, ctypes.byref(free), ctypes.byref(total))
        return free.value, total.value

    def _kind(self, device: int) -> str:
        number = self._base.ggml_backend_dev_type(device)
        return KINDS[number] if number < len(KINDS) else "accel"

    def lent(self, names: Sequence[str]) -> list[int]:
        """The named devices; without names every GPU, and the CPU where there is none (as ggml-rpc-server does)."""
        count = self._ggml.ggml_backend_dev_count()
        devices = [self._ggml.ggml_backend_dev_get(number) for number in range(count)]
        by_name = {self.describe(device)["name"].lower(): device for device in devices}
        unknown = [name for name in names if name.lower() not in by_name]
        if unknown:
            here = ", ".join(self.describe(device)["name"] for device in devices) or "none"
            raise Refused(f"there is no device {unknown[0]!r} here", f"devices: {here}")
        if names:
            return [by_name[name] for name in dict.fromkeys(each.lower() for each in names)]
        chosen = [device for device in devices if self._kind(device) in _LENT_BY_ITSELF]
        chosen = chosen or [device for device in devices if self._kind(device) == "cpu"][:1]
        if not chosen:
            raise Refused("ggml lists no device on this machine", "phitui doctor says what is wrong")
        return chosen

    def limit(self, devices: Sequence[int], limits: Sequence[int]) -> list[Any]:
        """Let devices report what they may lend. Returns what must live as long as the server.

        ggml's CPU device calls all of the RAM free, whatever else is in it, and ggml's server has no limit of its own.
        So the device's own function is replaced, here in this process: `get_memory`, the third pointer of the struct
        that a ggml_backend_dev_t points to. It is first called through that pointer: where it does not say what ggml
        says, it is another function, and is left alone.
        """
        if len(limits) > 1 and len(limits) != len(devices):
            raise Refused(
                f"{len(limits)} --mem for {len(devices)} device{'s' * (len(devices) > 1)}",
                "give one for all of them, or one for each --device in that order",
            )
        kept: list[Any] = []
        for number, device in enumerate(devices):
            limit = limits[min(number, len(limits) - 1)] if limits else None
            kind = self._kind(device)
            if limit is None and kind != "cpu":
                continue
            replaced = self._replace(device, kind, limit)
            if replaced is None and limit is not None:
                raise Refused("this llama.cpp does not let --mem limit a device", "leave --mem away")
            kept.append(replaced)
        return kept

    def _replace(self, device: int, kind: str, limit: int | None) -> Any:
        slot = _POINTER.from_address(device + 2 * ctypes.sizeof(_POINTER))
        if not slot.value or not _in_a_library(slot.value):
            return None
        original = _GET_MEMORY(slot.value)

        def real() -> tuple[int, int]:
            free, total = _SIZE(0), _SIZE(0)
            original(device, ctypes.byref(free), ctypes.byref(total))
            return free.value, total.value

        if real()[1] != self.memory(device)[1]:
            return None
        memory = Memory(kind, limit, real, _resident() if kind == "cpu" else real()[0])

        def tell(_device: int, free: Any, total: Any) -> None:
            free[0], total[0] = memory.now()

        callback = _GET_MEMORY(tell)
        slot.value = ctypes.cast(callback, _POINTER).value
        return callback

    def serve(self, endpoint: str, devices: Sequence[int], threads: int, cache: str | None) -> None:
        """Serve, one connection after the other; returns only where that fails. Raises Refused."""
        registry = self._ggml.ggml_backend_reg_by_name(b"RPC")
        name = b"ggml_backend_rpc_start_server"
        address = registry and self._base.ggml_backend_reg_get_proc_address(registry, name)
        if not address:
            raise Refused("llama-cpp-python here was built without an RPC server", library.INSTALL)
        array = (_POINTER * len(devices))(*devices)
        _START(address)(endpoint.encode(), os.fsencode(cache) if cache else None, threads, len(devices), array)


class _SymbolInfo(ctypes.Structure):
    _fields_ = [("file", ctypes.c_char_p), ("base", _POINTER), ("symbol", ctypes.c_char_p), ("address", _POINTER)]


def _in_a_library(address: int) -> bool:
    """Whether an address lies in a loaded library (and can so be a function at all)."""
    try:
        function = ctypes.CDLL(None).dladdr
    except AttributeError:
        return False
    return bool(function(_POINTER(address), ctypes.byref(_SymbolInfo())))


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    os._exit(code)
