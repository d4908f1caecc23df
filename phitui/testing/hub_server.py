"""A Hub on this machine: speaks its protocol over real sockets, and misbehaves when it is told to.

    with hub_server({"config.json": b"{}", "model.safetensors": path}) as hub:
        environment = hub.environment()          # HF_ENDPOINT and what goes with it
        hub.trouble.cut["model.safetensors"] = [1000]

Large files (`LARGE`) are kept by a second server, as on the Hub: `resolve` redirects to a signed address there that
expires. One repository (`acme/phi` unless told otherwise) at one commit. Needs nothing but the standard library.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
LARGE = (".safetensors", ".gguf", ".bin")
_PIECE = 256 << 10
_SPAN = re.compile(r"bytes=(\d+)-(\d*)")


@dataclass(frozen=True)
class Asked:
    """A request as it came. `server` is "hub" or "store"."""

    server: str
    method: str
    path: str
    range: str
    token: str


@dataclass
class Trouble:
    """What goes wrong. Everything may be changed while the server runs; offsets and lengths are bytes."""

    answers: dict[str, tuple[int, dict[str, str]]] = field(default_factory=dict)
    """Prefix of a path -> (status, headers) that everything below it is answered with."""
    once: list[tuple[str, int, dict[str, str]]] = field(default_factory=list)
    """(prefix, status, headers): the same for the next request only, one per entry."""
    store: list[tuple[int, dict[str, str]]] = field(default_factory=list)
    """The next answers of the second server."""
    cut: dict[str, list[int]] = field(default_factory=dict)
    """File -> after how much its next bodies break off, one per entry."""
    cut_all: int = 0
    """Every body breaks off after so much."""
    hang: dict[str, int] = field(default_factory=dict)
    """File -> offset at which its bodies stop and the connection stays open."""
    flip: dict[str, int] = field(default_factory=dict)
    """File -> offset of a byte that is sent wrong."""
    whole: bool = False
    """Range is ignored."""
    shift: int = 0
    """Parts begin so much later than asked for, and say so."""
    short: int = 0
    """Parts are so much shorter than their Content-Range says."""
    expire_after: int = 0
    """A signed address is good for so many requests."""
    lie: dict[str, str] = field(default_factory=dict)
    """File -> the checksum that the Hub tells of it."""
    commit: str = COMMIT
    """What X-Repo-Commit says."""
    plain: bool = False
    """Nothing is redirected to the second server."""
    latency: float = 0.0
    """Seconds before every answer."""
    rate: float = 0.0
    """Bytes per second and body; 0 is as fast as it goes."""


class Hub:
    """The files of one repository, what was asked, and what goes wrong. `url` is the Hub, `store_url` the other."""

    def __init__(self, files: Mapping[str, bytes | Path], repo: str = "acme/phi") -> None:
        self.files: dict[str, bytes | Path] = dict(files)
        self.repo, self.trouble = repo, Trouble()
        self.asked: list[Asked] = []
        self.sent = 0
        self.url = self.store_url = ""
        self.lock = threading.Lock()
        self._uses: dict[str, int] = {}
        self._sums: dict[str, tuple[int, str]] = {}
        self._signatures = 0
        self.closing = threading.Event()

    def environment(self, **more: str) -> dict[str, str]:
        """The variables of a process that is to use this Hub."""
        values = {"HF_ENDPOINT": self.url, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_TELEMETRY": "1", **more}
        return {**os.environ, **values}

    def paths(self, method: str = "GET") -> list[str]:
        """The paths that were asked for."""
        return [asked.path for asked in self.asked if asked.method == method]

    def ranges(self, name: str) -> list[tuple[int, int]]:
        """(first byte, byte after the last) of all parts of a file that were asked of the server that keeps it."""
        found = []
        for asked in self.asked:
            match = _SPAN.fullmatch(asked.range)
            kept = "hub" if not self.is_large(name) or self.trouble.plain else "store"
            if match and asked.method == "GET" and asked.server == kept and asked.path.endswith(f"/{name}"):
                found.append((int(match[1]), int(match[2] or self.size(name) - 1) + 1))
        return found

    def size(self, name: str) -> int:
        held = self.files[name]
        return held.stat().st_size if isinstance(held, Path) else len(held)

    def is_large(self, name: str) -> bool:
        return name.endswith(LARGE)

    def tag(self, name: str) -> str:
        """SHA-256 of a large file, git's blob id of a small one."""
        if name in self.trouble.lie:
            return self.trouble.lie[name]
        held = self.files[name]
        key = held.stat().st_mtime_ns if isinstance(held, Path) else id(held)
        known = self._sums.get(name)
        if known is None or known[0] != key:
            digest: Any = hashlib.sha256()
            if not self.is_large(name):
                digest = hashlib.sha1(b"blob %d\0" % self.size(name), usedforsecurity=False)
            for piece in self.pieces(name, 0, self.size(name)):
                digest.update(piece)
            known = self._sums[name] = (key, digest.hexdigest())
        return known[1]

    def pieces(self, name: str, start: int, stop: int) -> Iterator[bytes]:
        """The bytes of a file from `start` to `stop`."""
        held = self.files[name]
        if isinstance(held, bytes):
            for at in range(start, stop, _PIECE):
                yield held[at : min(stop, at + _PIECE)]
            return
        with held.open("rb") as file:
            file.seek(start)
            while start < stop and (piece := file.read(min(_PIECE, stop - start))):
                yield piece
                start += len(piece)

    def info(self) -> dict[str, Any]:
        """What /api/models says."""
        siblings = []
        for name in self.files:
            sibling: dict[str, Any] = {"rfilename": name, "size": self.size(name), "blobId": self.tag(name)}
            if self.is_large(name):
                sibling["blobId"] = "b" * 40
                sibling["lfs"] = {"sha256": self.tag(name), "size": self.size(name), "pointerSize": 134}
            siblings.append(sibling)
        return {"id": self.repo, "modelId": self.repo, "sha": COMMIT, "siblings": siblings, "tags": []}

    def sign(self, name: str) -> str:
        """An address of a file on the second server."""
        with self.lock:
            self._signatures += 1
            return f"{self.store_url}/{self._signatures}/{name}?Expires=1&Signature=x{self._signatures}"

    def expired(self, path: str) -> bool:
        """Count the use of a signed address."""
        with self.lock:
            number = path.split("/")[1]
            self._uses[number] = self._uses.get(number, 0) + 1
            return 0 < self.trouble.expire_after < self._uses[number]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub
    role: str

    def log_message(self, *_: Any) -> None:
        """Silence."""

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        hub, trouble, path = (
            self.hub,
            self.hub.trouble,
            urlsplit(self.path).path,
        )  # a proxy is asked for whole addresses
        token = self.headers.get("Authorization", "")
        with hub.lock:
            hub.asked.append(Asked(self.role, self.command, path, self.headers.get("Range", ""), token))
        if trouble.latency:
            hub.closing.wait(trouble.latency)
        told = self._told(path)
        if told:
            return self._send(told[0], b"{}", told[1])
        if self.role == "store":
            return self._stored(path)
        if path.startswith(f"/api/models/{hub.repo}"):
            return self._send(200, json.dumps(hub.info()).encode(), {"Content-Type": "application/json"})
        match = re.fullmatch(rf"/{re.escape(hub.repo)}/resolve/([^/]+)/(.+)", path)
        if match and match[1] in (COMMIT, "main") and match[2] in hub.files:
            return self._resolved(match[2])
        code = "EntryNotFound" if path.startswith(f"/{hub.repo}/") else "RepoNotFound"
        return self._send(404, b"{}", {"X-Error-Code": code})

    def _told(self, path: str) -> tuple[int, dict[str, str]] | None:
        """The answer that a switch prescribes."""
        trouble = self.hub.trouble
        with self.hub.lock:
            for at, (prefix, status, headers) in enumerate(trouble.once):
                if path.startswith(prefix):
                    del trouble.once[at]
                    return status, headers
            if self.role == "store" and trouble.store:
                return trouble.store.pop(0)
        return next((answer for prefix, answer in trouble.answers.items() if path.startswith(prefix)), None)

    def _resolved(self, name: str) -> None:
        hub = self.hub
        headers = {"X-Repo-Commit": hub.trouble.commit, "Accept-Ranges": "bytes", "ETag": f'"{hub.tag(name)}"'}
        if not hub.is_large(name) or hub.trouble.plain:
            return self._file(name, headers)
        linked = {"X-Linked-ETag": f'"{hub.tag(name)}"', "X-Linked-Size": str(hub.size(name))}
        return self._send(302, b"", {**headers, **linked, "Location": hub.sign(name)})

    def _stored(self, path: str) -> None:
        name = path.split("/", 2)[2]
        if self.hub.expired(path):
            return self._send(403, b"<Error>expired</Error>", {})
        return self._file(name, {"ETag": '"of-the-store"', "Accept-Ranges": "bytes"})

    def _file(self, name: str, headers: dict[str, str]) -> None:
        hub, trouble = self.hub, self.hub.trouble
        size, start, status = hub.size(name), 0, 200
        stop = size
        span = _SPAN.fullmatch(self.headers.get("Range", ""))
        if span and not trouble.whole:
            start, stop = int(span[1]), min(size, int(span[2] or size - 1) + 1)
            if start >= size:
                return self._send(416, b"", {"Content-Range": f"bytes */{size}"})
            status = 206
            start += trouble.shift
            headers["Content-Range"] = f"bytes {start}-{stop - 1}/{size}"
        length = stop - start
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(length - (trouble.short if status == 206 else 0))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "HEAD":
            return None
        return self._body(name, start, stop)

    def _body(self, name: str, start: int, stop: int) -> None:
        hub, trouble = self.hub, self.hub.trouble
        with hub.lock:
            cuts = trouble.cut.get(name)
            limit = cuts.pop(0) if cuts else trouble.cut_all or stop - start
        end = min(stop, start + limit)
        end -= trouble.short if end == stop else 0
        hang = trouble.hang.get(name)
        flip = trouble.flip.get(name)
        held = hub.files[name]
        if isinstance(held, Path) and hang is None and flip is None and not trouble.rate:
            with suppress(OSError), held.open("rb") as file:
                self.wfile.flush()
                self.connection.sendfile(file, start, end - start)
                with hub.lock:
                    hub.sent += end - start
            start = end
        with suppress(OSError):
            for clean in hub.pieces(name, start, end):
                piece = clean
                if flip is not None and start <= flip < start + len(piece):
                    piece = piece[: flip - start] + bytes([piece[flip - start] ^ 1]) + piece[flip - start + 1 :]
                if hang is not None and start + len(piece) > hang:
                    self.wfile.write(piece[: max(0, hang - start)])
                    self.wfile.flush()
                    hub.closing.wait(60)
                    break
                self.wfile.write(piece)
                start += len(piece)
                with hub.lock:
                    hub.sent += len(piece)
                if trouble.rate:
                    hub.closing.wait(len(piece) / trouble.rate)
        if end < stop:
            self._hang_up()

    def _hang_up(self) -> None:
        self.close_connection = True
        with suppress(OSError):
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)

    def _send(self, status: int, data: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 64

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is no news."""


@contextmanager
def hub_server(files: Mapping[str, bytes | Path] | Path, repo: str = "acme/phi") -> Iterator[Hub]:
    """A running Hub with these files, or with those of a directory."""
    if isinstance(files, Path):
        files = {path.name: path for path in sorted(files.iterdir()) if path.is_file()}
    hub = Hub(files, repo)
    servers = []
    for role in ("hub", "store"):
        handler = type("Handler", (_Handler,), {"hub": hub, "role": role})
        server = _Server(("127.0.0.1", 0), handler)
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        servers.append(server)
    hub.url, hub.store_url = (f"http://127.0.0.1:{server.server_port}" for server in servers)
    try:
        yield hub
    finally:
        hub.closing.set()
        for server in servers:
            server.shutdown()
            server.server_close()


def main() -> None:
    """`python -m phitui.testing.hub_server DIR [SECONDS]`: serve a directory with that latency until it is killed."""
    import sys

    with hub_server(Path(sys.argv[1]), f"acme/{Path(sys.argv[1]).name}") as hub:
        hub.trouble.latency = float(sys.argv[2]) if len(sys.argv) > 2 else 0.0
        sys.stdout.write(f"{hub.url} {hub.repo}\n")
        sys.stdout.flush()
        while True:
            time.sleep(3600)


if __name__ == "__main__":
    main()
