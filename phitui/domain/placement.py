"""Where llama.cpp puts the tensors and the KV cache of a model: the exact part of the memory plan. Sizes are bytes.

The rules are those of llama.cpp's load_tensors and KV cache: the token embedding stays on the host, the output layer
counts first inside n_gpu_layers, repeating layer i is offloaded when i >= n_layer + 1 - n_gpu_layers, offloaded layers
are dealt to the devices in proportion to their free memory, and the KV cache of a layer lies where the layer lies.
"""

from __future__ import annotations

import re
import struct
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from phitui.domain.load import KV_TYPES
from phitui.domain.model import ModelFacts
from phitui.domain.tensors import TensorType, align
from phitui.errors import InvalidFile, UsageError

HOST = -1
"""The place of a layer that is not offloaded."""

CONTEXT_PAD = 256
"""llama.cpp rounds n_ctx up to a multiple of this."""

_BLOCK = re.compile(r"blk\.(\d+)\.")
_EXPERT = re.compile(r"\.ffn_(?:up|down|gate|gate_up)_(?:ch)?exps\.")


@dataclass(frozen=True)
class ModelMemory:
    """What planning needs of a model, worked out once; a plan then costs microseconds.

    `blocks` are the bytes of each repeating layer, `embedding` those of the token embedding, `output` those of the
    output layer without a tied embedding (`tied` says that the embedding is it), `shared` the rope factors (once on
    every device that holds a repeating layer), `largest` the biggest single tensor of a repeating layer.
    """

    name: str
    architecture: str
    context_length: int
    original_context: int | None
    width: int
    feed_forward: int
    heads: int
    heads_kv: int
    key_length: int
    value_length: int
    vocabulary: int
    experts_used: int
    blocks: tuple[int, ...]
    embedding: int
    output: int
    shared: int
    largest: int
    tied: bool
    experts: tuple[int, ...] = ()
    expert_count: int = 0

    @property
    def layers_total(self) -> int:
        """Repeating layers and the output layer: the largest n_gpu_layers that means something."""
        return len(self.blocks) + 1

    @property
    def weights(self) -> int:
        """Bytes of all tensors as they stand in the file."""
        return sum(self.blocks) + self.embedding + self.output + self.shared


def model_memory(facts: ModelFacts, tensors: Iterable[tuple[str, int]]) -> ModelMemory:
    """What planning needs, from facts and (tensor name, bytes): a GGUF's header and a planned file both have these.

    Raises InvalidFile for a model without layers, or whose tensors name a layer it does not have.
    """
    if facts.layers < 1:
        raise InvalidFile(
            f"{facts.name or 'this file'} has no layers", "it is not a language model that can be planned"
        )
    blocks = [0] * facts.layers
    experts = [0] * facts.layers
    embedding = output = shared = largest = other = 0
    tied = True
    for name, size in tensors:
        if match := _BLOCK.match(name):
            layer = int(match[1])
            if layer >= facts.layers:
                raise InvalidFile(f"tensor {name} belongs to layer {layer}, but the model says it has {facts.layers}")
            blocks[layer] += size
            experts[layer] += size if _EXPERT.search(name) else 0
            largest = max(largest, size)
        elif name.startswith("token_embd."):
            embedding += size
        elif name.startswith("output"):
            output += size
            tied = tied and name != "output.weight"
        elif name.startswith("rope_"):
            shared += size
        else:
            other += size
    long = facts.rope.original_context if facts.rope.scaling == "longrope" else None
    return ModelMemory(
        facts.name,
        facts.architecture,
        facts.context_length,
        long,
        facts.embedding_length,
        facts.feed_forward_length,
        facts.heads,
        facts.heads_kv,
        facts.key_length,
        facts.value_length,
        facts.vocabulary,
        facts.experts_used,
        tuple(blocks),
        embedding + other,
        output,
        shared,
        largest,
        tied,
        tuple(experts) if any(experts) else (),
        facts.experts,
    )


def padded_context(context: int) -> int:
    """The cells that llama.cpp really makes for an n_ctx."""
    return align(context, CONTEXT_PAD)


def sequence_context(context: int, parallel: int = 1, unified: bool = False) -> int:
    """The cells that each of `parallel` sequences gets of an n_ctx: all of them where the cache is unified."""
    cells = padded_context(context)
    return cells if unified or parallel == 1 else padded_context(cells // parallel)


def kv_type(name: str) -> TensorType:
    """The tensor type of a --kv-type. Raises UsageError for one that llama.cpp does not take."""
    if name.lower() not in KV_TYPES:
        raise UsageError(f"the KV cache cannot be {name!r}", f"KV types: {', '.join(KV_TYPES)}")
    return TensorType[name.upper()]


def kv_per_layer(
    model: ModelMemory, context: int, kind: str, values: str | None = None, parallel: int = 1, unified: bool = False
) -> int:
    """Bytes of one layer's keys (of type `kind`) and values (`values`, or the same): row size times the cells.

    Raises UsageError where the model's heads do not divide into a type's blocks.
    """
    sizes = 0
    for name, length in ((kind, model.key_length), (values or kind, model.value_length)):
        type_ = kv_type(name)
        if length % type_.block:
            raise UsageError(
                f"a {name} KV cache needs heads of a multiple of {type_.block}; this model's have {length}", "use f16"
            )
        sizes += type_.row_bytes(model.heads_kv * length)
    return sizes * sequence_context(context, parallel, unified) * (1 if unified else parallel)


def single(value: float) -> float:
    """`value` rounded to 32 bits, as llama.cpp computes its split points."""
    return float(struct.unpack("f", struct.pack("f", value))[0])


def deal(layers_total: int, n_gpu_layers: int, free: Sequence[float]) -> tuple[int, ...]:
    """The device index of each layer (the last is the output layer); HOST for those that stay.

    `free` are the devices' free bytes in llama.cpp's order; layers go to them in that proportion.
    """
    offloaded = min(n_gpu_layers, layers_total) if free else 0
    first = layers_total - offloaded
    total, ends = 0.0, []
    for amount in free:
        total = single(total + amount)
        ends.append(total)
    ends = [single(end / total) if total else 1.0 for end in ends]
    places = [HOST] * layers_total
    for layer in range(first, layers_total):
        at = single(single(layer - first) / offloaded)
        places[layer] = min(bisect_right(ends, at), len(free) - 1)
    return tuple(places)


def weights_by_place(model: ModelMemory, places: Sequence[int], devices: int, n_cpu_moe: int = 0) -> list[int]:
    """Bytes of weights on each of `devices` devices and, last, on the host.

    The experts of the first `n_cpu_moe` layers stay on the host, wherever the rest of the layer is. A tied token
    embedding is the output layer too: it is copied to the device that holds the output layer.
    """
    held = [0] * (devices + 1)
    for layer, size in enumerate(model.blocks):
        held[places[layer]] += size
        if model.experts and layer < n_cpu_moe and places[layer] != HOST:
            held[places[layer]] -= model.experts[layer]
            held[HOST] += model.experts[layer]
    held[HOST] += model.embedding
    held[places[-1]] += model.output
    if model.tied and places[-1] != HOST:
        held[places[-1]] += model.embedding
    for place in set(places[:-1]):
        held[place] += model.shared
    return held
