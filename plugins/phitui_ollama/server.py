"""A running Ollama server, spoken to over its HTTP API. Every failure becomes an error that a person can act on."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from phitui.api import InvalidFile, PhituiError, Unavailable
from phitui_ollama.address import Address

if TYPE_CHECKING:
    import httpx

PIECE = 1 << 20
"""Bytes of a file that are read and sent at once."""
CONNECT_SECONDS = 10.0
SILENCE_SECONDS = 60.0
"""How long a server may be silent where it has nothing to do."""
WORK_SECONDS = 1800.0
"""How long it may be silent while it copies a model or loads it."""
DONE = "success"
"""The last thing it says of a model that it has created."""
_BUSY = (429, 502, 503, 504)
_TEXT_LIMIT = 300


class Interrupted(Unavailable):
    """The server cannot be reached, or stopped in the middle: another try may help."""


class Server:
    """The server at an address. Methods raise Interrupted where another try may help, else PhituiError."""

    def __init__(self, address: Address) -> None:
        import httpx

        self.address = address
        timeout = httpx.Timeout(SILENCE_SECONDS, connect=CONNECT_SECONDS)
        self._client = httpx.Client(base_url=address.url, timeout=timeout, trust_env=not address.local)

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def version(self) -> str:
        """The version it tells. Raises Unavailable if what answers is not Ollama."""
        response = self._ask("GET", "/api/version")
        try:
            version = response.json()["version"] if response.status_code == 200 else None
        except (ValueError, KeyError, TypeError):
            version = None
        if not isinstance(version, str):
            self._refuse_status(response, "the question for its version", (404, 405, 200))
            raise Unavailable(
                f"what answers at {self.address.url} is not Ollama",
                "check the address; Ollama listens on port 11434 unless told otherwise",
            )
        return version

    def has_model(self, name: str) -> bool:
        """Whether a model of that name is there."""
        response = self._ask("POST", "/api/show", json={"model": name})
        if response.status_code == 404:
            return False
        self._refuse_status(response, f"the question for {name}", (200,))
        return response.status_code == 200

    def has_blob(self, sha256: str) -> bool:
        """Whether it has a file of that content."""
        response = self._ask("HEAD", f"/api/blobs/sha256:{sha256}")
        self._refuse_status(response, "the question for a file", (200, 404))
        return response.status_code == 200

    def upload(self, path: Path, sha256: str, sent: Callable[[int], None]) -> None:
        """Send a file, piece by piece; `sent(bytes)` is called with what has gone so far, and may raise."""
        import httpx

        size = path.stat().st_size
        timeout = httpx.Timeout(WORK_SECONDS, connect=CONNECT_SECONDS, write=5 * SILENCE_SECONDS)
        response = self._ask(
            "POST",
            f"/api/blobs/sha256:{sha256}",
            content=_pieces(path, size, sent),
            headers={"Content-Length": str(size), "Content-Type": "application/octet-stream"},
            timeout=timeout,
        )
        if response.status_code not in (200, 201):
            raise self._upload_refused(response, path, size)

    def create(self, document: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
        """Create a model; yields what the server says of its progress, up to its "success"."""
        import httpx

        timeout = httpx.Timeout(WORK_SECONDS, connect=CONNECT_SECONDS)
        said = ""
        with (
            self._errors(),
            self._client.stream("POST", "/api/create", json=dict(document), timeout=timeout) as response,
        ):
            if response.status_code != 200:
                response.read()
                self._refuse_status(response, "the model", ())
            for line in response.iter_lines():
                event = _event(line)
                if "error" in event:
                    raise _create_failed(str(event["error"]), self.address.url)
                said = str(event.get("status", said))
                yield event
        if said != DONE:
            raise Interrupted(f"{self.address.url} ended its answer before the model was created (last: {said!r})")

    def ask(self, model: str, question: str, tokens: int) -> Mapping[str, Any]:
        """A short answer of the model, as /api/chat tells it."""
        document = {
            "model": model,
            "messages": [{"role": "user", "content": question}],
            "stream": False,
            "options": {"num_predict": tokens, "temperature": 0},
        }
        response = self._ask("POST", "/api/chat", json=document, timeout=WORK_SECONDS)
        self._refuse_status(response, "the question", (200,))
        event = _event(response.text)
        if "error" in event:
            raise PhituiError(f"Ollama says: {_short(str(event['error']))}")
        return event

    # ---- failures

    def _ask(self, method: str, path: str, **values: Any) -> httpx.Response:
        with self._errors():
            return self._client.request(method, path, **values)

    @contextmanager
    def _errors(self) -> Iterator[None]:
        import httpx

        try:
            yield
        except httpx.ConnectError as error:
            raise self._unreachable(error) from None
        except httpx.TimeoutException as error:
            what = "does not answer" if not isinstance(error, httpx.WriteTimeout) else "takes no more data"
            raise Interrupted(f"{self.address.url} {what}", "try again when it is less busy") from None
        except httpx.TransportError as error:
            raise Interrupted(
                f"the connection to {self.address.url} broke: {_short(str(error)) or type(error).__name__}",
                "the push can be resumed; the server's own log says more",
            ) from None
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise PhituiError(f"{self.address.url} cannot be asked: {_short(str(error))}") from None

    def _unreachable(self, error: Exception) -> PhituiError:
        text = _short(str(error))
        if "CERTIFICATE" in text.upper() or "SSL" in text.upper():
            return Unavailable(
                f"{self.address.url} cannot be trusted: {text}", "SSL_CERT_FILE names a certificate to trust"
            )
        if self.address.local:
            hint = "start Ollama: ollama serve"
        else:
            hint = (
                "is Ollama running there, and does it listen for other machines (OLLAMA_HOST=0.0.0.0 ollama serve)? "
                "Its usual port is 11434"
            )
        return Interrupted(f"nobody answers at {self.address.url}: {text}", hint)

    def _refuse_status(self, response: httpx.Response, what: str, fine: tuple[int, ...]) -> None:
        """Raise what a status means, unless it is among the `fine` ones."""
        status = response.status_code
        if status in fine:
            return
        text = _error_of(response)
        where = self.address.url
        if status in (401, 403):
            raise Unavailable(
                f"{where} refuses {what}: {text}",
                "it wants a login, which phitui does not send; or it answers this machine only (OLLAMA_HOST there)",
            )
        if 300 <= status < 400:
            to = _short(response.headers.get("Location", "")) or "another address"
            raise Unavailable(f"{where} points to {to}: {text}", "push to that address itself")
        if status in (404, 405):
            raise Unavailable(f"{where} does not know {what}: {text}", "it may be too old: update Ollama there")
        if status in _BUSY:
            raise Interrupted(f"{where} is not ready: {text}", "try again later")
        raise PhituiError(f"{where} refuses {what}: {text}", _hint_of(text))

    def _upload_refused(self, response: httpx.Response, path: Path, size: int) -> PhituiError:
        text, where = _error_of(response), self.address.url
        if "digest mismatch" in text:
            return InvalidFile(
                f"{path.name} arrived at {where} with another content: {text}",
                "the file changed meanwhile, or the line damages what it carries: push it once more",
            )
        if response.status_code == 413:
            return PhituiError(
                f"{where} takes no file of {size / 2**30:.2f} GiB: {text}", "a proxy before Ollama limits what is sent"
            )
        try:
            self._refuse_status(response, path.name, ())
        except PhituiError as error:
            return error
        raise AssertionError


def _pieces(path: Path, size: int, sent: Callable[[int], None]) -> Iterator[bytes]:
    """A file of `size` bytes. Raises InvalidFile if it is no longer that."""
    done = 0
    try:
        with path.open("rb", buffering=0) as file:
            before = os.fstat(file.fileno())
            while done < size and (piece := file.read(min(PIECE, size - done))):
                yield piece
                done += len(piece)
                sent(done)
            after = os.fstat(file.fileno())
    except OSError as error:
        raise InvalidFile(f"cannot read {path}: {error.strerror}") from None
    if done != size or (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
        raise InvalidFile(f"{path} changed while it was sent", "let the other program finish, then push it again")


def _event(line: str) -> Mapping[str, Any]:
    try:
        event = json.loads(line) if line.strip() else {}
    except (ValueError, RecursionError):
        raise Interrupted(f"the server answered with something that is not JSON: {_short(line)!r}") from None
    return event if isinstance(event, dict) else {}


def _error_of(response: httpx.Response) -> str:
    """What an answer says is wrong; else its status in words."""
    try:
        text = response.json()["error"]
    except (ValueError, KeyError, TypeError):
        text = ""
    status = f"{response.status_code} {response.reason_phrase}".strip()
    return _short(str(text)) or status


def _create_failed(text: str, url: str) -> PhituiError:
    return PhituiError(f"Ollama at {url} cannot make the model: {_short(text)}", _hint_of(text))


def _hint_of(text: str) -> str:
    low = text.lower()
    if "no space left" in low or "disk" in low:
        return "make room there: creating a model takes about twice its size for a while"
    if "gguf" in low or "architecture" in low or "unsupported" in low or "llama-quantize" in low:
        return "the Ollama there may be older than this model's kind: update it"
    return "the log of the Ollama server says more"


def _short(text: str) -> str:
    """The first line, safe to print."""
    line = next((line.strip() for line in text.splitlines() if line.strip()), "")
    return re.sub(r"[^\x20-\x7e\xa1-\ud7ff\ue000-\U0010ffff]", "?", line)[:_TEXT_LIMIT]
