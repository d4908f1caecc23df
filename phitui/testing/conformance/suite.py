"""The checks, as a class for pytest."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from phitui.testing.conformance import building, golden, tokens
from phitui.testing.conformance.cases import CASES
from phitui.testing.conformance.comparing import compare
from phitui.testing.conformance.native import Llama

NO_LLAMA = "llama-cpp-python is missing"


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
