"""Recipes: what is written can be read again, and every mistake is named with its line."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from phitui.domain import recipe as r
from phitui.domain.recipe_reading import loads
from phitui.errors import PhituiError, UsageError
from phitui.store.sidecar import LIMIT, Sidecar, beside, dumps, is_record, read_beside, read_recipe

HASH = "a" * 64
WHOLE = r.Recipe(
    build=r.BuildStep("../real", "Q4_K_M", "m.gguf"),
    converter={"name": 'A "quoted" name\nand a line'},
    quantizer={"override": ["blk\\.0=Q8_0", "é=Q4_0"], "pure": True, "imatrix": "m.imatrix"},
    build_files=(r.FileRecord("m.imatrix", 3, HASH, "imatrix"),),
    made=r.MadeRecord("0.1.0", "2026-01-01T00:00:00+00:00", "Linux x86_64", versions={"ggml": "1", "llama cpp": "2"}),
    source=r.SourceRecord("checkpoint", "real", "org/name", "c0ffee", files=(r.FileRecord("config.json", 660, HASH),)),
    result=r.ResultRecord("m.gguf", 1 << 40, HASH, 182, 4.85),
    edits=(r.EditRecord("2026-01-02T00:00:00+00:00", "edited general.name", 5, ""),),
)


def test_what_is_written_is_read_again() -> None:
    assert loads(dumps(WHOLE, "a title\nof two lines")) == WHOLE


def test_the_text_is_for_people() -> None:
    text = dumps(WHOLE, "How it was made")
    assert text.startswith("# How it was made\nformat = 1\n")
    assert [line for line in text.splitlines() if line.startswith("[")] == [
        "[made]",
        "[made.versions]",
        "[source]",
        "[build]",
        "[build.converter]",
        "[build.quantizer]",
        "[result]",
        "[[edits]]",
    ]
    assert f'{{ path = "config.json", size = 660, sha256 = "{HASH}" }},' in text
    assert dumps(loads(text), "How it was made") == text


@given(st.text(max_size=40), st.dictionaries(st.text(min_size=1, max_size=9), st.text(max_size=9), max_size=3))
def test_any_text_survives(text: str, versions: dict[str, str]) -> None:
    made = r.Recipe(
        build=r.BuildStep(source=text, scheme="Q4_K_M"),
        quantizer={"override": [text]},
        made=r.MadeRecord("1", machine=text, versions=versions),
        result=r.ResultRecord("x"),
    )
    assert loads(dumps(made)) == made


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ('format = 1\n[build]\nscheme = "Q4"\nshceme = 1', 4, "no key 'shceme'|did you mean scheme"),
        ("format = 2", 1, "format 2|update phitui"),
        ("format = true", 1, "no version"),
        ("format = -1", 1, "no version"),
        ("[build]\nscheme = 3", 2, "scheme is a text, not 3"),
        ("[build]\nscheme = ['a']", 2, "scheme is a text"),
        ("[biuld]\n", 1, "no section|did you mean build"),
        ("\n\n[build]\n", 3, "needs scheme"),
        ('[build]\nscheme = ""\n', 1, "needs scheme"),
        ("build = 3", 1, "is a section"),
        ('[export]\nout = "x"', 1, "needs to"),
        ("[get]\nrevision = 'x'", 1, "needs repo"),
        ("[imatrix]\ncontext = 512\n[plan]\ncontext = -3", 4, "context is out of range"),
        ("[plan]\ncontext = 1.5", 2, "context is a whole number"),
        ('[plan]\nmust_fit = "yes"', 2, "must_fit is true or false"),
        ('[plan]\ndevices = "GPU=1GiB"', 2, "devices is a list"),
        ("[plan]\ndevices = [1]", 2, "devices is a list"),
        ('[build]\nscheme = "a"\n[build.quantizer]\nx = { a = 1 }', 4, "x must be"),
        ('[build]\nscheme = "a"\nquantizer = 4', 3, "quantizer is a table"),
        ('[build]\nscheme = "a"\nfiles = 4', 3, "list of tables"),
        ('[source]\nkind = "gguf"\n[[source.files]]\npath = "a"\nsha256 = "x"', 5, "no SHA-256"),
        ('[source]\nkind = "gguf"\n[[source.files]]\npath = "a"\nsize = "x"', 5, "size is not"),
        ('[source]\nkind = "gguf"\n[[source.files]]\nname = "a"', 4, "no key 'name'"),
        ('[source]\nkind = "tape"', 2, "kind cannot be 'tape'"),
        ("[result]\nsize = -1", 2, "size is out of range"),
    ],
)
def test_mistakes_are_named_with_their_line(text: str, line: int, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        loads(text, "r.toml")
    for word in words.split("|"):
        assert word in str(caught.value)
    assert caught.value.message.startswith(f"r.toml, line {line}: ")


@pytest.mark.parametrize("text", ["x", "[build", "a = [" * 5000, "\x00", "[build]\n[build]\n", 'a = "\x1b[2J'])
def test_what_is_no_toml(text: str) -> None:
    with pytest.raises(UsageError, match="is not TOML"):
        loads(text, "r.toml")


@given(st.text(max_size=200))
def test_nothing_else_is_raised(text: str) -> None:
    with pytest.raises(UsageError):
        loads(text + "\n[nonsense]\n")


def test_a_recipe_without_a_step() -> None:
    with pytest.raises(UsageError, match="no step"):
        loads("format = 1")


def test_layers_are_a_number_or_a_word() -> None:
    for text, wanted in (("33", "33"), ('"all"', "all"), ('"auto"', "auto")):
        plan = loads(f'[plan]\nmodel = "m"\nlayers = {text}').plan
        assert plan is not None
        assert plan.layers == wanted


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    path = tmp_path / "r.toml"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match="not UTF-8"):
        read_recipe(path)
    with path.open("wb") as file:
        file.truncate(LIMIT + 2)
    with pytest.raises(UsageError, match="no recipe"):
        read_recipe(path)
    with pytest.raises(PhituiError, match="cannot read"):
        read_recipe(tmp_path)


def test_a_sidecar_is_complete_or_absent(tmp_path: Path) -> None:
    model = tmp_path / "m.gguf"
    model.write_bytes(b"12345")
    sidecar = Sidecar(model)
    sidecar.prepare(dumps(WHOLE))
    assert not beside(model).exists()
    assert read_beside(model) is None
    sidecar.publish()
    assert read_beside(model) == WHOLE
    sidecar.prepare("format = 1")  # one of a former file is gone before the new file gets its name
    assert not beside(model).exists()
    sidecar.discard()
    assert [path.name for path in tmp_path.glob("m*")] == ["m.gguf"]


def test_a_sidecar_of_another_file_is_not_believed(tmp_path: Path) -> None:
    model = tmp_path / "m.gguf"
    beside(model).write_text(dumps(WHOLE))
    model.write_bytes(b"123456")
    assert read_beside(model) is None


@pytest.mark.parametrize("text", ["mine", '[build]\nscheme = "Q4_K_M"\n', "[get]\nrepo = 'a/b'\n" + dumps(WHOLE)[11:]])
def test_a_recipe_of_a_person_is_never_replaced(tmp_path: Path, text: str) -> None:
    model = tmp_path / "m.gguf"
    beside(model).write_text(text)
    assert not is_record(beside(model))
    with pytest.raises(PhituiError, match="not phitui's own"):
        Sidecar(model).prepare(dumps(WHOLE))
    assert beside(model).read_text() == text
