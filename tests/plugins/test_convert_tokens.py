"""What decides how a SentencePiece Phi treats the whitespace after its markers: its name, in llama.cpp.

That texts become the same tokens as in the libraries of Hugging Face is in phitui.testing.conformance.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("llama_cpp")
from phitui_convert.converter import ConvertOptions, PhiConverter

from phitui.testing.checkpoints import write_checkpoint
from phitui.testing.conformance import tokens
from phitui.testing.conformance.building import build
from phitui.testing.conformance.native import Llama


@pytest.fixture(scope="module")
def llama() -> Iterator[Llama]:
    with Llama() as child:
        yield child


def written(directory: Path, **options: str) -> Path:
    return build(directory, directory.with_suffix(".gguf"), "BF16", **options)


def test_markers_that_do_not_strip(tmp_path: Path, llama: Llama) -> None:
    """A SentencePiece tokenizer whose markers keep the whitespace after them gets a name that says nothing of phi-3."""
    directory = write_checkpoint(tmp_path / "phi3-mine")
    for file in ("tokenizer.json", "tokenizer_config.json"):
        path = directory / file
        path.write_text(path.read_text().replace('"rstrip": true', '"rstrip": false'))
    texts = ["<|user|>\nHello<|end|>\n<|assistant|>\n"]
    assert llama.tokens(written(directory), texts) == [
        tokens.libraries(directory)["tokenizers"](text) for text in texts
    ]


def test_the_newline_after_a_marker_is_eaten(tmp_path: Path, llama: Llama) -> None:
    directory = write_checkpoint(tmp_path / "Phi-3-tiny")
    with_newlines, without = llama.tokens(written(directory), ["<|user|>\nHello<|end|>\n", "<|user|>Hello<|end|>"])
    assert with_newlines == without


def test_a_name_of_ones_own_is_kept(tmp_path: Path, llama: Llama) -> None:
    """It turns the stripping off, which a note says."""
    directory = write_checkpoint(tmp_path / "Phi-3-tiny")
    source = PhiConverter().open(directory, ConvertOptions(name="Mine"))
    assert source.metadata["general.name"].value == "Mine"
    assert any("phi-3" in note for note in source.notes)
    kept, stripped = llama.tokens(written(directory, name="Mine"), ["<|user|>\n", "<|user|>"])
    assert kept != stripped
