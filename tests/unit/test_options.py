"""Options are declared once: the dataclass becomes specs, flags and recipe values."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from phitui.cli import flags
from phitui.domain import options
from phitui.domain.options import option
from phitui.errors import UsageError


@dataclass(frozen=True)
class Sample:
    name: str = option("", help="a name")
    layers: int | None = option(None, help="layers", minimum=0, maximum=99)
    scale: float = option(1.0, help="a factor")
    pure: bool = option(False, help="yes or no")
    kind: str = option("a", help="one of two", choices=("a", "b"))
    stop: tuple[str, ...] = option((), help="repeatable")
    file: Path | None = option(None, help="a file")


def test_specs() -> None:
    found = {spec.name: spec for spec in options.specs(Sample)}
    assert found["layers"].optional and found["layers"].kind is int
    assert found["stop"].repeatable and found["stop"].kind is str
    assert found["kind"].choices == ("a", "b")
    assert found["pure"].flag == "--pure"


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"nme": "x"}, "nme"),
        ({"layers": "many"}, "--layers"),
        ({"layers": 100}, "out of range"),
        ({"kind": "c"}, "a, b"),
        ({"pure": "yes"}, "--pure"),
        ({"stop": "abc"}, "list"),
        ({"scale": None}, "needs a value"),
    ],
)
def test_build_refuses(values: dict[str, Any], text: str) -> None:
    with pytest.raises(UsageError, match=text):
        options.build(Sample, values)


def test_plain_is_the_inverse_of_build() -> None:
    values = {"name": "x", "layers": 3, "stop": ["<|end|>"], "pure": True, "file": "/a/b"}
    built = options.build(Sample, values)
    assert built.file == Path("/a/b")
    assert options.plain(built) == values


def test_flags() -> None:
    seen: dict[str, Any] = {}

    @click.command()
    def command(**values: Any) -> None:
        seen.update(flags.given(Sample, values))

    flags.with_options(command, [Sample, Sample])
    arguments = ["--name", "x", "--layers", "3", "--stop", "a", "--stop", "b", "--pure", "--kind", "B"]
    result = CliRunner().invoke(command, arguments)
    assert result.exit_code == 0, result.output
    assert seen == {"name": "x", "layers": 3, "stop": ("a", "b"), "pure": True, "kind": "b"}
    assert "a name" in CliRunner().invoke(command, ["--help"]).output


def test_only_given_flags_are_passed_on() -> None:
    seen: dict[str, Any] = {}

    @click.command()
    def command(**values: Any) -> None:
        seen.update(flags.given(Sample, values))

    assert CliRunner().invoke(flags.with_options(command, [Sample]), []).exit_code == 0
    assert seen == {}


# words and lists ------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Worded:
    layers: int | None = option(None, help="layers", words={"auto": None, "all": -1})
    flash: bool | None = option(None, flag="--flash-attn", help="flash", words={"auto": None, "on": True, "off": False})
    split: tuple[float, ...] = option((), help="split", joined=True)
    count: int = option(1, help="count", minimum=1)
    mapped: bool = option(True, help="mapped")


def test_words_stand_for_values() -> None:
    assert options.build(Worded, {"layers": "ALL"}).layers == -1
    assert options.build(Worded, {"layers": "auto"}).layers is None
    assert options.build(Worded, {"layers": "7"}).layers == 7
    assert options.build(Worded, {"flash": "off"}).flash is False
    assert options.build(Worded, {"flash": True}).flash is True
    assert options.build(Worded, {"split": "3, 1.5"}).split == (3.0, 1.5)
    assert options.build(Worded, {"split": [3, 1]}).split == (3.0, 1.0)


@pytest.mark.parametrize("values", [{"layers": "most"}, {"flash": "perhaps"}, {"split": "a,b"}, {"count": 0}])
def test_other_words_are_mistakes(values: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        options.build(Worded, values)


def test_the_flags_that_make_options_what_they_are() -> None:
    assert options.as_flags(Worded()) == []
    made = Worded(layers=-1, flash=False, split=(3, 1.5), count=2, mapped=False)
    words = ["--layers", "all", "--flash-attn", "off", "--split", "3,1.5", "--count", "2", "--no-mapped"]
    assert options.as_flags(made) == words
    assert options.as_flags(Worded(layers=3, flash=True)) == ["--layers", "3", "--flash-attn", "on"]
