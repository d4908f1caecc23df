"""What the compute buffers of llama.cpp need, by formula: used where the engine itself cannot be asked.

llama.cpp lays out the graph of one micro-batch in its worst case; the peak is one of three moments: attention, the
feed-forward, or the logits. The terms are the tensors alive at that moment, all F32 but the flash attention mask; how
many copies of the hidden state live beside them was read off the allocator's own figures for the Phi shapes. Within a
few per cent of them on the host; sizes are bytes.
"""

from __future__ import annotations

from collections.abc import Sequence

from phitui.domain.chat import EngineSettings
from phitui.domain.hardware import DeviceKind
from phitui.domain.placement import HOST, ModelMemory, sequence_context


def compute_estimate(
    model: ModelMemory, places: Sequence[int], kinds: Sequence[DeviceKind], settings: EngineSettings
) -> list[int]:
    """Estimated compute buffer of each device and, last, of the host; `places` as phitui.domain.placement.deal's.

    A GPU also computes prompts for the layers that stay on the host (op_offload): it then needs room for the graph
    and for one of their weights. An RPC worker does not.
    """
    graph = _Graph(model, settings)
    needs = [0] * (len(kinds) + 1)
    for place in set(places[:-1]):
        with_experts = any(here == place for here in places[settings.n_cpu_moe : -1])
        attends, feeds = settings.kv_offload or place == HOST, with_experts or place == HOST
        needs[place] = graph.repeating(on_host=place == HOST, attends=attends, feeds=feeds)
    last = places[-1]
    needs[last] = max(needs[last], graph.logits(last == HOST, last in places[:-1], HOST not in places))
    if kinds:
        needs[HOST] = max(needs[HOST], graph.hand_over())
    experts = bool(kinds) and settings.n_cpu_moe > 0 and HOST not in places[: settings.n_cpu_moe]
    if kinds and (experts or not settings.kv_offload):
        needs[HOST] = max(needs[HOST], graph.repeating(on_host=True))
    copies = settings.op_offload and kinds and kinds[0] in ("gpu", "igpu")
    if copies and (HOST in places or experts):
        copied = max(model.largest, (model.output or model.embedding) if places[-1] == HOST else 0)
        needs[0] = max(needs[0], graph.repeating(on_host=False), graph.logits(False, True, False)) + copied
    return needs


def output_buffer(model: ModelMemory) -> int:
    """The logits of one token, which llama.cpp keeps in host memory."""
    return model.vocabulary * 4


class _Graph:
    """Sizes of the tensors of one micro-batch."""

    def __init__(self, model: ModelMemory, settings: EngineSettings) -> None:
        self._model = model
        self._flash = settings.flash_attention is not False
        cells = sequence_context(settings.context, settings.parallel, settings.kv_unified)
        self._tokens = min(settings.ubatch, settings.batch, settings.context)
        self._cells = cells
        self._state = self._tokens * model.width * 4
        self._mask = self._tokens * cells * (2 if self._flash else 4)

    def repeating(self, on_host: bool, attends: bool = True, feeds: bool = True) -> int:
        """A repeating layer's peak; attention is not its own where the KV cache stays on the host, nor experts there.

        The embedded tokens are the host's: another device holds one state less.
        """
        attention, feed_forward = attends and self._attention(), feeds and self._feed_forward()
        return max(attention, feed_forward, self._state) - (0 if on_host else self._state)

    def logits(self, on_host: bool, with_layers: bool, all_offloaded: bool) -> int:
        """The logits of all tokens, beside hidden states. These go where the mask was, if that is large enough."""
        logits = self._tokens * self._model.vocabulary * 4
        if not with_layers:
            return logits + (3 if self._model.experts_used else 1) * self._state
        if self._mask >= self._state:
            return logits + (2 if on_host or all_offloaded else 3) * self._state
        return logits + self._mask + (4 if on_host else 3) * self._state

    def hand_over(self) -> int:
        """What the host holds of a graph that runs elsewhere: the embedded tokens, the mask, what is passed on."""
        return self._mask + self._state + (self._state if self._flash else self._queries_keys_values())

    def _attention(self) -> int:
        """Queries, keys and values of all tokens; without flash attention also every head's scores."""
        scores = 0 if self._flash else self._tokens * self._cells * self._model.heads * 4
        states = 4 if self._model.experts_used else 2
        return self._queries_keys_values() + scores + self._mask + states * self._state

    def _queries_keys_values(self) -> int:
        heads = self._model.heads + 2 * self._model.heads_kv
        return self._tokens * heads * self._model.key_length * 4

    def _feed_forward(self) -> int:
        """The gate, the up projection and their product; of every used expert in a mixture."""
        used = max(1, self._model.experts_used)
        states = 4 if self._model.experts_used else 3
        return 3 * self._tokens * self._model.feed_forward * 4 * used + self._mask + states * self._state
