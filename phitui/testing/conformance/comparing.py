"""Logits of llama.cpp beside those of the checkpoint."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from phitui.testing import forward
from phitui.testing.conformance.cases import Case
from phitui.testing.conformance.native import Llama


@dataclass(frozen=True)
class Comparison:
    """How far two matrices of logits are apart: ||a - b|| / ||b|| over all positions, and at the worst of them."""

    error: float
    worst: float
    bound: float

    @property
    def ok(self) -> bool:
        return self.error <= self.bound and self.worst <= 2 * self.bound  # False for NaN, too

    def __str__(self) -> str:
        return f"relative error {self.error:.1e}, at the worst position {self.worst:.1e}; bound {self.bound:.0e}"


def compare(checkpoint: Path, model: Path, case: Case, llama: Llama) -> Comparison:
    """llama.cpp's logits of the GGUF beside those of the checkpoint."""
    ids = case.ids()
    found = llama.logits(model, ids, case.context).astype(np.float64)
    ways = (False, True) if case.or_as_llama_cpp else (False,)
    return min(
        (_apart(found, forward.logits(checkpoint, ids, as_llama_cpp=way), case.bound) for way in ways),
        key=lambda comparison: comparison.error,
    )


def _apart(found: Any, wanted: Any, bound: float) -> Comparison:
    apart = found - wanted
    at_each = np.linalg.norm(apart, axis=1) / np.linalg.norm(wanted, axis=1)
    return Comparison(float(np.linalg.norm(apart) / np.linalg.norm(wanted)), float(at_each.max()), bound)
