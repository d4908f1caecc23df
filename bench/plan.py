"""How well and how fast memory is planned: every plan is held against what llama.cpp then really allocates.

    python bench/plan.py [--loads 20] [--seed 1] [--model FILE.gguf] [--fit-params llama-fit-params]

Models have the shapes of Phi-3-mini, Phi-4, Phi-4-mini and Phi-3.5-MoE with three or four layers and weights of zeros,
and `--model` adds a real one. Each is loaded on the CPU, with one and with two loopback RPC workers as devices, for a
random sample of the grid of settings. An error is |planned - allocated| / allocated, of all that one device holds.

Beside it, on the same loads: `llama-fit-params --fit-print` (llama.cpp's own estimate, whole MiB) and the formula of
llamactl (PyPI llama-tui 0.1.3), which knows only a total: file + KV cache + max(256 MiB, 32 n_embd n_ubatch) + 512 MiB.
"""

from __future__ import annotations

import argparse
import itertools
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from phitui.actions.context import Context
from phitui.actions.plan import memory_of, plan
from phitui.actions.standin import write_stand_in
from phitui.config import Paths
from phitui.domain.chat import EngineSettings
from phitui.domain.offload import OffloadPlan, PlanRequest
from phitui.domain.tensors import TensorType
from phitui.testing.allocator import Allocator, Worker, has_rpc, shape

MIB = 1024 * 1024
SHAPES: dict[str, dict[str, Any]] = {
    "Phi-3-mini": {"width": 3072, "inner": 8192, "heads": 32, "shared": 32, "vocabulary": 32064, "layers": 4},
    "Phi-4": {"width": 5120, "inner": 17920, "heads": 40, "shared": 10, "vocabulary": 100352, "layers": 3},
    "Phi-4-mini": {
        "width": 3072,
        "inner": 8192,
        "heads": 24,
        "shared": 8,
        "vocabulary": 200064,
        "layers": 4,
        "tied": True,
    },
    "Phi-3.5-MoE": {
        "width": 4096,
        "inner": 6400,
        "heads": 32,
        "shared": 8,
        "vocabulary": 32064,
        "layers": 3,
        "experts": 16,
    },
}
KINDS = {"Phi-4": TensorType.IQ1_S, "Phi-3.5-MoE": TensorType.IQ1_S}
Errors = dict[tuple[str, str], list[float]]


def grid(total: int, longest: int, experts: int, rpc: Sequence[str]) -> Iterator[dict[str, Any]]:
    """All settings of the grid; what makes no sense together is left out."""
    layers = range(total + 1) if rpc else (0,)
    contexts = [size for size in (512, 1024, 4096, 8192, 16384) if size <= longest]
    splits: tuple[tuple[float, ...], ...] = ((), (3, 1), (1, 2)) if len(rpc) == 2 else ((),)
    in_ram = range(experts + 1) if experts and rpc else (0,)
    for row in itertools.product(
        layers, contexts, ("f16", "q8_0", "q4_0"), (True, False), (128, 512, 2048), (1, 4), splits, in_ram
    ):
        count, context, kind, flash, ubatch, parallel, split, moe = row
        if flash or kind == "f16":
            yield {
                "layers": count,
                "context": context,
                "kv_type": kind,
                "flash_attention": flash,
                "batch": 2048,
                "ubatch": ubatch,
                "parallel": parallel,
                "tensor_split": split,
                "n_cpu_moe": moe,
                "mmap": False,
                "rpc": tuple(rpc),
            }


def accuracy(ctx: Context, models: dict[str, Path], options: argparse.Namespace) -> None:
    """Plan and load a sample of the grid; print the errors by device."""
    workers = [Worker() for _ in range(2)] if has_rpc() else []
    ends = [worker.endpoint for worker in workers]
    chance = random.Random(options.seed)
    ours: Errors = defaultdict(list)
    fitted: Errors = defaultdict(list)
    formula: Errors = defaultdict(list)
    loads = estimated = 0
    try:
        for (name, path), count in itertools.product(models.items(), range(len(ends) + 1)):
            model = memory_of(path)
            rows = list(grid(model.layers_total, model.context_length, len(model.experts), ends[:count]))
            with Allocator(ends[:count]) as allocator:
                for asked in chance.sample(rows, min(options.loads, len(rows))):
                    made = plan(ctx, PlanRequest(str(path), **asked))
                    estimated += made.how["compute"] != "measured"
                    real = {
                        device: sum(held.values()) for device, held in allocator.allocated(path, made.settings).items()
                    }
                    loads += 1
                    key = f"{count} RPC"
                    note(ours, key, {row.name: row.weights + row.kv + row.compute for row in made.devices}, real)
                    if options.fit_params and made.settings.parallel == 1:  # it knows no other
                        note(fitted, key, fit_params(options.fit_params, path, made.settings), real)
                    note(formula, key, {"total": llamactl(path, made)}, {"total": sum(real.values())})
            print(f"{name}, {count} RPC workers: done", file=sys.stderr)
    finally:
        for worker in workers:
            worker.close()
    print(f"{loads} loads, in {estimated} of them the engine could not be asked for compute buffers\n")
    for title, errors in (("phitui", ours), ("llama-fit-params", fitted), ("llamactl's formula", formula)):
        table(title, errors)


def note(errors: Errors, key: str, planned: dict[str, int], real: dict[str, int]) -> None:
    """Add the errors of one load. A device with less than 1 MiB is not worth one."""
    for device, held in real.items():
        if held >= MIB:
            errors[key, device].append(abs(planned.get(device, 0) - held) / held)


def table(title: str, errors: Errors) -> None:
    for (key, device), found in sorted(errors.items()):
        worst, mean = 100 * max(found), 100 * statistics.mean(found)
        print(f"{title:<19} {key}  {device:<6} {len(found):>4} loads  worst {worst:8.3f} %  mean {mean:8.4f} %")


def llamactl(path: Path, made: OffloadPlan) -> int:
    """llamactl's total of a load; its 512 MiB of overhead left out, for buffers have none."""
    kv = sum(row.kv for row in made.devices)
    return path.stat().st_size + kv + max(256 * MIB, memory_of(path).width * made.ubatch * 4 * 8)


def fit_params(program: str, path: Path, settings: EngineSettings) -> dict[str, int]:
    """What llama-fit-params expects: one line for each device, MiB of weights, KV cache and compute buffers."""
    flash = {None: "auto", True: "on", False: "off"}[settings.flash_attention]
    words = ["-m", path, "-fitp", "on", "-c", settings.context, "-ngl", settings.layers, "-fa", flash]
    words += ["-ctk", settings.kv_type, "-ctv", settings.value_type, "-b", settings.batch, "-ub", settings.ubatch]
    words += ["-lm", "none"]
    words += ["-ncmoe", settings.n_cpu_moe] if settings.n_cpu_moe else []
    words += ["-ts", ",".join(f"{part:g}" for part in settings.tensor_split)] if settings.tensor_split else []
    words += ["--rpc", ",".join(settings.rpc)] if settings.rpc else []
    done = subprocess.run([program, *map(str, words)], capture_output=True, text=True, timeout=60, check=False)
    found = {}
    for line in done.stdout.splitlines():
        parts = line.split()
        if len(parts) == 4 and all(part.isdigit() for part in parts[1:]):
            found["CPU" if parts[0] == "Host" else parts[0]] = sum(int(part) for part in parts[1:]) * MIB
    return found


def speed(ctx: Context, models: dict[str, Path]) -> None:
    """Time of a plan while a slider moves: every step another number of layers or another context."""
    worker = Worker() if has_rpc() else None
    rpc = (worker.endpoint,) if worker else ()
    for name, path in models.items():
        steps = [
            PlanRequest(
                str(path),
                layers=number % memory_of(path).layers_total,
                context=512 * (1 + number),
                rpc=rpc,
                n_cpu_moe=0,
            )
            for number in range(15)
        ]
        times = {}
        for probe in (False, True):
            plan(ctx, steps[0], probe)
            found = []
            for request in steps:
                began = time.perf_counter()
                plan(ctx, request, probe)
                found.append(1000 * (time.perf_counter() - began))
            times[probe] = found
        auto = replace(steps[0], layers=None)
        began = time.perf_counter()
        plan(ctx, auto, False)
        solved = 1000 * (time.perf_counter() - began)
        quick, asked = (statistics.median(times[probe]) for probe in (False, True))
        print(
            f"{name:<12} re-plan {quick:5.2f} ms by formulas (auto layers {solved:.2f} ms), "
            f"{asked:5.1f} ms with the probe (median of {len(steps)}; slowest {max(times[True]):.1f})"
        )
    if worker:
        worker.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--loads", type=int, default=20, help="loads of each model with each number of workers")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--model", type=Path, action="append", default=[], help="a real GGUF to load too")
    parser.add_argument("--fit-params", help="path of llama-fit-params")
    parser.add_argument("--only", choices=("accuracy", "speed"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        base = Path(home)
        ctx = Context(Paths(base / "config", base / "data", base / "state", base / "cache"))
        models = {
            name: write_stand_in(
                shape("phimoe" if "experts" in size else "phi3", kind=KINDS.get(name, TensorType.Q4_K), **size), name
            )
            for name, size in SHAPES.items()
        } | {path.stem: path for path in options.model}
        if options.only != "accuracy":
            speed(ctx, models)
        if options.only != "speed":
            accuracy(ctx, models, options)


if __name__ == "__main__":
    main()
