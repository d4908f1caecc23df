"""Facts of two published models, for tests of exporters, planners and screens that need no file."""

from __future__ import annotations

from phitui.domain.model import ModelFacts, Rope

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
