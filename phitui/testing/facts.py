"""Facts of two published models, for tests of exporters, planners and screens that need no file."""

from __future__ import annotations

from phitui.domain.model import ModelFacts, Rope
from phitui.domain.placement import ModelMemory

_MIB = 1024 * 1024

PHI_3_MINI = ModelFacts(
    name="Phi 3",
    architecture="phi3",
    parameters=3_821_000_000,
    layers=32,
    context_length=131072,
    embedding_length=3072,
    feed_forward_length=8192,
    heads=32,
    heads_kv=32,
    key_length=96,
    value_length=96,
    vocabulary=32064,
    rope=Rope(96, 10000.0, "longrope", 4096),
    tokenizer="llama",
    chat_format="phi-3",
)
PHI_4_MINI = ModelFacts(
    name="Phi 4 Mini",
    architecture="phi3",
    parameters=3_836_000_000,
    layers=32,
    context_length=131072,
    embedding_length=3072,
    feed_forward_length=8192,
    heads=24,
    heads_kv=8,
    key_length=128,
    value_length=128,
    vocabulary=200064,
    rope=Rope(96, 10000.0, "longrope", 4096),
    tokenizer="gpt2/gpt-4o",
    chat_format="phi-4-mini",
    scheme="Q4_K_M",
    license="mit",
)
PHI_4_MINI_MEMORY = ModelMemory(
    name="Phi-4-mini",
    architecture="phi3",
    context_length=131072,
    original_context=4096,
    width=3072,
    feed_forward=8192,
    heads=24,
    heads_kv=8,
    key_length=128,
    value_length=128,
    vocabulary=200064,
    experts_used=0,
    blocks=(55 * _MIB,) * 32,
    embedding=480 * _MIB,
    output=12288,
    shared=400,
    largest=27 * _MIB,
    tied=True,
)
"""What a plan needs of a Q4_K_M of it, rounded."""
