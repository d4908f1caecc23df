"""The plan against the allocator: models are really loaded, on the CPU and on loopback RPC devices, and llama.cpp's own
log says what was allocated where. The models are small and all zeros; their shapes are those of the Phi families."""

from __future__ import annotations

import itertools
import os
import random
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from phitui.actions.context import Context
from phitui.actions.plan import plan, plan_file
from phitui.actions.standin import write_stand_in
from phitui.domain.offload import OffloadPlan, PlanRequest
from phitui.gguf.header import read_header
from phitui.testing.allocator import Allocator, Worker, has_rpc, shape

pytest.importorskip("llama_cpp")
MIB = 1024 * 1024
MODELS = {
    "phi3": shape("phi3"),
    "phi3-tied": shape("phi3", tied=True),
    "phimoe": shape("phimoe", experts=4),
}
LAYERS = 7
SAMPLE = 16
"""Random loads per run and number of workers; PHITUI_SEED picks others."""


@pytest.fixture(scope="module")
def workers() -> Iterator[list[str]]:
    """Two loopback RPC workers, each a true device."""
    if not has_rpc():
        pytest.skip("this llama-cpp-python cannot use RPC workers")
    started = [Worker() for _ in range(2)]
    yield [worker.endpoint for worker in started]
    for worker in started:
        worker.close()


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    return {name: write_stand_in(made, name).rename(folder / f"{name}.gguf") for name, made in MODELS.items()}


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest, models: dict[str, Path]) -> Path:
    return models[request.param]


def compare(made: OffloadPlan, real: dict[str, dict[str, int]]) -> None:
    for device in made.devices:
        for what in ("weights", "kv", "compute"):
            planned, actual = getattr(device, what) / MIB, real[device.name][what] / MIB
            assert planned == pytest.approx(actual, rel=0.01, abs=0.03), (device.name, what, made.settings)


def any_load(chance: random.Random, mixture: bool, workers: tuple[str, ...]) -> dict[str, Any]:
    """Random settings, from all that a plan can be asked for."""
    flash = chance.choice((None, True, False))
    batch = chance.choice((512, 2048))
    return {
        "context": chance.choice((512, 1000, 2048, 4096, 8192)),
        "layers": chance.randint(0, LAYERS) if workers else 0,
        "kv_type": chance.choice(("f16", "q8_0", "q4_0")),
        "kv_type_v": "f16" if flash is False else chance.choice((None, "f16", "q4_0")),
        "flash_attention": flash,
        "batch": batch,
        "ubatch": min(batch, chance.choice((128, 256, 512, 1024, 2048))),
        "parallel": chance.choice((1, 1, 2, 4)),
        "kv_unified": chance.random() < 0.3,
        "kv_offload": flash is False or len(workers) == 2 or chance.random() < 0.8,
        "op_offload": chance.random() < 0.8,
        "mmap": False,
        "rpc": workers,
        "n_cpu_moe": chance.randint(0, LAYERS - 1) if mixture and workers else 0,
        "tensor_split": chance.choice(((), (3, 1), (1, 2), (0, 1))) if len(workers) == 2 else (),
        "split_mode": chance.choice(("layer", "layer", "none")) if workers else "layer",
    }


@pytest.mark.parametrize("count", [0, 1, 2])
def test_any_load_takes_what_was_planned(
    models: dict[str, Path], context: Context, request: pytest.FixtureRequest, count: int
) -> None:
    rpc: tuple[str, ...] = tuple(request.getfixturevalue("workers")[:count]) if count else ()
    chance = random.Random(int(os.environ.get("PHITUI_SEED", "1")) * 3 + count)
    with Allocator(rpc) as allocator:
        for _ in range(SAMPLE):
            name = chance.choice(list(models))
            made = plan(context, PlanRequest(str(models[name]), **any_load(chance, name == "phimoe", rpc)))
            assert [made.how[what] for what in ("weights", "kv", "compute")] == ["exact", "exact", "measured"]
            assert len(made.devices) == 1 + (min(count, 1) if made.settings.split_mode == "none" else count)
            compare(made, allocator.allocated(models[name], made.settings))


def test_mapped_weights_are_told_apart(model: Path, context: Context) -> None:
    mapped = plan(context, PlanRequest(str(model), context=1024))
    copied = plan(context, PlanRequest(str(model), context=1024, mmap=False))
    (row,), (other,) = mapped.devices, copied.devices
    assert row.sum == other.sum
    assert (other.mapped, other.allocated) == (0, other.sum)
    assert 0 <= row.mapped <= row.weights
    assert row.allocated == row.sum - row.mapped
    with Allocator() as allocator:
        buffers = allocator.buffers(model, mapped.settings)
    copies = sum(each["size"] for each in buffers if each["what"] == "weights" and not each["name"].endswith("_Mapped"))
    assert row.weights - row.mapped == pytest.approx(copies, rel=0.01, abs=0.03 * MIB)


def test_rules_alone_know_weights_and_cache(models: dict[str, Path], context: Context, workers: list[str]) -> None:
    chance = random.Random(5)
    for _ in range(40):
        name = chance.choice(list(models))
        asked = PlanRequest(
            str(models[name]), **any_load(chance, name == "phimoe", tuple(workers[: chance.choice((1, 2))]))
        )
        for rule, known in zip(plan(context, asked, probe=False).devices, plan(context, asked).devices, strict=True):
            assert rule.kv == known.kv
            if rule.kind == "remote":
                assert rule.weights == pytest.approx(known.weights, rel=0.01, abs=0.03 * MIB)


def test_the_estimate_is_near_what_is_measured(model: Path, context: Context, workers: list[str]) -> None:
    off = []
    for layers, flash, size in itertools.product((0, 4, 7), (True, False), (512, 8192)):
        rpc = tuple(workers[:1]) if layers else ()
        request = PlanRequest(str(model), context=size, layers=layers, flash_attention=flash, rpc=rpc, n_cpu_moe=0)
        for guess, known in zip(
            plan(context, request, probe=False).devices, plan(context, request).devices, strict=True
        ):
            off.append(abs(guess.compute - known.compute) / max(known.compute, 4 * MIB))
    assert sum(off) / len(off) < 0.12
    assert max(off) < 0.5


def test_auto_offloads_everything_to_an_empty_worker(model: Path, context: Context, workers: list[str]) -> None:
    made = plan(context, PlanRequest(str(model), rpc=tuple(workers[:1])))
    assert made.n_gpu_layers == made.layers_total == LAYERS
    assert made.settings.n_cpu_moe == 0
    assert made.fits


def test_what_the_dry_run_gets_wrong_is_estimated(
    models: dict[str, Path], context: Context, workers: list[str]
) -> None:
    asked = PlanRequest(str(models["phi3"]), layers=3, flash_attention=False, kv_offload=False, rpc=tuple(workers[:1]))
    made = plan(context, asked)
    assert made.how["compute"] == "estimated"
    assert any("attention in RAM" in warning for warning in made.warnings)


def test_a_worker_that_dies_costs_an_error_not_the_planner(models: dict[str, Path], context: Context) -> None:
    path = models["phi3"]
    worker = Worker()
    request = PlanRequest(str(path), layers=3, rpc=(worker.endpoint,))
    assert plan(context, request).how["compute"] == "measured"
    worker.process.send_signal(signal.SIGKILL)
    worker.process.wait()
    made = plan(context, PlanRequest(str(path), context=8192, layers=3, rpc=(worker.endpoint,)))
    assert made.how["compute"] == "estimated"
    assert any("estimated" in warning for warning in made.warnings)
    assert plan(context, PlanRequest(str(path))).how["compute"] == "measured"


def test_a_worker_that_serves_someone_else_costs_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    from phitui_hardware import child

    from phitui.api import EngineError

    monkeypatch.setattr(child, "WORKER_SECONDS", 1.5)
    worker = Worker()
    host, port = worker.endpoint.split(":")
    with socket.create_connection((host, int(port))), pytest.raises(EngineError, match="one program at a time"):
        child.engine((worker.endpoint,))
    worker.close()


def test_a_planned_file_and_the_file_plan_alike(context: Context) -> None:
    from phitui.actions.plan import memory_of
    from phitui.domain.placement import model_memory
    from phitui.gguf.facts import facts_from_header

    planned = shape("phi3", tied=True)
    path = write_stand_in(planned, "planned")
    facts = facts_from_header(read_header(path))
    assert model_memory(facts, [(tensor.name, tensor.size) for tensor in planned.tensors]) == memory_of(path)
    written = plan(context, PlanRequest(str(path), context=2048))
    unwritten = plan_file(context, planned, PlanRequest("planned", context=2048), probe=True)
    assert unwritten.devices[-1].sum == written.devices[-1].sum
