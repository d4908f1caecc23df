"""Facts of a model, from the header of its GGUF file or from the config.json of its checkpoint."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from phitui.domain.chat import CHAT_FORMATS, chat_format
from phitui.domain.model import ModelFacts, Rope
from phitui.domain.quant import FILE_TYPES
from phitui.errors import InvalidFile
from phitui.gguf.header import Header
from phitui.gguf.shards import model_stem

_MARKERS = frozenset({"<|im_sep|>", *(stop for item in CHAT_FORMATS for stop in item.stops)})
_ARCHITECTURES = {"phi": "phi2", "phi-msft": "phi2", "phi3_v": "phi3", "phi4mm": "phi3", "phi4_multimodal": "phi3"}
"""model_type of a config.json -> architecture of the GGUF, where they differ. Of multimodal models it is the text's."""
_TEXT_MODELS = {"Phi4ForCausalLMV": "phi3"}
"""architectures[0] of a config.json -> architecture of the GGUF, where model_type does not tell."""


def facts_from_header(header: Header) -> ModelFacts:
    """Facts of a GGUF. Raises InvalidFile if it does not name an architecture."""
    architecture = header.get("general.architecture")
    if not isinstance(architecture, str):
        raise InvalidFile(f"{header.path}: the key general.architecture is missing, so it is not a model")

    def number(key: str, default: int = 0) -> int:
        value = header.get(f"{architecture}.{key}", default)
        layers = value if isinstance(value, list) else [value]  # some models have one number per layer
        return max((item for item in layers if isinstance(item, int)), default=default)

    names = {tensor.name for tensor in header.tensors}
    heads, embedding = number("attention.head_count"), number("embedding_length")
    head_length = embedding // heads if heads else 0
    vocabulary = header.length("tokenizer.ggml.tokens") or number("vocab_size")
    experts = number("expert_count")
    return ModelFacts(
        name=str(header.get("general.name") or model_stem(header.path)),
        architecture=architecture,
        parameters=_parameters(header),
        layers=number("block_count"),
        context_length=number("context_length"),
        embedding_length=embedding,
        feed_forward_length=number("feed_forward_length"),
        heads=heads,
        heads_kv=number("attention.head_count_kv", heads),
        key_length=number("attention.key_length", head_length),
        value_length=number("attention.value_length", head_length),
        vocabulary=vocabulary,
        rope=_header_rope(header, architecture, names, number("rope.dimension_count", head_length)),
        tokenizer=_tokenizer(header),
        chat_format=chat_format(header.present("tokenizer.ggml.tokens", _MARKERS), vocabulary),
        scheme=_scheme(header),
        size=header.file_size,
        experts=experts,
        experts_used=number("expert_used_count"),
        tied_embeddings="output.weight" not in names and "token_embd.weight" in names,
        license=str(header.get("general.license") or ""),
    )


def _parameters(header: Header) -> int:
    """All weights. LongRoPE factors lie in the file as tensors but are not weights."""
    total = 0
    for tensor in header.tensors:
        if not tensor.name.startswith("rope_factors"):
            total += tensor.size // tensor.type.block_bytes * tensor.type.block
    return total


def _scheme(header: Header) -> str:
    number = header.get("general.file_type")
    return FILE_TYPES.get(number, "") if isinstance(number, int) else ""


def _tokenizer(header: Header) -> str:
    parts = (header.get("tokenizer.ggml.model"), header.get("tokenizer.ggml.pre"))
    return "/".join(part for part in parts if isinstance(part, str) and part)


def _header_rope(header: Header, architecture: str, names: set[str], dimensions: int) -> Rope:
    base = _number(header.get(f"{architecture}.rope.freq_base"), 10000.0)
    original = _number(header.get(f"{architecture}.rope.scaling.original_context_length"), 0.0)
    scaling = str(header.get(f"{architecture}.rope.scaling.type", "none"))
    if "rope_factors_long.weight" in names:
        scaling = "longrope"
    return Rope(dimensions, base, scaling, int(original) or None if scaling != "none" else None)


def facts_from_config(
    config: Mapping[str, Any], name: str, size: int = 0, tokens: set[str] | None = None, tokenizer: str = ""
) -> ModelFacts:
    """Facts of a checkpoint from its config.json; `size` is the bytes of its tensors.

    `tokens` are texts of its special tokens, for the chat format; without them the size of the vocabulary decides.
    """
    number = _reader(config)
    heads, embedding = number("num_attention_heads"), number("hidden_size")
    head_length = number("head_dim") or (embedding // heads if heads else 0)
    experts = number("num_local_experts")
    vocabulary = number("vocab_size")
    architecture = _architecture(config)
    return ModelFacts(
        name=name,
        architecture=architecture,
        parameters=_count(config),
        layers=number("num_hidden_layers"),
        context_length=number("max_position_embeddings"),
        embedding_length=embedding,
        feed_forward_length=_feed_forward(config),
        heads=heads,
        heads_kv=number("num_key_value_heads") or heads,
        key_length=head_length,
        value_length=head_length,
        vocabulary=vocabulary,
        rope=_config_rope(config, head_length),
        tokenizer=tokenizer,
        chat_format=chat_format(tokens if tokens is not None else _likely_tokens(architecture, vocabulary), vocabulary),
        scheme=_dtype(config),
        size=size,
        experts=experts,
        experts_used=number("num_experts_per_tok") if experts else 0,
        tied_embeddings=bool(config.get("tie_word_embeddings")),
    )


def _architecture(config: Mapping[str, Any]) -> str:
    """The architecture of the GGUF that a checkpoint becomes."""
    named = config.get("architectures")
    first = named[0] if isinstance(named, list) and named else None
    kind = str(config.get("model_type", ""))
    if isinstance(first, str) and first in _TEXT_MODELS:
        return _TEXT_MODELS[first]
    return _ARCHITECTURES.get(kind, kind)


def _reader(config: Mapping[str, Any]) -> Any:
    """Whole numbers of a config that may hold anything: 0 for what is not one."""

    def number(key: str) -> int:
        value = config.get(key)
        return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0

    return number


def _feed_forward(config: Mapping[str, Any]) -> int:
    number = _reader(config)
    found: int = number("intermediate_size") or 4 * number("hidden_size")
    return found


def _likely_tokens(architecture: str, vocabulary: int) -> set[str]:
    """Before the tokenizer is there: phi-4's has 100,352 entries; all others of that kind have <|end|>."""
    if architecture in ("phi3", "phimoe"):
        return {"<|im_sep|>"} if vocabulary == 100_352 else {"<|end|>"}
    return set()


def _dtype(config: Mapping[str, Any]) -> str:
    names = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}
    return names.get(str(config.get("dtype") or config.get("torch_dtype")), "")


def _config_rope(config: Mapping[str, Any], head_length: int) -> Rope:
    """Both schemas: rope_scaling beside rope_theta, and rope_parameters, which holds all of it."""
    nested = config.get("rope_parameters")
    parameters: Mapping[str, Any] = nested if isinstance(nested, Mapping) else {}
    scaling = parameters or config.get("rope_scaling")
    default = 0.5 if config.get("model_type") == "phi" else 1.0
    part = _number(parameters.get("partial_rotary_factor", config.get("partial_rotary_factor")), default)
    theta = 1e6 if config.get("model_type") == "phimoe" else 10000.0
    base = _number(parameters.get("rope_theta", config.get("rope_theta")), theta)
    kind, original = "none", None
    if isinstance(scaling, Mapping):
        kind = str(scaling.get("rope_type") or scaling.get("type") or "none")
        if "long_factor" in scaling:
            kind = "longrope"
            found = scaling.get("original_max_position_embeddings", config.get("original_max_position_embeddings"))
            original = int(_number(found, 0)) or None
    return Rope(int(head_length * part), base, "none" if kind == "default" else kind, original)


def _number(value: Any, default: float) -> float:
    """A finite number, or the default for anything else."""
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not abs(value) <= sys.float_info.max:
        return default
    return float(value)


def _count(config: Mapping[str, Any]) -> int:
    """The exact number of weights of the phi, phi3 and phimoe families (transformers' modeling files); else 0.

    Of a multimodal model those of the text model, which is what it becomes.
    """
    counts = {"phi2": _count_phi, "phi3": _count_phi3, "phimoe": _count_phimoe}
    count = counts.get(_architecture(config))
    return count(config) if count else 0


def _attention(config: Mapping[str, Any], bias: bool) -> int:
    """Weights of the q, k, v and output projections of one layer."""
    number = _reader(config)
    heads, hidden = number("num_attention_heads"), number("hidden_size")
    if not heads:
        return 0
    length = number("head_dim") or hidden // heads
    queries, keys = heads * length, (number("num_key_value_heads") or heads) * length
    total: int = hidden * (queries + 2 * keys) + queries * hidden
    return total + (queries + 2 * keys + hidden if bias else 0)


def _embeddings(config: Mapping[str, Any]) -> int:
    """Token embeddings, and the output matrix if it is one of its own."""
    number = _reader(config)
    matrix: int = number("vocab_size") * number("hidden_size")
    return matrix if config.get("tie_word_embeddings") else 2 * matrix


def _count_phi(config: Mapping[str, Any]) -> int:
    number = _reader(config)
    hidden, wide = number("hidden_size"), _feed_forward(config)
    head_norms = 4 * (hidden // (number("num_attention_heads") or 1)) if config.get("qk_layernorm") else 0
    layer = _attention(config, True) + 2 * hidden * wide + wide + hidden + 2 * hidden + head_norms
    total: int = _embeddings(config) + number("vocab_size") + number("num_hidden_layers") * layer + 2 * hidden
    return total


def _count_phi3(config: Mapping[str, Any]) -> int:
    number = _reader(config)
    hidden = number("hidden_size")
    layer = _attention(config, bool(config.get("attention_bias"))) + 3 * hidden * _feed_forward(config) + 2 * hidden
    total: int = _embeddings(config) + number("num_hidden_layers") * layer + hidden
    return total


def _count_phimoe(config: Mapping[str, Any]) -> int:
    number = _reader(config)
    hidden, experts = number("hidden_size"), number("num_local_experts")
    feed_forward = experts * (3 * hidden * _feed_forward(config) + hidden)
    layer = _attention(config, bool(config.get("attention_bias"))) + feed_forward + 4 * hidden
    output_bias = number("vocab_size") if config.get("lm_head_bias") else 0
    total: int = _embeddings(config) + output_bias + number("num_hidden_layers") * layer + 2 * hidden
    return total
