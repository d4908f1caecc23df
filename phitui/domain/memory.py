"""What each device holds under given settings. Pure functions; sizes are bytes.

Weights and KV cache are exact (phitui.domain.placement). Compute buffers are measured where the engine can be asked
(Measure), else estimated (phitui.domain.compute). What a machine was seen to need beyond that is added (Learned).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from phitui.domain.chat import EngineSettings
from phitui.domain.compute import compute_estimate, output_buffer
from phitui.domain.hardware import Device, MemoryBuffer
from phitui.domain.placement import HOST, ModelMemory, deal, kv_per_layer, weights_by_place
from phitui.errors import UsageError

Measure = Callable[[EngineSettings], Sequence[MemoryBuffer] | None]
"""Asks the engine what it would allocate; None where it cannot say."""


@dataclass(frozen=True)
class Learned:
    """What loads on a device were seen to need beyond their plan: the median of the last `loads` of them, bytes."""

    size: int
    loads: int


@dataclass(frozen=True)
class DevicePlan:
    """What one device will hold. The host's row is the RAM: everything that is not offloaded.

    `mapped` is the part of the weights that is used in place, in the file's page cache, and not allocated. `read` is
    what one token reads of weights and KV cache (at half the context). `learned` comes from `loads` former loads.
    `endpoint` is the HOST:PORT of an RPC worker's device.
    """

    name: str
    backend: str
    total: int
    free: int
    weights: int
    kv: int
    compute: int
    kind: str = "gpu"
    mapped: int = 0
    learned: int = 0
    loads: int = 0
    read: int = 0
    endpoint: str = ""

    @property
    def sum(self) -> int:
        return self.weights + self.kv + self.compute + self.learned

    @property
    def allocated(self) -> int:
        """What is taken from the device's free memory for good; mapped pages can be dropped and read again."""
        return self.sum - self.mapped

    @property
    def fits(self) -> bool:
        return self.sum <= self.free

    @property
    def used(self) -> bool:
        """Whether anything of the model is there."""
        return self.weights + self.kv + self.compute > 0


@dataclass(frozen=True)
class Machine:
    """Where a model can go: the devices that layers are offloaded to, in the engine's order, and the RAM."""

    offload: tuple[Device, ...]
    host: Device
    learned: Mapping[str, Learned] = field(default_factory=dict)

    @classmethod
    def of(cls, devices: Sequence[Device], learned: Mapping[str, Learned] | None = None) -> Machine:
        """Raises UsageError where the RAM is not among the devices. One that tells no memory is taken to share it."""
        host = host_of(devices)
        offload = [
            each if each.total or each.free else replace(each, total=host.total, free=host.free, source="estimated")
            for each in offload_devices(devices)
        ]
        return cls(tuple(offload), host, learned or {})

    def used_by(self, settings: EngineSettings) -> tuple[Device, ...]:
        """The devices that these settings offload to."""
        one = settings.split_mode == "none" and self.offload
        return (self.offload[settings.main_gpu],) if one else self.offload

    def split(self, settings: EngineSettings) -> tuple[float, ...]:
        """The parts of the offloaded layers for each of those devices."""
        if settings.tensor_split and settings.split_mode != "none":
            return settings.tensor_split
        return tuple(float(device.free) for device in self.used_by(settings))


def host_of(machine: Sequence[Device]) -> Device:
    """The device that stands for this machine's RAM. Raises UsageError if there is none."""
    for device in machine:
        if device.kind == "cpu":
            return device
    raise UsageError("no host memory is known", 'give it: --device "RAM=16GiB"')


def offload_devices(machine: Sequence[Device]) -> list[Device]:
    """The devices that llama.cpp offloads to, in its order: workers first, then GPUs; an iGPU only without a GPU."""
    gpus = [device for device in machine if device.kind == "gpu"]
    shared = [device for device in machine if device.kind == "igpu"]
    same = [device for device in shared if device.backend == shared[0].backend]
    return [device for device in machine if device.kind == "remote"] + (gpus or same)


def rows(
    model: ModelMemory, machine: Machine, settings: EngineSettings, measure: Measure | None = None
) -> tuple[tuple[DevicePlan, ...], dict[str, str]]:
    """The devices' rows, the host last, and where their figures come from."""
    devices = machine.used_by(settings)
    places = deal(model.layers_total, settings.layers, machine.split(settings))
    kv = _kv(model, places, len(devices), settings)
    read = _read(model, places, len(devices), settings, kv)
    buffers = measure(settings) if measure else None
    weights, compute, mapped, how = _weights_and_compute(model, machine, settings, places, buffers)
    made = []
    for n, device in enumerate([*devices, machine.host]):
        known = machine.learned.get(device.name, Learned(0, 0))
        made.append(
            DevicePlan(
                device.name,
                device.backend,
                device.total,
                device.free,
                weights[n],
                kv[n],
                compute[n],
                device.kind,
                mapped if n == len(devices) else 0,
                known.size,
                known.loads,
                read[n],
                device.description if device.kind == "remote" else "",
            )
        )
    return tuple(made), how


def _weights_and_compute(
    model: ModelMemory,
    machine: Machine,
    settings: EngineSettings,
    places: Sequence[int],
    buffers: Sequence[MemoryBuffer] | None,
) -> tuple[list[int], list[int], int, dict[str, str]]:
    """Weights and compute buffers of each device, the host's mapped weights, and where the figures come from."""
    devices = machine.used_by(settings)
    weights = weights_by_place(model, places, len(devices), settings.n_cpu_moe)
    how = {"weights": "exact", "kv": "exact", "compute": "measured", "mapped": "measured"}
    if settings.split_mode == "row" and len(devices) > 1:
        weights = _by_rows(weights, machine.split(settings))
        how["weights"] = "estimated"
    mapped = weights[HOST] if settings.mmap and not settings.mlock else 0
    if buffers is None:
        how["compute"] = how["mapped"] = "estimated"
        compute = compute_estimate(model, places, [device.kind for device in devices], settings)
        compute[HOST] += output_buffer(model) * settings.parallel
        if model.tied and places[-1] == HOST:  # a CPU that repacks weights holds the output layer as a second copy
            how["weights"] = "estimated"
        return weights, compute, mapped, how
    index = {device.name: number for number, device in enumerate(devices)}
    if all(buffer.weights is not None for buffer in buffers) and settings.split_mode != "row":
        weights = _sum_by_place(buffers, index, len(devices), "weights")
        mapped = _mappable(buffers) if mapped else 0
    return weights, _sum_by_place(buffers, index, len(devices), "compute"), mapped, how


def _kv(model: ModelMemory, places: Sequence[int], devices: int, settings: EngineSettings) -> list[int]:
    """The KV cache of a layer lies where the layer lies, or all of it in RAM."""
    per_layer = kv_per_layer(
        model, settings.context, settings.kv_type, settings.kv_type_v, settings.parallel, settings.kv_unified
    )
    kv = [0] * (devices + 1)
    for place in places[:-1]:
        kv[place if settings.kv_offload else HOST] += per_layer
    return kv


def _read(
    model: ModelMemory, places: Sequence[int], devices: int, settings: EngineSettings, kv: Sequence[int]
) -> list[int]:
    """What one token reads on each device: all of a layer but the experts that are not asked, and half the KV cache."""
    read = [size // (2 * settings.parallel) for size in kv]
    for layer, size in enumerate(model.blocks):
        experts = model.experts[layer] if model.experts else 0
        asked = experts * model.experts_used // max(1, model.expert_count)
        read[places[layer]] += size - experts
        read[HOST if layer < settings.n_cpu_moe else places[layer]] += asked
    read[places[-1]] += model.output + (model.embedding if model.tied else 0)
    return read


def _by_rows(weights: Sequence[int], split: Sequence[float]) -> list[int]:
    """The offloaded weights shared by the parts of a row split. The small tensors that are not split hardly count."""
    pool, whole = sum(weights[:-1]), sum(split)
    return [int(pool * part / whole) for part in split] + [weights[HOST]]


def _sum_by_place(buffers: Sequence[MemoryBuffer], index: dict[str, int], devices: int, what: str) -> list[int]:
    """One figure per device and, last, the host: every buffer that no device owns is RAM (AMX, CPU_REPACK, ...)."""
    sums = [0] * (devices + 1)
    for buffer in buffers:
        sums[index.get(buffer.device, HOST)] += getattr(buffer, what)
    return sums


def _mappable(buffers: Sequence[MemoryBuffer]) -> int:
    """Weights that the engine can use in place: those of plain host memory. Others (AMX, CPU_REPACK) are copies."""
    plain = [buffer for buffer in buffers if not buffer.device]
    return sum(buffer.weights or 0 for buffer in plain if buffer.name == "CPU" or buffer.name.endswith("_Host"))
