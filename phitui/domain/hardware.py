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
    `features` are the instruction sets and switches that each of them was built with. `trouble`: it is installed, but
    cannot be used, and why."""

    name: str
    version: str
    path: str
    backends: tuple[str, ...]
    features: dict[str, tuple[str, ...]]
    gpu_offload: bool
    rpc: bool
    trouble: str = ""


@dataclass(frozen=True)
class Bandwidth:
    """How fast a device reads its memory, measured: bytes per second with that many threads; `measured` in unix
    seconds. `device` and `description` are those of the Device; `how` says in words what was done."""

    device: str
    description: str
    bytes_per_second: float
    threads: int = 1
    measured: float = 0.0
    how: str = ""


@dataclass(frozen=True)
class InstallWay:
    """One way to give the engine a backend.

    `line` is what a person pastes into a shell; `argv` and `environment` do the same without one. `kind` tells a
    ready-made wheel from a build on this machine. `needs` names what is missing here before it can work; `note` is what
    one should know of the outcome.
    """

    kind: Literal["wheel", "build"]
    line: str
    argv: tuple[str, ...]
    environment: tuple[tuple[str, str], ...] = ()
    needs: tuple[str, ...] = ()
    note: str = ""


@dataclass(frozen=True)
class BackendReport:
    """What one hardware backend found.

    `compiled_in`: the engine on this machine can use it. `present`: the machine has such hardware (None: unknown).
    `install` is the command that makes the engine use it, `ways` all of them, the best first. `facts` are
    (label, value) lines for people; `seen` is the hardware in one line, `integrated` says that it only shares the RAM.
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
    ways: tuple[InstallWay, ...] = ()
    seen: str = ""
    integrated: bool = False


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
