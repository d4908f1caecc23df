"""What fits at most: layers, experts, context; and what no machine could carry out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from phitui.domain.chat import EngineSettings
from phitui.domain.hardware import Device, MemoryBuffer
from phitui.domain.memory import Learned
from phitui.domain.offload import MARGIN, PlanRequest, plan, tradeoffs
from phitui.domain.placement import ModelMemory, kv_per_layer, sequence_context
from phitui.domain.solver import _bisect, _gallop
from phitui.domain.speed import estimated_speed
from phitui.errors import UsageError
from phitui.testing.facts import PHI_4_MINI_MEMORY

MIB = 1024 * 1024
GIB = 1024 * MIB
RAM = Device("CPU", "cpu", "cpu", "RAM", 64 * GIB, 60 * GIB, "measured")
DENSE = PHI_4_MINI_MEMORY
MIXTURE = replace(
    DENSE,
    architecture="phimoe",
    experts_used=2,
    expert_count=16,
    blocks=(750 * MIB,) * 32,
    experts=(720 * MIB,) * 32,
    embedding=70 * MIB,
    output=70 * MIB,
    tied=False,
    vocabulary=32064,
)


def gpu(name: str, free: int, kind: str = "gpu") -> Device:
    return Device(name, "cuda", kind, name, free, free)  # type: ignore[arg-type]


def ask(**more: object) -> PlanRequest:
    return PlanRequest("m.gguf", **more)  # type: ignore[arg-type]


@given(st.integers(0, 50), st.integers(0, 50), st.integers(-1, 51), st.integers(0, 50))
def test_galloping_finds_what_bisection_finds(low: int, span: int, most: int, near: int) -> None:
    high = low + span
    start = min(max(low, near), high)

    def fits(number: int) -> bool:
        return number <= most

    assert _gallop(low, high, start, fits) == _bisect(low, high, fits) == min(high, max(low, most))


def test_max_context_is_the_most_that_keeps_the_margin() -> None:
    for size in (3, 4, 6, 12):
        machine = [gpu("CUDA0", size * GIB), RAM]
        made = plan(DENSE, machine, ask(context=-1, layers=-1))
        more = made.n_ctx + 256
        assert made.fits
        assert made.devices[0].sum + MARGIN <= size * GIB
        if more <= DENSE.context_length:
            assert plan(DENSE, machine, ask(context=more, layers=-1)).devices[0].sum + MARGIN > size * GIB
    assert plan(DENSE, [gpu("CUDA0", 80 * GIB), RAM], ask(context=-1)).n_ctx == 131072


def test_max_context_is_limited_by_ram_too() -> None:
    made = plan(DENSE, [replace(RAM, free=4 * GIB)], ask(context=-1))
    assert 256 <= made.n_ctx < 131072
    assert made.devices[0].sum + MARGIN <= 4 * GIB


def test_where_nothing_fits_max_context_says_so() -> None:
    made = plan(DENSE, [replace(RAM, free=1 * GIB)], ask(context=-1))
    assert (made.n_ctx, made.fits) == (256, False)


def test_layers_come_before_context() -> None:
    machine = [gpu("CUDA0", 4 * GIB), RAM]
    layers = plan(DENSE, machine, ask()).n_gpu_layers
    made = plan(DENSE, machine, ask(context=-1))
    assert made.n_gpu_layers == layers
    assert made.n_ctx >= 4096


def test_measured_figures_correct_the_context() -> None:
    def measure(asked: EngineSettings) -> Sequence[MemoryBuffer]:
        return [MemoryBuffer("CUDA0", "CUDA0", 300 * MIB + 4096 * asked.context), MemoryBuffer("CPU", "", MIB)]

    machine = [gpu("CUDA0", 4 * GIB), RAM]
    made = plan(DENSE, machine, ask(context=-1, layers=-1), measure)
    assert made.devices[0].compute == 300 * MIB + 4096 * made.n_ctx
    assert made.devices[0].sum + MARGIN <= 4 * GIB
    longer = plan(DENSE, machine, ask(context=made.n_ctx + 256, layers=-1), measure)
    assert longer.devices[0].sum + MARGIN > 4 * GIB


def test_tradeoffs_grow_with_smaller_kv_types() -> None:
    machine = [gpu("CUDA0", 3 * GIB), RAM]
    made = plan(DENSE, machine, ask(layers=20))
    rows = tradeoffs(DENSE, machine, made)
    assert {row.layers for row in rows} == {33, 20}
    for layers in (33, 20):
        reach = [row.context for row in rows if row.layers == layers]
        assert reach == sorted(reach)
        for row in rows:
            if row.layers == layers and 0 < row.context < 131072:
                fits = plan(DENSE, machine, ask(layers=layers, context=row.context, kv_type=row.kv_type))
                assert fits.devices[0].sum + MARGIN <= 3 * GIB
    off = plan(DENSE, machine, ask(layers=20, flash_attention=False))
    assert {row.kv_type for row in tradeoffs(DENSE, machine, off)} == {"f16"}


# mixtures of experts --------------------------------------------------------------------------------------------------
def test_experts_leave_the_device_before_layers_do() -> None:
    seen = []
    for size in (2, 4, 8, 16, 40):
        machine = [gpu("CUDA0", size * GIB), RAM]
        made = plan(MIXTURE, machine, ask())
        seen.append(made.settings.n_cpu_moe)
        assert made.n_gpu_layers == 33
        assert made.devices[0].sum + MARGIN <= size * GIB
        if made.settings.n_cpu_moe:
            one_less = plan(MIXTURE, machine, ask(layers=-1, n_cpu_moe=made.settings.n_cpu_moe - 1))
            assert one_less.devices[0].sum + MARGIN > size * GIB
            assert any("experts of" in warning for warning in made.warnings)
    assert seen == sorted(seen, reverse=True)
    assert seen[-1] == 0


def test_only_then_are_layers_dropped() -> None:
    made = plan(MIXTURE, [gpu("CUDA0", 1400 * MIB), RAM], ask())
    assert made.settings.n_cpu_moe == 32
    assert 0 < made.n_gpu_layers < 33
    assert made.fits


def test_fixed_layers_take_as_few_experts_as_fit() -> None:
    machine = [gpu("CUDA0", 8 * GIB), RAM]
    made = plan(MIXTURE, machine, ask(layers=10))
    assert made.n_gpu_layers == 10
    assert made.fits
    assert plan(MIXTURE, machine, ask(layers=4)).settings.n_cpu_moe == 0
    assert plan(MIXTURE, machine, ask(layers=10, n_cpu_moe=0)).settings.n_cpu_moe == 0
    assert plan(MIXTURE, machine, ask(n_cpu_moe=-1)).settings.n_cpu_moe == 32


def test_experts_in_ram_move_their_weights_and_nothing_else() -> None:
    machine = [gpu("CUDA0", 80 * GIB), RAM]
    all_on, some_off = (plan(MIXTURE, machine, ask(layers=-1, n_cpu_moe=count)) for count in (0, 5))
    assert all_on.devices[0].weights - some_off.devices[0].weights == 5 * 720 * MIB
    assert some_off.devices[1].weights - all_on.devices[1].weights == 5 * 720 * MIB
    assert all_on.devices[0].kv == some_off.devices[0].kv


# settings -------------------------------------------------------------------------------------------------------------
def test_keys_and_values_may_differ() -> None:
    both = plan(DENSE, [RAM], ask(kv_type="q8_0")).devices[0].kv
    keys = plan(DENSE, [RAM], ask(kv_type="q8_0", kv_type_v="f16")).devices[0].kv
    full = plan(DENSE, [RAM], ask()).devices[0].kv
    assert both < keys < full
    assert keys * 2 == both + full


def test_sequences_share_the_context() -> None:
    assert sequence_context(4096, 4) == 1024
    assert sequence_context(4096, 4, unified=True) == 4096
    assert sequence_context(1000, 3) == 512
    assert kv_per_layer(DENSE, 1000, "f16", parallel=3) == 3 * kv_per_layer(DENSE, 512, "f16")
    assert plan(DENSE, [RAM], ask(context=16384, parallel=4)).rope == "short"
    assert plan(DENSE, [RAM], ask(context=16384, parallel=4, kv_unified=True)).rope == "long"
    assert plan(DENSE, [RAM], ask(context=4 * 131072, parallel=4)).n_ctx == 4 * 131072


def test_a_split_is_what_was_asked_or_the_free_memory() -> None:
    machine = [gpu("CUDA0", 40 * GIB), gpu("CUDA1", 20 * GIB), RAM]
    by_memory = plan(DENSE, machine, ask(layers=-1))
    assert by_memory.settings.tensor_split == (40 * 1024.0, 20 * 1024.0)
    asked = plan(DENSE, machine, ask(layers=-1, tensor_split=(1, 3)))
    assert asked.devices[0].kv < by_memory.devices[0].kv
    alone = plan(DENSE, machine, ask(layers=-1, split_mode="none", main_gpu=1))
    assert [row.name for row in alone.devices] == ["CUDA1", "CPU"]
    rows = plan(DENSE, machine, ask(layers=-1, split_mode="row"))
    assert rows.how["weights"] == "estimated"
    assert rows.devices[0].weights == pytest.approx(2 * rows.devices[1].weights, rel=0.01)


def test_a_device_that_tells_no_memory_shares_the_ram() -> None:
    silent = Device("Vulkan0", "vulkan", "gpu", "?", 0, 0)
    made = plan(DENSE, [silent, RAM], ask())
    assert (made.n_gpu_layers, made.fits) == (33, True)
    assert made.devices[0].free == RAM.free
    assert "estimated" in made.how["memory"]


def test_the_cache_can_stay_in_ram() -> None:
    made = plan(DENSE, [gpu("CUDA0", 8 * GIB), RAM], ask(layers=-1, kv_offload=False))
    assert made.devices[0].kv == 0
    assert made.devices[1].kv == 32 * kv_per_layer(DENSE, 4096, "f16")


def test_mapped_and_allocated() -> None:
    (row,) = plan(DENSE, [RAM], ask()).devices
    assert (row.mapped, row.allocated) == (row.weights, row.sum - row.weights)
    for locked in (ask(mmap=False), ask(mlock=True)):
        (row,) = plan(DENSE, [RAM], locked).devices
        assert (row.mapped, row.allocated) == (0, row.sum)


def test_only_plain_host_buffers_can_be_mapped() -> None:
    def measure(asked: EngineSettings) -> Sequence[MemoryBuffer]:
        return [
            MemoryBuffer("CPU", "", 5, 100, 0),
            MemoryBuffer("CPU_REPACK", "", 0, 1000, 0),
            MemoryBuffer("AMX", "", 0, 30, 0),
            MemoryBuffer("CUDA_Host", "", 3, 20, 0),
        ]

    (row,) = plan(DENSE, [RAM], ask(), measure).devices
    assert (row.weights, row.mapped) == (1150, 120)


def test_what_loads_taught_is_added_and_shown() -> None:
    machine = [gpu("CUDA0", 3 * GIB), RAM]
    plain = plan(DENSE, machine, ask())
    taught = plan(DENSE, machine, ask(), learned={"CUDA0": Learned(400 * MIB, 7)})
    assert taught.n_gpu_layers < plain.n_gpu_layers
    row = taught.devices[0]
    assert (row.learned, row.loads) == (400 * MIB, 7)
    assert row.sum == row.weights + row.kv + row.compute + 400 * MIB
    assert row.sum + MARGIN <= 3 * GIB
    assert taught.how["learned"] == "measured"
    assert "learned" not in plain.how


def test_an_integrated_gpu_takes_the_ram_it_shares() -> None:
    ram = replace(RAM, free=3 * GIB)
    made = plan(DENSE, [gpu("Vulkan0", 3 * GIB, "igpu"), ram], ask(layers=20, context=8192))
    assert all(row.fits for row in made.devices)
    assert not made.fits
    assert any("shares the RAM" in warning for warning in made.warnings)


def test_the_two_profiles_of_longrope() -> None:
    assert plan(DENSE, [RAM], ask(context=4096)).profiles == ()
    made = plan(DENSE, [gpu("CUDA0", 4 * GIB), RAM], ask(context=32768))
    short, long = made.profiles
    assert (short.rope, short.n_ctx, long.rope, long.n_ctx) == ("short", 4096, "long", 32768)
    assert short.n_gpu_layers >= long.n_gpu_layers == made.n_gpu_layers


# speed ----------------------------------------------------------------------------------------------------------------
def test_speed_is_bytes_over_bandwidth() -> None:
    machine = [gpu("CUDA0", 8 * GIB), RAM]
    made = plan(DENSE, machine, ask(layers=20))
    device, host = made.devices
    assert device.read + host.read == 32 * 55 * MIB + DENSE.embedding + DENSE.output + (device.kv + host.kv) // 2
    speed = estimated_speed(made.devices, {"CUDA0": 100e9, "CPU": 10e9})
    assert speed is not None
    assert speed.how == "estimated"
    assert speed.tokens_per_s == pytest.approx(1 / (device.read / 100e9 + host.read / 10e9))
    assert estimated_speed(made.devices, {"CUDA0": 100e9}) is None


def test_a_token_reads_only_the_experts_it_uses() -> None:
    (row,) = plan(MIXTURE, [RAM], ask(context=256)).devices
    assert row.read == 32 * (30 * MIB + 720 * MIB * 2 // 16) + MIXTURE.output + row.kv // 2
    on_gpu = plan(MIXTURE, [gpu("CUDA0", 80 * GIB), RAM], ask(context=256, layers=-1, n_cpu_moe=32)).devices
    assert on_gpu[1].read == 32 * (720 * MIB * 2 // 16)


# bad input ------------------------------------------------------------------------------------------------------------
ONE = [gpu("CUDA0", 8 * GIB), RAM]
TWO = [gpu("CUDA0", 8 * GIB), gpu("CUDA1", 8 * GIB), RAM]


@pytest.mark.parametrize(
    ("model", "machine", "request_", "words"),
    [
        (DENSE, ONE, ask(n_cpu_moe=3), "no experts"),
        (DENSE, ONE, ask(n_cpu_moe=-1), "no experts"),
        (MIXTURE, ONE, ask(n_cpu_moe=33), "33 layers cannot be kept"),
        (MIXTURE, ONE, ask(n_cpu_moe=-7), "cannot be kept"),
        (DENSE, TWO, ask(tensor_split=(1,)), "1 parts for 2 devices"),
        (DENSE, TWO, ask(tensor_split=(1, 2, 3)), "3 parts for 2 devices"),
        (DENSE, [RAM], ask(tensor_split=(1,)), "1 parts for 0 devices"),
        (DENSE, TWO, ask(tensor_split=(-1, 2)), "says nothing"),
        (DENSE, TWO, ask(tensor_split=(0, 0)), "says nothing"),
        (DENSE, TWO, ask(tensor_split=(float("nan"), 1)), "says nothing"),
        (DENSE, TWO, ask(split_mode="none", main_gpu=2), "no device 2"),
        (DENSE, TWO, ask(split_mode="column"), "cannot be 'column'"),
        (DENSE, [gpu("RPC0", GIB, "remote"), RAM], ask(split_mode="row"), "RPC0 cannot share"),
        (DENSE, ONE, ask(parallel=0), "0 sequences"),
        (DENSE, ONE, ask(parallel=1000), "1000 sequences"),
        (DENSE, ONE, ask(context=256, parallel=2), None),
        (DENSE, ONE, ask(context=131073), "more than this model has"),
        (DENSE, ONE, ask(context=2 * 131073, parallel=2), "for each sequence"),
        (replace(DENSE, context_length=0), ONE, ask(context=1 << 40), "more than this model has"),
        (DENSE, ONE, ask(kv_type="f16", kv_type_v="q8_0", flash_attention=False), "q8_0 KV cache needs flash"),
        (DENSE, ONE, ask(kv_type="q8_0", kv_type_v="f16", flash_attention=False), None),
        (DENSE, ONE, ask(kv_type_v="q9"), "cannot be 'q9'"),
        (DENSE, ONE, ask(batch=0), "at least one token"),
        (DENSE, ONE, ask(ubatch=-4), "at least one token"),
    ],
)
def test_what_cannot_be(model: ModelMemory, machine: list[Device], request_: PlanRequest, words: str | None) -> None:
    if words is None:
        plan(model, machine, request_)
        return
    with pytest.raises(UsageError, match=words) as caught:
        plan(model, machine, request_)
    assert caught.value.hint


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.integers(200, 60000), min_size=0, max_size=3),
    st.sampled_from([None, -1, 512, 8192]),
    st.sampled_from(["f16", "q8_0", "q4_0"]),
    st.booleans(),
)
def test_what_auto_finds_keeps_its_margin(sizes: list[int], context: int | None, kind: str, mixture: bool) -> None:
    machine = [*(gpu(f"CUDA{n}", size * MIB) for n, size in enumerate(sizes)), RAM]
    made = plan(MIXTURE if mixture else DENSE, machine, ask(context=context, kv_type=kind))
    for row in made.devices[:-1]:
        assert not made.n_gpu_layers or row.sum == 0 or row.sum + MARGIN <= row.free
    for one, other in pairwise(made.devices):
        assert one.name != other.name
