"""Importance matrices of models that llama.cpp really runs, beside a forward pass in plain numpy."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("phitui_quantize")
from phitui_quantize import library
from phitui_quantize.options import QuantizeOptions
from phitui_quantize.quantizer import LlamaQuantizer

from phitui.api import ImatrixCollector
from phitui.gguf.header import read_header
from phitui.gguf.source import gguf_source
from phitui.gguf.writer import write_gguf
from phitui.testing.bytewise import activations, tokens, write_bytewise

if not library.available().ok:
    pytest.skip("llama-cpp-python is not installed", allow_module_level=True)

TEXT = "Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich. " * 6
CONTEXT = 48

COLLECT = """
import json, os, sys
from pathlib import Path
from phitui.api import Cancelled, ImatrixSettings
from phitui_quantize import collector

class Job:
    def __init__(self, stop_at=None, checks=None, die_at=None):
        self.stop_at, self.checks, self.die_at, self.notes = stop_at, checks, die_at, []
    def progress(self, done, total, text=""):
        if total and done == self.die_at:
            os._exit(9)
        if total and done == self.stop_at:
            raise Cancelled
    def check(self):
        if self.checks is not None:
            self.checks -= 1
            if self.checks < 0:
                raise Cancelled
    def note(self, text):
        self.notes.append(text)

request = json.load(sys.stdin)
collector.SAVE_SECONDS = request.get("save_seconds", 10)
text = Path(request["text"]).read_text(encoding="utf-8")
results = []
for run in request["runs"]:
    job = Job(**run.get("job", {}))
    settings = ImatrixSettings(**{"context": request["context"], "threads": 1, **run.get("settings", {})})
    try:
        done = collector.collect(Path(request["model"]), text, Path(run["out"]), settings, job)
    except Cancelled:
        done = {"cancelled": True}
    except Exception as error:
        done = {"error": type(error).__name__, "message": str(error)}
    results.append({**done, "notes": job.notes})
print(json.dumps(results))
"""


def collect(model: Path, out: list[dict[str, Any]], code: int = 0, **request: Any) -> list[dict[str, Any]]:
    """Several runs in one process of their own, since native code runs in it."""
    text = model.with_suffix(".txt")
    text.write_text(request.pop("text", TEXT), encoding="utf-8")
    values = {"model": str(model), "text": str(text), "context": CONTEXT, "runs": out} | request
    done = subprocess.run(
        [sys.executable, "-c", COLLECT],
        input=json.dumps(values, default=str),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == code, done.stderr[-2000:]
    results: list[dict[str, Any]] = json.loads(done.stdout) if not code else []
    return results


def entries(path: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """(sums, counts) by weight, read without phitui_quantize."""
    data, found = path.read_bytes(), {}
    for tensor in read_header(path).tensors:
        values = np.frombuffer(data[tensor.offset : tensor.offset + tensor.size], "<f4")
        found[tensor.name] = values.reshape(tensor.shape[::-1])
    names = {name.removesuffix(".in_sum2") for name in found if name.endswith(".in_sum2")}
    assert len(found) == 2 * len(names)
    return {name: (np.atleast_2d(found[f"{name}.in_sum2"]), found[f"{name}.counts"].reshape(-1)) for name in names}


@pytest.fixture(scope="module", params=[0, 4], ids=["phi3", "phimoe"])
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, dict[str, Any]]:
    """(model, matrix, figures)."""
    folder = tmp_path_factory.mktemp("imatrix")
    model = write_bytewise(folder / "tiny.gguf", experts=request.param)
    out = folder / "tiny.imatrix.gguf"
    return model, out, collect(model, [{"out": out}])[0]


Made = tuple[Path, Path, dict[str, Any]]


def test_sums_are_those_of_a_plain_forward_pass(made: Made) -> None:
    model, out, figures = made
    ids = tokens(TEXT)
    chunks = len(ids) // CONTEXT
    squares: dict[str, Any] = {}
    counts: dict[str, Any] = {}
    experts = 4 if "blk.0.ffn_gate_inp.weight" in {t.name for t in read_header(model).tensors} else 0
    for chunk in range(chunks):
        for name, met in activations(model, ids[chunk * CONTEXT : (chunk + 1) * CONTEXT]).items():
            size = experts if "_exps" in name else 1
            for rows, expert in met:
                squares.setdefault(name, np.zeros((size, rows.shape[1])))[expert] += (rows**2).sum(0)
                counts.setdefault(name, np.zeros(size, int))[expert] += len(rows)
    found = entries(out)
    assert found.keys() == squares.keys()
    for name, (sums, seen) in found.items():
        assert seen.tolist() == counts[name].tolist(), name
        np.testing.assert_allclose(sums, squares[name], rtol=5e-3, err_msg=name)  # the KV cache is F16
    first = "blk.0.attn_qkv.weight"
    np.testing.assert_allclose(found[first][0], squares[first], rtol=1e-5)
    assert (figures["chunks"], figures["tokens"], figures["entries"]) == (chunks, chunks * CONTEXT, len(found))


def test_experts_that_saw_no_token_are_reported(made: Made) -> None:
    _, out, figures = made
    sleeping = {name: [3] for name in entries(out) if "_exps" in name}
    assert figures["unused_experts"] == sleeping
    said = [f"blk.{layer}: 1 of 4 experts saw no token (3)" for layer in range(2)]
    assert figures["notes"] == (said if sleeping else [])


def test_cancelled_and_killed_runs_go_on(tmp_path: Path) -> None:
    """However a run was cut short, the finished file is the same to the byte, and nothing is left beside it."""
    model = write_bytewise(tmp_path / "tiny.gguf", layers=1)
    whole, between, within, killed = (tmp_path / f"{name}.gguf" for name in ("whole", "between", "within", "killed"))
    results = collect(
        model,
        [
            {"out": whole},
            {"out": between, "job": {"stop_at": 3}},
            {"out": between},
            {"out": within, "job": {"checks": 30}},
            {"out": within},
        ],
    )
    assert [result.get("resumed_chunks") for result in results] == [0, None, 3, None, results[4]["resumed_chunks"]]
    assert 1 <= results[4]["resumed_chunks"] < results[0]["chunks"]
    assert "going on after chunk 3" in results[2]["notes"][0]
    collect(model, [{"out": killed, "job": {"die_at": 2}}], code=9, save_seconds=0)
    assert not killed.exists()
    assert collect(model, [{"out": killed}])[0]["resumed_chunks"] == 2
    assert {path.read_bytes() == whole.read_bytes() for path in (between, within, killed)} == {True}
    assert list(tmp_path.glob("*.state*")) == []


def test_settings(tmp_path: Path) -> None:
    model = write_bytewise(tmp_path / "tiny.gguf", layers=1)
    plain, output, few, special, long, short = (tmp_path / f"{number}.gguf" for number in range(6))
    results = collect(
        model,
        [
            {"out": plain},
            {"out": output, "settings": {"process_output": True}},
            {"out": few, "settings": {"chunks": 2, "dataset": "words.txt"}},
            {"out": special, "settings": {"parse_special": True}},
            {"out": long, "settings": {"context": 600}},
            {"out": short, "settings": {"context": 5000}},
        ],
        text=TEXT * 2 + "<|end|>" * 60,
    )
    assert entries(output).keys() - entries(plain).keys() == {"output.weight"}
    assert results[2]["chunks"] == 2
    assert read_header(few).get("imatrix.datasets") == ["words.txt"]
    assert results[3]["tokens"] < results[0]["tokens"]
    assert results[4]["chunks"] == 2
    assert entries(long)["blk.0.ffn_down.weight"][1].tolist() == [
        1200
    ]  # two pieces of 300 tokens, each of them counted
    assert results[5]["error"] == "UsageError"
    assert "one chunk has 5000" in results[5]["message"]


def test_a_disk_that_refuses_costs_only_the_chance_to_resume(tmp_path: Path) -> None:
    model = write_bytewise(tmp_path / "tiny.gguf", layers=1)
    out = tmp_path / "m.gguf"
    (tmp_path / "m.gguf.state").mkdir()
    done = collect(model, [{"out": out}], save_seconds=0)[0]
    assert "cannot keep what is done so far" in done["notes"][0]
    assert (done["chunks"], read_header(out).get("imatrix.chunk_count")) == (8, 8)
    assert list(tmp_path.glob("*.new")) == []


QUANTIZE = """
import ctypes, json, sys
import llama_cpp.llama_cpp as native
import numpy as np
from gguf import GGUFReader
request = json.load(sys.stdin)
quiet = native.llama_log_callback(lambda level, text, user: None)
native.llama_log_set(quiet, None)
parts = {t.name: np.asarray(t.data, np.float32) for t in GGUFReader(request["imatrix"]).tensors}
values = {}
for name in {n.removesuffix(".in_sum2") for n in parts if n.endswith(".in_sum2")}:
    sums, counts = parts[name + ".in_sum2"], parts[name + ".counts"].reshape(-1, 1)
    sums = sums.reshape(len(counts), -1)
    means = np.ones_like(sums)
    np.divide(sums, counts, out=means, where=counts > 0)
    values[name] = (ctypes.c_float * means.size)(*means.reshape(-1))
for scheme, out in request["out"].items():
    params = native.llama_model_quantize_default_params()
    params.nthread, params.ftype = 1, getattr(native, "LLAMA_FTYPE_MOSTLY_" + scheme)
    item = native.llama_model_imatrix_data
    entries = [item(name.encode(), data, len(data)) for name, data in values.items()]
    params.imatrix = (item * (len(entries) + 1))(*entries)
    assert native.llama_model_quantize(request["model"].encode(), out.encode(), ctypes.byref(params)) == 0, scheme
"""


@pytest.mark.parametrize(
    ("experts", "schemes"), [(0, ("IQ2_XXS", "Q2_K_S", "Q4_K_M")), (4, ("IQ3_XXS", "Q3_K_S"))], ids=["phi3", "phimoe"]
)
def test_builds_are_llama_cpp_s(experts: int, schemes: tuple[str, ...], tmp_path: Path) -> None:
    """With the same matrix the tensors are llama_model_quantize's, in schemes that need one and in others."""
    model = write_bytewise(tmp_path / "tiny.gguf", experts=experts, layers=1)
    matrix = tmp_path / "tiny.imatrix.gguf"
    collect(model, [{"out": matrix}])
    source, quantizer = gguf_source(model), LlamaQuantizer()
    assert quantizer.plan(source, schemes, QuantizeOptions())[schemes[0]].needs_imatrix
    out = {name: str(tmp_path / f"{name}.gguf") for name in schemes}
    request = {"model": str(model), "imatrix": str(matrix), "out": out}
    subprocess.run([sys.executable, "-c", QUANTIZE], input=json.dumps(request), text=True, check=True)
    options = QuantizeOptions(imatrix=matrix)
    for name, plan in quantizer.plan(source, schemes, options).items():
        assert not plan.needs_imatrix
        ours = tmp_path / f"ours.{name}.gguf"
        write_gguf(plan, ours, quantizer.encoder(plan, options))
        assert tensors(ours) == tensors(Path(out[name])), name


def tensors(path: Path) -> dict[str, Any]:
    data = path.read_bytes()
    return {t.name: (t.shape, t.type, data[t.offset : t.offset + t.size]) for t in read_header(path).tensors}


def test_the_offer_is_a_collector() -> None:
    offer = LlamaQuantizer()
    assert isinstance(offer, ImatrixCollector)
    text = offer.calibration_text.read_text(encoding="utf-8")
    assert len(text.split()) > 3000
    assert "<|user|>" in text
    assert "def " in text
    assert "中" in text or "的" in text
