"""Loads models for real and tells what llama.cpp allocated: what a memory plan is held against.

    python -m phitui.testing.allocator load [HOST:PORT ...]    one JSON object a line: {"model", "settings"} -> buffers
    python -m phitui.testing.allocator serve HOST:PORT         lends the CPU as an RPC worker

Both are for tests and benches; native code runs in those processes only.
"""

from __future__ import annotations

import ctypes
import json
import os
import socket
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any

from phitui.domain.chat import EngineSettings
from phitui.domain.tensors import FilePlan, SourceTensor, TensorType, Value, place

MIB = 1024 * 1024
_COMMAND = (sys.executable, "-P", "-m", "phitui.testing.allocator")


class Allocator:
    """A process that loads one model after the other."""

    def __init__(self, rpc: Sequence[str] = ()) -> None:
        self._rpc = tuple(rpc)
        self._process = subprocess.Popen(
            [*_COMMAND, "load", *rpc],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def __enter__(self) -> Allocator:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._process.kill()
        self._process.communicate()

    def allocated(self, model: Path, settings: EngineSettings) -> dict[str, dict[str, int]]:
        """Device (CPU, RPC0, ...) -> weights, kv, compute in bytes, to 0.01 MiB; all host buffers are the CPU's."""
        found: dict[str, dict[str, int]] = defaultdict(lambda: {"weights": 0, "kv": 0, "compute": 0})
        for buffer in self.buffers(model, settings):
            worker = next((f"RPC{n}" for n, endpoint in enumerate(self._rpc) if endpoint in buffer["name"]), "CPU")
            found[worker]["compute" if buffer["what"] == "output" else buffer["what"]] += buffer["size"]
        return found

    def buffers(self, model: Path, settings: EngineSettings) -> list[dict[str, Any]]:
        """The buffers of a load as llama.cpp's log has them: name, what (weights, kv, compute, output), size."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"model": str(model), "settings": asdict(settings)}) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise AssertionError(f"llama.cpp ended while loading {model.name} with {settings}")
        answer = json.loads(line)
        if "error" in answer:
            raise AssertionError(answer["error"])
        buffers: list[dict[str, Any]] = answer["buffers"]
        return buffers


class Worker:
    """An RPC worker of this machine's CPU, on a free port of the loopback: a true device for tests."""

    def __init__(self) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.endpoint = f"127.0.0.1:{free.getsockname()[1]}"
        self.process = subprocess.Popen(
            [*_COMMAND, "serve", self.endpoint], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        end = time.monotonic() + 20
        while time.monotonic() < end and self.process.poll() is None:
            try:
                socket.create_connection(("127.0.0.1", int(self.endpoint.split(":")[1])), 1).close()
            except OSError:
                time.sleep(0.05)
            else:
                return
        self.close()
        raise AssertionError("the worker did not start")

    def close(self) -> None:
        self.process.kill()
        self.process.wait()


def has_rpc() -> bool:
    """Whether the llama-cpp-python here can serve and use RPC workers, by library names that Linux has."""
    code = "import llama_cpp.llama_cpp as l; print(l.llama_supports_rpc())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    return sys.platform.startswith("linux") and "True" in done.stdout


def shape(
    architecture: str = "phi3",
    *,
    width: int = 512,
    inner: int = 1024,
    heads: int = 8,
    shared: int = 4,
    vocabulary: int = 4096,
    layers: int = 6,
    experts: int = 0,
    tied: bool = False,
    context: int = 16384,
    kind: TensorType = TensorType.Q4_K,
) -> FilePlan:
    """A model without weights in the layout of phi3 or phimoe, of any size; 30 MB as it stands."""
    head = width // heads
    rows: list[tuple[str, tuple[int, ...], TensorType]] = [
        ("token_embd.weight", (width, vocabulary), kind),
        ("output_norm.weight", (width,), TensorType.F32),
        ("rope_factors_long.weight", (head // 2,), TensorType.F32),
        ("rope_factors_short.weight", (head // 2,), TensorType.F32),
    ]
    if not tied:
        rows.append(("output.weight", (width, vocabulary), TensorType.Q6_K))
    if experts:
        rows += [("output_norm.bias", (width,), TensorType.F32), ("output.bias", (vocabulary,), TensorType.F32)]
    layer = _mixture if experts else _dense
    for number in range(layers):
        rows += [
            (f"blk.{number}.{name}", size, type_)
            for name, size, type_ in layer(width, inner, head * shared, experts, kind)
        ]
    numbers = {
        "context_length": context,
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


_Rows = list[tuple[str, tuple[int, ...], TensorType]]


def _dense(width: int, inner: int, keys: int, experts: int, kind: TensorType) -> _Rows:
    return [
        ("attn_norm.weight", (width,), TensorType.F32),
        ("ffn_norm.weight", (width,), TensorType.F32),
        ("attn_output.weight", (width, width), kind),
        ("attn_qkv.weight", (width, width + 2 * keys), kind),
        ("ffn_up.weight", (width, 2 * inner), kind),
        ("ffn_down.weight", (inner, width), kind),
    ]


def _mixture(width: int, inner: int, keys: int, experts: int, kind: TensorType) -> _Rows:
    rows: _Rows = []
    for name in ("attn_norm", "ffn_norm"):
        rows += [(f"{name}.weight", (width,), TensorType.F32), (f"{name}.bias", (width,), TensorType.F32)]
    for part, size in (("q", width), ("k", keys), ("v", keys), ("output", width)):
        rows += [(f"attn_{part}.weight", (width, size), kind), (f"attn_{part}.bias", (size,), TensorType.F32)]
    rows.append(("ffn_gate_inp.weight", (width, experts), TensorType.F32))
    rows += [(f"ffn_{name}_exps.weight", (width, inner, experts), kind) for name in ("gate", "up")]
    rows.append(("ffn_down_exps.weight", (inner, width, experts), kind))
    return rows


def _load(rpc: Sequence[str]) -> None:
    """Answer requests until the input ends."""
    import re

    import llama_cpp.llama_cpp as llama

    from phitui.engine.llama_parameters import context_parameters, model_parameters

    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    _add_workers(llama, rpc)
    said: list[str] = []
    log = llama.llama_log_callback(lambda level, text, data: said.append(text.decode("utf-8", "replace")))
    llama.llama_log_set(log, None)
    line_of = re.compile(r"(\S+)\s+(model|KV|compute|output) buffer size\s*=\s*([\d.]+) MiB")
    what = {"model": "weights", "KV": "kv"}
    for line in sys.stdin:
        request = json.loads(line)
        values: Mapping[str, Any] = request["settings"]
        known: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}
        settings = EngineSettings(**known)
        said.clear()
        parameters, kept = model_parameters(llama, settings)
        model = llama.llama_model_load_from_file(request["model"].encode(), parameters)
        context = model and llama.llama_init_from_model(model, context_parameters(llama, settings, settings.context))
        del kept
        if context:
            found = [
                {"name": name, "what": what.get(kind, kind), "size": round(float(size) * MIB)}
                for name, kind, size in line_of.findall("".join(said))
            ]
            answer: dict[str, Any] = {"buffers": found}
            llama.llama_free(context)
        else:
            answer = {"error": "".join(said)[-1500:]}
        if model:
            llama.llama_model_free(model)
        print(json.dumps(answer), file=answers, flush=True)


def _add_workers(llama: Any, rpc: Sequence[str]) -> None:
    folder = Path(llama._lib._name).parent
    base, ggml = (ctypes.CDLL(str(folder / f"lib{name}.so.0")) for name in ("ggml-base", "ggml"))
    ggml.ggml_backend_reg_by_name.restype = base.ggml_backend_reg_get_proc_address.restype = ctypes.c_void_p
    base.ggml_backend_reg_get_proc_address.argtypes = [ctypes.c_void_p, ctypes.c_char_p]
    ggml.ggml_backend_register.argtypes = [ctypes.c_void_p]
    for worker in rpc:
        registry = ggml.ggml_backend_reg_by_name(b"RPC")
        add = base.ggml_backend_reg_get_proc_address(registry, b"ggml_backend_rpc_add_server")
        ggml.ggml_backend_register(ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_char_p)(add)(worker.encode()))


def _serve(endpoint: str) -> None:
    import llama_cpp.llama_cpp as llama

    folder = Path(llama._lib._name).parent
    ggml, rpc = (ctypes.CDLL(str(folder / f"lib{name}.so.0")) for name in ("ggml", "ggml-rpc"))
    ggml.ggml_backend_dev_by_type.restype = ctypes.c_void_p
    device = ctypes.c_void_p(ggml.ggml_backend_dev_by_type(0))
    start = rpc.ggml_backend_rpc_start_server
    start.argtypes = [ctypes.c_char_p, ctypes.c_char_p, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_void_p]
    start(endpoint.encode(), None, 1, 1, ctypes.byref(device))


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        _serve(sys.argv[2])
    else:
        _load(sys.argv[2:])
