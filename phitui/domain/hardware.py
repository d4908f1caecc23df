"""Devices, backends and their memory. Sizes are bytes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

DeviceKind = Literal["cpu", "gpu", "igpu", "accel", "remote"]
Source = Literal["exact", "measured", "estimated", "given"]
"""Where a number comes from: every number shown says so."""


@dataclass(frozen=True)
class Device:
    """One place where layers can live. `name` is ggml's (CPU, CUDA0, Metal, RPC0); `total`/`free` are bytes."""

    name: str
    backend: str
    kind: DeviceKind
    description: str
    total: int
    free: int
    source: Source = "exact"


@dataclass(frozen=True)
class EngineReport:
    """What the engine on this machine is and was compiled with. `backends` are ggml's names (CPU, CUDA, RPC);
    `features` are the instruction sets and switches that each of them was built with."""

    name: str
    version: str
    path: str
    backends: tuple[str, ...]
    features: dict[str, tuple[str, ...]]
    gpu_offload: bool
    rpc: bool


@dataclass(frozen=True)
class BackendReport:
    """What one hardware backend found.

    `compiled_in`: the engine on this machine can use it. `present`: the machine has such hardware (None: unknown).
    `install` is the command that makes the engine use it. `facts` are (label, value) lines for people.
    `engine` is what the backend found out about the engine itself, if it asked.
    """

    backend: str
    devices: tuple[Device, ...] = ()
    compiled_in: bool = False
    present: bool | None = None
    install: str = ""
    facts: tuple[tuple[str, str], ...] = ()
    warnings: tuple[str, ...] = field(default=())
    engine: EngineReport | None = None


@dataclass(frozen=True)
class MemoryBuffer:
    """What the engine would allocate in one kind of buffer; bytes. `name` is ggml's buffer type (CPU_REPACK, CUDA0).

    `device` is the Device that owns it; empty for host memory and for every type that belongs to no device.
    `weights` is None where the engine tells only the compute buffers. Output buffers count as compute.
    """

    name: str
    device: str
    compute: int
    weights: int | None = None
    kv: int | None = None
