"""Compares the tensors of a checkpoint with those that a model must have, and describes them as GGUF tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from phitui.api import (
    Checkpoint,
    InlineExtent,
    InvalidFile,
    SourceTensor,
    TensorType,
)
from phitui_convert.architecture.rope import Rope, pack

Rename = Callable[[str], str | None]
"""Name in the checkpoint -> the name a Part knows it by; None for a tensor that is left out."""

MAX_LAYERS = 512
"""LLAMA_MAX_LAYERS of llama.cpp."""
_BUFFERS = (".rotary_emb.inv_freq", ".attention.bias", ".attention.masked_bias", ".position_ids")
"""Old checkpoints carry them; they are computed, not learned."""
_AGAIN = "download the checkpoint again"
_MERGE = "merge the adapters (LoRA) into the model first"


@dataclass(frozen=True)
class Part:
    """One tensor of the file: `target` in GGUF, made of `sources`, each of `shape` (PyTorch's order).

    With `stacked` the sources are matrices of one 3-D tensor, in this order. `pinned` weights are F32 in every scheme,
    as all one-dimensional tensors are. An `optional` part may be absent.
    """

    target: str
    sources: tuple[str, ...]
    shape: tuple[int, ...]
    stacked: bool = False
    pinned: bool = False
    optional: bool = False


def part(target: str, source: str, *shape: int, pinned: bool = False, optional: bool = False) -> Part:
    """A part with one source."""
    return Part(target, (source,), shape, pinned=pinned, optional=optional)


def biased(target: str, source: str, *shape: int) -> Iterator[Part]:
    """A weight of `shape` and its bias; a shape of one dimension is a norm's."""
    yield part(f"{target}.weight", f"{source}.weight", *shape)
    yield part(f"{target}.bias", f"{source}.bias", shape[0])


def attention(target: str, source: str, hidden: int, keys: int, out: str) -> Iterator[Part]:
    """Separate q, k (of `keys` rows) and v with biases, and the projection back, which the checkpoint calls `out`."""
    for name, known, rows in (
        ("q_proj", "q", hidden),
        ("k_proj", "k", keys),
        ("v_proj", "v", keys),
        (out, "output", hidden),
    ):
        yield from biased(f"{target}attn_{known}", f"{source}self_attn.{name}", rows, hidden)


def plain(name: str) -> str | None:
    """The Rename of text models."""
    return None if name.endswith(_BUFFERS) else name


def collect(
    checkpoint: Checkpoint, parts: Iterable[Part], title: str, rename: Rename = plain
) -> tuple[SourceTensor, ...]:
    """All parts, shard by shard, by name, as convert_hf_to_gguf.py orders them. `title` names the model in errors.

    Raises InvalidFile for the first tensor that is missing, of another shape or type, or not part of the model.
    """
    parts = tuple(parts)
    names = _renamed(checkpoint, rename)
    _check_types(checkpoint, names)
    _check_names(checkpoint, names, parts, title)
    placed = []
    for one in parts:
        if one.sources[0] in names:
            sources = [names[source] for source in one.sources]
            first = min((checkpoint.tensors[name].shard, name) for name in sources)
            placed.append((first, _tensor(checkpoint, one, sources)))
    placed.sort(key=lambda entry: entry[0])
    return tuple(tensor for _, tensor in placed)


def rope_tensors(rope: Rope) -> tuple[SourceTensor, ...]:
    """The factors of LongRoPE, long ones first; nothing without it."""
    named = (("rope_factors_long", rope.long_factors), ("rope_factors_short", rope.short_factors))
    return tuple(
        SourceTensor(f"{name}.weight", (len(factors),), TensorType.F32, (InlineExtent(pack(factors)),), TensorType.F32)
        for name, factors in named
        if factors
    )


def _renamed(checkpoint: Checkpoint, rename: Rename) -> dict[str, str]:
    """Known name -> name in the checkpoint."""
    names: dict[str, str] = {}
    for name in checkpoint.tensors:
        known = rename(name)
        if known is None:
            continue
        if known in names:
            raise InvalidFile(f"{checkpoint.directory}: tensors {names[known]!r} and {name!r} are the same weight")
        names[known] = name
    return names


def _check_types(checkpoint: Checkpoint, names: dict[str, str]) -> None:
    """Raise InvalidFile for a checkpoint of FP8, integers and the like."""
    strange = sorted(name for name in names.values() if checkpoint.tensors[name].dtype is None)
    if strange:
        kind = checkpoint.tensors[strange[0]].stored
        raise InvalidFile(
            f"{checkpoint.directory}: tensor {strange[0]!r}{_others(strange)} is {kind}; "
            "weights of F32, F16 and BF16 can be converted",
            "take the model's original checkpoint, not a quantized one",
        )


def _check_names(checkpoint: Checkpoint, names: dict[str, str], parts: tuple[Part, ...], title: str) -> None:
    missing = sorted(name for one in parts if not one.optional for name in one.sources if name not in names)
    if missing:
        hint = _AGAIN
        if missing == ["lm_head.weight"]:
            hint = "if its output shares the embeddings, config.json must say tie_word_embeddings: true"
        elif any(".lora_" in name for name in names):
            hint = _MERGE
        raise InvalidFile(f"{checkpoint.directory}: tensor {missing[0]!r}{_others(missing)} is missing", hint)
    known = {name for one in parts for name in one.sources}
    extra = sorted(names[name] for name in names.keys() - known)
    if extra:
        raise InvalidFile(
            f"{checkpoint.directory}: tensor {extra[0]!r}{_others(extra)} is not part of {title}",
            _MERGE if ".lora_" in extra[0] else "config.json and the weights do not belong together",
        )


def _others(names: list[str]) -> str:
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""


def _tensor(checkpoint: Checkpoint, one: Part, sources: list[str]) -> SourceTensor:
    """One-dimensional tensors are F32 whatever the scheme: llama.cpp computes norms, biases and factors in F32 only."""
    stored = checkpoint.tensors[sources[0]].dtype
    for name in sources:
        tensor = checkpoint.tensors[name]
        if tensor.shape != one.shape:
            raise InvalidFile(
                f"{checkpoint.directory}: tensor {name!r} has shape {list(tensor.shape)}, "
                f"but config.json says {list(one.shape)}",
                "config.json and the weights do not belong together; download the checkpoint again",
            )
        if tensor.dtype is not stored:
            raise InvalidFile(
                f"{checkpoint.directory}: experts of one layer differ in type: "
                f"{sources[0]!r} is {checkpoint.tensors[sources[0]].stored}, {name!r} is {tensor.stored}",
                _AGAIN,
            )
    assert stored is not None, "checked for all"
    shape = tuple(reversed(one.shape)) + ((len(sources),) if one.stacked else ())
    extents = tuple(checkpoint.tensors[name].extent for name in sources)
    pinned = TensorType.F32 if one.pinned or len(one.shape) == 1 else None
    return SourceTensor(one.target, shape, stored, extents, pinned)
