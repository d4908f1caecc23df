"""Which scheme is best by what was measured: the smallest that is good enough, or the best that is small enough.

The bar is the mean KL divergence from the full-precision model plus its standard error, in nats per token.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from phitui.domain.sizes import parse_size
from phitui.errors import UsageError

PATIENCE = 2
"""How many schemes in a row must miss before a search gives up: quality falls with size, but not strictly."""


@dataclass(frozen=True)
class Candidate:
    """A scheme that could be chosen. `kld` is None where nothing comparable was measured; `reason` says why."""

    scheme: str
    size: int
    kld: float | None = None
    error: float = 0.0
    reason: str = ""
    is_reference: bool = False

    @property
    def bound(self) -> float:
        """The divergence that counts: the mean and its error."""
        return float("inf") if self.kld is None else self.kld + self.error


@dataclass(frozen=True)
class Bars:
    """At least one of them is given. `max_size` in bytes."""

    max_kld: float | None = None
    max_size: int | None = None

    def allows(self, candidate: Candidate) -> bool:
        """Whether its size will do."""
        return self.max_size is None or candidate.size <= self.max_size

    def passes(self, candidate: Candidate) -> bool:
        """Whether it was measured, and both its size and its divergence will do."""
        if candidate.kld is None or not self.allows(candidate):
            return False
        return self.max_kld is None or candidate.bound <= self.max_kld

    @property
    def text(self) -> str:
        kld = f"KLD at most {self.max_kld:g}" if self.max_kld is not None else ""
        size = f"a size of at most {size_text(self.max_size)}" if self.max_size is not None else ""
        return " and ".join(filter(None, (kld, size)))


def parse_bars(text: str) -> Bars:
    """The bars of "0.02", "4GiB" or "0.02 4GiB": a plain number is a divergence. Raises UsageError."""
    kld: float | None = None
    size: int | None = None
    for word in text.replace(",", " ").split():
        try:
            kld = float(word)
        except ValueError:
            size = parse_size(word)
            if size is None:
                raise UsageError(
                    f"{word!r} is neither a divergence nor a size", "for example 0.02, or 4GiB, or both"
                ) from None
    return Bars(kld, size)


def choose(candidates: Sequence[Candidate], bars: Bars) -> Candidate | None:
    """With a bar for the divergence the smallest that passes, else the least divergent; None if none passes."""
    passing = [candidate for candidate in candidates if bars.passes(candidate)]
    if bars.max_kld is not None:
        return min(passing, key=lambda c: (c.size, c.bound), default=None)
    return min(passing, key=lambda c: (c.kld, c.size), default=None)


def search_smallest(candidates: Sequence[Candidate], passes: Callable[[Candidate], bool]) -> None:
    """Ask about as few candidates as will do to know the smallest that passes; they are sorted from large to small.

    Halves the list until the border is found, then goes on downwards until PATIENCE in a row have missed.
    """
    good, bad = -1, len(candidates)
    answers: dict[int, bool] = {}

    def ask(index: int) -> bool:
        if index not in answers:
            answers[index] = passes(candidates[index])
        return answers[index]

    while bad - good > 1:
        middle = (good + bad) // 2
        if ask(middle):
            good = middle
        else:
            bad = middle
    missed, index = 0, good + 1
    while index < len(candidates) and missed < PATIENCE:
        missed = 0 if ask(index) else missed + 1
        index += 1


def search_finest(candidates: Sequence[Candidate], bound: Callable[[Candidate], float]) -> None:
    """Ask about as few candidates as will do to know the least divergent; they are sorted from large to small.

    Goes downwards from the largest until PATIENCE in a row were no better than the best.
    """
    best, missed = float("inf"), 0
    for candidate in candidates:
        found = bound(candidate)
        missed = 0 if found < best else missed + 1
        best = min(best, found)
        if missed >= PATIENCE:
            return


def explain(chosen: Candidate, candidates: Sequence[Candidate], bars: Bars) -> tuple[str, ...]:
    """Sentences that say why it is this one: what else was measured, and what was not."""
    others = [other for other in candidates if other.scheme != chosen.scheme]
    measured = [other for other in others if other.kld is not None]
    lines = [_why(chosen, bars)]
    groups: list[tuple[str, list[Candidate]]] = [
        ("smaller, but not good enough", [o for o in measured if bars.allows(o) and o.size < chosen.size]),
        ("no better, or larger than needed", [o for o in measured if bars.allows(o) and o.size >= chosen.size]),
        ("too large", [o for o in measured if not bars.allows(o)]),
    ]
    if bars.max_kld is None:
        groups[:2] = [("less good", [o for o in measured if bars.allows(o)])]
    lines += [f"{title}: {_listed(found)}" for title, found in groups if found]
    reasons: dict[str, list[str]] = {}
    for other in others:
        if other.kld is None and bars.allows(other):
            reasons.setdefault(other.reason or "not measured", []).append(other.scheme)
    lines += [f"{reason}: {_names(names)}" for reason, names in reasons.items()]
    return tuple(lines)


def _why(chosen: Candidate, bars: Bars) -> str:
    if chosen.is_reference:
        what = "is the full-precision model itself, the only one that will do"
        if bars.max_kld is None:
            what = "is the full-precision model itself, and small enough"
        return f"{chosen.scheme} {what}: {size_text(chosen.size)} ({bars.text})"
    what = (
        "the smallest measured scheme that is good enough" if bars.max_kld is not None else "the best measured scheme"
    )
    return f"{chosen.scheme} is {what}: {kld_text(chosen)}, {size_text(chosen.size)} ({bars.text})"


def _listed(candidates: Sequence[Candidate]) -> str:
    return ", ".join(f"{c.scheme} ({kld_text(c)}, {size_text(c.size)})" for c in candidates)


def _names(names: Sequence[str], most: int = 8) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def kld_text(candidate: Candidate) -> str:
    """KLD 0.012 ±0.001, or why there is none."""
    if candidate.kld is None:
        return candidate.reason or "not measured"
    return f"KLD {with_error(candidate.kld, candidate.error)}"


def with_error(value: float, error: float) -> str:
    """A value rounded to what its standard error leaves of it: 0.041 ±0.002."""
    if not error > 0 or not math.isfinite(error):
        return f"{value:.3g}"
    places = min(8, max(0, -math.floor(math.log10(error))))
    return f"{value:.{places}f} ±{error:.{places}f}"


def size_text(size: int) -> str:
    """Bytes in binary units: 2.32 GiB, 87.1 MiB."""
    return f"{size / 2**30:.2f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"
