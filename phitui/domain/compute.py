"""What the compute buffers of llama.cpp need, by formula: used where the engine itself cannot be asked.

The graph of one micro-batch is laid out once, in its worst case; its peak is one of three moments: attention, the
feed-forward, or the logits. The terms are in bytes; everything is F32 but the flash attention mask.
"""

from __future__ import annotations

from collections.abc import Sequence

from phitui.domain.chat import EngineSettings
from phitui.domain.placement import HOST, ModelMemory, padded_context


def compute_estimate(model: ModelMemory, places: Sequence[int], devices: int, settings: EngineSettings) -> list[int]:
    """Estimated compute buffer of each device and, last, of the host."""
    context, flash = settings.context, settings.flash_attention is not False
    tokens = min(settings.ubatch, padded_context(context))
    state = tokens * model.width * 4
    mask = tokens * padded_context(context) * (6 if flash else 4)
    moments = [0] * (devices + 1)
    for place in set(places[:-1]):
        moments[place] = max(_attention(model, tokens, context, flash), _feed_forward(model, tokens))
    moments[places[-1]] = max(moments[places[-1]], tokens * (model.vocabulary + model.width) * 4)
    needs = [moment and moment + 2 * state + mask for moment in moments]
    if devices:
        offloading = HOST in places[:-1]
        for device in range(devices):
            needs[device] = max(needs[device], 2 * state + mask) + (model.largest if offloading else 0)
        needs[HOST] = max(needs[HOST], 2 * state + mask)
    return needs


def output_buffer(model: ModelMemory) -> int:
    """The logits of one token, which llama.cpp keeps in host memory."""
    return model.vocabulary * 4


def _attention(model: ModelMemory, tokens: int, context: int, flash: bool) -> int:
    queries = tokens * model.heads * model.key_length * 4
    fused = queries + 2 * tokens * model.heads_kv * model.key_length * 4
    if flash:
        return fused + queries
    return fused + tokens * padded_context(context) * model.heads * 4


def _feed_forward(model: ModelMemory, tokens: int) -> int:
    return tokens * model.feed_forward * 3 * 4 * max(1, model.experts_used)
