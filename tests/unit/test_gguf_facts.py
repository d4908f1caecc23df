"""Facts from headers and configs; the parameter counts are those of the published models."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from phitui.domain.model import Rope
from phitui.domain.tensors import FilePlan, InlineExtent, SourceTensor, TensorType, Value, ValueType, place
from phitui.errors import InvalidFile
from phitui.gguf.facts import facts_from_config, facts_from_header
from phitui.gguf.header import encode_header, read_header
from phitui.gguf.safetensors import open_checkpoint
from phitui.gguf.source import gguf_source
from phitui.testing.checkpoints import write_checkpoint


def written(path: Path, metadata: dict[str, Value], tensors: dict[str, tuple[TensorType, tuple[int, ...]]]) -> Path:
    sources = []
    for name, (kind, shape) in tensors.items():
        size = math.prod(shape[1:]) * kind.row_bytes(shape[0])
        sources.append(SourceTensor(name, shape, kind, (InlineExtent(bytes(size)),)))
    plan = FilePlan("F32", metadata, place([(source, source.stored, None) for source in sources]))
    path.write_bytes(encode_header(plan) + bytes(plan.data_size))
    return path


def phi3(**changes: Value) -> dict[str, Value]:
    tokens = ["<|endoftext|>", "<|user|>", "<|end|>"] + [f"t{i}" for i in range(61)]
    return {
        "general.architecture": Value.string("phi3"),
        "general.name": Value.string("Phi 3 tiny"),
        "general.license": Value.string("mit"),
        "general.file_type": Value.u32(15),
        "phi3.block_count": Value.u32(2),
        "phi3.context_length": Value.u32(131072),
        "phi3.embedding_length": Value.u32(256),
        "phi3.feed_forward_length": Value.u32(512),
        "phi3.attention.head_count": Value.u32(4),
        "phi3.attention.head_count_kv": Value.u32(2),
        "phi3.rope.dimension_count": Value.u32(48),
        "phi3.rope.freq_base": Value.f32(10000.0),
        "phi3.rope.scaling.original_context_length": Value.u32(4096),
        "tokenizer.ggml.model": Value.string("llama"),
        "tokenizer.ggml.pre": Value.string("default"),
        "tokenizer.ggml.tokens": Value.array(ValueType.STRING, tokens),
        **changes,
    }


TENSORS = {
    "token_embd.weight": (TensorType.Q4_K, (256, 64)),
    "output.weight": (TensorType.Q6_K, (256, 64)),
    "rope_factors_long.weight": (TensorType.F32, (24,)),
    "rope_factors_short.weight": (TensorType.F32, (24,)),
}


def test_header_facts(tmp_path: Path) -> None:
    facts = facts_from_header(read_header(written(tmp_path / "a.gguf", phi3(), TENSORS)))
    assert (facts.name, facts.architecture, facts.license, facts.scheme) == ("Phi 3 tiny", "phi3", "mit", "Q4_K_M")
    assert facts.parameters == 2 * 256 * 64
    assert (facts.layers, facts.context_length, facts.embedding_length) == (2, 131072, 256)
    assert (facts.heads, facts.heads_kv, facts.key_length, facts.value_length) == (4, 2, 64, 64)
    assert facts.rope == Rope(48, 10000.0, "longrope", 4096)
    assert (facts.vocabulary, facts.tokenizer, facts.chat_format) == (64, "llama/default", "phi-3")
    assert facts.size == (tmp_path / "a.gguf").stat().st_size
    assert not facts.tied_embeddings


def test_header_without_rope_factors_and_output(tmp_path: Path) -> None:
    tensors = {"token_embd.weight": TENSORS["token_embd.weight"]}
    facts = facts_from_header(read_header(written(tmp_path / "a.gguf", phi3(), tensors)))
    assert facts.rope == Rope(48, 10000.0, "none", None)
    assert facts.tied_embeddings


@pytest.mark.parametrize(
    ("marker", "size", "expected"),
    [("<|im_sep|>", 64, "phi-4"), ("<|end|>", 64, "phi-3"), ("<|end|>", 150_001, "phi-4-mini"), ("x", 64, "phi-2")],
)
def test_chat_format_by_tokens(tmp_path: Path, marker: str, size: int, expected: str) -> None:
    tokens = Value.array(ValueType.STRING, [marker] + [""] * (size - 1))
    path = written(tmp_path / "a.gguf", phi3(**{"tokenizer.ggml.tokens": tokens}), TENSORS)
    assert facts_from_header(read_header(path)).chat_format == expected


def test_strange_headers(tmp_path: Path) -> None:
    with pytest.raises(InvalidFile, match="general\\.architecture"):
        facts_from_header(read_header(written(tmp_path / "a.gguf", {}, {})))
    odd = {"general.architecture": Value.string("x"), "x.block_count": Value.string("many")}
    odd["x.rope.freq_base"] = Value.string("high")
    odd["x.attention.head_count"] = Value.array(ValueType.UINT32, [2, 4])
    odd["general.file_type"] = Value.array(ValueType.UINT32, [1])
    facts = facts_from_header(read_header(written(tmp_path / "b.gguf", odd, {})))
    assert (facts.layers, facts.heads, facts.scheme, facts.name) == (0, 4, "", "b")


def config(kind: str, layers: int, hidden: int, wide: int, vocabulary: int, **more: Any) -> dict[str, Any]:
    return {
        "model_type": kind,
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "intermediate_size": wide,
        "vocab_size": vocabulary,
        **more,
    }


LONG = {"type": "longrope", "long_factor": [1.0], "short_factor": [1.0]}
PUBLISHED: dict[str, tuple[dict[str, Any], int, str]] = {
    "phi-2": (config("phi", 32, 2560, 10240, 51200, num_attention_heads=32), 2_779_683_840, "phi-2"),
    "phi-3.5-mini": (
        config("phi3", 32, 3072, 8192, 32064, num_attention_heads=32, num_key_value_heads=32),
        3_821_079_552,
        "phi-3",
    ),
    "phi-4": (
        config("phi3", 40, 5120, 17920, 100352, num_attention_heads=40, num_key_value_heads=10),
        14_659_507_200,
        "phi-4",
    ),
    "phi-4-mini": (
        config(
            "phi3", 32, 3072, 8192, 200064, num_attention_heads=24, num_key_value_heads=8, tie_word_embeddings=True
        ),
        3_836_021_760,
        "phi-4-mini",
    ),
    "phi-3.5-moe": (
        config(
            "phimoe", 32, 4096, 6400, 32064, num_attention_heads=32, num_key_value_heads=8,
            num_local_experts=16, num_experts_per_tok=2, attention_bias=True, lm_head_bias=True,
        ),
        41_873_153_344,
        "phi-3",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("document", "parameters", "chat"), PUBLISHED.values(), ids=PUBLISHED)
def test_parameters_of_published_models(document: dict[str, Any], parameters: int, chat: str) -> None:
    facts = facts_from_config(document, "x")
    assert facts.parameters == parameters
    assert facts.chat_format == chat


def test_config_facts() -> None:
    document = PUBLISHED["phi-4-mini"][0] | {
        "max_position_embeddings": 131072,
        "original_max_position_embeddings": 4096,
        "partial_rotary_factor": 0.75,
        "rope_theta": 10000.0,
        "rope_scaling": LONG,
        "torch_dtype": "bfloat16",
    }
    facts = facts_from_config(document, "Phi-4-mini", 7)
    assert (facts.name, facts.size, facts.scheme, facts.architecture) == ("Phi-4-mini", 7, "BF16", "phi3")
    assert facts.rope == Rope(96, 10000.0, "longrope", 4096)
    nested = {key: value for key, value in document.items() if not key.startswith(("rope", "partial"))}
    nested["rope_parameters"] = LONG | {"rope_type": "longrope", "rope_theta": 10000.0, "partial_rotary_factor": 0.75}
    assert facts_from_config(nested, "Phi-4-mini", 7) == facts


def test_the_tokens_decide_the_chat_format() -> None:
    assert (
        facts_from_config(PUBLISHED["phi-3.5-mini"][0], "x", tokens={"<|im_start|>", "<|im_end|>"}).chat_format
        == "chatml"
    )


@pytest.mark.parametrize(
    "document", [{}, {"model_type": "phi3"}, {"model_type": 7, "hidden_size": "x", "rope_scaling": []}]
)
def test_strange_configs(document: dict[str, Any]) -> None:
    assert facts_from_config(document, "x").layers == 0


def test_config_and_checkpoint_agree(tmp_path: Path) -> None:
    for number, spec in enumerate([{}, {"tied": True, "tokenizer": "bpe"}]):
        found = open_checkpoint(write_checkpoint(tmp_path / str(number), **spec))
        facts = facts_from_config(found.config, "x")
        assert facts.parameters == sum(math.prod(tensor.shape) for tensor in found.tensors.values())


def test_gguf_as_source(tmp_path: Path) -> None:
    path = written(tmp_path / "a.gguf", phi3(), TENSORS)
    source = gguf_source(path)
    assert source.architecture == "phi3"
    assert list(source.metadata) == [key for key in phi3() if key != "general.file_type"]
    assert source.metadata["tokenizer.ggml.tokens"] == phi3()["tokenizer.ggml.tokens"]
    assert [(t.name, t.shape, t.stored, t.pinned) for t in source.tensors] == [
        ("token_embd.weight", (256, 64), TensorType.Q4_K, None),
        ("output.weight", (256, 64), TensorType.Q6_K, None),
        ("rope_factors_long.weight", (24,), TensorType.F32, TensorType.F32),
        ("rope_factors_short.weight", (24,), TensorType.F32, TensorType.F32),
    ]


def test_gguf_that_is_no_source(tmp_path: Path) -> None:
    with pytest.raises(InvalidFile, match="part 1 of 3"):
        gguf_source(written(tmp_path / "a.gguf", phi3(**{"split.count": Value(ValueType.UINT16, 3)}), TENSORS))
    with pytest.raises(InvalidFile, match="general\\.architecture"):
        gguf_source(written(tmp_path / "b.gguf", {}, {}))
