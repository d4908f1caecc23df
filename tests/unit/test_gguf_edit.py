"""Edits: what is typed, checked and refused, and that the inverse of an edit brings the same bytes back."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from phitui.domain.tensors import FilePlan, InlineExtent, SourceTensor, TensorType, Value, ValueType, place
from phitui.errors import UsageError
from phitui.gguf.edit import SPECIAL, Editor, plan
from phitui.gguf.header import encode_header, read_header
from phitui.gguf.patch import replace_start
from phitui.gguf.values import NAMES, type_name
from phitui.gguf.writer import write_gguf

TOKENS = ["<unk>", "<s>", "</s>", "<|endoftext|>", "a", "b"]
EVERY = {
    "u8": Value(ValueType.UINT8, 1),
    "i8": Value(ValueType.INT8, -1),
    "u16": Value(ValueType.UINT16, 1),
    "i16": Value(ValueType.INT16, -1),
    "u32": Value.u32(1),
    "i32": Value(ValueType.INT32, -1),
    "u64": Value(ValueType.UINT64, 1 << 40),
    "i64": Value(ValueType.INT64, -(1 << 40)),
    "f32": Value.f32(0.5),
    "f64": Value(ValueType.FLOAT64, 0.1),
    "bool": Value.boolean(True),
    "str": Value.string("text"),
    "list": Value.array(ValueType.INT32, [1, 2, 3]),
    "raw": Value.string(b"\xff\xfe"),
}


def write(path: Path, alignment: int = 32, **more: Value) -> Path:
    tensors = [
        SourceTensor("token_embd.weight", (32, 6), TensorType.F32, (InlineExtent(bytes(range(128)) * 6),)),
        SourceTensor("blk.0.attn_norm.weight", (3,), TensorType.F32, (InlineExtent(b"\1" * 12),)),
        SourceTensor("blk.0.ffn_up.weight", (256, 2), TensorType.Q4_K, (InlineExtent(b"\3" * 288),)),
    ]
    metadata = {
        "general.architecture": Value.string("phi3"),
        "general.name": Value.string("tiny"),
        "phi3.block_count": Value.u32(1),
        "phi3.context_length": Value.u32(4096),
        "phi3.rope.freq_base": Value.f32(10000.0),
        "tokenizer.ggml.tokens": Value.array(ValueType.STRING, TOKENS),
        "tokenizer.ggml.token_type": Value.array(ValueType.INT32, [2, 3, 3, 3, 1, 1]),
        "tokenizer.ggml.eos_token_id": Value.u32(2),
        "general.file_type": Value.u32(0),
        **({"general.alignment": Value.u32(alignment)} if alignment != 32 else {}),
        **{key.replace("__", "."): value for key, value in more.items()},
    }
    placed = place([(tensor, tensor.stored, None) for tensor in tensors], alignment)
    write_gguf(FilePlan("F32", metadata, placed, alignment), path)
    return path


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return write(tmp_path / "m.gguf", **EVERY)


@pytest.fixture
def editor(file: Path) -> Editor:
    return Editor(read_header(file))


def test_types_are_kept(editor: Editor) -> None:
    editor.set("general.name", "Örnek")
    editor.set("phi3.rope.freq_base", "250000")
    editor.set("u8", "255")
    editor.set("bool", "false")
    editor.set("list", "[4, 5, 6, 7]")
    editor.set("raw", "now text")
    assert editor.metadata["phi3.rope.freq_base"] == Value.f32(250000.0)
    assert editor.metadata["u8"] == Value(ValueType.UINT8, 255)
    assert editor.metadata["list"] == Value.array(ValueType.INT32, [4, 5, 6, 7])
    assert [change.key for change in editor.changes] == [
        "general.name", "phi3.rope.freq_base", "u8", "bool", "list", "raw",
    ]  # fmt: skip
    assert list(editor.metadata) == list(editor.header.keys())


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("u8", "256"),
        ("u8", "-1"),
        ("u32", "text"),
        ("bool", "maybe"),
        ("f32", "1e39"),
        ("list", "4"),
        ("list", '["a"]'),
    ],
)
def test_what_does_not_fit_is_refused(editor: Editor, key: str, text: str) -> None:
    with pytest.raises(UsageError, match=f"{key} is "):
        editor.set(key, text)
    assert not editor.changes


def test_new_keys(editor: Editor) -> None:
    editor.set("general.author", "me")
    editor.set("general.year", "2026")
    editor.set("general.rank", "7", "u8")
    editor.set("general.tags", '["a", "b"]')
    added = {key: type_name(v.type, v.is_array) for key, v in editor.metadata.items() if key not in editor.header}
    assert added == {"general.author": "str", "general.year": "u32", "general.rank": "u8", "general.tags": "str[]"}
    assert [note.split(";")[0] for note in editor.notes] == [
        "general.author is new and taken as str",
        "general.year is new and taken as u32",
        "general.tags is new and taken as str[]",
    ]
    for key in ("", "has space", "k\n", "x" * 300, "schlüssel", "a[b"):
        with pytest.raises(UsageError, match="no name for a key"):
            editor.set(key, "1")
    with pytest.raises(UsageError, match="no type 'u33'"):
        editor.set("general.other", "1", "u33")


def test_another_type_only_by_force(file: Path, editor: Editor) -> None:
    with pytest.raises(UsageError, match="u32 is u32 in this file, not f32"):
        editor.set("u32", "1", "f32")
    editor.set("u32", "2", "u32")
    forced = Editor(read_header(file), force=True)
    forced.set("u32", "1", "f32")
    assert forced.metadata["u32"] == Value.f32(1.0)


@pytest.mark.parametrize(
    "key",
    [
        "general.architecture",
        "general.alignment",
        "general.file_type",
        "general.quantization_version",
        "phi3.block_count",
        "phi3.attention.head_count",
        "split.no",
        "split.count",
        "split.tensors.count",
    ],
)
def test_what_describes_the_tensors_is_protected(file: Path, editor: Editor, key: str) -> None:
    with pytest.raises(UsageError, match=f"{key} is not changed") as caught:
        editor.set(key, "8")
    assert "--force" in caught.value.hint
    Editor(read_header(file), force=True).set(key, "8", "" if key in editor.header else "u32")


def test_tokens(file: Path, editor: Editor) -> None:
    editor.set_token(4, "<|end|>")
    editor.set_item("tokenizer.ggml.token_type", 4, "3")
    editor.set_token(4, "<|end|>")  # nothing more to do
    assert editor.metadata["tokenizer.ggml.tokens"].value == [*TOKENS[:4], "<|end|>", "b"]
    assert editor.metadata["tokenizer.ggml.token_type"].value == [2, 3, 3, 3, 3, 1]
    assert [(c.key, c.index, c.before and c.before.value, c.after and c.after.value) for c in editor.changes] == [
        ("tokenizer.ggml.tokens", 4, "a", "<|end|>"),
        ("tokenizer.ggml.token_type", 4, 1, 3),
    ]
    with pytest.raises(UsageError, match="there is no 6"):
        editor.set_token(6, "x")
    with pytest.raises(UsageError, match="token 1 is '<s>' already"):
        editor.set_token(5, "<s>")
    with pytest.raises(UsageError, match="no array"):
        editor.set_item("general.name", 0, "x")
    with pytest.raises(UsageError, match=r"tokenizer.ggml.token_type\[0\] is i32"):
        editor.set_item("tokenizer.ggml.token_type", 0, "x")
    with pytest.raises(UsageError, match="would have 1 entries instead of 6"):
        editor.set("tokenizer.ggml.tokens", '["a"]')
    with pytest.raises(UsageError, match="would have 2 entries instead of 6"):
        editor.set("tokenizer.ggml.scores", "[1.0, 2.0]", "f32[]")
    assert read_header(file).get("tokenizer.ggml.tokens") == TOKENS


def test_special_tokens(editor: Editor) -> None:
    editor.set_special("eos", 3)
    editor.set_special("eot", 2)
    assert editor.metadata["tokenizer.ggml.eos_token_id"] == Value.u32(3)
    assert editor.metadata["tokenizer.ggml.eot_token_id"] == Value.u32(2)
    assert not editor.notes
    with pytest.raises(UsageError, match="there is no token 6"):
        editor.set_special("pad", 6)
    with pytest.raises(UsageError, match="there is no token 99"):
        editor.set("tokenizer.ggml.bos_token_id", "99")
    with pytest.raises(UsageError, match="no special token 'end'"):
        editor.set_special("end", 1)
    assert len(set(SPECIAL.values())) == len(SPECIAL)


def test_removal(editor: Editor) -> None:
    editor.remove("str")
    assert "str" not in editor.metadata
    with pytest.raises(UsageError, match="is not in this file") as caught:
        editor.remove("general.nam")
    assert "general.name" in caught.value.hint
    for key in ("tokenizer.ggml.tokens", "general.architecture", "phi3.block_count"):
        with pytest.raises(UsageError):
            editor.remove(key)


def test_a_value_that_is_there_already_is_no_change(editor: Editor) -> None:
    for key, text in [("general.name", "tiny"), ("u8", "1"), ("f32", "0.5"), ("list", "[1,2,3]")]:
        editor.set(key, text)
    assert not editor.changes
    made = plan(editor)
    assert made.fits and made.old == made.new


def test_same_size_stays_where_it_is_another_does_not(file: Path) -> None:
    for name, fits in [("four", True), ("t", None), ("a name that is much longer than the slack of the header", False)]:
        editor = Editor(read_header(file))
        editor.set("general.name", name)
        made = plan(editor)
        assert fits is None or made.fits is fits
        assert made.fits == (len(made.new) == editor.header.data_start)


def test_alignment_by_force_moves_the_tensors(tmp_path: Path) -> None:
    file = write(tmp_path / "m.gguf", alignment=64)
    for text, ok in [("128", True), ("8", True), ("0", False), ("48", False), ("1048576", False)]:
        editor = Editor(read_header(file), force=True)
        editor.set("general.alignment", text)
        if not ok:
            with pytest.raises(UsageError, match="cannot be"):
                plan(editor)
            continue
        made = plan(editor)
        assert not made.fits
        target = tmp_path / f"{text}.gguf"
        write_gguf(made.rewritten, target)
        assert read_header(target).alignment == int(text)
        assert tensors(target) == tensors(file)


def tensors(path: Path) -> dict[str, bytes]:
    raw = path.read_bytes()
    return {t.name: raw[t.offset : t.offset + t.size] for t in read_header(path).tensors}


def apply(path: Path, editor: Editor) -> Path:
    """What an edit does, without jobs; returns the path of the result."""
    made = plan(editor)
    if made.fits:
        replace_start(path, made.old, made.new)
        return path
    target = path.with_name(path.name + "x")
    write_gguf(made.rewritten, target)
    return target


scalar = st.one_of(
    st.tuples(st.just("general.name"), st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))),
    st.tuples(st.just("u8"), st.integers(0, 255).map(str)),
    st.tuples(st.just("i64"), st.integers(-(2**63), 2**63 - 1).map(str)),
    st.tuples(st.just("f64"), st.floats(allow_nan=False, allow_infinity=False).map(repr)),
    st.tuples(st.just("f32"), st.floats(width=32, allow_nan=False, allow_infinity=False).map(repr)),
    st.tuples(st.just("list"), st.lists(st.integers(-(2**31), 2**31 - 1)).map(str)),
    st.tuples(st.just("bool"), st.sampled_from(["true", "false"])),
)


@given(changes=st.lists(scalar, max_size=6), alignment=st.sampled_from([8, 32, 4096]))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_an_edit_and_its_inverse_give_the_same_bytes(
    tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[str, str]], alignment: int
) -> None:
    path = write(tmp_path_factory.mktemp("edit") / "m.gguf", alignment, **EVERY)
    before, weights = path.read_bytes(), tensors(path)
    editor = Editor(read_header(path))
    for key, text in changes:
        editor.set(key, text)
    edited = apply(path, editor)
    header = read_header(edited)
    assert header.metadata() == editor.metadata
    assert tensors(edited) == weights

    back = Editor(header)
    for key in dict(changes):
        old = EVERY.get(key, Value.string("tiny"))
        back.set(key, str(old.value).lower() if old.type is ValueType.BOOL else str(old.value))
    assert apply(edited, back).read_bytes() == before


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_added_keys_can_be_removed_again(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    path = write(tmp_path_factory.mktemp("edit") / "m.gguf")
    before = path.read_bytes()
    name = data.draw(st.sampled_from(list(NAMES.values())))
    text = {"str": "x" * data.draw(st.integers(0, 90)), "bool": "true"}.get(name, "1")
    editor = Editor(read_header(path))
    editor.set("new.key", text, name)
    edited = apply(path, editor)
    assert type_name(read_header(edited).value("new.key").type) == name
    back = Editor(read_header(edited))
    back.remove("new.key")
    assert apply(edited, back).read_bytes() == before


def test_a_large_vocabulary_is_edited_in_a_moment(tmp_path: Path) -> None:
    import time

    tokens = [f"token{number}" for number in range(200_000)]
    path = write(tmp_path / "m.gguf", tokenizer__ggml__tokens=Value.array(ValueType.STRING, tokens))
    started = time.process_time()
    editor = Editor(read_header(path), force=True)
    editor.set_token(199_999, "<|end|>xxx")
    editor.set_token(7, "TOKEN7")
    made = plan(editor)
    assert time.process_time() - started < 5  # on an idle machine: below 0.5
    assert made.fits
    assert replace_start(path, made.old, made.new) < len(made.old)
    assert read_header(path).get("tokenizer.ggml.tokens")[7] == "TOKEN7"


def test_an_odd_old_file_is_normalized(tmp_path: Path) -> None:
    """Version 2 has the same layout; padding that is not zero is nobody's data."""
    path = write(tmp_path / "m.gguf")
    raw = bytearray(path.read_bytes())
    raw[4] = 2
    path.write_bytes(raw)
    editor = Editor(read_header(path))
    editor.set("general.name", "four")
    made = plan(editor)
    assert made.fits
    replace_start(path, made.old, made.new)
    assert (read_header(path).version, read_header(path).get("general.name")) == (3, "four")


def test_a_file_without_tensors(tmp_path: Path) -> None:
    path = tmp_path / "vocab.gguf"
    raw = encode_header(FilePlan("", {"general.architecture": Value.string("phi3"), "n": Value.u32(0x01020304)}, ()))
    path.write_bytes(raw.rstrip(b"\0"))
    editor = Editor(read_header(path))
    editor.set("n", "16909061")
    assert not plan(editor).fits  # it ends before its padding: nothing is written beyond its end
    assert read_header(apply(path, editor)).get("n") == 16909061
