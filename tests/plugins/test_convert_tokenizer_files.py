"""Tokenizer files that are absent, broken, or of different models: each is named, and what to do."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from phitui_convert.converter import ConvertOptions, PhiConverter

from phitui.api import InvalidFile
from phitui.testing.checkpoints import converter_options, write_checkpoint


def opened(directory: Path, tokenizer: Any = "spm") -> Any:
    return PhiConverter().open(directory, ConvertOptions(**converter_options(tokenizer)))


def rewrite(path: Path, change: Callable[[Any], Any]) -> None:
    values = json.loads(path.read_text(encoding="utf-8"))
    changed = change(values)
    path.write_text(json.dumps(values if changed is None else changed), encoding="utf-8")


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "tiny", hidden=32, intermediate=32)


@pytest.fixture
def bpe(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "bpe", tokenizer="bpe", hidden=32, intermediate=32)


def contradiction(directory: Path, tokenizer: str = "spm") -> str:
    with pytest.raises(InvalidFile, match="its tokenizer files contradict each other: ") as caught:
        opened(directory, tokenizer)
    assert str(directory) in caught.value.message
    assert "one revision" in caught.value.hint
    return caught.value.message.split(": ", 2)[2]


def test_files_that_agree(tiny: Path, bpe: Path) -> None:
    assert opened(tiny) and opened(bpe, "bpe")


def test_one_id_two_tokens(tiny: Path) -> None:
    first = json.loads((tiny / "added_tokens.json").read_text())["<|end|>"]
    rewrite(tiny / "added_tokens.json", lambda tokens: {"<|stop|>": tokens.pop("<|end|>"), **tokens})
    expected = f"added_tokens.json says that token {first} is '<|stop|>', tokenizer_config.json that it is '<|end|>'"
    assert contradiction(tiny) == expected


def test_one_token_two_ids(tiny: Path) -> None:
    def move(config: Any) -> None:
        decoder = config["added_tokens_decoder"]
        (place,) = (token for token, entry in decoder.items() if entry["content"] == "<|user|>")
        decoder["639"] = decoder.pop(place)

    rewrite(tiny / "tokenizer_config.json", move)
    assert "gives '<|user|>' the id" in contradiction(tiny)
    assert "tokenizer_config.json gives it 639" in contradiction(tiny)


@pytest.mark.parametrize("tokenizer", ["spm", "bpe"])
def test_tokenizer_json_of_another_revision(tokenizer: str, tiny: Path, bpe: Path) -> None:
    directory = tiny if tokenizer == "spm" else bpe
    rewrite(directory / "tokenizer.json", lambda fast: fast["added_tokens"][-1].update(content="<|new|>"))
    assert "tokenizer.json that it is '<|new|>'" in contradiction(directory, tokenizer)


def test_tokenizer_model_of_another_model(tiny: Path) -> None:
    def turn(fast: Any) -> None:
        words = fast["model"]["vocab"]
        words["▁the"], words["▁of"] = words["▁of"], words["▁the"]

    rewrite(tiny / "tokenizer.json", turn)
    assert contradiction(tiny).startswith("tokenizer.model gives '▁the' the id")


def test_tokenizers_of_two_kinds(tiny: Path, bpe: Path) -> None:
    (tiny / "tokenizer.json").write_bytes((bpe / "tokenizer.json").read_bytes())
    (tiny / "added_tokens.json").unlink()
    rewrite(tiny / "tokenizer_config.json", lambda config: config.pop("added_tokens_decoder") and None)
    assert contradiction(tiny) == "tokenizer.model is a SentencePiece model, and tokenizer.json is not"


def test_a_class_without_its_file(tiny: Path) -> None:
    """GPT2Tokenizer in the config, but the files are SentencePiece's."""
    rewrite(tiny / "tokenizer_config.json", lambda config: config.update(tokenizer_class="GPT2Tokenizer"))
    (tiny / "tokenizer.json").unlink()
    with pytest.raises(InvalidFile, match=r"GPT2Tokenizer, but there is .* no tokenizer.json") as caught:
        opened(tiny)
    assert "tokenizer files of the base model" in caught.value.hint


@pytest.mark.parametrize("name", ["tokenizer_config.json", "tokenizer.json", "added_tokens.json"])
def test_a_file_that_is_no_json(name: str, tiny: Path) -> None:
    (tiny / name).write_text("<html>Too many requests</html>")
    with pytest.raises(InvalidFile, match=f"{name}: is not JSON") as caught:
        opened(tiny)
    assert "download it again" in caught.value.hint


def test_more_pieces_than_the_model_has_embeddings(tiny: Path, bpe: Path) -> None:
    for directory, tokenizer, said in ((tiny, "spm", "tokenizer.model has"), (bpe, "bpe", "a token with id")):
        rewrite(directory / "config.json", lambda config: config.update(vocab_size=300))
        with pytest.raises(InvalidFile, match=f"{said} .*config.json says vocab_size 300|embed_tokens.*has shape"):
            opened(directory, tokenizer)
