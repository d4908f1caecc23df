"""Tells a reasoning model's thoughts from its answer while both stream in.

Phi-4-reasoning and its kin begin with `<think>`, think, write `</think>` and then answer. The tags may come in pieces.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

OPEN, CLOSE = "<think>", "</think>"
Kind = Literal["thought", "answer"]


@dataclass(frozen=True)
class Piece:
    """A piece of one kind; never empty."""

    kind: Kind
    text: str


class Thinking:
    """Splits one answer. Only an answer that begins with the tag thinks; the tag elsewhere is text like any other.

    What might be the beginning of a tag is held back until the next piece decides; `end()` gives the rest.
    """

    def __init__(self) -> None:
        self._state: Literal["start", "thought", "answer"] = "start"
        self._held = ""
        self._fresh = False

    @property
    def thinking(self) -> bool:
        """Whether a thought has begun and not ended."""
        return self._state == "thought"

    def feed(self, text: str) -> list[Piece]:
        """The pieces that are decided now."""
        text, self._held = self._held + text, ""
        found: list[Piece] = []
        if self._state == "start":
            text = self._begin(text)
        if self._state == "thought":
            text = self._think(text, found)
        if self._state == "answer":
            text = self._lead(text)
            if text:
                found.append(Piece("answer", text))
        return found

    def end(self) -> list[Piece]:
        """What was held back: the stream is over."""
        text, self._held = self._held, ""
        return [Piece("thought" if self.thinking else "answer", text)] if text else []

    def _begin(self, text: str) -> str:
        """Decide whether the answer begins with a thought."""
        bare = text.lstrip()
        if bare.startswith(OPEN):
            self._state, self._fresh = "thought", True
            return bare[len(OPEN) :]
        if OPEN.startswith(bare):
            self._held = text
            return ""
        self._state = "answer"
        return text

    def _think(self, text: str, found: list[Piece]) -> str:
        """Take the thought from `text`; returns what follows it."""
        text = self._lead(text)
        thought, tag, rest = text.partition(CLOSE)
        if not tag:
            keep = _overlap(text, CLOSE)
            thought, self._held = text[: len(text) - keep], text[len(text) - keep :]
        if thought:
            found.append(Piece("thought", thought))
        if tag:
            self._state, self._fresh = "answer", True
        return rest

    def _lead(self, text: str) -> str:
        """Without the empty lines that follow a tag."""
        if self._fresh:
            text = text.lstrip()
            self._fresh = not text
        return text


def _overlap(text: str, tag: str) -> int:
    """How many characters at the end of `text` could be the beginning of `tag`."""
    return next((size for size in range(min(len(tag) - 1, len(text)), 0, -1) if tag.startswith(text[-size:])), 0)


def split(text: str) -> tuple[str, str]:
    """(thought, answer) of a whole answer; the thought is empty where there is none."""
    parts = Thinking()
    pieces = [*parts.feed(text), *parts.end()]
    joined = {kind: "".join(piece.text for piece in pieces if piece.kind == kind) for kind in ("thought", "answer")}
    return joined["thought"].rstrip(), joined["answer"]
