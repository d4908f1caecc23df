"""How fast a device reads its memory: the number that decides how fast a model on it can answer.

`python -m phitui_hardware.bandwidth THREADS` measures and prints JSON; `measure` runs that. Decoding reads every weight
once per token and does little else, so the time per token is at least weights / bandwidth.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from typing import Any

from phitui.api import Bandwidth, Device, PhituiError
from phitui_hardware import tools

SECONDS = 0.8
"""How long the reading goes on, after one round that warms up."""
LIMIT = 20.0
PART = 256 << 20
"""Bytes per thread: several times the cache of any processor."""
LEAST = 64 << 20


def measure(device: Device) -> Bandwidth:
    """Measure in a child process, with as many threads as there are cores for it. Raises PhituiError."""
    import psutil

    cores = psutil.cpu_count(logical=False) or psutil.cpu_count() or 1
    process = psutil.Process()
    if hasattr(process, "cpu_affinity"):  # not on macOS
        cores = min(cores, len(process.cpu_affinity()))
    busy = psutil.getloadavg()[0] > 0.7 * cores  # before this adds to it
    part = min(PART, psutil.virtual_memory().available // 2 // cores)
    if part < LEAST:
        raise PhituiError("too little free memory to measure its speed", "close other programs, then try again")
    said = tools.run([sys.executable, "-P", "-m", "phitui_hardware.bandwidth", str(cores), str(part)], LIMIT)
    try:
        speed = float(json.loads(said.output)["bytes_per_second"])
    except (ValueError, KeyError, TypeError):
        raise PhituiError(f"the speed of the memory could not be measured: {said.problem or said.output}") from None
    how = f"{cores} threads reading {part >> 20} MiB each, best of several rounds in {SECONDS:g} s"
    how += "; the machine was busy, so the figure is too low" if busy else ""
    return Bandwidth(device.name, device.description, speed, cores, round(time.time(), 3), how)


def measure_device(device: Device) -> Bandwidth:
    """Measure a GPU in a child process, by what decoding does there (see matvec). Raises PhituiError."""
    command = [sys.executable, "-P", "-m", "phitui_hardware.matvec", device.name, f"{SECONDS:g}"]
    said = tools.run(command, LIMIT)
    try:
        answer = json.loads(said.output)
    except ValueError:
        raise PhituiError(f"the memory of {device.name} could not be measured: {said.problem or said.output}") from None
    if "error" in answer:
        raise PhituiError(f"the memory of {device.name} could not be measured: {answer['error']}")
    how = f"multiplying F16 matrices by a vector, best of several rounds in {SECONDS:g} s"
    return Bandwidth(device.name, device.description, float(answer["bytes_per_second"]), 1, round(time.time(), 3), how)


def read_speed(threads: int, part: int, seconds: float = SECONDS) -> float:
    """Bytes per second of `threads` threads that read `part` bytes each, in the best of the rounds that fit.

    The best, not the mean: whatever else runs on the machine only makes a round slower.
    """
    import numpy as np

    blocks = [np.ones(part // 8, dtype=np.int64) for _ in range(threads)]
    best, end = 0.0, time.perf_counter() + seconds
    while not best or time.perf_counter() < end:
        began = time.perf_counter()
        _at_once(blocks)
        best = max(best, threads * (part // 8) * 8 / (time.perf_counter() - began))
    return best


def _at_once(blocks: list[Any]) -> None:
    workers = [threading.Thread(target=block.max) for block in blocks]  # vectorised, and without the GIL
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()


if __name__ == "__main__":
    print(json.dumps({"bytes_per_second": round(read_speed(int(sys.argv[1]), int(sys.argv[2])))}))  # noqa: T201
