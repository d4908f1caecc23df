"""Which tensor lies where, and what the KV cache takes: llama.cpp's rules."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from phitui.domain.model import ModelFacts, Rope
from phitui.domain.placement import (
    HOST,
    ModelMemory,
    deal,
    kv_per_layer,
    model_memory,
    padded_context,
    weights_by_place,
)
from phitui.errors import InvalidFile, UsageError

MIB = 1024 * 1024


def facts(layers: int = 4, **more: object) -> ModelFacts:
    values: dict[str, object] = {
        "name": "tiny",
        "architecture": "phi3",
        "parameters": 0,
        "layers": layers,
        "context_length": 131072,
        "embedding_length": 3072,
        "feed_forward_length": 8192,
        "heads": 32,
        "heads_kv": 8,
        "key_length": 96,
        "value_length": 96,
        "vocabulary": 32064,
        "rope": Rope(96, 10000.0, "longrope", 4096),
        "tokenizer": "llama",
        "chat_format": "phi-3",
    }
    return ModelFacts(**(values | more))  # type: ignore[arg-type]


def tensors(layers: int = 4, tied: bool = False) -> list[tuple[str, int]]:
    found = [
        ("token_embd.weight", 100),
        ("output_norm.weight", 1),
        ("rope_factors_long.weight", 2),
        ("rope_factors_short.weight", 2),
    ]
    if not tied:
        found.append(("output.weight", 200))
    for layer in range(layers):
        found += [(f"blk.{layer}.attn_qkv.weight", 10), (f"blk.{layer}.ffn_up.weight", 20 + layer)]
    return found


def model(layers: int = 4, tied: bool = False) -> ModelMemory:
    return model_memory(facts(layers), tensors(layers, tied))


def test_tensors_are_sorted_into_layers() -> None:
    found = model()
    assert found.blocks == (30, 31, 32, 33)
    assert (found.embedding, found.output, found.shared, found.largest, found.tied) == (100, 201, 4, 23, False)
    assert found.layers_total == 5
    assert found.weights == sum(size for _, size in tensors())
    assert found.original_context == 4096
    assert model(tied=True).tied


def test_a_tensor_of_a_layer_that_is_not_there_is_an_error() -> None:
    with pytest.raises(InvalidFile, match="belongs to layer 3"):
        model_memory(facts(3), tensors(4))
    with pytest.raises(InvalidFile, match="no layers"):
        model_memory(facts(0), [])


def test_the_output_layer_is_offloaded_first() -> None:
    assert deal(5, 0, [1]) == (HOST,) * 5
    assert deal(5, 1, [1]) == (HOST, HOST, HOST, HOST, 0)
    assert deal(5, 3, [1]) == (HOST, HOST, 0, 0, 0)
    assert deal(5, 5, [1]) == deal(5, 99, [1]) == (0,) * 5
    assert deal(5, 5, []) == (HOST,) * 5


def test_layers_are_dealt_by_free_memory() -> None:
    assert deal(8, 8, [100, 100]) == (0, 0, 0, 0, 1, 1, 1, 1)
    assert deal(8, 8, [300, 100]) == (0, 0, 0, 0, 0, 0, 1, 1)
    assert deal(8, 4, [300, 100]) == (HOST, HOST, HOST, HOST, 0, 0, 0, 1)
    assert deal(3, 3, [0, 0]) == (0, 0, 0) or set(deal(3, 3, [0, 0])) <= {0, 1}


def test_weights_of_each_place() -> None:
    found = model()
    assert weights_by_place(found, deal(5, 0, [1]), 1) == [0, found.weights]
    assert weights_by_place(found, deal(5, 1, [1]), 1) == [201, 100 + 126 + 4]
    assert weights_by_place(found, deal(5, 3, [1]), 1) == [201 + 32 + 33 + 4, 100 + 30 + 31 + 4]
    assert weights_by_place(found, deal(5, 5, [1]), 1) == [201 + 126 + 4, 100]


def test_a_tied_embedding_is_copied_to_the_device() -> None:
    found = model(tied=True)
    assert weights_by_place(found, deal(5, 0, [1]), 1) == [0, found.weights]
    assert weights_by_place(found, deal(5, 1, [1]), 1) == [101, 100 + 126 + 4]


@given(st.integers(1, 60), st.integers(0, 61), st.lists(st.integers(1, 1 << 40), min_size=1, max_size=4))
def test_nothing_is_lost_and_layers_stay_in_order(layers: int, offloaded: int, free: list[int]) -> None:
    places = deal(layers + 1, offloaded, free)
    assert places.count(HOST) == max(0, layers + 1 - offloaded)
    assert list(places) == sorted(places)
    found = model(layers)
    held = weights_by_place(found, places, len(free))
    copies = len(set(places[:-1])) - 1
    assert sum(held) == found.weights + copies * found.shared


def test_kv_cache() -> None:
    found = model()
    assert padded_context(1) == padded_context(256) == 256
    assert padded_context(4097) == 4352
    assert kv_per_layer(found, 4096, "f16") == 2 * 8 * 96 * 2 * 4096
    assert kv_per_layer(found, 4096, "q8_0") == 2 * (8 * 96 // 32) * 34 * 4096
    assert kv_per_layer(found, 100, "f32") == 2 * 8 * 96 * 4 * 256


def test_kv_types_that_cannot_be() -> None:
    with pytest.raises(UsageError, match="cannot be 'q3_k'"):
        kv_per_layer(model(), 4096, "q3_k")
    odd = model_memory(facts(key_length=80, value_length=80), tensors())
    with pytest.raises(UsageError, match="multiple of 32"):
        kv_per_layer(odd, 4096, "q8_0")
