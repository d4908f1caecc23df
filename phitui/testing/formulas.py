"""What Phi computes, in plain numpy and float64: written to be read, not to be fast.

Rows are tokens: `x` is (tokens, columns), heads are (tokens, heads, dimensions). Sources: the model code of Phi, Phi-3
and Phi-MoE in transformers, and the papers named below. Nothing here comes from a converter or from llama.cpp, but for
`softmax_routing`, which says what llama.cpp does instead of `sparsemixer`.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

JITTER = 0.01
"""router_jitter_noise of Phi-3.5-MoE."""


def softmax(x: Any) -> Any:
    exponential = np.exp(x - x.max(-1, keepdims=True))
    return exponential / exponential.sum(-1, keepdims=True)


def silu(x: Any) -> Any:
    return x / (1 + np.exp(-x))


def gelu(x: Any) -> Any:
    """The approximation by tanh ("gelu_new"; Hendrycks and Gimpel, arXiv 1606.08415)."""
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def rms_norm(x: Any, weight: Any, epsilon: float, bias: Any = 0.0) -> Any:
    """Zhang and Sennrich, arXiv 1910.07467."""
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + epsilon) * weight + bias


def layer_norm(x: Any, weight: Any, epsilon: float, bias: Any = 0.0) -> Any:
    """Ba and others, arXiv 1607.06450."""
    return rms_norm(x - x.mean(-1, keepdims=True), weight, epsilon, bias)


def frequencies(base: float, dimensions: int, factors: Any = 1.0) -> Any:
    """Angle per position for each pair of rotated dimensions; `factors` are those of LongRoPE (arXiv 2402.13753)."""
    return 1.0 / (factors * base ** (np.arange(0, dimensions, 2) / dimensions))


def rotate(heads: Any, per_position: Any, scale: float = 1.0) -> Any:
    """Rotary embedding of the first dimensions of each head: pair i is (i, i + pairs). `scale` is for cos and sin."""
    pairs = len(per_position)
    angle = np.arange(len(heads))[:, None, None] * per_position
    cos, sin = np.cos(angle) * scale, np.sin(angle) * scale
    left, right, rest = heads[..., :pairs], heads[..., pairs : 2 * pairs], heads[..., 2 * pairs :]
    return np.concatenate([left * cos - right * sin, right * cos + left * sin, rest], axis=-1)


def attention(q: Any, k: Any, v: Any) -> Any:
    """Causal attention of rotated q and k; each head of k and v serves as many of q. Returns (tokens, columns)."""
    count, heads, width = q.shape
    k, v = (x.repeat(heads // x.shape[1], 1) for x in (k, v))
    scores = np.einsum("qhd,khd->hqk", q, k) / math.sqrt(width)
    scores = np.where(np.tril(np.ones((count, count), bool)), scores, -np.inf)
    return np.einsum("hqk,khd->qhd", softmax(scores), v).reshape(count, -1)


def softmax_routing(scores: Any, used: int) -> Any:
    """Share of each expert, 0 for those not chosen: the `used` best ones of a softmax, so that they sum to 1."""
    share = softmax(scores)
    best = np.argsort(-share, axis=1)[:, :used]
    chosen = np.zeros_like(share)
    np.put_along_axis(chosen, best, np.take_along_axis(share, best, 1), 1)
    return chosen / chosen.sum(1, keepdims=True)


def sparsemixer(scores: Any, jitter: float = JITTER) -> Any:
    """Share of each expert as Phi-3.5-MoE gives it (GRIN, arXiv 2409.12136): two experts, each by a softmax of its own.

    The softmax is over the scores close to the best one, so a clear winner has 1.0, and so has a clear second.
    """
    weights = np.zeros_like(scores)
    rows = np.arange(len(scores))
    left = scores.copy()
    for _ in range(2):
        best = left.max(1, keepdims=True)
        with np.errstate(invalid="ignore"):  # 0 / 0 is no distance
            far = (best - scores) / np.maximum(np.abs(scores), best) > 2 * jitter
        chosen = left.argmax(1)
        weights[rows, chosen] = softmax(np.where(far, -np.inf, left))[rows, chosen]
        left[rows, chosen] = -np.inf
    return weights
