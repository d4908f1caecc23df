"""general.name, llama.cpp's switch (facts of phitui_convert.names)."""

from __future__ import annotations

import pytest
from phitui_convert.names import fit
from phitui_convert.vocabulary import Vocabulary

from phitui.api import UsageError

STRIPPING = Vocabulary("llama", {}, strips=True)
KEEPING = Vocabulary("llama", {}, strips=False)
BPE = Vocabulary("gpt2", {})


@pytest.mark.parametrize(
    ("name", "identifier", "vocabulary", "written"),
    [
        ("Phi 3 Mini 4k Instruct", "Phi-3-mini-4k-instruct", STRIPPING, "Phi-3-mini-4k-instruct"),
        ("Phi 3.5 Mini Instruct", "Phi-3.5-mini-instruct", STRIPPING, "Phi-3.5-mini-instruct"),
        ("Phi 3 Mini 4k Instruct", "", STRIPPING, "Phi-3-Mini-4k-Instruct"),
        ("My Finetune", "my-finetune", STRIPPING, "Phi-3 My Finetune"),
        ("Phi3 Mine", "phi3-mine", STRIPPING, "Phi3 Mine"),
        ("Phi3 Mine", "phi3-mine", KEEPING, "Phi 3 Mine"),
        ("Phi 3 Mine", "phi-3-mine", KEEPING, "Phi 3 Mine"),
        ("Phi 4", "phi-4", BPE, "Phi 4"),
        ("Phi3 Finetune", "phi3-finetune", BPE, "Phi 3 Finetune"),
        ("microsoft_phi-3 and PHI3", "", BPE, "microsoft_phi 3 and PHI 3"),
    ],
)
def test_fitted(name: str, identifier: str, vocabulary: Vocabulary, written: str) -> None:
    fitted, notes = fit(name, identifier, vocabulary)
    assert fitted == written
    assert bool(notes) == (written != name)


def test_own_name_of_a_bpe_model_that_would_not_load() -> None:
    with pytest.raises(UsageError, match="cannot load") as error:
        fit("Phi 4", "phi-4", BPE, "My phi-3")
    assert "'My phi 3'" in error.value.hint
