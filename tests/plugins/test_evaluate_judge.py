"""Figures against a plain calculation, on tiny models in real llama.cpp processes."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("phitui_evaluate")
if find_spec("llama_cpp") is None:
    pytest.skip("llama-cpp-python is not installed", allow_module_level=True)

from phitui_evaluate import Judge
from phitui_evaluate.judge import judge
from phitui_evaluate.options import JudgeOptions

from phitui.actions import build
from phitui.errors import EngineError, InvalidFile, PhituiError, UsageError
from phitui.testing import contracts
from phitui.testing.checkpoints import converter_options, write_checkpoint
from phitui.testing.scripted import write_scripted

ORACLE = """
import json, sys
import llama_cpp, numpy as np
request = json.load(sys.stdin)
rows = []
for path in request["models"]:
    model = llama_cpp.Llama(path, n_ctx=request["ctx"], n_threads=1, logits_all=True, flash_attn=True, verbose=False)
    tokens = model.tokenize(request["text"].encode(), add_bos=True, special=False)
    found = []
    for chunk in range(request["chunks"]):
        part = tokens[chunk * request["ctx"] : (chunk + 1) * request["ctx"]]
        begin = [model.token_bos()] if request["bos"] else part[:1]
        model.reset()
        model.eval(begin + part[1:])
        logits = model.scores[: len(part)].astype(np.float64)
        logs = logits - np.log(np.exp(logits - logits.max(1, keepdims=True)).sum(1, keepdims=True))
        logs -= logits.max(1, keepdims=True)
        found += [(logs[i], part[i + 1]) for i in range(request["ctx"] // 2, request["ctx"] - 1)]
    rows.append(found)
own = np.array([-row[token] for row, token in rows[0]])
answer = {"tokens": len(own), "perplexity": float(np.exp(own.mean()))}
answer["perplexity_error"] = float(np.exp(own.mean()) * own.std(ddof=1) / np.sqrt(len(own)))
if len(rows) > 1:
    base = np.array([-row[token] for row, token in rows[1]])
    kld = np.array([(np.exp(p) * (p - q)).sum() for (q, _), (p, _) in zip(*rows)])
    same = np.array([p.argmax() == q.argmax() for (q, _), (p, _) in zip(*rows)])
    answer |= {"kld_mean": float(kld.mean()), "kld_max": float(kld.max()), "top1_agreement": float(same.mean())}
    answer |= {"kld_p99": float(np.percentile(kld, 99)), "reference_perplexity": float(np.exp(base.mean()))}
    answer |= {"ln_perplexity_ratio": float((own - base).mean())}
    answer |= {"ln_perplexity_ratio_error": float((own - base).std(ddof=1) / np.sqrt(len(own)))}
    answer |= {"kld_mean_error": float(kld.std(ddof=1) / np.sqrt(len(own)))}
json.dump(answer, sys.stdout)
"""
TEXT = "The quick brown fox jumps over the lazy dog; 1234567890 times, or so they say. " * 40


class Quiet:
    """A job that only listens."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.reports: list[tuple[int, int, str]] = []

    def progress(self, done: int, total: int, text: str = "") -> None:
        self.reports.append((done, total, text))

    def note(self, text: str) -> None:
        self.notes.append(text)

    def check(self) -> None: ...


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same tiny model as F32, Q8_0 and Q4_0, and one with another vocabulary."""
    folder = tmp_path_factory.mktemp("models")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PHITUI_HOME", str(folder / "home"))
        plain = write_checkpoint(folder / "tiny")
        made = {name: _build(plain, name, folder / f"{name}.gguf") for name in ("F32", "Q8_0", "Q4_0")}
        other = write_checkpoint(folder / "other", tokenizer="bpe")
        return made | {"other": _build(other, "F32", folder / "other.gguf", converter_options("bpe"))}


def _build(source: Path, scheme: str, out: Path, options: dict[str, str] | None = None) -> Path:
    request = {"source": str(source), "scheme": scheme, "out": str(out), "converter": options or {}, "threads": 1}
    build.run(request, Quiet())
    return out


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(TEXT + "\n")
    return path


def evaluate(model: Path, job: Quiet | None = None, **options: Any) -> dict[str, float]:
    values = {"ctx": 64, "threads": 1, "speed": False} | options
    return dict(judge(model, JudgeOptions(**values), job or Quiet()).values)


def plain(models: list[Path], chunks: int, bos: bool = False) -> dict[str, float]:
    request = {"models": [str(path) for path in models], "ctx": 64, "chunks": chunks, "text": TEXT, "bos": bos}
    done = subprocess.run(
        [sys.executable, "-c", ORACLE], input=json.dumps(request), capture_output=True, text=True, check=True
    )
    answer: dict[str, float] = json.loads(done.stdout)
    return answer


def test_perplexity_is_that_of_a_plain_softmax(models: dict[str, Path], text: Path) -> None:
    values = evaluate(models["Q8_0"], text=text, chunks=3)
    expected = plain([models["Q8_0"]], 3)
    assert values["tokens"] == expected["tokens"] == 3 * 31
    for name in ("perplexity", "perplexity_error"):
        assert values[name] == pytest.approx(expected[name], rel=1e-5), name


def test_divergence_is_that_of_a_plain_softmax(models: dict[str, Path], text: Path) -> None:
    values = evaluate(models["Q4_0"], text=text, chunks=4, reference=models["F32"])
    for name, expected in plain([models["Q4_0"], models["F32"]], 4).items():
        assert values[name] == pytest.approx(expected, rel=1e-4), name
    assert 0 < values["kld_mean"] < values["kld_p99"] < values["kld_max"]


def test_a_model_is_like_itself(models: dict[str, Path], text: Path) -> None:
    values = evaluate(models["Q4_0"], text=text, chunks=2, reference=models["Q4_0"])
    assert values["kld_mean"] == values["kld_max"] == values["kld_mean_error"] == 0.0
    assert values["ln_perplexity_ratio"] == values["ln_perplexity_ratio_error"] == 0.0
    assert values["top1_agreement"] == 1.0
    assert values["perplexity"] == values["reference_perplexity"]


@pytest.mark.parametrize("bos", ["", "<|endoftext|>"])
def test_perplexity_of_a_model_that_knows_nothing(tmp_path: Path, text: Path, bos: str) -> None:
    """All tokens are equally likely, so the perplexity is their count, and exactly so."""
    model = write_scripted(tmp_path / "m.gguf", "abc", sure=0.0, bos=bos)
    values = evaluate(model, text=text, chunks=2)
    assert values["perplexity"] == pytest.approx(256 + 5 + 1, rel=1e-6)
    assert values["perplexity_error"] == pytest.approx(0, abs=1e-5)


def test_every_chunk_begins_with_the_bos_token(models: dict[str, Path], tmp_path: Path, text: Path) -> None:
    """If the model has one: then it takes the place of the chunk's first token."""
    data = models["F32"].read_bytes()
    key = b"tokenizer.ggml.add_bos_token" + (7).to_bytes(4, "little")
    with_bos = tmp_path / "bos.gguf"
    with_bos.write_bytes(data.replace(key + b"\0", key + b"\1"))
    values = evaluate(with_bos, text=text, chunks=2)
    assert values["perplexity"] == pytest.approx(plain([with_bos], 2, bos=True)["perplexity"], rel=1e-5)
    assert values["perplexity"] != pytest.approx(plain([with_bos], 2)["perplexity"], rel=1e-5)


def test_chunks_longer_than_a_batch(models: dict[str, Path]) -> None:
    """1,024 tokens in two batches give what they give in llama.cpp at once: only the second half is scored."""
    values = evaluate(models["Q8_0"], chunks=1, ctx=1024, reference=models["F32"])
    assert values["tokens"] == 511
    assert 0 < values["kld_mean"] < 0.01
    assert values["kld_p999"] <= values["kld_max"]


def test_all_of_the_text_by_default(models: dict[str, Path], text: Path) -> None:
    job = Quiet()
    values = evaluate(models["Q8_0"], job, text=text)
    assert values["chunks"] > 20
    assert job.reports[-1][:2] == (values["chunks"], values["chunks"])
    assert "perplexity" in job.reports[-1][2]


def test_speed(models: dict[str, Path], text: Path) -> None:
    values = evaluate(models["Q8_0"], text=text, chunks=1, speed=True)
    assert values["prompt_tokens_per_s"] > values["decode_tokens_per_s"] > 1


def test_it_stops_when_the_error_is_small(models: dict[str, Path], text: Path) -> None:
    assert evaluate(models["Q8_0"], text=text, tolerance=1.0)["chunks"] == 4
    assert evaluate(models["F32"], text=text, tolerance=0.0, reference=models["F32"])["chunks"] == 4
    loose = evaluate(models["Q8_0"], text=text, tolerance=0.03)
    tight = evaluate(models["Q8_0"], text=text, tolerance=1e-9)
    assert loose["perplexity_error"] <= 0.03 * loose["perplexity"]
    assert loose["chunks"] < tight["chunks"]


def test_the_own_text_is_enough(models: dict[str, Path]) -> None:
    measures = judge(models["Q8_0"], JudgeOptions(threads=1, chunks=1, speed=False), Quiet())
    assert measures.values["context"] == 512
    assert measures.conditions["text"] == "phitui's own"
    assert len(measures.facts["text_sha256"]) == 64
    assert "1 chunks of 512 tokens" in measures.source


class TestContract(contracts.OfferContract):
    @pytest.fixture
    def offer(self) -> Any:
        return Judge()


# ---- what cannot be


def test_text_too_short(models: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text("Hello, world. " * 12)
    with pytest.raises(UsageError, match="tokens, and at least 1024 are needed") as caught:
        evaluate(models["F32"], text=tmp_path / "short.txt", ctx=512)
    assert "--ctx" in caught.value.hint
    (tmp_path / "empty.txt").write_text("")
    with pytest.raises(UsageError, match="are needed"):
        evaluate(models["F32"], text=tmp_path / "empty.txt")


def test_different_vocabularies(models: dict[str, Path], text: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="different vocabularies"):
        evaluate(models["F32"], text=text, reference=models["other"])
    one = write_scripted(tmp_path / "one.gguf", "abc")
    two = write_scripted(tmp_path / "two.gguf", "xyz")
    with pytest.raises(UsageError, match="1 of 262 tokens differ"):
        evaluate(one, text=text, reference=two)


@pytest.mark.parametrize("content", [b"GGUF not a text", b"a\0b", b"caf\xe9 " * 100], ids=["gguf", "nul", "latin-1"])
def test_what_is_no_text(models: dict[str, Path], tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.txt").write_bytes(content)
    with pytest.raises(InvalidFile, match="is not"):
        evaluate(models["F32"], text=tmp_path / "x.txt")


def test_a_text_too_long(models: dict[str, Path], text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("phitui_evaluate.text.LIMIT", 1000)
    with pytest.raises(InvalidFile, match="is over"):
        evaluate(models["F32"], text=text)


def test_no_text_file(models: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(PhituiError, match="cannot read"):
        evaluate(models["F32"], text=tmp_path / "missing.txt")


def test_what_is_no_model(models: dict[str, Path], text: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(models["F32"].read_bytes()[:4000])
    with pytest.raises(EngineError, match=r"llama.cpp cannot load broken.gguf: .+"):
        evaluate(broken, text=text)
    with pytest.raises(InvalidFile):
        evaluate(broken, text=text, reference=models["F32"])


def test_a_model_that_computes_nonsense(tmp_path: Path, text: Path) -> None:
    model = write_scripted(tmp_path / "nan.gguf", "abc", sure=math.nan)
    with pytest.raises(EngineError, match="not numbers"):
        evaluate(model, text=text)
