"""Pushing a model to an Ollama server: what is sent, what is not sent twice, and what is said where it fails."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from phitui_ollama import push as pushing
from phitui_ollama.exporter import Ollama
from phitui_ollama.modelfile import parse
from phitui_ollama.options import OllamaOptions
from phitui_ollama.server import PIECE

from phitui.actions.export import export_model
from phitui.api import Cancelled, Delivery, Publisher
from phitui.domain.tensors import FilePlan, InlineExtent, SourceTensor, TensorType, Value, ValueType, place
from phitui.errors import InvalidFile, OutputExists, PhituiError, Unavailable, UsageError
from phitui.gguf.writer import write_gguf
from phitui.testing.ollama_server import Ollama as Server
from phitui.testing.ollama_server import ollama_server

SIZE = 3 * PIECE


class Job:
    """Collects what is reported; raises Cancelled once `stop_at` bytes are done."""

    def __init__(self, stop_at: int | None = None) -> None:
        self.notes: list[str] = []
        self.seen: list[tuple[int, int, str]] = []
        self._stop_at = stop_at

    def progress(self, done: int, total: int, text: str = "") -> None:
        self.seen.append((done, total, text))
        if self._stop_at is not None and done >= self._stop_at:
            raise Cancelled

    def note(self, text: str) -> None:
        self.notes.append(text)

    def check(self) -> None:
        pass


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pushing, "DELAYS", (0.01, 0.01, 0.01))


@pytest.fixture
def ollama(tmp_path: Path) -> Iterator[Server]:
    with ollama_server(tmp_path / "server") as running:
        yield running


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A little more than three pieces."""
    content = hashlib.shake_128(b"phi").digest(SIZE)
    tensor = SourceTensor("token_embd.weight", (32, SIZE // 128), TensorType.F32, (InlineExtent(content),))
    metadata = {
        "general.architecture": Value.string("phi3"),
        "general.license": Value.string("mit"),
        "phi3.block_count": Value.u32(2),
        "phi3.context_length": Value.u32(8192),
        "tokenizer.ggml.tokens": Value.array(ValueType.STRING, ["<|end|>", "<|user|>"]),
    }
    path = tmp_path / "Phi-3-tiny.gguf"
    write_gguf(FilePlan("F32", metadata, place([(tensor, TensorType.F32, None)])), path, allow_nan=True)
    return path


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def push(model: Path, url: str, job: Job | None = None, test: bool = True, **options: Any) -> dict[str, Any]:
    values = OllamaOptions(**options)
    return dict(Ollama().push(export_model(model), values, Delivery(url, test, sha256), job or Job()))


def test_it_is_a_publisher() -> None:
    assert isinstance(Ollama(), Publisher)


def test_the_server_is_told_what_the_modelfile_says(ollama: Server, model: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {
        "name": "me/phi:q4",
        "system": 'Say "yes".\nOr """no"""\nor\u00a0maybe.',  # no Modelfile can say that
        "temperature": 0.5,
        "num_gpu": 3,
        "parameter": ("use_mmap=f", "repeat_last_n=8"),
        "stop": ("halt",),
        "message": ("user: Hi: you", "assistant: Yes."),
    }
    told = push(model, ollama.url, **options)
    made = ollama.models["me/phi:q4"]
    assert made["system"] == options["system"]
    plain = {**options, "system": "Plain."}
    commands = parse(Ollama().preview(export_model(model), OllamaOptions(**plain), tmp_path).files[0].text)
    values = {command.name: command.value for command in commands}
    assert made["template"] == values["template"]
    assert made["license"] == "mit"
    assert made["messages"] == [{"role": "user", "content": "Hi: you"}, {"role": "assistant", "content": "Yes."}]
    stops = [command.value for command in commands if command.key == "stop"]
    assert made["parameters"] == {
        "num_ctx": 4096,
        "num_gpu": 3,
        "repeat_last_n": 8,
        "temperature": 0.5,
        "use_mmap": False,
        "stop": stops,
    }
    assert stops[-1] == "halt" and len(stops) > 1
    assert made["files"] == {"Phi-3-tiny.gguf": f"sha256:{sha256(model)}"}
    assert sha256(ollama.blob(sha256(model))) == sha256(model)
    assert (told["name"], told["url"], told["answer"]) == ("me/phi:q4", ollama.url, "2 words.")
    assert (told["sent"], told["present"], told["tokens_per_second"]) == (model.stat().st_size, 0, 20.0)
    assert told["run"] == [f"OLLAMA_HOST={ollama.url} ollama run me/phi:q4"]


def test_what_is_there_is_not_sent_again(ollama: Server, model: Path) -> None:
    push(model, ollama.url, test=False)
    job = Job()
    told = push(model, ollama.url, job, test=False, name="again")
    assert (told["sent"], told["present"]) == (0, model.stat().st_size)
    assert ollama.count("POST /api/blobs") == 1
    assert ollama.count("POST /api/chat") == 0
    assert told["answer"] == ""
    assert "Phi-3-tiny.gguf is there already" in job.notes


def test_progress_is_in_bytes_and_the_servers_words_are_shown(ollama: Server, model: Path) -> None:
    job = Job()
    push(model, ollama.url, job)
    size = model.stat().st_size
    sending = [(done, total) for done, total, text in job.seen if text == "sending Phi-3-tiny.gguf"]
    assert sending[0] == (0, size) and sending[-1] == (size, size)
    assert [done for done, _ in sending] == sorted(done for done, _ in sending)
    assert (1, 2, "validating GGUF model") in job.seen
    assert job.notes == ["parsing GGUF", "validating GGUF model", "writing manifest"]
    assert job.seen[-1] == (size, size, "done")


def test_a_cut_line_is_tried_again(ollama: Server, model: Path) -> None:
    ollama.trouble.cut = [PIECE, 10]
    ollama.trouble.once = [("GET /api/version", 503, "starting"), ("HEAD /api/blobs", 502, "")]
    ollama.trouble.cut_create = 1
    job = Job()
    push(model, ollama.url, job)
    assert ollama.count("POST /api/blobs") == 3
    assert sum("trying again" in note for note in job.notes) == 5
    assert sha256(ollama.blob(sha256(model))) == sha256(model)


def test_trying_again_has_an_end(ollama: Server, model: Path) -> None:
    ollama.trouble.cut = [PIECE] * 9
    with pytest.raises(Unavailable, match=r"the connection to http://127.0.0.1:\d+ broke"):
        push(model, ollama.url)
    assert ollama.count("POST /api/blobs") == 4
    assert not ollama.models and not any(path.name.startswith("sha256-") for path in ollama.blobs.iterdir())


def test_an_error_in_the_stream_is_an_error(ollama: Server, model: Path) -> None:
    ollama.trouble.error_in_create = "unknown model architecture: 'phi9'\x1b[2J"
    with pytest.raises(PhituiError, match=r"cannot make the model: unknown model architecture: 'phi9'\?\[2J") as caught:
        push(model, ollama.url)
    assert "update it" in caught.value.hint
    assert ollama.count("POST /api/create") == 1


def test_no_json_in_the_stream(ollama: Server, model: Path) -> None:
    ollama.trouble.noise = "<html>a proxy</html>"
    with pytest.raises(Unavailable, match="not JSON: '<html>a proxy</html>'"):
        push(model, ollama.url)


def test_a_file_that_is_no_gguf_for_the_server(ollama: Server, model: Path) -> None:
    push(model, ollama.url)
    ollama.blob(sha256(model)).write_bytes(b"nothing")
    with pytest.raises(PhituiError, match="supplied file was not in GGUF format"):
        push(model, ollama.url)


@pytest.mark.parametrize(
    ("trouble", "error", "message", "hint"),
    [
        ({"full_after": PIECE}, PhituiError, "no space left on device", "make room there"),
        ({"flip": True}, InvalidFile, "another content: digest mismatch", "once more"),
        ({"once": [("POST /api/blobs", 413, "too large")]}, PhituiError, "takes no file of 0.00 GiB", "proxy"),
        ({"once": [("POST /api/blobs", 404, "")]}, Unavailable, "does not know Phi-3-tiny.gguf: 404", "update Ollama"),
        ({"once": [("HEAD /api/blobs", 401, "")]}, Unavailable, "refuses the question for a file: 401", "login"),
        ({"once": [("POST /api/create", 400, "invalid model name")]}, PhituiError, "invalid model name", "log"),
        ({"once": [("POST /api/create", 404, "")]}, Unavailable, "does not know the model", "update Ollama"),
        ({"error_in_chat": "llama runner process has terminated"}, PhituiError, "was created, but does not", "--no-te"),
    ],
)
def test_refusals(
    ollama: Server, model: Path, trouble: dict[str, Any], error: type[PhituiError], message: str, hint: str
) -> None:
    for name, value in trouble.items():
        setattr(ollama.trouble, name, value)
    with pytest.raises(error, match=message) as caught:
        push(model, ollama.url)
    assert type(caught.value) is error
    assert hint in caught.value.hint


def test_a_file_that_changed_since_it_was_hashed(ollama: Server, model: Path) -> None:
    known = sha256(model)
    with model.open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"!")
    with pytest.raises(InvalidFile, match="digest mismatch"):
        Ollama().push(export_model(model), OllamaOptions(), Delivery(ollama.url, True, lambda _: known), Job())
    assert not ollama.models


def test_a_file_that_changes_while_it_is_sent(ollama: Server, model: Path) -> None:
    class Meddler(Job):
        def progress(self, done: int, total: int, text: str = "") -> None:
            super().progress(done, total, text)
            if done == PIECE:
                with model.open("r+b") as file:
                    file.truncate(2 * PIECE)

    with pytest.raises(InvalidFile, match="changed while it was sent"):
        push(model, ollama.url, Meddler())
    assert not ollama.models


def test_cancelled_in_the_middle(ollama: Server, model: Path, wait_until: Callable[..., None]) -> None:
    with pytest.raises(Cancelled):
        push(model, ollama.url, Job(stop_at=PIECE))
    assert ollama.received < SIZE
    wait_until(lambda: not list(ollama.blobs.iterdir()))
    assert push(model, ollama.url)["sent"] == model.stat().st_size


def test_memory_stays_small(ollama: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import tracemalloc

    from phitui_ollama.address import address
    from phitui_ollama.server import Server as Client

    big = tmp_path / "big.gguf"
    with big.open("wb") as file:
        file.truncate(64 * PIECE)
    digest = sha256(big)
    with Client(address(ollama.url)) as client:
        tracemalloc.start()
        client.upload(big, digest, lambda _: None)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 16 * PIECE  # the server of this test included
    assert ollama.blob(digest).stat().st_size == 64 * PIECE


def split(model: Path) -> list[Path]:
    """The names of a split model, each the whole file: nobody looks inside here."""
    names = [model.with_name(f"Phi-3-tiny-{n:05}-of-00002.gguf") for n in (1, 2)]
    names[0].write_bytes(model.read_bytes())
    names[1].write_bytes(model.read_bytes() + b"more")
    return names


def test_split_models_go_in_parts(ollama: Server, model: Path) -> None:
    parts = split(model)
    whole = export_model(model)
    import dataclasses

    cut = dataclasses.replace(whole, path=parts[0], shards=tuple(parts))
    ollama.trouble.cut = [10**9, 5]
    told = Ollama().push(cut, OllamaOptions(), Delivery(ollama.url, False, sha256), Job())
    assert told["files"] == {part.name: f"sha256:{sha256(part)}" for part in parts}
    assert told["sent"] == sum(part.stat().st_size for part in parts)
    assert ollama.count("POST /api/blobs") == 3  # the first was not sent again
    ollama.version = "0.24.0"
    with pytest.raises(Unavailable, match="takes no split models") as caught:
        Ollama().destination(cut, OllamaOptions(), ollama.url, True)
    assert "phitui gguf merge" in caught.value.hint


def test_the_destination(ollama: Server, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = export_model(model)
    assert Ollama().destination(whole, OllamaOptions(), ollama.url + "/", False) == ollama.url
    monkeypatch.setenv("OLLAMA_HOST", ollama.url.removeprefix("http://"))
    assert Ollama().destination(whole, OllamaOptions(), "", False) == ollama.url
    push(model, ollama.url)
    with pytest.raises(OutputExists, match="has a model phi-3-tiny already"):
        Ollama().destination(whole, OllamaOptions(), ollama.url, False)
    assert Ollama().destination(whole, OllamaOptions(name="other"), ollama.url, False) == ollama.url
    assert Ollama().destination(whole, OllamaOptions(), ollama.url, True) == ollama.url
    with pytest.raises(UsageError, match="no name for a model"):
        Ollama().destination(whole, OllamaOptions(name="a b"), ollama.url, True)


@pytest.mark.parametrize(
    ("version", "fine"), [("0.5.4", False), ("0.5.5", True), ("0.0.0", True), ("v1.0.0-rc1", True), ("main", True)]
)
def test_old_versions(ollama: Server, model: Path, version: str, fine: bool) -> None:
    ollama.version = version
    if fine:
        assert Ollama().destination(export_model(model), OllamaOptions(), ollama.url, False)
        return
    with pytest.raises(Unavailable, match=r"is version 0.5.4: too old"):
        Ollama().destination(export_model(model), OllamaOptions(), ollama.url, False)


@pytest.mark.parametrize(("status", "says"), [(301, "points to another address: 301"), (403, "403"), (500, "refuses")])
def test_a_server_that_is_not_to_be_asked(ollama: Server, model: Path, status: int, says: str) -> None:
    ollama.trouble.once = [("GET /api/version", status, "")]
    with pytest.raises(PhituiError, match=says):
        Ollama().destination(export_model(model), OllamaOptions(), ollama.url, False)


@pytest.mark.parametrize("status", [200, 404, 405])
def test_something_else_answers(ollama: Server, model: Path, status: int) -> None:
    ollama.trouble.once = [("GET /api/version", status, "x")]
    with pytest.raises(Unavailable, match="is not Ollama"):
        Ollama().destination(export_model(model), OllamaOptions(), ollama.url, False)


def test_nobody_answers_and_no_proxy_is_asked(
    ollama: Server, model: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.delenv("NO_PROXY", raising=False)
    assert Ollama().destination(export_model(model), OllamaOptions(), ollama.url, False) == ollama.url
    with ollama_server(tmp_path / "gone") as gone:
        url = gone.url
    began = time.monotonic()
    with pytest.raises(Unavailable, match="nobody answers at http://127") as caught:
        Ollama().destination(export_model(model), OllamaOptions(), url, False)
    assert "ollama serve" in caught.value.hint
    assert time.monotonic() - began < 2
