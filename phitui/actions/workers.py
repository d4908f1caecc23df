"""The RPC workers of a request: which are used, what their devices are, and what to say about those that are not there.

A worker that the request names must be there. One that only config.toml names may be away: then a plan or a chat does
without it and says so. One that is busy with a model loaded by this phitui counts with the memory it had before.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TypeVar

from phitui.actions.context import Context
from phitui.domain.hardware import Device
from phitui.domain.load import LoadOptions
from phitui.domain.offers import MemoryProbe
from phitui.engine.workers import Worker, ask_workers, known_workers
from phitui.errors import PhituiError, Unavailable, UsageError

Request = TypeVar("Request", bound=LoadOptions)


def refresh(ctx: Context, request: LoadOptions) -> None:
    """Ask the request's workers now, before a load: what is known of them may be minutes old. Raises UsageError."""
    if not request.no_rpc:
        ask_workers(request.rpc or ctx.config.workers)


def settle(ctx: Context, request: Request, prober: MemoryProbe | None) -> tuple[Request, tuple[str, ...]]:
    """The request with the workers it can use, and a remark about every one of config.toml that it cannot.

    What is known of them for some seconds is taken, so that a slider never waits. Raises UsageError for what is not
    HOST:PORT, Unavailable (or EngineError) for a worker that the request itself names.
    """
    if request.no_rpc:
        if request.rpc:
            raise UsageError("--rpc names workers and --no-rpc wants none", "use one of the two")
        return request, ()
    named = tuple(dict.fromkeys(request.rpc))
    wanted = named or tuple(dict.fromkeys(ctx.config.workers))
    if not wanted:
        return request, ()
    try:
        if prober is None:
            raise Unavailable("no engine here can use RPC workers", "phitui doctor says how to install one that can")
        found = known_workers(wanted)
        usable = tuple(worker.endpoint for worker in found if _usable(worker))
        away = [worker for worker in found if not _usable(worker)]
        if named and away:
            refusals = [worker.refusal() for worker in away]
            raise Unavailable("; ".join(each.message for each in refusals), refusals[0].hint)
        devices_of(usable, prober)
    except UsageError:
        raise
    except PhituiError as error:
        if named:
            raise
        return replace(request, rpc=()), (f"planned without the workers of config.toml: {error.message}",)
    return replace(request, rpc=usable), tuple(
        f"planned without the RPC worker {worker.endpoint} of config.toml: it {worker.why}" for worker in away
    )


def devices_of(endpoints: Sequence[str], prober: MemoryProbe | None) -> list[Device]:
    """The devices of workers, under the names that the engine will give them. Raises Unavailable, EngineError."""
    if not endpoints:
        return []
    if prober is None:
        raise Unavailable("no engine here can use RPC workers", "phitui doctor says how to install one that can")
    if not busy(endpoints):
        return list(prober.workers(endpoints))
    memory = [(each.endpoint, size) for each in known_workers(endpoints) for size in each.memory]
    return [
        Device(f"RPC{number}", "rpc", "remote", endpoint, total, free, "measured")
        for number, (endpoint, (free, total)) in enumerate(memory)
    ]


def busy(endpoints: Sequence[str]) -> bool:
    """Whether one of them serves a model now, so that it cannot be asked about another one."""
    return any(worker.state == "busy" for worker in known_workers(endpoints))


def _usable(worker: Worker) -> bool:
    return worker.state == "ready" or (worker.state == "busy" and bool(worker.memory))
