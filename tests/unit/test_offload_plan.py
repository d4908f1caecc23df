"""The planner: what fits, what does not, and what it says about it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from phitui.domain.chat import EngineSettings
from phitui.domain.hardware import Device, MemoryBuffer
from phitui.domain.offload import MARGIN, PlanRequest, offload_devices, plan, rope_factors
from phitui.errors import UsageError
from phitui.testing.facts import PHI_4_MINI_MEMORY

MIB = 1024 * 1024
GIB = 1024 * MIB
RAM = Device("CPU", "cpu", "cpu", "RAM", 32 * GIB, 30 * GIB, "measured")
PHI4_MINI = PHI_4_MINI_MEMORY
ASK = PlanRequest("model.gguf")


def gpu(name: str, free: int, kind: str = "gpu") -> Device:
    return Device(name, "cuda", kind, name, free, free)  # type: ignore[arg-type]


def test_without_a_device_everything_stays_on_the_cpu() -> None:
    made = plan(PHI4_MINI, [RAM], ASK)
    assert (made.n_gpu_layers, made.layers_total, made.n_ctx, made.rope, made.fits) == (0, 33, 4096, "short", True)
    (row,) = made.devices
    assert row.weights == PHI4_MINI.weights
    assert row.kv == 32 * 2 * 8 * 128 * 2 * 4096
    assert row.sum == row.weights + row.kv + row.compute
    assert made.how["compute"] == "estimated"


def test_auto_takes_the_most_layers_that_leave_the_margin() -> None:
    for size in (1, 2, 3, 4, 8):
        machine = [gpu("CUDA0", size * GIB), RAM]
        made = plan(PHI4_MINI, machine, ASK)
        assert made.fits
        used = made.devices[0].sum
        assert made.n_gpu_layers == 0 or used + MARGIN <= size * GIB
        if made.n_gpu_layers < made.layers_total:
            one_more = plan(PHI4_MINI, machine, replace(ASK, layers=made.n_gpu_layers + 1))
            assert one_more.devices[0].sum + MARGIN > size * GIB
    assert plan(PHI4_MINI, [gpu("CUDA0", 8 * GIB), RAM], ASK).n_gpu_layers == 33


def test_what_does_not_fit_is_said() -> None:
    made = plan(PHI4_MINI, [gpu("CUDA0", 1 * GIB), RAM], replace(ASK, layers=-1))
    assert made.n_gpu_layers == 33
    assert not made.fits
    assert [row.fits for row in made.devices] == [False, True]
    assert any("CUDA0 is short of" in warning for warning in made.warnings)


def test_a_model_larger_than_the_ram_does_not_fit() -> None:
    made = plan(PHI4_MINI, [replace(RAM, free=1 * GIB)], ASK)
    assert not made.fits


def test_several_devices_share_the_layers() -> None:
    made = plan(PHI4_MINI, [gpu("CUDA0", 4 * GIB), gpu("CUDA1", 2 * GIB), RAM], ASK)
    first, second, host = made.devices
    assert made.n_gpu_layers == 33
    assert first.kv * 10 == second.kv * 22  # 22 layers; 10 and the output layer
    assert host.weights == PHI4_MINI.embedding


def test_llama_cpp_s_order_of_devices() -> None:
    machine = [RAM, gpu("IGPU", GIB, "igpu"), gpu("CUDA0", GIB), gpu("RPC0", GIB, "remote")]
    assert [device.name for device in offload_devices(machine)] == ["RPC0", "CUDA0"]
    assert [device.name for device in offload_devices([machine[1], machine[3]])] == ["RPC0", "IGPU"]


def test_the_longrope_cliff() -> None:
    assert rope_factors(PHI4_MINI, 4096) == "short"
    assert rope_factors(PHI4_MINI, 4097) == "long"
    assert rope_factors(replace(PHI4_MINI, original_context=None), 100000) == "none"
    made = plan(PHI4_MINI, [RAM], replace(ASK, context=8192))
    assert made.rope == "long"
    assert any("long factors" in warning for warning in made.warnings)


def test_the_default_context_is_not_beyond_the_models() -> None:
    assert plan(replace(PHI4_MINI, context_length=2048), [RAM], ASK).n_ctx == 2048


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"context": 0}, "holds nothing"),
        ({"context": -5}, "holds nothing"),
        ({"context": 200000}, "more than this model has"),
        ({"layers": 34}, "has 33"),
        ({"layers": -2}, "cannot be offloaded"),
        ({"kv_type": "q9"}, "cannot be 'q9'"),
        ({"kv_type": "q8_0", "flash_attention": False}, "needs flash attention"),
        ({"ubatch": 0}, "at least one token"),
    ],
)
def test_requests_that_no_machine_could_carry_out(change: dict[str, object], words: str) -> None:
    with pytest.raises(UsageError, match=words) as caught:
        plan(PHI4_MINI, [RAM], replace(ASK, **change))  # type: ignore[arg-type]
    assert caught.value.hint


def test_a_machine_without_memory_is_an_error() -> None:
    with pytest.raises(UsageError, match="no host memory"):
        plan(PHI4_MINI, [gpu("CUDA0", GIB)], ASK)


def test_measured_buffers_replace_the_formula_and_unknown_ones_are_ram() -> None:
    def measure(asked: EngineSettings) -> Sequence[MemoryBuffer]:
        return [
            MemoryBuffer("CUDA0", "CUDA0", 7, 50, 1),
            MemoryBuffer("CUDA_Host", "", 11, 5, 0),
            MemoryBuffer("CPU_REPACK", "", 0, 100, 0),
            MemoryBuffer("AMX", "", 0, 1000, 0),
        ]

    made = plan(PHI4_MINI, [gpu("CUDA0", 8 * GIB), RAM], replace(ASK, layers=3), measure)
    device, host = made.devices
    assert (device.weights, device.compute) == (50, 7)
    assert (host.weights, host.compute) == (1105, 11)
    assert made.how == {
        "weights": "exact",
        "kv": "exact",
        "compute": "measured",
        "mapped": "measured",
        "memory": "exact, measured",
    }


def test_measured_compute_corrects_the_solver() -> None:
    def measure(asked: EngineSettings) -> Sequence[MemoryBuffer]:
        return [MemoryBuffer("CUDA0", "CUDA0", 600 * MIB), MemoryBuffer("CPU", "", MIB)]

    machine = [gpu("CUDA0", 2 * GIB), RAM]
    made = plan(PHI4_MINI, machine, ASK, measure)
    assert made.devices[0].compute == 600 * MIB
    assert made.devices[0].sum + MARGIN <= 2 * GIB
    assert (
        plan(PHI4_MINI, machine, replace(ASK, layers=made.n_gpu_layers + 1), measure).devices[0].sum + MARGIN > 2 * GIB
    )


@settings(deadline=None)
@given(
    st.integers(0, 33),
    st.integers(1, 131072),
    st.sampled_from(["f16", "q8_0", "q4_0"]),
    st.lists(st.integers(1, 64), max_size=3),
)
def test_every_plan_adds_up(layers: int, context: int, kind: str, sizes: list[int]) -> None:
    machine = [*(gpu(f"CUDA{n}", size * GIB) for n, size in enumerate(sizes)), RAM]
    made = plan(PHI4_MINI, machine, PlanRequest("m", context=context, layers=layers, kv_type=kind))
    assert made.fits == all(row.sum <= row.free for row in made.devices)
    copies = PHI4_MINI.embedding if layers and sizes else 0
    assert sum(row.weights for row in made.devices) in range(
        PHI4_MINI.weights + copies, PHI4_MINI.weights + copies + 4 * PHI4_MINI.shared
    )
    assert all(row.compute >= 0 and row.kv >= 0 for row in made.devices)
