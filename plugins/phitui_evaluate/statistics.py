"""From logits to figures. Everything is per scored token; no native code, one row at a time in the processor's cache.

Perplexity is exp(mean of -ln p(token)). The KL divergence of a position is sum over the vocabulary of
p ln(p / q), with p the reference's probabilities and q the model's. Errors are standard errors of the mean as
llama-perplexity gives them: they treat tokens as independent, so they are somewhat small.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

FEW = 100
"""Below this count of tokens no percentiles are given."""


@dataclass(frozen=True)
class Estimate:
    """A mean and its standard error."""

    value: float
    error: float


class Rows:
    """Scores rows of logits; keeps its scratch memory between rows. One instance is for one thread."""

    def __init__(self, vocabulary: int) -> None:
        import numpy as np

        self._np = np
        self._own = np.empty(vocabulary, np.float32)
        self._other = np.empty(vocabulary, np.float32)

    def plain(self, logits: Array, tokens: Sequence[int], out: Array) -> None:
        """-ln p of each row's token into column 0 of `out`."""
        for row, token, result in zip(logits, tokens, out, strict=True):
            _, log_sum = self._softmax(row, self._own)
            result[0] = log_sum - float(row[token])

    def compared(self, logits: Array, reference: Array, tokens: Sequence[int], out: Array) -> None:
        """Of each row: -ln q(token), -ln p(token), KL divergence, and 1 where both have the same likeliest token."""
        np = self._np
        for row, base, token, result in zip(logits, reference, tokens, out, strict=True):
            top, log_sum = self._softmax(row, self._own)
            top_base, log_sum_base = self._softmax(base, self._other)
            total = float(self._other.sum(dtype=np.float64))
            # Differences relative to the one at the top, so that a constant shift of all logits costs no digits.
            shift = float(base[top_base]) - float(row[top_base])
            np.subtract(base, row, out=self._own)
            self._own -= np.float32(shift)
            self._own *= self._other
            mean = float(self._own.sum(dtype=np.float64)) / total
            result[0] = log_sum - float(row[token])
            result[1] = log_sum_base - float(base[token])
            result[2] = mean + (shift - (log_sum_base - log_sum))
            result[3] = top == top_base

    def _softmax(self, row: Array, powers: Array) -> tuple[int, float]:
        """(index of the largest value, ln of the sum of e^value); `powers` becomes e^(value - largest)."""
        np = self._np
        top = int(row.argmax())
        largest = row[top]
        np.subtract(row, largest, out=powers)
        np.exp(powers, out=powers)
        return top, float(largest) + math.log(float(powers.sum(dtype=np.float64)))


def estimate(values: Array) -> Estimate:
    """Mean and standard error; the error is 0 for fewer than 2 values."""
    count = len(values)
    return Estimate(float(values.mean()), float(values.std(ddof=1)) / math.sqrt(count) if count > 1 else 0.0)


def perplexity(losses: Array) -> Estimate:
    """exp(mean), with the error carried through the exponential."""
    mean = estimate(losses)
    value = math.exp(mean.value) if mean.value < 700 else math.inf
    return Estimate(value, value * mean.error)


def figures(scores: Array) -> dict[str, float]:
    """All figures of the scores of all tokens: rows of 1 value (see Rows.plain) or of 4 (see Rows.compared)."""
    own = perplexity(scores[:, 0])
    values = {"perplexity": own.value, "perplexity_error": own.error}
    if scores.shape[1] == 1:
        return values
    base = perplexity(scores[:, 1])
    ratio = estimate(scores[:, 0] - scores[:, 1])  # of pairs, so what both have in common cancels out of the error
    divergence = scores[:, 2]
    mean = estimate(divergence)
    agreement = float(scores[:, 3].mean())
    spread = math.sqrt(agreement * (1 - agreement) / max(1, len(scores) - 1))
    values |= {"reference_perplexity": base.value, "reference_perplexity_error": base.error}
    values |= {"ln_perplexity_ratio": ratio.value, "ln_perplexity_ratio_error": ratio.error}
    values |= {"kld_mean": mean.value, "kld_mean_error": mean.error}
    values |= percentiles(divergence)
    return values | {"top1_agreement": agreement, "top1_agreement_error": spread}


def percentiles(divergence: Array) -> dict[str, float]:
    """Median, p90, p99, p99.9 (between two values, in proportion) and maximum; the maximum alone of few values."""
    import numpy as np

    values = {"kld_max": float(divergence.max())}
    if len(divergence) >= FEW:
        names = {"kld_median": 50.0, "kld_p90": 90.0, "kld_p99": 99.0, "kld_p999": 99.9}
        values |= {name: float(np.percentile(divergence, percent)) for name, percent in names.items()}
    return values


def tight(scores: Array, tolerance: float) -> bool:
    """Whether the standard error of the main figure is at most `tolerance` times its value."""
    if scores.shape[1] == 1:
        return perplexity(scores[:, 0]).error <= tolerance * perplexity(scores[:, 0]).value
    mean = estimate(scores[:, 2])
    return mean.error <= tolerance * abs(mean.value)
