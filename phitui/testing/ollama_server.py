"""An Ollama on this machine: takes models over its HTTP API, as strictly as the real one, and misbehaves when told to.

    with ollama_server(tmp_path / "blobs") as ollama:
        ollama.trouble.cut = [1000]              # the next upload breaks off after 1000 bytes
        ... phitui export model.gguf --to ollama --push {ollama.url}
        ollama.models["phi:latest"]["template"]

It makes no model run: a question is answered with the number of words in it. Needs nothing but the standard library.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

_BLOB = re.compile(r"/api/blobs/sha256:([0-9a-f]{64})")
_PIECE = 64 << 10
_INTEGERS = ("num_ctx", "num_gpu", "num_thread", "num_predict", "num_batch", "num_keep", "seed", "top_k")
_NUMBERS = ("temperature", "top_p", "min_p", "repeat_penalty", "presence_penalty", "frequency_penalty", "typical_p")


@dataclass
class Trouble:
    """What goes wrong. Everything may be changed while the server runs; lengths are bytes, times seconds."""

    once: list[tuple[str, int, str]] = field(default_factory=list)
    """(prefix of "METHOD path", status, error text) for the next such request, one per entry."""
    cut: list[int] = field(default_factory=list)
    """After how much the next uploads break off, one per entry."""
    full_after: int = 0
    """The disk is full after so much of an upload."""
    flip: bool = False
    """A byte of every upload is changed on its way."""
    rate: float = 0.0
    """Bytes per second that are taken; 0 is as fast as it goes."""
    error_in_create: str = ""
    """Told in the middle of the stream, under status 200."""
    cut_create: int = 0
    """So many next creations end in the middle of the stream."""
    noise: str = ""
    """A line of the stream that is no JSON."""
    error_in_chat: str = ""


class Ollama:
    """The server's blobs and models, what was asked of it, and what goes wrong."""

    def __init__(self, blobs: Path) -> None:
        self.blobs, self.trouble, self.version = blobs, Trouble(), "0.33.0"
        self.models: dict[str, dict[str, Any]] = {}
        self.asked: list[str] = []
        self.received = 0
        """Bytes of all uploads together."""
        self.url = ""
        self.lock = threading.Lock()
        blobs.mkdir(parents=True, exist_ok=True)

    def blob(self, sha256: str) -> Path:
        return self.blobs / f"sha256-{sha256}"

    def count(self, text: str) -> int:
        """How many requests "METHOD path" begin so."""
        return sum(asked.startswith(text) for asked in self.asked)

    def why_not(self, document: Any) -> str:
        """What is wrong with a body of /api/create; empty if nothing is."""
        if not isinstance(document, dict) or not isinstance(document.get("model"), str) or not document["model"]:
            return "invalid model name"
        files = document.get("files")
        if not isinstance(files, dict) or not files:
            return "neither 'from' or 'files' was specified"
        for name, digest in files.items():
            if not name or name.startswith("/") or ".." in name.split("/") or not name.endswith(".gguf"):
                return "file path must be relative"
            if not re.fullmatch("sha256:[0-9a-f]{64}", digest):
                return "invalid digest format"
        for key, kind in (("template", str), ("system", str), ("license", (str, list)), ("messages", list)):
            if key in document and not isinstance(document[key], kind):
                return f"json: cannot unmarshal into Go struct field CreateRequest.{key}"
        if any(m.get("role") not in ("system", "user", "assistant") for m in document.get("messages", ())):
            return "role must be one of [system user assistant]"
        return ""

    def create(self, document: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """The events of a creation."""
        digests = [str(digest).removeprefix("sha256:") for digest in document["files"].values()]
        yield {"status": "parsing GGUF"}
        for digest in digests:
            try:
                with self.blob(digest).open("rb") as file:
                    magic = file.read(4)
            except OSError:
                yield {"error": f"stat {self.blob(digest)}: no such file or directory"}
                return
            if magic != b"GGUF":
                yield {"error": "supplied file was not in GGUF format"}
                return
            for part in (1, 2):
                yield {"status": "validating GGUF model", "digest": "0" * 19, "total": 2, "completed": part}
            yield {"status": f"using existing layer sha256:{digest}"}
        if self.trouble.error_in_create:
            yield {"error": self.trouble.error_in_create}
            return
        yield {"status": "writing manifest"}
        name = document["model"]
        self.models[name if ":" in name.rpartition("/")[2] else f"{name}:latest"] = document
        yield {"status": "success"}

    def load_error(self, document: dict[str, Any]) -> str:
        """What is wrong with the parameters of a model, found out when it is loaded."""
        for key, value in document.get("parameters", {}).items():
            if key == "stop":
                fine = isinstance(value, list) and all(isinstance(text, str) for text in value)
            elif key in _INTEGERS:
                fine = isinstance(value, int) and not isinstance(value, bool)
            else:
                fine = key not in _NUMBERS or isinstance(value, (int, float))
            if not fine:
                return f'option "{key}" must be of another type'
        return ""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    ollama: Ollama

    def log_message(self, *_: Any) -> None:
        """Silence."""

    def do_GET(self) -> None:
        self._do(lambda: self._send(200, {"version": self.ollama.version}) if self.path == "/api/version" else None)

    def do_HEAD(self) -> None:
        match = _BLOB.fullmatch(self.path)
        self._do(lambda: self._send(200 if match and self.ollama.blob(match[1]).exists() else 404, None))

    def do_POST(self) -> None:
        ways: dict[str, Callable[[], None]] = {
            "/api/create": self._create,
            "/api/show": lambda: self._with_model(lambda model: self._send(200, {"template": model["template"]})),
            "/api/chat": self._chat,
        }
        self._do(self._upload if self.path.startswith("/api/blobs/") else ways.get(self.path, lambda: None))

    def _do(self, work: Callable[[], None]) -> None:
        """Answer as told to, else with `work`; what it leaves without an answer is not found."""
        ollama, line = self.ollama, f"{self.command} {self.path}"
        self.answered = False
        with ollama.lock:
            ollama.asked.append(line)
            told = next((entry for entry in ollama.trouble.once if line.startswith(entry[0])), None)
            if told:
                ollama.trouble.once.remove(told)
        if told:
            self._send(told[1], {"error": told[2]})
            self.close_connection = True  # a body may be unread
        else:
            work()
            if not self.answered:
                self._send(404, {"error": "404 page not found"})

    def _upload(self) -> None:
        ollama, trouble = self.ollama, self.ollama.trouble
        match = _BLOB.fullmatch(self.path)
        left = int(self.headers.get("Content-Length", "0"))
        if match is None:
            return self._send(400, {"error": "invalid digest format"})
        with ollama.lock:
            cut = trouble.cut.pop(0) if trouble.cut else None
        digest, took = hashlib.sha256(), 0
        part = ollama.blobs / f"part-{threading.get_ident()}"
        with part.open("wb") as file:
            while left and (piece := self.rfile.read(min(_PIECE, left))):
                left, took = left - len(piece), took + len(piece)
                piece = bytes([piece[0] ^ 1]) + piece[1:] if trouble.flip else piece
                digest.update(piece)
                file.write(piece)
                with ollama.lock:
                    ollama.received += len(piece)
                if trouble.rate:
                    time.sleep(len(piece) / trouble.rate)
                full = 0 < trouble.full_after <= took
                if full or (cut is not None and took >= cut):
                    part.unlink()
                    if full:
                        self._send(500, {"error": f"write {part}: no space left on device"})
                    self.close_connection = True
                    self.answered = True
                    return None
        if left or digest.hexdigest() != match[1]:
            part.unlink()
            got = f'digest mismatch, expected "sha256:{match[1]}", got "sha256:{digest.hexdigest()}"'
            return self._send(400, {"error": got})
        there = ollama.blob(match[1]).exists()
        part.rename(ollama.blob(match[1]))
        return self._send(200 if there else 201, None)

    def _create(self) -> None:
        document, trouble = self._body(), self.ollama.trouble
        wrong = self.ollama.why_not(document)
        if wrong:
            return self._send(400, {"error": wrong})
        self.answered = True
        self.send_response(200)
        self.send_header("Content-Type", "application/x-ndjson")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        with self.ollama.lock:
            cut, trouble.cut_create = trouble.cut_create > 0, max(0, trouble.cut_create - 1)
        for event in self.ollama.create(document):
            if cut and event.get("status") == "writing manifest":
                self.close_connection = True
                return None
            self._chunk(json.dumps(event) + "\n")
        if trouble.noise:
            self._chunk(trouble.noise + "\n")
        return self._chunk("")

    def _chat(self) -> None:
        document, trouble = self._body(), self.ollama.trouble

        def answer(model: dict[str, Any]) -> None:
            error = trouble.error_in_chat or self.ollama.load_error(model)
            if error:
                return self._send(500, {"error": error})
            words = len(document["messages"][-1]["content"].split())
            message = {"role": "assistant", "content": f"{words} words."}
            told = {"message": message, "done": True, "done_reason": "stop"}
            return self._send(200, {**told, "eval_count": 4, "eval_duration": 200_000_000})

        self._with_model(answer, document)

    def _with_model(self, work: Callable[[dict[str, Any]], None], document: Any = None) -> None:
        name = (document or self._body())["model"]
        model = self.ollama.models.get(name) or self.ollama.models.get(f"{name}:latest")
        if model is None:
            return self._send(404, {"error": f"model '{name}' not found"})
        return work(model)

    def _body(self) -> Any:
        return json.loads(self.rfile.read(int(self.headers.get("Content-Length", "0"))) or b"null")

    def _send(self, status: int, document: Any) -> None:
        self.answered = True
        body = b"" if document is None or self.command == "HEAD" else json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _chunk(self, text: str) -> None:
        data = text.encode()
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: Any) -> None:
        """A client that went away is no news."""


@contextmanager
def ollama_server(blobs: Path, port: int = 0) -> Iterator[Ollama]:
    """A running server that keeps its files in `blobs`."""
    ollama = Ollama(blobs)
    server = _Server(("127.0.0.1", port), type("Handler", (_Handler,), {"ollama": ollama}))
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    ollama.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield ollama
    finally:
        server.shutdown()
        server.server_close()


def main() -> None:
    """`python -m phitui.testing.ollama_server DIR [BYTES_PER_SECOND]`: serve until it is killed."""
    import sys

    with ollama_server(Path(sys.argv[1])) as ollama:
        ollama.trouble.rate = float(sys.argv[2]) if len(sys.argv) > 2 else 0.0
        sys.stdout.write(f"{ollama.url}\n")
        sys.stdout.flush()
        while True:
            time.sleep(3600)


if __name__ == "__main__":
    main()
