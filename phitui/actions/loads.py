"""What loads taught about this machine: memory beyond the plan, and speed. Nothing here ever stops a plan or a chat."""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from phitui.actions.context import Context
from phitui.domain.chat import ChatStats, EngineSettings, SessionInfo
from phitui.domain.hardware import Device
from phitui.domain.memory import DevicePlan, Learned
from phitui.domain.offload import OffloadPlan
from phitui.domain.speed import Speed, estimated_speed
from phitui.errors import PhituiError

if TYPE_CHECKING:
    from phitui.store.loads import DeviceLoad

_SPEED = (
    "layers",
    "kv_type",
    "kv_type_v",
    "flash_attention",
    "n_cpu_moe",
    "split_mode",
    "kv_offload",
    "rpc",
    "threads",
)
"""Settings that decide how fast tokens are generated."""


def store_file(ctx: Context) -> Path:
    """Where loads are kept."""
    return ctx.paths.state / "loads.db"


def learned(ctx: Context, devices: Sequence[Device]) -> dict[str, Learned]:
    """By device name, what this machine's loads took beyond their plans; empty where nothing is known."""
    known = _learned(store_file(ctx), _version(store_file(ctx)))
    found = {device.name: known.get((_identity(device), device.backend)) for device in devices}
    return {name: what for name, what in found.items() if what is not None}


def remember(
    ctx: Context,
    path: Path,
    made: OffloadPlan,
    settings: EngineSettings,
    info: SessionInfo,
    devices: Sequence[Device],
) -> int | None:
    """Keep what a load was planned to take and what it took; its number, or None where that could not be told.

    `devices` are those the plan was made for, as they were before the load.
    """
    from phitui.store.loads import Load, LoadStore

    told = info.details.get("memory")
    if not isinstance(told, Mapping) or not told.get("buffers"):
        return None
    try:
        rows = _devices(made, told, {device.name: device for device in devices})
        with LoadStore(store_file(ctx)) as store:
            return store.add(
                Load(
                    round(time.time(), 3),
                    platform.node(),
                    str(info.details.get("library", "")),
                    path.name,
                    _fingerprint_of(path),
                    _settings_text(settings),
                    settings.context,
                    tuple(rows),
                )
            )
    except (PhituiError, OSError, KeyError, TypeError, ValueError):
        return None


def remember_answer(ctx: Context, number: int | None, stats: ChatStats) -> None:
    """Count the speed of an answer to its load."""
    from phitui.store.loads import LoadStore

    if number is None or stats.completion_tokens < 2 or stats.decode_seconds <= 0:
        return
    with suppress(PhituiError), LoadStore(store_file(ctx)) as store:
        store.add_answer(number, stats.completion_tokens, stats.decode_seconds)


def speed(ctx: Context, path: Path, made: OffloadPlan, devices: Sequence[Device]) -> Speed | None:
    """How fast the plan will answer: as measured of this file with these settings, else estimated, else unknown."""
    settings = replace(made.settings, threads=made.settings.threads or ctx.config.threads)
    try:
        found = _chatted(ctx, path, settings) or _evaluated(ctx, path, made)
    except (PhituiError, OSError):
        found = None
    return found or estimated_speed(made.devices, _bandwidth(ctx, devices))


def _chatted(ctx: Context, path: Path, settings: EngineSettings) -> Speed | None:
    file = store_file(ctx)
    if (version := _version(file)) == (0, 0):
        return None
    return _answered(file, version, _fingerprint_of(path), _settings_text(settings))


def _evaluated(ctx: Context, path: Path, made: OffloadPlan) -> Speed | None:
    """The speed that phitui eval measured with as many layers; its other settings are the usual ones."""
    from phitui.actions.evaluate import store_file as measures_file

    usual = made.settings.n_cpu_moe == 0 and made.settings.kv_offload and not made.rpc
    if not usual or (version := _version(measures_file(ctx))) == (0, 0):
        return None
    offloaded = made.n_gpu_layers if len(made.devices) > 1 else 0
    for layers, rate, created in _evaluations(ctx, path, _fingerprint_of(path), version):
        wanted = made.layers_total if layers < 0 else layers
        if len(made.devices) == 1 or wanted == offloaded:
            return Speed(rate, "measured", f"phitui eval of {_day(created)}")
    return None


@lru_cache(maxsize=64)
def _evaluations(
    ctx: Context, path: Path, fingerprint: str, version: tuple[int, int]
) -> tuple[tuple[int, float, float], ...]:
    """(layers, tokens per second, when) of a file's evaluations, newest first; the last two only make the cache new."""
    from phitui.actions.evaluate import measures_of

    found = []
    for row in measures_of(ctx, path):
        rate = row.values.get("decode_tokens_per_s", 0.0)
        if rate > 0 and row.facts.get("layers", "-1").lstrip("-").isdigit():
            found.append((int(row.facts.get("layers", "-1")), rate, row.created))
    return tuple(found)


def _day(when: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(when))


def _bandwidth(ctx: Context, devices: Sequence[Device]) -> dict[str, float]:
    from phitui.store.bandwidth import bandwidth_of

    known = {device.name: bandwidth_of(ctx.paths, device) for device in devices}
    return {name: float(found.bytes_per_second) for name, found in known.items() if found is not None}


@lru_cache(maxsize=64)
def _answered(file: Path, version: tuple[int, int], fingerprint: str, settings: str) -> Speed | None:
    from phitui.store.loads import LoadStore

    with LoadStore(file) as store:
        found = store.answered(platform.node(), fingerprint, settings)
    if found is None:
        return None
    chats = "the chat" if found.loads == 1 else f"{found.loads} chats, the last"
    return Speed(found.tokens_per_s, "measured", f"{chats} of {_day(found.created)}")


@lru_cache(maxsize=4)
def _learned(file: Path, version: tuple[int, int]) -> dict[tuple[str, str], Learned]:
    from phitui.store.loads import LoadStore

    if version == (0, 0):
        return {}
    try:
        with LoadStore(file) as store:
            return store.learned(platform.node())
    except PhituiError:
        return {}


def _version(file: Path) -> tuple[int, int]:
    """Changes whenever the file was written; (0, 0) where there is none. Two stats: a slider asks every time."""
    found = []
    for each in (file, file.with_name(file.name + "-wal")):
        try:
            found.append(each.stat().st_mtime_ns)
        except OSError:
            found.append(0)
    return found[0], found[1]


def _fingerprint_of(path: Path) -> str:
    stat = path.stat()
    return _fingerprint(path, stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=64)
def _fingerprint(path: Path, size: int, modified: int) -> str:
    from phitui.store.measures import fingerprint

    return fingerprint(path)


def _settings_text(settings: EngineSettings) -> str:
    return json.dumps({name: getattr(settings, name) for name in _SPEED}, sort_keys=True)


def _identity(device: Device) -> str:
    """A device by name and kind: RPC0 is another worker's today, CUDA0 another card's tomorrow."""
    return f"{device.name} · {device.description}"


def _devices(made: OffloadPlan, told: Mapping[str, Any], known: Mapping[str, Device]) -> list[DeviceLoad]:
    names = _buffer_names(made.devices[:-1])
    held: dict[str, dict[str, int]] = {row.name: {} for row in made.devices}
    host = made.devices[-1]
    for buffer in told["buffers"]:
        owner = names.get(_owner(str(buffer["name"]), list(names)), host.name)
        what = "mapped" if owner == host.name and str(buffer["name"]).endswith("_Mapped") else str(buffer["what"])
        held[owner][what] = held[owner].get(what, 0) + int(buffer["size"])
    return [_device(row, held[row.name], told, known[row.name]) for row in made.devices if row.name in known]


def _device(row: DevicePlan, held: Mapping[str, int], told: Mapping[str, Any], device: Device) -> DeviceLoad:
    """A mapped buffer spans everything from its first tensor to its last: of it, what was planned counts."""
    from phitui.store.loads import DeviceLoad

    buffers = sum(size for what, size in held.items() if what != "mapped") + min(held.get("mapped", 0), row.mapped)
    beyond = 0
    if device.kind == "cpu":  # weights, KV cache and outputs were written to by now; compute buffers not yet
        touched = sum(held.get(what, 0) for what in ("weights", "kv", "output"))
        beyond = int(told.get("private", 0)) - touched
    elif row.name in told.get("free", {}):
        beyond = row.free - int(told["free"][row.name]) - buffers
    return DeviceLoad(_identity(device), device.backend, row.sum - row.learned, buffers, buffers + max(0, beyond))


def _buffer_names(rows: Sequence[DevicePlan]) -> dict[str, str]:
    """Buffer type -> device. Devices are counted over all RPC workers, but buffer types for each: RPC0[host:port]."""
    found: dict[str, str] = {}
    for row in rows:
        earlier = sum(name.endswith(f"[{row.endpoint}]") for name in found)
        found[f"RPC{earlier}[{row.endpoint}]" if row.endpoint else row.name] = row.name
    return found


def _owner(buffer: str, devices: Sequence[str]) -> str:
    """The device of a buffer type: CUDA0, MTL0_Mapped; "" for host memory."""
    owners = [name for name in devices if buffer == name or buffer.startswith(f"{name}_")]
    return max(owners, key=len, default="")
