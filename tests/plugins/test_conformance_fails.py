"""The conformance suite can fail: every way to get Phi wrong that it is meant to see turns it red."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("phitui_convert")
pytest.importorskip("llama_cpp")
from phitui.api import FileExtent, InlineExtent, Source, SourceTensor, TensorType, Value
from phitui.testing.conformance import compare, tokens
from phitui.testing.conformance.building import build
from phitui.testing.conformance.cases import CASES
from phitui.testing.conformance.native import Llama, NativeError


@pytest.fixture(scope="module")
def llama() -> Iterator[Llama]:
    with Llama() as child:
        yield child


def values(tensor: SourceTensor) -> Any:
    """The words of a tensor in PyTorch's order."""
    parts = []
    for extent in tensor.extents:
        if isinstance(extent, FileExtent):
            parts.append(extent.path.read_bytes()[extent.offset : extent.offset + extent.length])
        else:
            assert isinstance(extent, InlineExtent)
            parts.append(extent.data)
    kind = np.uint32 if tensor.stored is TensorType.F32 else np.uint16
    return np.frombuffer(b"".join(parts), kind).reshape(tuple(reversed(tensor.shape))).copy()


def weights(end: str, change: Callable[[Any], Any]) -> Callable[[Any], Source]:
    """Change the words of all tensors of that name."""

    def changed(source: Any) -> Source:
        found = [tensor for tensor in source.tensors if tensor.name.endswith(end)]
        assert found
        new = {one.name: replace(one, extents=(InlineExtent(change(values(one)).tobytes()),)) for one in found}
        return replace(source, tensors=tuple(new.get(tensor.name, tensor) for tensor in source.tensors))

    return changed


def key(end: str, change: Callable[[Any], Any]) -> Callable[[Any], Source]:
    """Change a value of the metadata."""

    def changed(source: Any) -> Source:
        name = next(name for name in source.metadata if name.endswith(end))
        old = source.metadata[name]
        return replace(source, metadata=source.metadata | {name: Value(old.type, change(old.value), old.is_array)})

    return changed


def exchange(first: str, second: str) -> Callable[[Any], Source]:
    """Give two kinds of tensors each other's data."""

    def changed(source: Any) -> Source:
        by_name = {tensor.name: tensor for tensor in source.tensors}
        swap = {first: second, second: first}
        new = []
        for tensor in source.tensors:
            end = next((end for end in swap if end in tensor.name), "")
            other = by_name[tensor.name.replace(end, swap[end])] if end else tensor
            new.append(replace(tensor, extents=other.extents))
        return replace(source, tensors=tuple(new))

    return changed


def q_and_k(words: Any) -> Any:
    """The first key head in place of the first query head, and the other way round."""
    words[:64], words[256:320] = words[256:320].copy(), words[:64].copy()
    return words


def halves(words: Any) -> Any:
    half = len(words) // 2
    return np.concatenate([words[half:], words[:half]])


def interleaved(words: Any) -> Any:
    """The order of rotated pairs that other models have."""
    heads = words[:384].reshape(6, 2, 32, -1).swapaxes(1, 2).reshape(384, -1)
    return np.concatenate([heads, words[384:]])


def scaled_factors(words: Any) -> Any:
    return (words.view(np.float32) * np.float32(1.02)).view(np.uint32)


def transposed(words: Any) -> Any:
    return np.ascontiguousarray(words.transpose(0, 2, 1)).reshape(words.shape)


MUTATIONS: dict[str, tuple[str, Callable[[Any], Source]]] = {
    "q and k swapped": ("Phi-3-mini", weights("attn_qkv.weight", q_and_k)),
    "gate and up swapped": ("Phi-3-mini", weights("ffn_up.weight", halves)),
    "pairs in another order": ("Phi-3-mini", weights("attn_qkv.weight", interleaved)),
    "another norm": ("Phi-3-mini", exchange("attn_norm", "ffn_norm")),
    "another base of rope": ("Phi-3-mini", key("rope.freq_base", lambda base: base * 4)),
    "a little of rope factors": ("Phi-3-su-long-F32", weights("rope_factors_long.weight", scaled_factors)),
    "long factors for short": ("Phi-3-128k-long", exchange("rope_factors_long", "rope_factors_short")),
    "short factors for long": ("Phi-3-128k-short", exchange("rope_factors_long", "rope_factors_short")),
    "no attention factor": ("Phi-4-mini-long", key("attn_factor", lambda _: 1.0)),
    "another original context": ("Phi-4-mini-long", key("original_context_length", lambda _: 4096)),
    "all dimensions rotated": ("Phi-4", key("rope.dimension_count", lambda count: count // 2)),
    "another epsilon": ("Phi-3-narrow-F32", key("rms_epsilon", lambda epsilon: epsilon / 10)),
    "a bias dropped (q)": ("phi-1.5-F32", weights("attn_q.bias", np.zeros_like)),
    "a bias dropped (norm)": ("phi-2", weights("attn_norm.bias", np.zeros_like)),
    "a bias dropped (output)": ("Phi-3.5-MoE-short", weights("output.bias", np.zeros_like)),
    "k and v swapped": ("phi-2", exchange("attn_k.", "attn_v.")),
    "experts in another order": ("Phi-3.5-MoE-short", weights("ffn_down_exps.weight", lambda words: words[::-1])),
    "an expert transposed": ("Phi-3.5-MoE-short", weights("ffn_up_exps.weight", transposed)),
    "w1 and w3 swapped": ("Phi-mini-MoE-F32", exchange("ffn_gate_exps", "ffn_up_exps")),
    "norms of a mixture exchanged": ("Phi-3.5-MoE-any-F32", exchange("attn_norm", "ffn_norm")),
    "the router reversed": ("Phi-3.5-MoE-long", weights("ffn_gate_inp.weight", lambda words: words[::-1])),
    "one word of a million": (
        "Phi-3-mini",
        weights("output.weight", lambda words: np.where(words == words[3, 3], 0x3F80, words)),
    ),
}


@pytest.mark.parametrize("name", MUTATIONS)
def test_what_is_wrong_turns_red(name: str, tmp_path: Path, llama: Llama) -> None:
    of, change = MUTATIONS[name]
    case = CASES[of]
    checkpoint = case.write(tmp_path / of)
    model = build(checkpoint, tmp_path / "out.gguf", case.dtype, case.tokenizer, change)
    found = compare(checkpoint, model, case, llama)
    assert not found.ok, str(found)


@pytest.mark.parametrize(("name", "pre"), [("Phi-4-mini", "dbrx"), ("Phi-4", "gpt-4o"), ("Phi-4", "gpt-2")])
def test_another_pre_tokenizer_turns_red(name: str, pre: str, tmp_path: Path, llama: Llama) -> None:
    checkpoint = tokens.VOCABULARIES[name].write(tmp_path / name)
    model = build(checkpoint, tmp_path / "out.gguf", "BF16", "bpe", pre_tokenizer=pre)
    texts = tokens.texts(checkpoint)
    wanted = [tokens.libraries(checkpoint)["tokenizers"](text) for text in texts]
    assert llama.tokens(model, texts) != wanted


def test_a_crash_of_llama_cpp_is_an_error_and_not_the_end(tmp_path: Path, llama: Llama) -> None:
    case = CASES["Phi-3-mini"]
    model = build(case.write(tmp_path / "Phi-3-mini"), tmp_path / "out.gguf", "BF16")
    with pytest.raises(NativeError, match=r"none\.gguf: "):
        llama.logits(tmp_path / "none.gguf", [1], 256)
    with pytest.raises(NativeError, match=r"out\.gguf: "):
        llama.logits(model, [10**6], 256)
    assert llama.logits(model, [5, 6], 256).shape == (2, 640)
    assert llama._child
    llama._child.send_signal(signal.SIGSTOP)  # so that it dies in the middle of the question
    threading.Timer(0.3, llama._child.kill).start()
    with pytest.raises(NativeError, match=r"died on .*exit code -9"):
        llama.logits(model, [5, 6], 256)
    assert llama.logits(model, [5, 6], 256).shape == (2, 640)


def test_nan_is_not_near_anything(tmp_path: Path) -> None:
    from phitui.testing.conformance import Comparison

    assert not Comparison(float("nan"), 0.0, 1.0).ok and not Comparison(0.0, float("nan"), 1.0).ok
    assert Comparison(1e-3, 2e-3, 1e-2).ok and not Comparison(1e-3, 3e-2, 1e-2).ok
