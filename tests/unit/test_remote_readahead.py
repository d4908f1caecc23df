"""Reading ahead from the Hub: each byte once, in bounded memory, whatever the order, and compared with its checksum."""

from __future__ import annotations

import hashlib
import itertools
import random
import threading
from collections.abc import Callable, Iterator

import pytest

from phitui.domain.tensors import HubFile
from phitui.errors import Cancelled, SourceChanged, Unavailable
from phitui.gguf import readahead
from phitui.gguf.readahead import ReadAhead, Segment, cut, matches
from phitui.gguf.remote import HubReader
from phitui.testing.hub_server import COMMIT, Hub, hub_server

SIZE = 1_000_000
DATA = {name: random.Random(name).randbytes(SIZE) for name in ("a.safetensors", "b.safetensors")}


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readahead, "BLOCK", 50_000)
    monkeypatch.setattr(readahead, "WINDOW", 250_000)
    monkeypatch.setattr(readahead, "BRIDGE", 2_000)
    monkeypatch.setattr(readahead, "_STEP", 10_000)
    monkeypatch.setattr(readahead, "_STUCK", 0.2)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with hub_server(DATA) as running:
        monkeypatch.setenv("HF_ENDPOINT", running.url)
        monkeypatch.setenv("HF_HUB_OFFLINE", "0")
        yield running


def file(name: str = "a.safetensors", size: int = SIZE) -> HubFile:
    return HubFile("acme/phi", COMMIT, name, size, hashlib.sha256(DATA[name]).hexdigest())


def split(name: str, step: int, start: int = 0, stop: int = SIZE) -> list[Segment]:
    return [(file(name), at, min(step, stop - at)) for at in range(start, stop, step)]


def take(ahead: ReadAhead, segment: Segment) -> bytes:
    buffer = bytearray(segment[2])
    ahead.read(segment[0], segment[1], memoryview(buffer))
    return bytes(buffer)


def read_all(ahead: ReadAhead, segments: list[Segment], threads: int = 2) -> None:
    """What the writer does: several threads empty a queue; every byte must be the right one."""
    queue, wrong = list(reversed(segments)), []

    def work() -> None:
        while True:
            try:
                segment = queue.pop()
            except IndexError:
                return
            got = take(ahead, segment)
            if got != DATA[segment[0].name][segment[1] : segment[1] + segment[2]]:
                wrong.append(segment)

    workers = [threading.Thread(target=work) for _ in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(30)
        assert not worker.is_alive()
    assert not wrong


def fetched_once(hub: Hub, name: str) -> None:
    ranges = sorted(hub.ranges(name))
    assert all(before[1] <= after[0] for before, after in itertools.pairwise(ranges)), ranges


ORDERS: dict[str, Callable[[list[Segment]], list[Segment]]] = {
    "file order": lambda segments: segments,
    "backwards": lambda segments: segments[::-1],
    "shuffled": lambda segments: random.Random(5).sample(segments, len(segments)),
    "every other first": lambda segments: segments[::2] + segments[1::2],
}


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("step", [7_919, 130_000])
def test_every_byte_once_in_any_order(hub: Hub, order: str, step: int) -> None:
    segments = ORDERS[order](split("a.safetensors", step) + split("b.safetensors", step))
    with HubReader(patience=5) as reader:
        ahead = ReadAhead(reader, iter(segments))
        read_all(ahead, segments, threads=3)
        report = ahead.finish()
    assert report.fetched == 2 * SIZE
    fetched_once(hub, "a.safetensors")
    fetched_once(hub, "b.safetensors")
    if order == "file order":
        assert report.verified == ("a.safetensors", "b.safetensors")
    assert ahead._held == 0


def test_memory_is_bounded_while_nobody_reads(hub: Hub, wait_until: Callable[..., None]) -> None:
    segments = split("a.safetensors", 10_000)
    with HubReader(patience=5) as reader:
        ahead = ReadAhead(reader, segments)
        wait_until(lambda: ahead._held == readahead.WINDOW and reader.fetched == readahead.WINDOW)
        held = []
        for segment in segments:
            take(ahead, segment)
            held.append(ahead._held)
        assert max(held) <= readahead.WINDOW
        assert ahead.finish().fetched == SIZE


def test_bytes_that_come_twice(hub: Hub) -> None:
    segments = [*split("a.safetensors", 30_000, 0, 300_000), *split("a.safetensors", 17_000, 100_000, 200_000)]
    with HubReader(patience=5) as reader:
        ahead = ReadAhead(reader, segments)
        read_all(ahead, segments)
        assert ahead.finish().fetched == 300_000


def test_what_was_not_announced_is_read_all_the_same(hub: Hub) -> None:
    with HubReader(patience=5) as reader:
        ahead = ReadAhead(reader, split("a.safetensors", 10_000, 0, 100_000))
        for segment in (
            (file(), 500_000, 1_000),
            (file("b.safetensors"), 0, 10),
            (file(), 95_000, 20_000),
            (file(), 95_000, 10),
        ):
            assert take(ahead, segment) == DATA[segment[0].name][segment[1] : segment[1] + segment[2]]


def test_small_gaps_are_bridged_and_large_ones_left() -> None:
    (made,) = cut([(file(), 1_500, 10_000), (file(), 13_000, 5_000), (file(), 400_000, 10)])
    blocks = [(block.start, block.end, block.wanted) for block in made.blocks]
    assert blocks == [(0, 18_000, 15_000), (400_000, 400_010, 10)]
    (made,) = cut([(file(), 1_000, SIZE - 2_500)])
    assert sum(block.length for block in made.blocks) == SIZE
    assert made.digest is not None
    assert cut([(file(), 5, 0)]) == []


def test_part_of_a_file_is_not_called_verified(hub: Hub) -> None:
    segments = split("a.safetensors", 10_000, 600_000) + split("b.safetensors", 10_000, 1_900)
    with HubReader(patience=5) as reader:
        ahead = ReadAhead(reader, segments)
        read_all(ahead, segments)
        report = ahead.finish()
    assert (report.verified, report.unverified) == (("b.safetensors",), ("a.safetensors",))
    assert report.fetched == 400_000 + SIZE


def test_a_wrong_byte_is_found(hub: Hub) -> None:
    hub.trouble.flip["b.safetensors"] = 777_777
    segments = split("a.safetensors", 10_000) + split("b.safetensors", 10_000)
    with HubReader(patience=5) as reader:
        ahead = ReadAhead(reader, segments)
        with pytest.raises(SourceChanged, match="checksums differ"):
            for segment in segments:
                take(ahead, segment)
            ahead.finish()


def test_an_error_reaches_those_who_wait(hub: Hub) -> None:
    hub.trouble.answers["/acme"] = (403, {"X-Error-Code": "GatedRepo"})
    with HubReader(patience=5) as reader:
        ahead = ReadAhead(reader, split("a.safetensors", 10_000))
        with pytest.raises(Unavailable, match="gated"):
            take(ahead, (file(), 0, 10))
        with pytest.raises(Unavailable, match="gated"):
            ahead.finish()


def test_no_memory_is_an_error_and_no_hang(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(size: int) -> None:
        raise MemoryError

    monkeypatch.setattr(readahead, "_memory", none)
    with HubReader(patience=5) as reader, pytest.raises(MemoryError):
        take(ReadAhead(reader, split("a.safetensors", 10_000)), (file(), 0, 10))


def test_a_cancel_while_only_checksums_are_waited_for(hub: Hub) -> None:
    def check() -> None:
        raise Cancelled

    hub.trouble.hang["a.safetensors"] = SIZE - 500
    with HubReader(patience=5) as reader:
        ahead = ReadAhead(reader, [(file(), 0, SIZE - 1_000)])
        assert take(ahead, (file(), 0, SIZE - 1_000)) == DATA["a.safetensors"][:-1_000]
        with pytest.raises(Cancelled):
            ahead.finish(check)


def test_stopping_frees_those_who_wait(hub: Hub) -> None:
    hub.trouble.hang["a.safetensors"] = 0
    with HubReader() as reader:
        ahead = ReadAhead(reader, split("a.safetensors", 10_000))
        threading.Timer(0.2, ahead.stop).start()
        with pytest.raises(Cancelled):
            take(ahead, (file(), 0, 10))


def test_tags_of_the_hub() -> None:
    data = b"hello\n"
    blob = HubFile("a/b", COMMIT, "x", 6, "ce013625030ba8dba906f756967f9e9ca394464a")  # git hash-object
    large = HubFile("a/b", COMMIT, "x", 6, hashlib.sha256(data).hexdigest())
    for one in (blob, large):
        assert matches(one, data)
        assert not matches(one, b"hellO\n")
        assert not matches(one, data[:-1])
    assert matches(HubFile("a/b", COMMIT, "x", 6), b"hellO\n")
    assert not matches(HubFile("a/b", COMMIT, "x", 5), data)
