"""The most that fits: layers, then context; of a mixture, experts leave a device before whole layers do.

Formulas find the answer in microseconds; where the engine can be asked, its own figures then correct it in a few steps.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from phitui.domain.chat import EngineSettings
from phitui.domain.limits import checked, longest_context
from phitui.domain.load import LoadOptions
from phitui.domain.memory import Machine, Measure, rows
from phitui.domain.placement import CONTEXT_PAD, ModelMemory, kv_type
from phitui.errors import UsageError

MIB = 1024 * 1024
MARGIN = 256 * MIB
"""What the solver leaves free on every device: the driver's own needs, and other programs."""

TRADED_KV = ("f16", "q8_0", "q4_0")
"""The KV types that trade-offs are told for."""


@dataclass(frozen=True)
class Tradeoff:
    """The most context (tokens, 0: none) that fits with this many layers and this KV type."""

    layers: int
    kv_type: str
    context: int


class Solver:
    """Solves for one model on one machine. `measure` None: by formulas alone."""

    def __init__(self, model: ModelMemory, machine: Machine, measure: Measure | None = None) -> None:
        self._model = model
        self._machine = machine
        self._measure = measure

    def solved(self, options: LoadOptions, settings: EngineSettings) -> EngineSettings:
        """`settings` with everything filled in that `options` leave open."""
        if options.layers is None:
            settings = self._layers(settings, options.n_cpu_moe is None)
        elif options.n_cpu_moe is None and self._model.experts:
            settings = replace(settings, n_cpu_moe=self._experts(settings))
        if options.context == -1:
            settings = replace(settings, context=max(CONTEXT_PAD, self.context(options, settings)))
        return settings

    def _layers(self, settings: EngineSettings, free_experts: bool) -> EngineSettings:
        """All layers with as few experts in RAM as it takes; if even that is too much, the most layers that fit."""
        total = self._model.layers_total
        if not self._machine.offload:
            return replace(settings, layers=0)
        if free_experts and self._model.experts:
            settings = replace(settings, layers=total)
            settings = replace(settings, n_cpu_moe=self._experts(settings))
        found = self._most(0, total, lambda layers: replace(settings, layers=layers), devices_only=True)
        experts = settings.n_cpu_moe if found or not free_experts else 0
        return replace(settings, layers=found, n_cpu_moe=experts)

    def _experts(self, settings: EngineSettings) -> int:
        """The fewest layers whose experts must stay in RAM; all, where even that is not enough."""
        count = len(self._model.experts)
        if not self._machine.offload or not settings.layers:
            return 0

        def with_experts_offloaded(number: int) -> EngineSettings:
            return replace(settings, n_cpu_moe=count - number)

        return count - self._most(0, count, with_experts_offloaded, devices_only=True)

    def context(self, options: LoadOptions, settings: EngineSettings) -> int:
        """The most context that fits with these settings, RAM included; 0 if none does."""
        step = CONTEXT_PAD * (1 if settings.kv_unified else settings.parallel)
        limit = longest_context(self._model, options)

        def with_context(steps: int) -> EngineSettings:
            return replace(settings, context=max(1, min(limit, steps * step)))

        steps = self._most(0, -(-limit // step), with_context, devices_only=False)
        return min(limit, steps * step)

    def tradeoffs(self, options: LoadOptions, settings: EngineSettings) -> tuple[Tradeoff, ...]:
        """How far the context reaches with all layers and with those of `settings`, for several KV types."""
        some = (self._model.layers_total,) if self._machine.offload else ()
        found = []
        for layers in dict.fromkeys((*some, settings.layers)):
            for kind in dict.fromkeys((settings.kv_type, *TRADED_KV)):
                if settings.flash_attention is False and not kv_type(kind).is_float:
                    continue
                asked = replace(settings, layers=layers, kv_type=kind, kv_type_v=None)
                try:
                    found.append(Tradeoff(layers, kind, self.context(options, asked)))
                except UsageError:  # heads that do not divide into the type's blocks
                    continue
        return tuple(found)

    def _most(self, low: int, high: int, make: Callable[[int], EngineSettings], devices_only: bool) -> int:
        """The largest number in low..high whose settings fit; `low` if none does. More must never need less."""

        def guess(number: int) -> bool:
            return self._fits(make(number), None, devices_only)

        found = _bisect(low, high, guess)
        if self._measure is None:
            return found

        def sure(number: int) -> bool:
            return self._fits(make(number), self._measure, devices_only)

        return _gallop(low, high, found, sure)

    def _fits(self, settings: EngineSettings, measure: Measure | None, devices_only: bool) -> bool:
        made, _ = rows(self._model, self._machine, settings, measure)
        looked_at = made[:-1] if devices_only else made
        return all(row.sum + MARGIN <= row.free for row in looked_at if row.used)


def _bisect(low: int, high: int, fits: Callable[[int], bool]) -> int:
    """The largest number in low..high that fits, if all smaller ones do; `low` is not asked."""
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low


def _gallop(low: int, high: int, near: int, fits: Callable[[int], bool]) -> int:
    """As _bisect, beginning near the answer: steps that double, then bisection between the last two."""
    step = 1
    if near > low and not fits(near):
        while True:
            high, near, step = near - 1, max(low, near - step), step * 2
            if near == low or fits(near):
                return _bisect(near, high, fits)
    while near < high:
        ahead = min(high, near + step)
        if not fits(ahead):
            return _bisect(near, ahead - 1, fits)
        near, step = ahead, step * 2
    return near


def tradeoffs(
    model: ModelMemory, machine: Machine, options: LoadOptions, settings: EngineSettings, measure: Measure | None = None
) -> tuple[Tradeoff, ...]:
    """What context fits with all layers and with the planned ones, for f16, q8_0 and q4_0 KV caches."""
    return Solver(model, machine, measure).tradeoffs(options, settings)


def solve(model: ModelMemory, machine: Machine, options: LoadOptions, measure: Measure | None = None) -> EngineSettings:
    """The settings for these options, everything decided. Raises UsageError for what no machine could carry out."""
    settings = fixed_split(machine, checked(model, options, machine.offload))
    return Solver(model, machine, measure).solved(options, settings)


def fixed_split(machine: Machine, settings: EngineSettings) -> EngineSettings:
    """Settings that name the split: free memory changes between the plan and the load, and the layers with it."""
    if len(machine.used_by(settings)) < 2 or settings.tensor_split:
        return settings
    parts = (max(1.0, float(round(part / MIB))) for part in machine.split(settings))
    return replace(settings, tensor_split=tuple(parts))
