"""Ranges of files on the Hub: what is asked, what is believed, and what happens when a server misbehaves."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from phitui.domain.tensors import HubFile
from phitui.errors import Cancelled, InvalidFile, PhituiError, SourceChanged, Unavailable, UsageError
from phitui.gguf import remote
from phitui.gguf.remote import HubReader
from phitui.testing.hub_server import COMMIT, Hub, hub_server

DATA = random.Random(1).randbytes(3_000_000)
NAME = "model.safetensors"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with hub_server({NAME: DATA, "config.json": b'{"a": 1}'}) as running:
        monkeypatch.setenv("HF_ENDPOINT", running.url)
        monkeypatch.setenv("HF_HUB_OFFLINE", "0")
        monkeypatch.setenv("HF_TOKEN", "hf_secret")
        yield running


@pytest.fixture
def file(hub: Hub) -> HubFile:
    return HubFile(hub.repo, COMMIT, NAME, len(DATA), hub.tag(NAME))


@pytest.fixture
def reader() -> Iterator[HubReader]:
    with HubReader(patience=5) as made:
        yield made


def test_a_range_is_read_and_counted(hub: Hub, file: HubFile, reader: HubReader) -> None:
    assert reader.read(file, 1_000, 70_000) == DATA[1_000:71_000]
    assert reader.read(file, len(DATA) - 1, 1) == DATA[-1:]
    assert reader.read(file, 5, 0) == b""
    assert (reader.fetched, hub.ranges(NAME)) == (70_001, [(1_000, 71_000), (len(DATA) - 1, len(DATA))])


def test_the_token_goes_to_the_hub_alone(hub: Hub, file: HubFile, reader: HubReader) -> None:
    reader.read(file, 0, 10)
    reader.read(file, 10, 10)
    assert [(asked.server, asked.token) for asked in hub.asked] == [
        ("hub", "Bearer hf_secret"),
        ("store", ""),
        ("store", ""),
    ]


def test_an_expired_address_is_asked_for_again(hub: Hub, file: HubFile, reader: HubReader) -> None:
    hub.trouble.expire_after = 2
    found = b"".join(reader.read(file, at, 100_000) for at in range(0, 1_000_000, 100_000))
    assert found == DATA[:1_000_000]
    assert sum(asked.server == "hub" for asked in hub.asked) == 5


def test_a_body_that_breaks_off_goes_on_where_it_was(hub: Hub, file: HubFile, reader: HubReader) -> None:
    hub.trouble.cut[NAME] = [400_000, 1, 500_000]
    assert reader.read(file, 0, len(DATA)) == DATA
    begins = [start for start, _ in hub.ranges(NAME)]
    assert begins == sorted(begins)
    assert (len(begins), begins[0], begins[1] <= 400_000) == (4, 0, True)
    assert reader.fetched == len(DATA)


def test_parts_that_are_shorter_than_they_say(hub: Hub, file: HubFile, reader: HubReader) -> None:
    hub.trouble.short = 1_000
    timer = threading.Timer(0.3, lambda: setattr(hub.trouble, "short", 0))
    timer.start()
    assert reader.read(file, 0, 50_000) == DATA[:50_000]
    timer.join()


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_a_busy_server_is_asked_again(hub: Hub, file: HubFile, reader: HubReader, status: int) -> None:
    hub.trouble.once = [("/", status, {})]
    hub.trouble.store = [(status, {})]
    assert reader.read(file, 7, 100) == DATA[7:107]


@pytest.mark.parametrize("header", [{"Retry-After": "1"}, {"RateLimit": '"resolvers";r=0;t=1'}])
def test_retry_after_is_kept_and_told(hub: Hub, file: HubFile, header: dict[str, str]) -> None:
    notes: list[str] = []
    hub.trouble.store = [(429, header)]
    began = time.monotonic()
    with HubReader(notes.append, patience=0.01) as reader:
        assert reader.read(file, 7, 100) == DATA[7:107]
    assert time.monotonic() - began >= 1
    assert len(notes) == 1
    assert "429" in notes[0]
    assert "1.0 s" in notes[0]


def test_a_wait_of_hours_is_an_error(hub: Hub, file: HubFile, reader: HubReader) -> None:
    hub.trouble.store = [(429, {"Retry-After": "7200"})]
    with pytest.raises(Unavailable, match="7200 s") as caught:
        reader.read(file, 0, 10)
    assert "resume" in caught.value.hint


def test_a_date_in_retry_after(hub: Hub, file: HubFile, reader: HubReader) -> None:
    hub.trouble.store = [(503, {"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}), (503, {"Retry-After": "soon"})]
    assert reader.read(file, 0, 10) == DATA[:10]


def test_patience_ends(hub: Hub, file: HubFile) -> None:
    hub.trouble.answers["/"] = (500, {})
    with HubReader(patience=0.3) as reader, pytest.raises(Unavailable, match="answers 500; tried for") as caught:
        reader.read(file, 0, 10)
    assert "check the network" in caught.value.hint


def test_nobody_listens(monkeypatch: pytest.MonkeyPatch, file: HubFile) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    with HubReader(patience=0.3) as reader, pytest.raises(Unavailable, match="the connection broke"):
        reader.read(file, 0, 10)


def test_a_server_that_hangs(hub: Hub, file: HubFile, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_DOWNLOAD_TIMEOUT", "0.3")
    hub.trouble.hang[NAME] = 500_000
    timer = threading.Timer(0.6, hub.trouble.hang.clear)
    timer.start()
    with HubReader(patience=5) as reader:
        assert reader.read(file, 0, len(DATA)) == DATA
    timer.join()
    assert hub.ranges(NAME)[1][0] == 500_000


def test_a_cancel_ends_every_wait(hub: Hub, file: HubFile) -> None:
    hub.trouble.answers["/"] = (429, {"Retry-After": "600"})
    stop = threading.Event()
    threading.Timer(0.2, stop.set).start()
    began = time.monotonic()
    with HubReader(stop=stop) as reader, pytest.raises(Cancelled):
        reader.read(file, 0, 10)
    assert time.monotonic() - began < 1


def whole(hub: Hub) -> None:
    hub.trouble.whole = True


def shifted(hub: Hub) -> None:
    hub.trouble.shift = 3


def another_commit(hub: Hub) -> None:
    hub.trouble.commit = "f" * 40


def another_checksum(hub: Hub) -> None:
    hub.trouble.lie[NAME] = "0" * 64


def longer(hub: Hub) -> None:
    hub.files[NAME] = DATA + b"x"
    hub.trouble.plain = True
    hub.trouble.lie[NAME] = hub.tag(NAME)


def shorter(hub: Hub) -> None:
    hub.files[NAME] = DATA[:1000]


@pytest.mark.parametrize(
    ("trouble", "error", "match"),
    [
        (whole, InvalidFile, "ignores Range"),
        (shifted, InvalidFile, "sends bytes 5003 to"),
        (another_commit, SourceChanged, "commit ffffffffffff"),
        (another_checksum, SourceChanged, "checksum on the Hub"),
        (longer, SourceChanged, "changed on the Hub"),
        (shorter, SourceChanged, "1000 bytes now"),
    ],
)
def test_what_cannot_be_right_is_never_believed(
    hub: Hub, file: HubFile, reader: HubReader, trouble: Callable[[Hub], None], error: type[PhituiError], match: str
) -> None:
    trouble(hub)
    with pytest.raises(error, match=match):
        reader.read(file, 5_000, 100)
    assert reader.fetched == 0


@pytest.mark.parametrize(
    ("status", "headers", "error", "message", "hint"),
    [
        (403, {"X-Error-Code": "GatedRepo"}, Unavailable, "gated", "accept the terms"),
        (403, {}, Unavailable, "gated, or your token", "hf auth login"),
        (401, {"X-Error-Code": "RepoNotFound"}, Unavailable, "or it is private", "HF_TOKEN"),
        (404, {"X-Error-Code": "EntryNotFound"}, UsageError, "not on the Hub any more", "huggingface.co"),
        (400, {}, PhituiError, "refuses (400)", "check the network"),
        (302, {"Location": "/acme/phi/resolve/main/x"}, PhituiError, "one address to the next", "check"),
        (302, {"Location": "ftp://example.org/x"}, InvalidFile, "not safe", ""),
    ],
)
def test_refusals(
    hub: Hub, file: HubFile, reader: HubReader, status: int, headers: dict[str, str], error: type[PhituiError],
    message: str, hint: str,
) -> None:  # fmt: skip
    hub.trouble.answers["/acme"] = (status, headers)
    with pytest.raises(error) as caught:
        reader.read(file, 0, 100)
    assert message in caught.value.message
    assert hint in caught.value.hint


def test_offline(hub: Hub, file: HubFile, reader: HubReader, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(Unavailable, match="HF_HUB_OFFLINE is set"):
        reader.read(file, 0, 100)
    assert not hub.asked


def test_a_proxy_is_used(hub: Hub, file: HubFile, reader: HubReader, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", hub.url)
    monkeypatch.setenv("HF_ENDPOINT", "http://hub.example")
    hub.trouble.plain = True
    assert reader.read(file, 5, 100) == DATA[5:105]
    assert hub.asked[0].token == "Bearer hf_secret"


def test_a_bad_proxy(file: HubFile, reader: HubReader, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "nonsense://127.0.0.1:1")
    monkeypatch.setenv("ALL_PROXY", "nonsense://127.0.0.1:1")
    with pytest.raises(Unavailable, match="cannot ask the Hub") as caught:
        reader.read(file, 0, 100)
    assert "HTTPS_PROXY" in caught.value.hint


def test_a_file_that_the_hub_keeps_itself(hub: Hub, reader: HubReader) -> None:
    small = HubFile(hub.repo, COMMIT, "config.json", 8, hub.tag("config.json"))
    assert reader.read(small, 0, 8) == b'{"a": 1}'
    hub.files["config.json"] = b'{"a": 2}'
    with pytest.raises(SourceChanged):
        reader.read(small, 0, 8)


def test_many_at_once(hub: Hub, file: HubFile, reader: HubReader) -> None:
    hub.trouble.cut_all = 90_000
    found: dict[int, bytes] = {}

    def work(at: int) -> None:
        found[at] = reader.read(file, at, 200_000)

    threads = [threading.Thread(target=work, args=(at,)) for at in range(0, 1_600_000, 200_000)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert b"".join(found[at] for at in sorted(found)) == DATA[:1_600_000]
    assert reader.fetched == 1_600_000


def test_the_longest_wait_is_longer_than_the_hubs_window() -> None:
    assert remote.LONGEST_WAIT > 300
