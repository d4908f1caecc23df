"""Thoughts and answers of a reasoning model, however the stream is cut."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from phitui.domain.thinking import Thinking, split


def told_apart(pieces: list[str]) -> tuple[str, str]:
    parts = Thinking()
    found = [piece for text in pieces for piece in parts.feed(text)] + parts.end()
    assert all(piece.text for piece in found)
    return (
        "".join(piece.text for piece in found if piece.kind == "thought"),
        "".join(piece.text for piece in found if piece.kind == "answer"),
    )


@pytest.mark.parametrize(
    ("text", "thought", "answer"),
    [
        ("<think>\nLet me see.\n</think>\n\nParis.", "Let me see.", "Paris."),
        ("\n <think>x</think>y", "x", "y"),
        ("<think></think>y", "", "y"),
        ("<think>cut in the mid", "cut in the mid", ""),
        ("<think>a </thin b</think>c </think>", "a </thin b", "c </think>"),
        ("Write <think> and </think> around it.", "", "Write <think> and </think> around it."),
        ("<thinking>no</thinking>", "", "<thinking>no</thinking>"),
        ("<thi", "", "<thi"),
        ("  indented code", "", "  indented code"),
        ("", "", ""),
    ],
)
def test_what_is_thought_and_what_is_said(text: str, thought: str, answer: str) -> None:
    assert split(text) == (thought, answer)
    assert tuple(part.rstrip("\n") for part in told_apart(list(text))) == (thought, answer)


WORDS = st.lists(st.sampled_from(["<think>", "</think>", "<", "/", "think", ">", " ", "\n", "a", "é"]), max_size=12)


@given(WORDS.map("".join), st.data())
def test_the_cuts_of_the_stream_do_not_matter(text: str, data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.sets(st.integers(0, len(text)), max_size=6)))
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    assert told_apart(pieces) == told_apart([text])


def test_whether_it_thinks_now() -> None:
    parts = Thinking()
    states = []
    for text in ("<think>a", "b</thi", "nk> c"):
        parts.feed(text)
        states.append(parts.thinking)
    assert states == [True, True, False]
