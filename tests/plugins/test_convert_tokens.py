"""A rendered chat has the same token ids in llama.cpp, with the written vocabulary, as in Hugging Face's tokenizer."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from phitui_convert.converter import ConvertOptions, PhiConverter
from phitui_convert.floats import FloatQuantizer

from phitui.api import render_chat, write_gguf
from phitui.testing.checkpoints import converter_options, write_checkpoint

pytestmark = pytest.mark.skipif(importlib.util.find_spec("llama_cpp") is None, reason="llama-cpp-python is missing")

CHAT = [
    {"role": "system", "content": "You are a helpful assistant."},
    {"role": "user", "content": "What is the capital of France?"},
    {"role": "assistant", "content": "Paris."},
    {"role": "user", "content": "  And\n\n of wörld? 😶\u200d🌫️ سلام çğış kept <tag> "},
]
ODD = ["<|user|>   \n  Hi<|end|><|endoftext|>\nfoo", "a<tag>b kept c<|tool|> d</s> e", "<|end|>", "  ", "<|user|>\n\n"]
CHILD = """
import json, sys
from llama_cpp import Llama
model = Llama(sys.argv[1], vocab_only=True, verbose=False)
texts = json.load(sys.stdin)
print(json.dumps([model.tokenize(text.encode(), add_bos=False, special=True) for text in texts]))
"""


def written(directory: Path, tokenizer: str, **options: str) -> Path:
    source = PhiConverter().open(directory, ConvertOptions(**converter_options(tokenizer), **options))
    out = directory.with_suffix(".gguf")
    write_gguf(FloatQuantizer().plan(source, ["BF16"], None)["BF16"], out)
    return out


def llama_ids(model: Path, texts: list[str]) -> list[list[int]]:
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(model)],
        input=json.dumps(texts),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    ids: list[list[int]] = json.loads(done.stdout.splitlines()[-1])
    return ids


def hugging_face_ids(directory: Path, texts: list[str]) -> list[list[int]]:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    return [tokenizer.encode(text, add_special_tokens=False).ids for text in texts]


def chat_texts(directory: Path) -> list[str]:
    config: dict[str, Any] = json.loads((directory / "tokenizer_config.json").read_text())
    template = config["chat_template"]
    return [
        render_chat(template, CHAT, eos="<|endoftext|>"),
        render_chat(template, CHAT[1:2], eos="<|endoftext|>"),
        *ODD,
    ]


@pytest.mark.parametrize(
    ("name", "tokenizer"),
    [("Phi-3-tiny-instruct", "spm"), ("my-finetune", "spm"), ("Phi-4-tiny", "bpe"), ("phi3-finetune", "bpe")],
)
def test_same_ids(name: str, tokenizer: str, tmp_path: Path) -> None:
    directory = write_checkpoint(tmp_path / name, tokenizer=tokenizer)
    texts = chat_texts(directory)
    assert llama_ids(written(directory, tokenizer), texts) == hugging_face_ids(directory, texts)


def test_markers_that_do_not_strip(tmp_path: Path) -> None:
    """A SentencePiece tokenizer whose markers keep the whitespace after them gets a name that says nothing of phi-3."""
    directory = write_checkpoint(tmp_path / "phi3-mine")
    for file in ("tokenizer.json", "tokenizer_config.json"):
        path = directory / file
        path.write_text(path.read_text().replace('"rstrip": true', '"rstrip": false'))
    texts = ["<|user|>\nHello<|end|>\n<|assistant|>\n"]
    assert llama_ids(written(directory, "spm"), texts) == hugging_face_ids(directory, texts)


def test_the_newline_after_a_marker_is_eaten(tmp_path: Path) -> None:
    directory = write_checkpoint(tmp_path / "Phi-3-tiny")
    with_newlines, without = llama_ids(written(directory, "spm"), ["<|user|>\nHello<|end|>\n", "<|user|>Hello<|end|>"])
    assert with_newlines == without


def test_a_name_of_ones_own_is_kept(tmp_path: Path) -> None:
    """It turns the stripping off, which a note says."""
    directory = write_checkpoint(tmp_path / "Phi-3-tiny")
    source = PhiConverter().open(directory, ConvertOptions(name="Mine"))
    assert source.metadata["general.name"].value == "Mine"
    assert any("phi-3" in note for note in source.notes)
    kept, stripped = llama_ids(written(directory, "spm", name="Mine"), ["<|user|>\n", "<|user|>"])
    assert kept != stripped
