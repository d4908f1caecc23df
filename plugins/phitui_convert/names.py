"""`general.name`, which is a switch in llama.cpp and not only a label.

If it contains "phi-3" or "phi3" (any case), llama.cpp lets the special tokens eat the whitespace after them, as Hugging
Face's Phi-3 tokenizer does (`rstrip`). So a SentencePiece model whose markers strip gets such a name, and one whose
markers do not strip gets another. A BPE vocabulary has no "</s>", which the switch looks up: under such a name the file
would not load at all (llama.cpp, src/llama-vocab.cpp).
"""

from __future__ import annotations

import re

from phitui.api import UsageError
from phitui_convert.vocabulary import Vocabulary

_SWITCH = re.compile(r"phi-?3", re.IGNORECASE)
_APART = re.compile(r"(phi)-?(?=3)", re.IGNORECASE)
_TOGETHER = re.compile(r"phi[ _]3", re.IGNORECASE)


def fit(name: str, identifier: str, vocabulary: Vocabulary, wanted: str = "") -> tuple[str, list[str]]:
    """The name to write and notes about it.

    `name` is a title ("Phi 3 Mini 4k Instruct"), `identifier` its source ("Phi-3-mini-4k-instruct"), if known.
    `wanted` is the person's own; it is kept or refused, never changed. Raises UsageError.
    """
    switched = _SWITCH.search(wanted or name) is not None
    if wanted:
        if switched and vocabulary.model == "gpt2":
            raise UsageError(
                f"--name {wanted!r}: llama.cpp cannot load a BPE model whose name contains phi3 or phi-3",
                f"for example: --name {_switched_off(wanted)!r}",
            )
        if vocabulary.model == "llama" and switched != vocabulary.strips:
            return wanted, [_differs(wanted, vocabulary.strips)]
        return wanted, []
    if switched == vocabulary.strips:
        return name, []
    fitted = _switched_on(name, identifier) if vocabulary.strips else _switched_off(name)
    return fitted, [f"general.name is {fitted!r}: llama.cpp decides by it how special tokens treat whitespace"]


def _switched_on(name: str, identifier: str) -> str:
    if _SWITCH.search(identifier):
        return identifier
    return name.replace(" ", "-") if _TOGETHER.search(name) else f"Phi-3 {name}"


def _switched_off(name: str) -> str:
    return _APART.sub(r"\1 ", name)


def _differs(wanted: str, strips: bool) -> str:
    how = "would have to contain phi-3" if strips else "must not contain phi-3"
    return f"the name {wanted!r} {how} for llama.cpp to split chats into the same tokens as the original"
