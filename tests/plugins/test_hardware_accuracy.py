"""The plan against the allocator: models are really loaded, on the CPU and on loopback RPC devices, and llama.cpp's own
log says what was allocated where. The models are small and all zeros; their shapes are those of the Phi families."""

from __future__ import annotations

import itertools
import re
import signal
import socket
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

from phitui.actions.context import Context
from phitui.actions.plan import plan, plan_file
from phitui.actions.standin import write_stand_in
from phitui.domain.offload import OffloadPlan, PlanRequest
from phitui.domain.tensors import FilePlan, SourceTensor, TensorType, Value, place
from phitui.gguf.header import read_header

pytest.importorskip("llama_cpp")
MIB = 1024 * 1024
KV_IDS = {"f16": 1, "q8_0": 8, "q4_0": 2}

SERVER = """
import ctypes, pathlib, sys
import llama_cpp.llama_cpp as llama
folder = pathlib.Path(llama._lib._name).parent
ggml, rpc = (ctypes.CDLL(str(folder / f"lib{name}.so.0")) for name in ("ggml", "ggml-rpc"))
ggml.ggml_backend_dev_by_type.restype = ctypes.c_void_p
device = ctypes.c_void_p(ggml.ggml_backend_dev_by_type(0))
rpc.ggml_backend_rpc_start_server.argtypes = [
    ctypes.c_char_p, ctypes.c_char_p, ctypes.c_size_t, ctypes.c_size_t, ctypes.POINTER(ctypes.c_void_p)]
rpc.ggml_backend_rpc_start_server(sys.argv[1].encode(), None, 1, 1, ctypes.byref(device))
"""

LOAD = """
import ctypes, pathlib, sys
import llama_cpp.llama_cpp as llama
model, layers, context, kv, flash, ubatch, *workers = sys.argv[1:]
folder = pathlib.Path(llama._lib._name).parent
base, ggml = (ctypes.CDLL(str(folder / f"lib{name}.so.0")) for name in ("ggml-base", "ggml"))
ggml.ggml_backend_reg_by_name.restype = base.ggml_backend_reg_get_proc_address.restype = ctypes.c_void_p
base.ggml_backend_reg_get_proc_address.argtypes = [ctypes.c_void_p, ctypes.c_char_p]
ggml.ggml_backend_register.argtypes = [ctypes.c_void_p]
for worker in workers:
    add = base.ggml_backend_reg_get_proc_address(
        ggml.ggml_backend_reg_by_name(b"RPC"), b"ggml_backend_rpc_add_server")
    ggml.ggml_backend_register(ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_char_p)(add)(worker.encode()))
log = llama.llama_log_callback(lambda level, text, data: print(text.decode(), end="", flush=True))
llama.llama_log_set(log, None)
params = llama.llama_model_default_params()
params.n_gpu_layers, params.load_mode = int(layers), llama.LLAMA_LOAD_MODE_NONE
loaded = llama.llama_model_load_from_file(model.encode(), params)
settings = llama.llama_context_default_params()
settings.n_ctx, settings.n_batch, settings.n_ubatch = int(context), 512, int(ubatch)
settings.type_k = settings.type_v = int(kv)
settings.flash_attn_type = int(flash)
assert llama.llama_init_from_model(loaded, settings)
"""


def shape(architecture: str, tied: bool, experts: int = 0, layers: int = 6) -> FilePlan:
    """A model of 30 MB in the layout of phi3 or phimoe."""
    width, inner, heads, shared, vocabulary = 512, 1024, 8, 4, 4096
    head = width // heads
    rows: list[tuple[str, tuple[int, ...], TensorType]] = [
        ("token_embd.weight", (width, vocabulary), TensorType.Q4_K),
        ("output_norm.weight", (width,), TensorType.F32),
        ("rope_factors_long.weight", (head // 2,), TensorType.F32),
        ("rope_factors_short.weight", (head // 2,), TensorType.F32),
    ]
    if not tied:
        rows.append(("output.weight", (width, vocabulary), TensorType.Q6_K))
    if experts:
        rows += [("output_norm.bias", (width,), TensorType.F32), ("output.bias", (vocabulary,), TensorType.F32)]
    for layer in range(layers):
        block = f"blk.{layer}."
        rows += [(f"{block}{norm}_norm.weight", (width,), TensorType.F32) for norm in ("attn", "ffn")]
        rows.append((f"{block}attn_output.weight", (width, width), TensorType.Q4_K))
        if experts:
            rows += [
                (f"{block}{name}.bias", (width,), TensorType.F32) for name in ("attn_norm", "ffn_norm", "attn_output")
            ]
            for part, size in (("q", width), ("k", head * shared), ("v", head * shared)):
                rows.append((f"{block}attn_{part}.weight", (width, size), TensorType.Q4_K))
                rows.append((f"{block}attn_{part}.bias", (size,), TensorType.F32))
            rows.append((f"{block}ffn_gate_inp.weight", (width, experts), TensorType.F32))
            rows += [
                (f"{block}ffn_{name}_exps.weight", (width, inner, experts), TensorType.Q4_K) for name in ("gate", "up")
            ]
            rows.append((f"{block}ffn_down_exps.weight", (inner, width, experts), TensorType.Q4_K))
        else:
            rows.append((f"{block}attn_qkv.weight", (width, width + 2 * head * shared), TensorType.Q4_K))
            rows.append((f"{block}ffn_up.weight", (width, 2 * inner), TensorType.Q4_K))
            rows.append((f"{block}ffn_down.weight", (inner, width), TensorType.Q6_K))
    numbers = {
        "context_length": 16384,
        "embedding_length": width,
        "feed_forward_length": inner,
        "block_count": layers,
        "attention.head_count": heads,
        "attention.head_count_kv": shared,
        "rope.dimension_count": head,
        "rope.scaling.original_context_length": 4096,
        "vocab_size": vocabulary,
    } | ({"expert_count": experts, "expert_used_count": 2} if experts else {})
    metadata = {
        "general.architecture": Value.string(architecture),
        f"{architecture}.attention.layer_norm_rms_epsilon": Value.f32(1e-5),
        f"{architecture}.rope.freq_base": Value.f32(10000.0),
        "tokenizer.ggml.model": Value.string("none"),
    } | {f"{architecture}.{key}": Value.u32(value) for key, value in numbers.items()}
    return FilePlan("", metadata, place([(SourceTensor(n, s, t, ()), t, None) for n, s, t in rows]))


MODELS = {
    "phi3": ("phi3", False, 0),
    "phi3-tied": ("phi3", True, 0),
    "phimoe": ("phimoe", False, 4),
}


@pytest.fixture(scope="module")
def workers() -> Iterator[list[str]]:
    """Two loopback RPC workers, each a true device."""
    if not sys.platform.startswith("linux"):
        pytest.skip("the loopback worker is started through Linux library names")
    probe = subprocess.run(
        [sys.executable, "-c", "import llama_cpp.llama_cpp as l; print(l.llama_supports_rpc())"],
        capture_output=True,
        text=True,
        check=True,
    )
    if "True" not in probe.stdout:
        pytest.skip("this llama-cpp-python was built without RPC")
    started = [start_worker() for _ in range(2)]
    yield [endpoint for endpoint, _ in started]
    for _, process in started:
        process.kill()
        process.wait()


def start_worker() -> tuple[str, subprocess.Popen[bytes]]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        endpoint = f"127.0.0.1:{free.getsockname()[1]}"
    process = subprocess.Popen(
        [sys.executable, "-c", SERVER, endpoint], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    end = time.monotonic() + 20
    while time.monotonic() < end and process.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", int(endpoint.split(":")[1])), 1).close()
            return endpoint, process
        except OSError:
            time.sleep(0.05)
    process.kill()
    raise AssertionError("the worker did not start")


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    made = write_stand_in(shape(*MODELS[request.param]), request.param)
    return made.rename(tmp_path / f"{request.param}.gguf")


def allocated(model: Path, request: PlanRequest) -> dict[str, dict[str, float]]:
    """Device -> weights, kv, compute in MiB, from the log of a real load."""
    flash = {None: -1, False: 0, True: 1}[request.flash_attention]
    command = [
        str(model),
        request.layers,
        request.context,
        KV_IDS[request.kv_type],
        flash,
        request.ubatch,
        *request.rpc,
    ]
    done = subprocess.run(
        [sys.executable, "-c", LOAD, *map(str, command)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    found: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    what = {"model": "weights", "KV": "kv", "compute": "compute", "output": "compute"}
    for name, kind, size in re.findall(
        r"(\S+)\s+(model|KV|compute|output) buffer size\s*=\s*([\d.]+) MiB", done.stdout
    ):
        worker = next((f"RPC{n}" for n, endpoint in enumerate(request.rpc) if endpoint in name), "CPU")
        found[worker][what[kind]] += float(size)
    return found


def compare(made: OffloadPlan, real: dict[str, dict[str, float]]) -> None:
    for device in made.devices:
        for what in ("weights", "kv", "compute"):
            planned, actual = getattr(device, what) / MIB, real[device.name][what]
            assert planned == pytest.approx(actual, rel=0.01, abs=0.03), (device.name, what)


@pytest.mark.parametrize(("kv_type", "flash", "ubatch"), [("f16", None, 512), ("f16", False, 128), ("q8_0", True, 512)])
def test_cpu_plan_is_what_is_allocated(
    model: Path, context: Context, kv_type: str, flash: bool | None, ubatch: int
) -> None:
    request = PlanRequest(str(model), context=2048, layers=0, kv_type=kv_type, flash_attention=flash, ubatch=ubatch)
    made = plan(context, request)
    assert [made.how[what] for what in ("weights", "kv", "compute", "memory")] == [
        "exact",
        "exact",
        "measured",
        "measured",
    ]
    compare(made, allocated(model, request))


CASES = [(1, "f16", None, 1), (3, "q4_0", True, 1), (7, "f16", False, 1), (5, "q8_0", None, 2), (7, "f16", None, 2)]


@pytest.mark.parametrize(("layers", "kv_type", "flash", "count"), CASES)
def test_plan_with_workers_is_what_is_allocated(
    model: Path, context: Context, workers: list[str], layers: int, kv_type: str, flash: bool | None, count: int
) -> None:
    request = PlanRequest(
        str(model), context=1024, layers=layers, kv_type=kv_type, flash_attention=flash, rpc=tuple(workers[:count])
    )
    made = plan(context, request)
    assert [device.kind for device in made.devices] == ["remote"] * count + ["cpu"]
    real = allocated(model, request)
    compare(made, real)
    by_rule = plan(context, request, probe=False)
    for device in by_rule.devices[:-1]:
        assert device.weights / MIB == pytest.approx(real[device.name]["weights"], rel=0.01, abs=0.03)
        assert device.kv / MIB == pytest.approx(real[device.name]["kv"], rel=0.01, abs=0.03)


def test_the_estimate_is_near_what_is_measured(model: Path, context: Context, workers: list[str]) -> None:
    off = []
    for layers, flash, size in itertools.product((0, 4, 7), (True, False), (512, 8192)):
        rpc = tuple(workers[:1]) if layers else ()
        request = PlanRequest(str(model), context=size, layers=layers, flash_attention=flash, rpc=rpc)
        for guess, known in zip(
            plan(context, request, probe=False).devices, plan(context, request).devices, strict=True
        ):
            off.append(abs(guess.compute - known.compute) / max(known.compute, 4 * MIB))
    assert sum(off) / len(off) < 0.12
    assert max(off) < 0.5


def test_auto_offloads_everything_to_an_empty_worker(model: Path, context: Context, workers: list[str]) -> None:
    made = plan(context, PlanRequest(str(model), rpc=tuple(workers[:1])))
    assert made.n_gpu_layers == made.layers_total == 7
    assert made.fits


def test_a_worker_that_dies_costs_an_error_not_the_planner(tmp_path: Path, context: Context) -> None:
    path = write_stand_in(shape("phi3", False), "dying")
    endpoint, process = start_worker()
    request = PlanRequest(str(path), layers=3, rpc=(endpoint,))
    assert plan(context, request).how["compute"] == "measured"
    process.send_signal(signal.SIGKILL)
    process.wait()
    made = plan(context, PlanRequest(str(path), context=8192, layers=3, rpc=(endpoint,)))
    assert made.how["compute"] == "estimated"
    assert any("estimated" in warning for warning in made.warnings)
    assert plan(context, PlanRequest(str(path))).how["compute"] == "measured"


def test_a_worker_that_serves_someone_else_costs_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    from phitui_hardware import child

    from phitui.api import EngineError

    monkeypatch.setattr(child, "WORKER_SECONDS", 1.5)
    endpoint, process = start_worker()
    host, port = endpoint.split(":")
    with socket.create_connection((host, int(port))), pytest.raises(EngineError, match="one program at a time"):
        child.engine((endpoint,))
    process.kill()
    process.wait()


def test_a_planned_file_and_the_file_plan_alike(context: Context) -> None:
    from phitui.actions.plan import memory_of
    from phitui.domain.placement import model_memory
    from phitui.gguf.facts import facts_from_header

    planned = shape("phi3", True)
    path = write_stand_in(planned, "planned")
    facts = facts_from_header(read_header(path))
    assert model_memory(facts, [(tensor.name, tensor.size) for tensor in planned.tensors]) == memory_of(path)
    written = plan(context, PlanRequest(str(path), context=2048))
    unwritten = plan_file(context, planned, PlanRequest("planned", context=2048), probe=True)
    assert unwritten.devices[-1].sum == written.devices[-1].sum
