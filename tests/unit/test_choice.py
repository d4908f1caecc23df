"""The choice among measured schemes, and how few of them have to be measured for it."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from phitui.domain.choice import (
    Bars,
    Candidate,
    choose,
    explain,
    parse_bars,
    search_finest,
    search_smallest,
    size_text,
    with_error,
)
from phitui.errors import UsageError

MIB = 2**20
LADDER = [Candidate(f"S{size}", size * MIB, 1 / size, 0.001) for size in range(160, 0, -10)]
"""Sixteen schemes; the smaller the more divergent."""


def test_the_smallest_that_is_good_enough() -> None:
    assert choose(LADDER, Bars(max_kld=0.0261)) == Candidate("S40", 40 * MIB, 0.025, 0.001)


def test_the_error_counts_against_it() -> None:
    assert choose(LADDER, Bars(max_kld=0.0255)).scheme == "S50"  # type: ignore[union-attr]


def test_the_best_that_is_small_enough() -> None:
    assert choose(LADDER, Bars(max_size=75 * MIB)).scheme == "S70"  # type: ignore[union-attr]
    better = Candidate("T50", 50 * MIB, 0.0001)
    assert choose([*LADDER, better], Bars(max_size=75 * MIB)) == better


def test_both_bars() -> None:
    assert choose(LADDER, Bars(0.0261, 60 * MIB)).scheme == "S40"  # type: ignore[union-attr]
    assert choose(LADDER, Bars(0.001, 60 * MIB)) is None


def test_only_measured_ones_count() -> None:
    unknown = [Candidate("A", MIB), Candidate("B", 2 * MIB, reason="measured on another text")]
    assert choose(unknown, Bars(max_kld=9.0)) is None
    assert choose(unknown, Bars(max_size=10**12)) is None


class Asked:
    def __init__(self, candidates: Sequence[Candidate], bars: Bars) -> None:
        self.names: list[str] = []
        self._bars = bars

    def passes(self, candidate: Candidate) -> bool:
        self.names.append(candidate.scheme)
        return self._bars.passes(candidate)

    def bound(self, candidate: Candidate) -> float:
        self.names.append(candidate.scheme)
        return candidate.bound


@pytest.mark.parametrize("size", [5, *range(10, 161, 10), 200])
def test_halving_finds_the_smallest_of_a_ladder(size: int) -> None:
    bars = Bars(max_kld=1 / size + 0.0011)
    asked = Asked(LADDER, bars)
    search_smallest(LADDER, asked.passes)
    assert len(set(asked.names)) == len(asked.names) <= 4 + 2 + 1
    known = [c for c in LADDER if c.scheme in asked.names]
    assert choose(known, bars) == choose(LADDER, bars)


def test_one_that_is_out_of_line_does_not_end_the_search() -> None:
    odd = [Candidate(c.scheme, c.size, 9.0) if c.scheme == "S50" else c for c in LADDER]
    bars = Bars(max_kld=0.04)
    asked = Asked(odd, bars)
    search_smallest(odd, asked.passes)
    assert choose([c for c in odd if c.scheme in asked.names], bars).scheme == "S30"  # type: ignore[union-attr]


def test_the_finest_is_looked_for_from_above() -> None:
    bent = [Candidate("A", 5, 0.2), Candidate("B", 4, 0.1), Candidate("C", 3, 0.3), Candidate("D", 2, 0.4)]
    asked = Asked([*bent, Candidate("E", 1, 0.0)], Bars(max_size=9))
    search_finest([*bent, Candidate("E", 1, 0.0)], asked.bound)
    assert asked.names == ["A", "B", "C", "D"]
    search_finest([], asked.bound)
    search_smallest([], asked.passes)


def test_the_explanation_names_what_was_not_measured() -> None:
    candidates = [
        Candidate("FULL", 40 * MIB, 0.0, is_reference=True),
        Candidate("Q5", 26 * MIB, 0.012, 0.001),
        Candidate("Q4", 20 * MIB, 0.041, 0.002),
        Candidate("Q3", 15 * MIB, reason="not measured"),
        Candidate("IQ2", 10 * MIB, reason="needs an importance matrix"),
    ]
    bars = Bars(max_kld=0.02)
    lines = explain(candidates[1], candidates, bars)
    assert lines == (
        "Q5 is the smallest measured scheme that is good enough: KLD 0.012 ±0.001, 26.0 MiB (KLD at most 0.02)",
        "smaller, but not good enough: Q4 (KLD 0.041 ±0.002, 20.0 MiB)",
        "no better, or larger than needed: FULL (KLD 0, 40.0 MiB)",
        "not measured: Q3",
        "needs an importance matrix: IQ2",
    )
    by_size = explain(candidates[2], candidates, Bars(max_size=21 * MIB))
    assert by_size[0] == "Q4 is the best measured scheme: KLD 0.041 ±0.002, 20.0 MiB (a size of at most 21.0 MiB)"
    assert by_size[1].startswith("too large: FULL (KLD 0, 40.0 MiB), Q5")
    assert "full-precision model itself" in explain(candidates[0], candidates, bars)[0]


@pytest.mark.parametrize(
    ("text", "bars"),
    [
        ("0.02", Bars(0.02)),
        ("4GiB", Bars(None, 4 << 30)),
        ("0.02 900M", Bars(0.02, 900 << 20)),
        ("900M, 1e-3", Bars(1e-3, 900 << 20)),
        ("", Bars()),
    ],
)
def test_bars_as_people_write_them(text: str, bars: Bars) -> None:
    assert parse_bars(text) == bars


def test_bars_that_make_no_sense() -> None:
    with pytest.raises(UsageError, match="'small' is neither"):
        parse_bars("small")


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (0.0580123, 0.0024424, "0.058 ±0.002"),
        (11.868, 0.98, "11.9 ±1.0"),
        (0.0, 0.0, "0"),
        (0.00439, 0.000157, "0.0044 ±0.0002"),
        (1234.5, 20.0, "1234 ±20"),
        (0.5, float("nan"), "0.5"),
    ],
)
def test_values_are_rounded_to_their_error(value: float, error: float, text: str) -> None:
    assert with_error(value, error) == text


def test_sizes() -> None:
    assert (size_text(5 << 30), size_text(87 * MIB + 1024)) == ("5.00 GiB", "87.0 MiB")
