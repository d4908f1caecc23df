"""Every scheme that needs no importance matrix gives the very file that llama_model_quantize gives."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("phitui_quantize")
from phitui_quantize import library

from phitui.domain.tensors import FilePlan, InlineExtent, Source, SourceTensor, TensorType, Value, ValueType, place
from phitui.gguf.header import file_size, read_header
from phitui.gguf.source import gguf_source
from phitui.gguf.writer import write_gguf

if not library.available().ok:
    pytest.skip("llama-cpp-python is not installed", allow_module_level=True)

from phitui_quantize.options import QuantizeOptions
from phitui_quantize.quantizer import LlamaQuantizer

ORACLE = """
import ctypes, json, sys
import llama_cpp.llama_cpp as native
request = json.load(sys.stdin)
quiet = native.llama_log_callback(lambda level, text, user: None)
native.llama_log_set(quiet, None)
failed = []
for name, out in request["out"].items():
    params = native.llama_model_quantize_default_params()
    params.nthread, params.ftype = 2, getattr(native, "LLAMA_FTYPE_MOSTLY_" + name)
    params.pure = request["pure"]
    item = native.llama_model_tensor_override
    overrides = [item(pattern.encode(), type_) for pattern, type_ in request["overrides"]]
    if overrides:
        params.tt_overrides = (item * (len(overrides) + 1))(*overrides)
    entry = native.llama_model_imatrix_data
    values = {k: (ctypes.c_float * len(v))(*v) for k, v in request["imatrix"].items()}
    if values:
        entries = [entry(k.encode(), v, len(v)) for k, v in values.items()]
        params.imatrix = (entry * (len(entries) + 1))(*entries)
    if native.llama_model_quantize(request["model"].encode(), out.encode(), ctypes.byref(params)):
        failed.append(name)
json.dump(failed, sys.stdout)
"""


def tensor(name: str, *shape: int, seed: int) -> SourceTensor:
    """Random BF16 rows; norms are F32."""
    import numpy as np

    values = np.random.default_rng(seed).normal(0, 0.05, shape).astype(np.float32)
    if len(shape) == 1:
        return SourceTensor(name, shape, TensorType.F32, (InlineExtent(values.tobytes()),))
    data = (values.reshape(-1).view(np.uint32) >> 16).astype(np.uint16).tobytes()
    return SourceTensor(name, shape, TensorType.BF16, (InlineExtent(data),))


def tiny_phi3(width: int, feed_forward: int, layers: int = 2, vocabulary: int = 320) -> Source:
    """A phi3 model of random weights, with a vocabulary that the dry run must not need."""
    counts = {
        "context_length": 4096,
        "rope.scaling.original_context_length": 4096,
        "embedding_length": width,
        "feed_forward_length": feed_forward,
        "block_count": layers,
        "attention.head_count": 4,
        "attention.head_count_kv": 4,
        "rope.dimension_count": width // 4,
        "attention.sliding_window": 0,
    }
    metadata = {"general.architecture": Value.string("phi3")}
    metadata |= {f"phi3.{key}": Value.u32(value) for key, value in counts.items()}
    metadata["phi3.attention.layer_norm_rms_epsilon"] = Value.f32(1e-5)
    metadata["tokenizer.ggml.model"] = Value.string("gpt2")
    metadata["tokenizer.ggml.tokens"] = Value.array(ValueType.STRING, [f"t{i}" for i in range(vocabulary)])
    tensors = [
        tensor("token_embd.weight", width, vocabulary, seed=1),
        tensor("output.weight", width, vocabulary, seed=2),
        tensor("output_norm.weight", width, seed=3),
    ]
    for layer in range(layers):
        tensors += [
            tensor(f"blk.{layer}.attn_norm.weight", width, seed=10 * layer + 4),
            tensor(f"blk.{layer}.attn_qkv.weight", width, 3 * width, seed=10 * layer + 5),
            tensor(f"blk.{layer}.attn_output.weight", width, width, seed=10 * layer + 6),
            tensor(f"blk.{layer}.ffn_norm.weight", width, seed=10 * layer + 7),
            tensor(f"blk.{layer}.ffn_up.weight", width, 2 * feed_forward, seed=10 * layer + 8),
            tensor(f"blk.{layer}.ffn_down.weight", feed_forward, width, seed=10 * layer + 9),
        ]
    return Source(Path("tiny"), "phi3", metadata, tuple(tensors))


def write_bf16(source: Source, path: Path) -> Path:
    """The unquantized GGUF, as a converter would write it."""
    keys = {"general.file_type": Value.u32(32), "general.quantization_version": Value.u32(2)}
    plan = FilePlan("BF16", source.metadata | keys, place([(t, t.stored, None) for t in source.tensors]))
    write_gguf(plan, path)
    return path


def oracle(model: Path, out: dict[str, Path], **request: Any) -> list[str]:
    """llama_model_quantize in a process of its own; returns the schemes at which it failed."""
    values = {"pure": False, "overrides": [], "imatrix": {}} | request
    values |= {"model": str(model), "out": {name: str(path) for name, path in out.items()}}
    command = [sys.executable, "-c", ORACLE]
    done = subprocess.run(command, input=json.dumps(values), capture_output=True, text=True, check=True)
    failed: list[str] = json.loads(done.stdout)
    return failed


def contents(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """(keys, tensors): everything but the order in the file."""
    header = read_header(path)
    data = path.read_bytes()
    keys = {key: (value.type, value.is_array, value.value) for key, value in header.metadata().items()}
    tensors = {t.name: (t.shape, t.type, data[t.offset : t.offset + t.size]) for t in header.tensors}
    return keys, tensors


def differences(expected: Path, got: Path) -> list[str]:
    """Names of the keys and tensors that differ."""
    return [
        name
        for one, other in zip(contents(expected), contents(got), strict=True)
        for name in sorted(one.keys() | other.keys())
        if one.get(name) != other.get(name)
    ]


@pytest.fixture
def quantize(tmp_path: Path) -> Callable[..., Path]:
    """Write `model` under a scheme with phitui; checks on the way that the planned size was exact."""

    def run(model: Path, scheme: str, plan: FilePlan | None = None, **values: Any) -> Path:
        options = QuantizeOptions(**values)
        quantizer = LlamaQuantizer()
        plan = plan or quantizer.plan(gguf_source(model), [scheme], options)[scheme]
        out = tmp_path / f"ours.{scheme}.gguf"
        written = write_gguf(plan, out, quantizer.encoder(plan, options), overwrite=True)
        assert written.size == file_size(plan) == out.stat().st_size
        return out

    return run


@pytest.mark.parametrize(("width", "feed_forward"), [(256, 256), (288, 512)], ids=["every-block-fits", "substitutions"])
def test_every_scheme_without_imatrix(
    width: int, feed_forward: int, tmp_path: Path, quantize: Callable[..., Path]
) -> None:
    model = write_bf16(tiny_phi3(width, feed_forward, layers=1, vocabulary=64), tmp_path / "bf16.gguf")
    quantizer = LlamaQuantizer()
    names = [scheme.name for scheme in quantizer.schemes()]
    plans = quantizer.plan(gguf_source(model), names, QuantizeOptions())
    buildable = [name for name, plan in plans.items() if not plan.needs_imatrix]
    assert len(buildable) >= 20
    out = {name: tmp_path / f"{name}.gguf" for name in buildable}
    failed = oracle(model, out)
    assert failed == [name for name in buildable if plans[name].refused]
    assert failed == ([] if width == 256 else ["Q1_0"])
    for name in sorted(set(buildable) - set(failed)):
        ours = quantize(model, name, plans[name])
        assert differences(out[name], ours) == [], name
        ours.unlink()


@pytest.mark.parametrize("scheme", ["Q4_K_M", "Q3_K_L"])
def test_pure(scheme: str, tmp_path: Path, quantize: Callable[..., Path]) -> None:
    model = write_bf16(tiny_phi3(256, 512), tmp_path / "bf16.gguf")
    oracle(model, {scheme: tmp_path / "theirs.gguf"}, pure=True)
    assert differences(tmp_path / "theirs.gguf", quantize(model, scheme, pure=True)) == []


def test_overrides(tmp_path: Path, quantize: Callable[..., Path]) -> None:
    """The first match wins, and a row that does not fit is substituted here as well."""
    model = write_bf16(tiny_phi3(288, 512), tmp_path / "bf16.gguf")
    given = [("ffn_down", TensorType.Q6_K), (r"blk\.0\..*", TensorType.Q8_0), ("attn_qkv", TensorType.Q5_K)]
    oracle(model, {"Q4_K_M": tmp_path / "theirs.gguf"}, overrides=[(pattern, int(type_)) for pattern, type_ in given])
    ours = quantize(model, "Q4_K_M", override=tuple(f"{pattern}={type_.name}" for pattern, type_ in given))
    assert differences(tmp_path / "theirs.gguf", ours) == []
    types = {t.name: t.type for t in read_header(ours).tensors}
    assert types["blk.0.ffn_down.weight"] is TensorType.Q6_K
    assert types["blk.0.ffn_up.weight"] is TensorType.Q8_0
    assert types["blk.1.attn_qkv.weight"] is TensorType.Q5_1


def test_imatrix(tmp_path: Path, quantize: Callable[..., Path]) -> None:
    """With an importance matrix the types and the bytes are llama.cpp's too, and the file says which matrix it was."""
    import numpy as np

    source = tiny_phi3(256, 256, layers=1, vocabulary=64)
    model = write_bf16(source, tmp_path / "bf16.gguf")
    rng = np.random.default_rng(7)
    names = [t for t in source.tensors if len(t.shape) == 2 and t.name != "token_embd.weight"]
    sums = {t.name: (rng.random(t.shape[0]) * 1000).astype(np.float32) for t in names}
    path = write_imatrix(tmp_path / "imatrix.gguf", sums, count=96)
    values = {name: (values / np.float32(96)).tolist() for name, values in sums.items()}
    schemes = ["Q4_0", "Q4_K_M", "IQ2_XXS", "Q2_K_S"]
    oracle(model, {name: tmp_path / f"{name}.gguf" for name in schemes}, imatrix=values)
    for name in schemes:
        ours = quantize(model, name, imatrix=path)
        assert [d for d in differences(tmp_path / f"{name}.gguf", ours) if not d.startswith("quantize.imatrix")] == []
        header = read_header(ours)
        assert header.get("quantize.imatrix.file") == str(path)[:127]
        assert header.get("quantize.imatrix.dataset") == "words.txt"
        assert header.get("quantize.imatrix.entries_count") == len(names)
        assert header.get("quantize.imatrix.chunks_count") == 3


def write_imatrix(path: Path, sums: dict[str, Any], count: int) -> Path:
    """An importance matrix as llama-imatrix writes it."""
    import numpy as np

    tensors = []
    for name, values in sums.items():
        for part, data in (("in_sum2", values), ("counts", np.array([count], np.float32))):
            extent = InlineExtent(data.tobytes())
            tensors.append(SourceTensor(f"{name}.{part}", (len(data),), TensorType.F32, (extent,)))
    keys = {
        "general.type": Value.string("imatrix"),
        "imatrix.datasets": Value.array(ValueType.STRING, ["words.txt"]),
        "imatrix.chunk_count": Value.u32(3),
        "imatrix.chunk_size": Value.u32(32),
    }
    write_gguf(FilePlan("", keys, place([(t, t.stored, None) for t in tensors])), path)
    return path
