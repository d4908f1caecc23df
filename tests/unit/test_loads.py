"""What loads were planned to take and took: the store, and how it corrects plans and tells their speed."""

from __future__ import annotations

import platform
import sqlite3
import time
from dataclasses import replace
from pathlib import Path

import pytest

from phitui.actions import loads
from phitui.actions.context import Context
from phitui.actions.plan import devices, plan
from phitui.actions.standin import write_stand_in
from phitui.domain.chat import ChatStats, EngineSettings, SessionInfo
from phitui.domain.hardware import Device
from phitui.domain.memory import DevicePlan, Learned
from phitui.domain.offload import OffloadPlan, PlanRequest
from phitui.errors import PhituiError
from phitui.store.loads import DeviceLoad, Load, LoadStore
from phitui.testing.allocator import shape

MIB = 1024 * 1024


def load(
    created: float, excess: int, library: str = "lib 1", device: str = "CUDA0 · RTX", machine: str = "box"
) -> Load:
    return Load(
        created, machine, library, "m", "f", "{}", 4096, (DeviceLoad(device, "cuda", 1000, 1000, 1000 + excess * MIB),)
    )


@pytest.fixture
def store(tmp_path: Path) -> LoadStore:
    return LoadStore(tmp_path / "loads.db")


def test_the_correction_is_the_median_of_the_last_loads(store: LoadStore) -> None:
    assert store.learned("box") == {}
    for number in range(20):
        store.add(load(number, 50 if number < 11 else 10))
    store.add(load(30, 100_000))  # another program took memory meanwhile
    assert store.learned("box") == {("CUDA0 · RTX", "cuda"): Learned(10 * MIB, 9)}
    assert store.learned("other") == {}


def test_another_library_begins_anew(store: LoadStore) -> None:
    store.add(load(1, 500))
    store.add(load(2, 500))
    store.add(load(3, 7, library="lib 2"))
    assert store.learned("box")["CUDA0 · RTX", "cuda"] == Learned(7 * MIB, 1)


def test_a_load_that_took_less_corrects_nothing(store: LoadStore) -> None:
    store.add(load(1, -300))
    assert store.learned("box")["CUDA0 · RTX", "cuda"] == Learned(0, 1)


def test_speed_is_the_median_of_loads_that_said_enough(store: LoadStore) -> None:
    first = store.add(load(1, 0))
    store.add_answer(first, 10, 1.0)
    assert store.answered("box", "f", "{}") is None  # ten tokens are no measurement
    store.add_answer(first, 30, 1.0)
    found = store.answered("box", "f", "{}")
    assert found is not None
    assert found.tokens_per_s == 20.0
    second = store.add(load(2, 0))
    store.add_answer(second, 100, 1.0)
    newer = store.answered("box", "f", "{}")
    assert newer is not None
    assert (newer.tokens_per_s, newer.loads, newer.created) == (60.0, 2, 2)
    assert store.answered("box", "f", '{"layers": 1}') is None
    assert [row.created for row in store.last()] == [2, 1]


def test_a_damaged_file_is_moved_aside_and_a_locked_one_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "loads.db"
    path.write_bytes(b"no database at all" * 100)
    with LoadStore(path) as store:
        store.add(load(1, 1))
    assert list(tmp_path.glob("loads.db.damaged-*"))
    with sqlite3.connect(path) as database:
        database.execute("PRAGMA user_version = 99")
    with pytest.raises(PhituiError, match="later"):
        LoadStore(path)


# actions --------------------------------------------------------------------------------------------------------------
@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PHITUI_PLUGINS", "")
    return write_stand_in(shape(layers=2), "tiny").rename(tmp_path / "tiny.gguf")


def info(made: OffloadPlan, private: int, library: str = "lib 1") -> SessionInfo:
    (row,) = made.devices
    buffers = [
        {"name": "CPU_Mapped", "what": "weights", "size": row.weights + 999 * MIB},  # the span in the file is longer
        {"name": "CPU", "what": "kv", "size": row.kv},
        {"name": "CPU", "what": "compute", "size": row.compute},
    ]
    details = {"memory": {"buffers": buffers, "free": {}, "private": private}, "library": library}
    return SessionInfo("tiny.gguf", "phi3", made.n_ctx, "phi-3", 3, 0, 0.1, details)


def stats(tokens: int, seconds: float) -> ChatStats:
    return ChatStats("stop", 5, 5, tokens, 0.1, seconds, 4096, 10)


def test_a_load_corrects_the_next_plan_and_tells_its_speed(model: Path, context: Context) -> None:
    request = PlanRequest(str(model))
    made = plan(context, request)
    assert (made.devices[0].learned, made.speed) == (0, None)
    number = loads.remember(
        context, model, made, made.settings, info(made, made.devices[0].kv + 40 * MIB), devices(context)
    )
    assert number is not None
    again = plan(context, request)
    assert (again.devices[0].learned, again.devices[0].loads) == (40 * MIB, 1)
    assert again.devices[0].sum == made.devices[0].sum + 40 * MIB
    loads.remember_answer(context, number, stats(100, 4.0))
    measured = plan(context, request).speed
    assert measured is not None
    assert (measured.tokens_per_s, measured.how) == (25.0, "measured")
    assert plan(context, replace(request, context=8192)).speed == measured  # the context does not change it
    assert plan(context, replace(request, kv_type="q8_0")).speed is None
    assert plan(context, PlanRequest(str(model), devices=("GPU=4GiB", "RAM=4GiB"))).devices[1].learned == 0


def test_a_second_load_is_compared_with_the_plan_without_its_correction(model: Path, context: Context) -> None:
    for _ in range(3):
        made = plan(context, PlanRequest(str(model)))
        loads.remember(context, model, made, made.settings, info(made, made.devices[0].kv + 40 * MIB), devices(context))
    row = plan(context, PlanRequest(str(model))).devices[0]
    assert (row.learned, row.loads) == (40 * MIB, 3)


def test_an_estimate_where_the_bandwidth_is_known(model: Path, context: Context) -> None:
    from phitui.domain.hardware import Bandwidth
    from phitui.store.bandwidth import keep_bandwidth

    (ram,) = devices(context)
    keep_bandwidth(context.paths, Bandwidth(ram.name, ram.description, 10e9, 2, time.time(), "read"))
    made = plan(context, PlanRequest(str(model)))
    assert made.speed is not None
    assert made.speed.how == "estimated"
    assert made.speed.tokens_per_s == pytest.approx(10e9 / made.devices[0].read)


def test_an_evaluation_measures_the_speed_too(model: Path, context: Context) -> None:
    from phitui.actions.evaluate import store_file
    from phitui.store.measures import Measured, MeasureStore

    with MeasureStore(store_file(context)) as store:
        for created, rate in ((1.0, 11.0), (2.0, 12.0)):
            values = {"perplexity": 7.0, "decode_tokens_per_s": rate}
            store.add(model, Measured("tiny", "judge", created, "text", values, {"layers": "-1", "threads": "2"}))
    found = plan(context, PlanRequest(str(model))).speed
    assert found is not None
    assert (found.tokens_per_s, found.how) == (12.0, "measured")
    assert "phitui eval" in found.source


def test_what_an_engine_does_not_tell_is_not_remembered(model: Path, context: Context) -> None:
    made = plan(context, PlanRequest(str(model)))
    silent = SessionInfo("tiny.gguf", "phi3", 4096, "phi-3", 3, 0, 0.1)
    odd = SessionInfo("tiny.gguf", "phi3", 4096, "phi-3", 3, 0, 0.1, {"memory": {"buffers": [{"name": "CPU"}]}})
    assert loads.remember(context, model, made, made.settings, silent, devices(context)) is None
    assert loads.remember(context, model, made, made.settings, odd, devices(context)) is None
    loads.remember_answer(context, None, stats(100, 1.0))
    assert plan(context, PlanRequest(str(model))).devices[0].learned == 0


def test_a_gpu_is_judged_by_what_it_has_left() -> None:
    row = DevicePlan("CUDA0", "cuda", 1000 * MIB, 900 * MIB, 300 * MIB, 100 * MIB, 50 * MIB)
    card = Device("CUDA0", "cuda", "gpu", "RTX", 1000 * MIB, 900 * MIB)
    held = {"weights": 300 * MIB, "kv": 100 * MIB, "compute": 50 * MIB}
    taken = loads._device(row, held, {"free": {"CUDA0": 400 * MIB}}, card)
    assert (taken.predicted, taken.buffers, taken.actual) == (450 * MIB, 450 * MIB, 500 * MIB)
    assert loads._device(row, held, {"free": {}}, card).actual == 450 * MIB


@pytest.mark.parametrize(
    ("buffer", "owner"),
    [
        ("CUDA0", "CUDA0"),
        ("CUDA10", "CUDA10"),
        ("CUDA0_Split", "CUDA0"),
        ("MTL0_Mapped", "MTL0"),
        ("CUDA_Host", ""),
        ("CPU_REPACK", ""),
        ("AMX", ""),
    ],
)
def test_whose_a_buffer_is(buffer: str, owner: str) -> None:
    assert loads._owner(buffer, ["CUDA0", "CUDA1", "CUDA10", "MTL0"]) == owner


def test_loads_are_known_by_machine(model: Path, context: Context) -> None:
    made = plan(context, PlanRequest(str(model)))
    loads.remember(context, model, made, EngineSettings(), info(made, 10**9), devices(context))
    with LoadStore(loads.store_file(context)) as store:
        (kept,) = store.last()
    assert kept.machine == platform.node()
    assert kept.devices[0].device.startswith("CPU · ")
    assert kept.devices[0].predicted == made.devices[0].sum
