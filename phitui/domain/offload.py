"""The memory plan: which layers go where, what each device then holds, and whether that fits. Pure functions.

What each device holds is phitui.domain.memory's, what fits at most phitui.domain.solver's; here both become a plan with
everything that should be said about it. Sizes are bytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from phitui.domain.chat import EngineSettings
from phitui.domain.hardware import Device
from phitui.domain.limits import default_context
from phitui.domain.load import KV_TYPES, LoadOptions
from phitui.domain.memory import DevicePlan, Learned, Machine, Measure, host_of, offload_devices, rows
from phitui.domain.placement import ModelMemory, sequence_context
from phitui.domain.solver import MARGIN, MIB, Tradeoff, solve
from phitui.domain.solver import tradeoffs as _tradeoffs
from phitui.domain.speed import Speed

RopeFactors = Literal["short", "long", "none"]


@dataclass(frozen=True)
class PlanRequest(LoadOptions):
    """What to plan: a model and how it is to be loaded.

    `devices` are what-if devices ("name=24GiB", "RAM=32GiB") instead of this machine's.
    """

    model: str
    devices: tuple[str, ...] = ()


@dataclass(frozen=True)
class Profile:
    """One way to use a longrope model: `n_ctx` tokens with the short or the long factors."""

    rope: RopeFactors
    n_ctx: int
    n_gpu_layers: int
    fits: bool


@dataclass(frozen=True)
class OffloadPlan:
    """The plan. `layers_total` is the number of layers plus the output layer; `how` says where each figure is from.

    `settings` are what the engine is to be given. `profiles` are the two ways to use a longrope model whose context is
    beyond its original one; empty for others. `left_out` says why RPC workers of the configuration are not used; these
    texts are among the warnings too.
    """

    model: str
    n_gpu_layers: int
    layers_total: int
    n_ctx: int
    rope: RopeFactors
    fits: bool
    devices: tuple[DevicePlan, ...]
    how: dict[str, str]
    warnings: tuple[str, ...] = ()
    kv_type: str = "f16"
    flash_attention: bool | None = None
    batch: int = 512
    ubatch: int = 512
    context_length: int = 0
    original_context: int | None = None
    margin: int = MARGIN
    rpc: tuple[str, ...] = field(default=())
    settings: EngineSettings = field(default_factory=EngineSettings)
    profiles: tuple[Profile, ...] = ()
    expert_layers: int = 0
    speed: Speed | None = None
    left_out: tuple[str, ...] = ()


def plan(
    model: ModelMemory,
    machine: Sequence[Device],
    request: PlanRequest,
    measure: Measure | None = None,
    learned: Mapping[str, Learned] | None = None,
) -> OffloadPlan:
    """Plan `model` on `machine` (the devices as the engine lists them, the host among them).

    `learned` by device name is added to each device's needs. Raises UsageError for a request that no machine could
    carry out. A plan that does not fit is returned as such.
    """
    where = Machine.of(machine, learned)
    settings = solve(model, where, request, measure)
    made, how = rows(model, where, settings, measure)
    how["memory"] = _memory_source([*where.used_by(settings), where.host])
    if any(row.learned for row in made):
        how["learned"] = "measured"
    shared = _shared_shortage(made)
    return OffloadPlan(
        model=request.model,
        n_gpu_layers=settings.layers,
        layers_total=model.layers_total,
        n_ctx=settings.context,
        rope=rope_of(model, settings),
        fits=all(row.fits for row in made) and not shared,
        devices=made,
        how=how,
        warnings=(*_warnings(model, request, settings, where, made), *shared),
        kv_type=settings.kv_type,
        flash_attention=settings.flash_attention,
        batch=settings.batch,
        ubatch=settings.ubatch,
        context_length=model.context_length,
        original_context=model.original_context,
        rpc=settings.rpc,
        settings=settings,
        profiles=_profiles(model, where, request, settings),
        expert_layers=len(model.experts),
    )


def tradeoffs(
    model: ModelMemory,
    machine: Sequence[Device],
    made: OffloadPlan,
    measure: Measure | None = None,
    learned: Mapping[str, Learned] | None = None,
) -> tuple[Tradeoff, ...]:
    """The most context for several KV types, with all layers offloaded and with those of the plan."""
    return _tradeoffs(model, Machine.of(machine, learned), made.settings, made.settings, measure)


def rope_factors(model: ModelMemory, context: int, parallel: int = 1, unified: bool = False) -> RopeFactors:
    """Which longrope factors llama.cpp uses: it looks at a sequence's part of the context, not at the prompt."""
    if model.original_context is None:
        return "none"
    return "long" if sequence_context(context, parallel, unified) > model.original_context else "short"


def rope_of(model: ModelMemory, settings: EngineSettings) -> RopeFactors:
    """The longrope factors of these settings."""
    return rope_factors(model, settings.context, settings.parallel, settings.kv_unified)


def _profiles(
    model: ModelMemory, machine: Machine, request: PlanRequest, settings: EngineSettings
) -> tuple[Profile, ...]:
    """The two sides of the longrope cliff, by formulas: what was asked, and the most that keeps the short factors."""
    if rope_of(model, settings) != "long" or model.original_context is None:
        return ()
    shares = 1 if settings.kv_unified else settings.parallel
    found = []
    for context in (model.original_context * shares, settings.context):
        solved = solve(model, machine, replace(request, context=context))
        made, _ = rows(model, machine, solved)
        found.append(Profile(rope_of(model, solved), context, solved.layers, all(row.fits for row in made)))
    return tuple(found)


def _memory_source(devices: Sequence[Device]) -> str:
    return ", ".join(sorted({device.source for device in devices}))


def _shared_shortage(made: Sequence[DevicePlan]) -> tuple[str, ...]:
    """An integrated GPU has no memory of its own: what it holds is missing in the RAM."""
    host = made[-1]
    inside = [row for row in made[:-1] if row.kind == "igpu" and row.used]
    needed = host.sum + sum(row.sum for row in inside)
    if not inside or needed <= host.free:
        return ()
    names = ", ".join(row.name for row in inside)
    return (f"{names} shares the RAM: together they need {_gib(needed)}, {_gib(host.free)} are free",)


def _warnings(
    model: ModelMemory,
    request: PlanRequest,
    settings: EngineSettings,
    machine: Machine,
    made: Sequence[DevicePlan],
) -> tuple[str, ...]:
    found = []
    if rope_of(model, settings) == "long":
        found.append(
            f"longrope: a context above {model.original_context} uses the long factors for every prompt, short ones "
            f"too; up to {model.original_context} the short factors are used"
        )
    if request.layers and not machine.offload:
        found.append("no device to offload to: all layers stay on the CPU (phitui doctor says why)")
    if settings.n_cpu_moe and machine.offload:
        found.append(f"the experts of {settings.n_cpu_moe} of {len(model.experts)} layers stay in RAM")
    found += [
        f"{row.name} is short of {_gib(row.sum - row.free)}: {_gib(row.sum)} needed, {_gib(row.free)} free"
        for row in made
        if not row.fits
    ]
    found += [
        f"{row.name} would be left with less than {MARGIN // MIB} MiB"
        for row in made
        if row.fits and row.used and row.sum + MARGIN > row.free
    ]
    return tuple(found)


def _gib(size: int) -> str:
    return f"{size / 1024**3:.2f} GiB"


__all__ = [
    "KV_TYPES",
    "MARGIN",
    "DevicePlan",
    "Learned",
    "Measure",
    "ModelMemory",
    "OffloadPlan",
    "PlanRequest",
    "Profile",
    "Speed",
    "Tradeoff",
    "default_context",
    "host_of",
    "offload_devices",
    "plan",
    "rope_factors",
    "tradeoffs",
]
