"""Text from token bytes: whole characters, and nothing of a stop text."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from phitui_llamacpp.pieces import Pieces

TEXT = "سلام دنیا، Güneş doğdu. 👩‍👩‍👧‍👦 ✓"


def stream(chunks: list[bytes], stops: tuple[str, ...] = ()) -> tuple[list[str], Pieces]:
    pieces = Pieces(stops)
    shown = []
    for chunk in chunks:
        shown.append(pieces.feed(chunk))
        if pieces.stopped:
            return shown, pieces
    shown.append(pieces.finish())
    return shown, pieces


def test_single_bytes() -> None:
    shown, _ = stream([bytes([byte]) for byte in TEXT.encode()])
    assert "".join(shown) == TEXT
    assert "\ufffd" not in "".join(shown)


@given(st.text(), st.lists(st.integers(1, 5)))
def test_any_cut(text: str, cuts: list[int]) -> None:
    data, chunks = text.encode(), []
    for cut in [*cuts, len(data)]:
        chunks.append(data[:cut])
        data = data[cut:]
    shown, _ = stream(chunks)
    assert "".join(shown) == text


@given(st.text("ab<|end>", max_size=30), st.lists(st.integers(1, 4)))
def test_stop_anywhere(text: str, cuts: list[int]) -> None:
    stops = ("<|end|>", "aab", "<|a")
    data, chunks = text.encode(), []
    for cut in [*cuts, max(1, len(data))]:
        chunks.append(data[:cut])
        data = data[cut:]
    shown, pieces = stream(chunks, stops)
    found = [at for at in (text.find(stop) for stop in stops) if at >= 0]
    # a stop text that ends first wins, even if another one began before it
    assert pieces.stopped == bool(found)
    result = "".join(shown)
    assert text.startswith(result)
    assert not any(stop in result for stop in stops)
    if not found:
        assert result == text


def test_a_false_start_is_shown() -> None:
    shown, _ = stream([b"a <", b"|", b"x"], ("<|end|>",))
    assert shown[:2] == ["a ", ""]
    assert "".join(shown) == "a <|x"


def test_half_a_stop_at_the_end_is_shown() -> None:
    shown, _ = stream([b"a <|en"], ("<|end|>",))
    assert "".join(shown) == "a <|en"


def test_broken_bytes_become_replacement_characters() -> None:
    shown, _ = stream([b"a\xff\xfe", b"\xe2\x82"])
    assert "".join(shown) == "a\ufffd\ufffd\ufffd"
