"""The checks, as a class for pytest and as functions."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from phitui.testing import forward
from phitui.testing.conformance import building, golden, tokens
from phitui.testing.conformance.cases import CASES, Case
from phitui.testing.conformance.native import Llama

NO_LLAMA = "llama-cpp-python is missing"


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


class Conformance:
    """Subclass it in a test file; override `build` to test another converter than the installed one."""

    def build(self, checkpoint: Path, out: Path, scheme: str = "AUTO", tokenizer: str = "spm", **options: Any) -> Path:
        """Write the GGUF of a checkpoint whose `tokenizer` is "spm" or "bpe" with an unknown pre-tokenizer.

        `options`: `mmproj` asks for the vision part, `pre_tokenizer` names the pre-tokenizer of a "bpe" vocabulary.
        """
        try:
            return building.build(checkpoint, out, scheme, tokenizer, **options)
        except building.NotHere as error:
            pytest.skip(str(error))

    @pytest.fixture(scope="class")
    def llama(self) -> Iterator[Llama]:
        if importlib.util.find_spec("llama_cpp") is None:
            pytest.skip(NO_LLAMA)
        with Llama() as child:
            yield child

    @pytest.mark.parametrize(
        ("name", "scheme"), [(name, scheme) for name, case in golden.GOLDEN.items() for scheme in case.schemes]
    )
    def test_equals_the_reference_converter(self, name: str, scheme: str, tmp_path: Path) -> None:
        case = golden.GOLDEN[name]
        checkpoint = golden.checkpoint(name, tmp_path)
        out = self.build(checkpoint, tmp_path / "out.gguf", scheme.upper(), case.tokenizer, **case.options)
        written, expected = golden.digest(out), golden.expected(name, scheme)
        assert written["keys"] == expected["keys"]
        assert written["tensors"] == expected["tensors"]

    @pytest.mark.parametrize("name", CASES)
    def test_logits_are_the_checkpoint_s(self, name: str, tmp_path: Path, llama: Llama) -> None:
        case = CASES[name]
        checkpoint = case.write(tmp_path / name)
        model = self.build(checkpoint, tmp_path / "out.gguf", case.dtype, case.tokenizer)
        found = compare(checkpoint, model, case, llama)
        assert found.ok, str(found)

    @pytest.mark.parametrize("name", tokens.VOCABULARIES)
    def test_tokens_are_the_checkpoint_s(self, name: str, tmp_path: Path, llama: Llama) -> None:
        one = tokens.VOCABULARIES[name]
        checkpoint = one.write(tmp_path / name)
        model = self.build(checkpoint, tmp_path / "out.gguf", "BF16", one.tokenizer, **one.options)
        texts = tokens.texts(checkpoint)
        found = llama.tokens(model, texts)
        for library, ids in tokens.libraries(checkpoint).items():
            for text, ours in zip(texts, found, strict=True):
                wanted = ids(text)
                assert wanted is None or ours == wanted, f"not the tokens of {library}: {text!r}"
