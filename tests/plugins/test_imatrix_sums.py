"""Sums of squared activations: what is added, what a cut short chunk leaves, what is kept for another try."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("phitui_quantize")
from phitui_quantize import sums as kept
from phitui_quantize.sums import Sums

from phitui.errors import InvalidFile

RANDOM = np.random.default_rng(3)
IDENTITY = {"text": "abc", "context": 32}


def rows(*shape: int) -> np.ndarray:
    return RANDOM.normal(0, 1, shape).astype(np.float32)


def added(sums: Sums) -> Sums:
    sums.commit()
    return sums


def test_dense() -> None:
    sums = Sums()
    one, two = rows(1, 1, 20, 8), rows(1, 1, 30, 8)
    for values in (one, two):
        sums.begin()
        sums.dense("a", values, 1)
        sums.commit()
    together = np.concatenate([one, two], axis=2)[0, 0].astype(np.float64)
    np.testing.assert_allclose(sums.squares["a"], (together**2).sum(0, keepdims=True), rtol=1e-5)
    assert sums.counts["a"].tolist() == [50]
    assert sums.chunks == 2


def test_dense_rows_need_not_lie_side_by_side() -> None:
    wide = rows(1, 1, 20, 12)
    sums = Sums()
    sums.dense("a", wide[..., :8], 1)
    np.testing.assert_allclose(added(sums).squares["a"][0], (wide[0, 0, :, :8] ** 2).sum(0), rtol=1e-5)


def test_a_stack_of_dense_weights_has_one_count() -> None:
    values = rows(1, 3, 20, 8)
    sums = Sums()
    sums.dense("a", values, 3)
    np.testing.assert_allclose(added(sums).squares["a"], (values[0] ** 2).sum(1), rtol=1e-5)
    assert sums.counts["a"].tolist() == [20]


@pytest.mark.parametrize("slots", [1, 2], ids=["shared", "own"])
def test_experts(slots: int) -> None:
    """The same as a loop over all tokens and chosen experts."""
    values = rows(40, slots, 8)
    ids = np.stack([RANDOM.permutation(4)[:2] for _ in range(40)]).astype(np.int32)
    squares, counts = np.zeros((5, 8)), np.zeros(5, int)
    for token in range(40):
        for slot in range(2):
            squares[ids[token, slot]] += values[token, slot % slots].astype(np.float64) ** 2
            counts[ids[token, slot]] += 1
    sums = Sums()
    sums.experts("a", values, ids, 5)
    np.testing.assert_allclose(added(sums).squares["a"], squares, rtol=1e-5)
    assert sums.counts["a"].tolist() == counts.tolist()
    assert sums.unused() == {"a": [4]}


def test_a_chunk_that_was_cut_short_leaves_no_trace() -> None:
    sums = Sums()
    sums.dense("a", np.ones((1, 1, 4, 2), np.float32), 1)
    sums.commit()
    sums.dense("a", rows(1, 1, 3, 2), 1)
    sums.begin()
    sums.dense("a", np.ones((1, 1, 4, 2), np.float32), 1)
    sums.commit()
    assert (sums.squares["a"].tolist(), sums.counts["a"].tolist(), sums.chunks) == ([[8, 8]], [8], 2)


@pytest.mark.parametrize("value", [np.nan, np.inf, 3e38])
def test_what_is_not_finite_is_refused(value: float) -> None:
    with pytest.raises(InvalidFile, match=r"blk\.0\.x"), np.errstate(over="ignore"):
        Sums().dense("blk.0.x", np.full((1, 1, 16, 4), value, np.float32), 1)


def test_kept_and_found_again(tmp_path: Path) -> None:
    sums = Sums()
    sums.dense("blk.0.a b", rows(1, 1, 20, 8), 1)
    sums.experts("e", rows(4, 1, 8), np.zeros((4, 1), np.int32), 2)
    sums.commit()
    path = tmp_path / "x.state"
    sums.save(path, IDENTITY)
    again = kept.load(path, IDENTITY)
    assert again is not None
    assert again.chunks == 1
    assert again.squares.keys() == sums.squares.keys()
    for name, squares in sums.squares.items():
        assert again.squares[name].tobytes() == squares.tobytes()
        assert again.counts[name].tolist() == sums.counts[name].tolist()
    assert list(tmp_path.glob("x.*")) == [path]


def test_of_other_work_or_damaged(tmp_path: Path) -> None:
    sums = Sums()
    sums.dense("a", rows(1, 1, 20, 8), 1)
    sums.commit()
    path = tmp_path / "x.state"
    assert kept.load(path, IDENTITY) is None
    sums.save(path, IDENTITY)
    assert kept.load(path, IDENTITY | {"context": 64}) is None
    data = path.read_bytes()
    for cut in (0, 10, len(data) // 2, len(data) - 10):
        path.write_bytes(data[:cut])
        assert kept.load(path, IDENTITY) is None
