"""SHA-256: remembered for a file that has not changed, taken while a file is written, and never wrong."""

from __future__ import annotations

import hashlib
import os
import random
import threading
import time
from pathlib import Path

import pytest

from phitui.errors import InvalidFile
from phitui.gguf.digest import FollowingDigest
from phitui.store import hashes
from phitui.store.hashes import Hashing, HashStore, identity, sha256_of


def old(path: Path, data: bytes) -> Path:
    """A file that has not been changed lately."""
    path.write_bytes(data)
    os.utime(path, (1_000_000_000, 1_000_000_000))
    return path


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def test_files_are_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = old(tmp_path / "a", b"a" * 3_000_000), old(tmp_path / "b", b"")
    with HashStore(tmp_path / "hashes.db") as store:
        first = dict(Hashing(store, [a, b]).finish())
    assert {path: (h.size, h.sha256) for path, h in first.items()} == {
        a: (3_000_000, sha(a.read_bytes())),
        b: (0, sha(b"")),
    }
    monkeypatch.setattr(hashes, "sha256_of", lambda *_: pytest.fail("read again"))
    with HashStore(tmp_path / "hashes.db") as store:
        assert Hashing(store, [a, b]).finish() == first
        link = tmp_path / "link"
        link.symlink_to(a)
        assert store.get(link) == first[a]
        assert store.where(sha(a.read_bytes())) == [a]


@pytest.mark.parametrize("change", ["content", "time", "inode"])
def test_a_changed_file_is_read_again(tmp_path: Path, change: str) -> None:
    path = old(tmp_path / "a", b"one")
    with HashStore(tmp_path / "hashes.db") as store:
        Hashing(store, [path]).finish()
        if change == "content":
            old(path, b"three")
        elif change == "time":
            path.write_bytes(b"two")
        else:  # same size, same time
            old(tmp_path / "other", b"two").replace(path)
        assert store.get(path) is None
        assert store.where(sha(b"one")) == []
        assert Hashing(store, [path]).finish()[path].sha256 == sha(path.read_bytes())


def test_what_was_changed_just_now_is_not_remembered(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"one")
    with HashStore(tmp_path / "hashes.db") as store:
        Hashing(store, [path]).finish()
        assert store.get(path) is None
        store.put(old(path, b"two"), "f" * 64, as_of=(0, 0, 0))
        assert store.get(path) is None


def test_fresh_reads_whatever_is_remembered(tmp_path: Path) -> None:
    path = old(tmp_path / "a", b"one")
    with HashStore(tmp_path / "hashes.db") as store:
        store.put(path, "f" * 64)
        assert Hashing(store, [path]).finish()[path].sha256 == "f" * 64
        assert Hashing(store, [path], fresh=True).finish()[path].sha256 == sha(b"one")


@pytest.mark.parametrize("damage", ["garbage", "folder"])
def test_a_store_that_cannot_be_used_is_done_without(tmp_path: Path, damage: str) -> None:
    file, path = tmp_path / "hashes.db", old(tmp_path / "a", b"one")
    if damage == "garbage":
        file.write_bytes(b"no database at all" * 99)
    else:
        file.mkdir()
    with HashStore(file) as store:
        assert Hashing(store, [path]).finish()[path].sha256 == sha(b"one")


def test_what_cannot_be_read(tmp_path: Path) -> None:
    with HashStore(tmp_path / "hashes.db") as store, pytest.raises(InvalidFile, match="cannot read"):
        Hashing(store, [tmp_path / "gone"])
    with pytest.raises(InvalidFile, match="cannot read"):
        sha256_of(tmp_path)


def test_a_file_that_changes_meanwhile(tmp_path: Path) -> None:
    path = old(tmp_path / "a", b"x" * (3 << 20))

    def grow(_: int) -> None:
        with path.open("ab") as file:
            file.write(b"y")

    with pytest.raises(InvalidFile, match="changed while it was read"):
        sha256_of(path, grow)


def test_stopping_is_quick(tmp_path: Path) -> None:
    path = tmp_path / "a"
    with path.open("wb") as file:
        file.truncate(8 << 30)
    with HashStore(tmp_path / "hashes.db") as store:
        hashing, began = Hashing(store, [path]), time.monotonic()

        def cancel(_done: int, _total: int) -> None:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            hashing.finish(cancel)
        assert time.monotonic() - began < 2
    assert identity(path)[0] == 8 << 30


@pytest.mark.parametrize("seed", range(4))
def test_a_digest_follows_writers_in_any_order(tmp_path: Path, seed: int) -> None:
    """Parts with padding between, written by several threads; some were there from the start."""
    dice = random.Random(seed)
    ends, at = [], 777
    for number in range(40):
        at += dice.randrange(1, 400_000)
        ends.append((number, at))
        at += dice.randrange(32)
    size = at
    data = dice.randbytes(size)
    path = tmp_path / "file"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT)
    os.ftruncate(descriptor, size)
    starts = [0, *(end for _, end in ends)]
    parts = [(number, starts[number], starts[number + 1]) for number, _ in ends]
    os.pwrite(descriptor, data[ends[-1][1] :], ends[-1][1])
    early, late = parts[::5], [part for part in parts if part[0] % 5]
    for _, start, end in early:
        os.pwrite(descriptor, data[start:end], start)
    digest = FollowingDigest(descriptor, size, ends)
    digest.start([part[0] for part in early])
    dice.shuffle(late)

    def work(mine: list[tuple[int, int, int]]) -> None:
        for number, start, end in mine:
            os.pwrite(descriptor, data[start:end], start)
            digest.wrote(number)

    threads = [threading.Thread(target=work, args=(late[n::3],)) for n in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert digest.finish() == sha(data)
    os.close(descriptor)


def test_a_digest_of_an_empty_file_and_one_that_is_given_up(tmp_path: Path) -> None:
    descriptor = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    empty = FollowingDigest(descriptor, 0, [])
    empty.start()
    assert empty.finish() == sha(b"")
    waiting = FollowingDigest(descriptor, 10, [(0, 10)])
    waiting.start()
    waiting.stop()
    cut = FollowingDigest(descriptor, 10, [(0, 10)])
    cut.start([0])
    with pytest.raises(OSError, match="cut"):
        cut.finish()
    os.close(descriptor)
