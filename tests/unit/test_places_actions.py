"""Equal content in several places is listed once, with all of them; content that only looks equal is not."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from phitui.__main__ import main
from phitui.actions import models, tidy
from phitui.actions.context import Context
from phitui.actions.lineage import hash_store
from phitui.api import Artifact, Availability
from phitui.domain.model import Place
from phitui.errors import UsageError

CONTENT = b"GGUF of some kind"
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Store:
    """A finder of one content-addressed file."""

    name, title = "astore", "A store"

    def __init__(self, path: Path, sha256: str = SHA256, names: tuple[str, ...] = ()) -> None:
        self.path, self.sha256, self.names = path, sha256, names

    def available(self) -> Availability:
        return Availability()

    def find(self) -> list[Artifact]:
        size = self.path.stat().st_size
        return [Artifact(self.path, "gguf", "phi:1b", "", "", size, "astore", sha256=self.sha256, aliases=self.names)]


@pytest.fixture
def own(context: Context) -> Path:
    """A model in phitui's own folder, last changed a minute ago."""
    path = context.paths.models / "mine.gguf"
    path.parent.mkdir(parents=True)
    path.write_bytes(CONTENT)
    os.utime(path, (time.time() - 60,) * 2)
    return path


@pytest.fixture
def blob(tmp_path: Path) -> Path:
    path = tmp_path / "store" / "sha256-x"
    path.parent.mkdir()
    path.write_bytes(CONTENT)
    return path


def remember(context: Context, path: Path) -> None:
    with hash_store(context) as store:
        store.put(path, hashlib.sha256(path.read_bytes()).hexdigest())


def test_a_remembered_hash_tells_that_two_are_one(context: Context, own: Path, blob: Path) -> None:
    context.registry.finders.insert(0, Store(blob, names=("phi",)))
    assert [a.path for a in models.library(context)] == [own, blob]  # nothing is read to find out
    remember(context, own)
    (one,) = models.library(context)
    assert (one.path, one.name) == (own, "mine.gguf")
    assert one.also == (Place(blob, "phi:1b", "astore", ("phi",)),)
    assert one.sha256 == SHA256
    for name in ("mine", "phi:1b", "phi"):
        assert models.resolve_model(context, name) == own


def test_another_content_of_the_same_size_is_another_model(context: Context, own: Path, blob: Path) -> None:
    blob.write_bytes(CONTENT.swapcase())
    context.registry.finders.append(Store(blob, hashlib.sha256(CONTENT.swapcase()).hexdigest()))
    remember(context, own)
    assert [(a.path, a.also) for a in models.library(context)] == [(own, ()), (blob, ())]


def test_a_file_that_changed_since_it_was_hashed_is_another_model(context: Context, own: Path, blob: Path) -> None:
    context.registry.finders.append(Store(blob))
    remember(context, own)
    own.write_bytes(CONTENT.swapcase())
    assert len(models.library(context)) == 2


@pytest.mark.parametrize("link", [os.link, os.symlink], ids=["hard", "symbolic"])
def test_links_are_one(context: Context, own: Path, tmp_path: Path, link: Callable[[Path, Path], None]) -> None:
    linked = tmp_path / "elsewhere.gguf"
    link(own, linked)
    context.registry.finders.insert(0, Store(linked, sha256=""))
    (one,) = models.library(context)
    assert (one.path, [place.path for place in one.also]) == (own, [linked])


def test_own_names_come_before_other_names(context: Context, own: Path, blob: Path) -> None:
    context.registry.finders.append(Store(blob, names=("mine",)))
    assert models.resolve_model(context, "mine") == own


def test_only_the_own_place_is_removed(context: Context, own: Path, tmp_path: Path) -> None:
    linked = tmp_path / "theirs.gguf"
    os.link(own, linked)
    context.registry.finders.append(Store(linked))
    with pytest.raises(UsageError, match="found by astore: it belongs to another program"):
        tidy.removal(context, str(linked))
    with pytest.raises(UsageError, match="same content in another place") as caught:
        tidy.remove(context, "phi:1b")
    assert str(own) in caught.value.hint
    assert tidy.remove(context, "MINE").files == (own,)
    assert linked.exists() and not own.exists()


def test_the_list_shows_all_places(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    linked = own.parent / "z-other.gguf"
    os.link(own, linked)
    assert main(["models", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)["library"]
    (place,) = row["also"]
    assert (place["path"], place["name"], place["found_by"]) == (str(linked), "z-other.gguf", "folders")
    assert main(["models"]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if str(linked) in line]
    assert line.split() == ["z-other.gguf", "same", "folders", str(linked)]


def test_one_file_found_twice_is_not_also_there(context: Context, own: Path) -> None:
    context.registry.finders.append(context.registry.finders[0])
    (one,) = models.library(context)
    assert one.also == ()
