"""Plan a model on this machine, or on one that is described.

The engine is asked for its devices and, if wished, for its compute buffers through the Backend and MemoryProbe
protocols; this module knows no plugin. Without an engine the machine's RAM is the only device and formulas answer.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from phitui.actions import loads, workers
from phitui.actions.context import Context
from phitui.actions.models import resolve_model
from phitui.domain import offload
from phitui.domain.chat import EngineSettings
from phitui.domain.hardware import Device, MemoryBuffer
from phitui.domain.offers import MemoryProbe
from phitui.domain.offload import OffloadPlan, PlanRequest, Tradeoff
from phitui.domain.placement import ModelMemory, model_memory
from phitui.domain.sizes import parse_size
from phitui.domain.tensors import FilePlan
from phitui.errors import PhituiError, UsageError
from phitui.plugins import availability

_RAM_NAMES = ("ram", "cpu", "host")


def plan(ctx: Context, request: PlanRequest, probe: bool = True) -> OffloadPlan:
    """Plan `request.model` (a GGUF path or a name in the library).

    With `probe` the engine is asked for its compute buffers (tens of milliseconds once its child process is warm);
    without, they are estimated in microseconds. Raises UsageError for a request no machine could carry out,
    Unavailable where RPC workers are named and no engine can reach them.
    """
    return _plan(ctx, resolve_model(ctx, request.model), request, probe)


def plan_file(ctx: Context, file: FilePlan, request: PlanRequest, probe: bool = False) -> OffloadPlan:
    """Plan a GGUF that is not written yet, such as one row of a table of schemes: `request.model` is only its name."""
    from phitui.actions.standin import stand_in_of

    return _plan(ctx, stand_in_of(file), request, probe)


def _plan(ctx: Context, path: Path, request: PlanRequest, probe: bool) -> OffloadPlan:
    model = memory_of(path)
    if request.devices:
        if request.rpc:
            raise UsageError("--device describes another machine; --rpc asks real workers", "use one of the two")
        machine, note = described(request.devices, devices(ctx))
        made = offload.plan(model, machine, request)
        return _with_warnings(made, note) if note else made
    prober = memory_probe(ctx)
    request, remarks = workers.settle(ctx, request, prober)
    machine = machine_of(ctx, request.rpc)
    known = loads.learned(ctx, machine)
    measure = _Measure(path, prober, request.rpc) if probe and prober else None
    made = offload.plan(model, machine, request, measure, known)
    if measure and measure.failure:
        made = offload.plan(model, machine, request, None, known)
        made = _with_warnings(made, f"compute buffers are estimated: {measure.failure}")
    made = replace(_with_warnings(made, *remarks, *_lock_warning(made)), left_out=remarks)
    return replace(made, speed=loads.speed(ctx, path, made, machine))


def tradeoffs(ctx: Context, request: PlanRequest, made: OffloadPlan, probe: bool = False) -> tuple[Tradeoff, ...]:
    """How far the context of that plan could reach with other KV types, and with all layers offloaded.

    By formulas in milliseconds; with `probe` the engine is asked, tens of milliseconds for each line.
    """
    path = resolve_model(ctx, request.model)
    if request.devices:
        machine, _ = described(request.devices, devices(ctx))
        return offload.tradeoffs(memory_of(path), machine, made)
    machine = machine_of(ctx, made.rpc)
    prober = memory_probe(ctx) if probe else None
    measure = _Measure(path, prober, made.rpc) if prober else None
    found = offload.tradeoffs(memory_of(path), machine, made, measure, loads.learned(ctx, machine))
    return tradeoffs(ctx, request, made) if measure and measure.failure else found


class _Measure:
    """Asks the engine what it would allocate for a model file; after the first failure it is not asked again."""

    def __init__(self, path: Path, prober: MemoryProbe, rpc: Sequence[str]) -> None:
        stat = path.stat()
        self._file = (path, stat.st_size, stat.st_mtime_ns)
        self._prober = prober
        self.failure = "an RPC worker serves a model now" if workers.busy(rpc) else ""

    def __call__(self, settings: EngineSettings) -> Sequence[MemoryBuffer] | None:
        from phitui.actions.standin import stand_in

        if self.failure:
            return None
        try:
            return self._prober.measure(stand_in(*self._file), settings)
        except PhituiError as error:
            self.failure = error.message
            return None


def _lock_warning(made: OffloadPlan) -> tuple[str, ...]:
    """What stands in the way of --mlock: the system's limit, beyond which llama.cpp goes on without the lock."""
    import resource

    if not made.settings.mlock:
        return ()
    limit, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if limit == resource.RLIM_INFINITY or limit >= made.devices[-1].weights:
        return ()
    return (f"only {limit // 1024} KiB may be locked here (ulimit -l): the engine goes on without --mlock",)


def _with_warnings(made: OffloadPlan, *more: str) -> OffloadPlan:
    return replace(made, warnings=(*made.warnings, *more))


def machine_of(ctx: Context, rpc: Sequence[str]) -> list[Device]:
    """This machine's devices, with those of RPC workers in front. Raises Unavailable where they cannot be used."""
    return [*workers.devices_of(rpc, memory_probe(ctx)), *devices(ctx)]


def devices(ctx: Context) -> list[Device]:
    """The devices of this machine as the engine lists them; without an engine, its RAM.

    Their free memory is as of a few seconds ago at most. Cheap enough to be asked with every step of a slider.
    """
    known = _seen.get(id(ctx.registry))
    if known is None or known[0] is not ctx.registry or time.monotonic() - known[1] > FRESH_SECONDS:
        known = (ctx.registry, time.monotonic(), _look(ctx))
        _seen.clear()
        _seen[id(ctx.registry)] = known
    return list(known[2])


FRESH_SECONDS = 1.0
"""Seconds for which devices are not asked again; the engine's child process has a limit of its own."""
_seen: dict[int, tuple[object, float, list[Device]]] = {}


def _look(ctx: Context) -> list[Device]:
    found: dict[str, Device] = {}
    for backend in ctx.registry.backends:
        if not getattr(backend, "remote", False) and availability(backend).ok:
            for device in backend.probe().devices:
                found.setdefault(device.name, device)
    if not any(device.kind == "cpu" for device in found.values()):
        found["CPU"] = _ram()
    return list(found.values())


def memory_probe(ctx: Context) -> MemoryProbe | None:
    """The first backend that can ask the engine what a load would allocate."""
    for backend in ctx.registry.backends:
        if isinstance(backend, MemoryProbe) and availability(backend).ok:
            return backend
    return None


def release(ctx: Context) -> None:
    """End the warm probe where it holds GPU memory that a load could use. The next plan starts it again."""
    prober = memory_probe(ctx)
    if prober is not None and any(device.kind in ("gpu", "igpu") for device in devices(ctx)):
        prober.release()


def memory_of(path: Path) -> ModelMemory:
    """What planning needs of a GGUF; cached by path, size and time, so that a slider does not read the file again."""
    stat = path.stat()
    return _memory_of(path, stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=32)
def _memory_of(path: Path, size: int, modified: int) -> ModelMemory:
    from phitui.gguf.facts import facts_from_header
    from phitui.gguf.shards import read_model

    header = read_model(path)
    return model_memory(facts_from_header(header), [(tensor.name, tensor.size) for tensor in header.tensors])


def described(specs: Sequence[str], here: Sequence[Device]) -> tuple[list[Device], str]:
    """The machine of some --device texts, and a remark about it. "RAM=16GiB" is its memory, others are GPUs.

    Raises UsageError for a text that is not NAME=SIZE.
    """
    machine = [_described(text, number) for number, text in enumerate(specs)]
    names = [device.name for device in machine]
    if len(set(names)) < len(names):
        raise UsageError(
            "two --device have the same name", "name them, for example: --device 'A=24GiB' --device 'B=24GiB'"
        )
    if any(device.kind == "cpu" for device in machine):
        return machine, ""
    ram = offload.host_of(here)
    return [*machine, ram], 'RAM is this machine\'s; describe another with --device "RAM=32GiB"'


def _described(text: str, number: int) -> Device:
    name, found, amount = text.rpartition("=")
    size = parse_size(amount) if found else None
    if size is None or not name.strip():
        raise UsageError(
            f"--device {text!r} is not NAME=SIZE", 'for example: --device "RTX 4070=12GiB" --device "RAM=32GiB"'
        )
    kind = "cpu" if name.strip().lower() in _RAM_NAMES else "gpu"
    return Device(name.strip(), "given", "cpu" if kind == "cpu" else "gpu", text, size, size, "given")


def _ram() -> Device:
    import psutil

    memory = psutil.virtual_memory()
    return Device("CPU", "cpu", "cpu", "RAM", memory.total, memory.available, "measured")


def as_document(made: OffloadPlan) -> dict[str, Any]:
    """The plan as the JSON contract of `phitui plan --json`; sizes are bytes."""
    return {
        "model": made.model,
        "n_gpu_layers": made.n_gpu_layers,
        "layers_total": made.layers_total,
        "n_ctx": made.n_ctx,
        "context_length": made.context_length,
        "original_context": made.original_context,
        "rope": made.rope,
        "kv_type": made.kv_type,
        "kv_type_v": made.settings.value_type,
        "flash_attention": made.flash_attention,
        "n_cpu_moe": made.settings.n_cpu_moe,
        "expert_layers": made.expert_layers,
        "n_seq": made.settings.parallel,
        "kv_unified": made.settings.kv_unified,
        "split_mode": made.settings.split_mode,
        "tensor_split": list(made.settings.tensor_split),
        "mmap": made.settings.mmap,
        "mlock": made.settings.mlock,
        "n_batch": made.batch,
        "n_ubatch": made.ubatch,
        "rpc": list(made.rpc),
        "fits": made.fits,
        "margin": made.margin,
        "devices": [
            {
                "name": row.name,
                "backend": row.backend,
                "kind": row.kind,
                "endpoint": row.endpoint,
                "total": row.total,
                "free": row.free,
                "weights": row.weights,
                "kv": row.kv,
                "compute": row.compute,
                "sum": row.sum,
                "fits": row.fits,
                "allocated": row.allocated,
                "mapped": row.mapped,
                "learned": row.learned,
                "learned_from_loads": row.loads,
                "read_per_token": row.read,
            }
            for row in made.devices
        ],
        "speed": asdict(made.speed) if made.speed else None,
        "profiles": [asdict(profile) for profile in made.profiles],
        "how": dict(made.how),
        "warnings": list(made.warnings),
    }
