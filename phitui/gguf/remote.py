"""Ranges of files on the Hub, over HTTP: every answer is checked, and broken ones are asked for again.

The Hub answers `resolve` with the file itself or with a redirect to a signed, expiring address on another host. The
token goes to the Hub alone. What the Hub says of a file (commit, SHA-256, size) must stay what it was.
HF_ENDPOINT, HF_TOKEN, HF_HUB_OFFLINE and HF_HUB_DOWNLOAD_TIMEOUT mean what they mean to huggingface_hub; proxies are
taken from the environment.
"""

from __future__ import annotations

import os
import random
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from email.utils import parsedate_to_datetime
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import quote, urlsplit

from phitui.domain.tensors import HubFile
from phitui.domain.text import visible
from phitui.errors import Cancelled, InvalidFile, PhituiError, SourceChanged, Unavailable, UsageError

if TYPE_CHECKING:
    import httpx

CONNECTIONS = 4
PATIENCE = 180.0
"""Seconds of tries without a single byte after which a line counts as cut."""
LONGEST_WAIT = 900.0
"""Seconds a server may ask to wait (Retry-After); the Hub counts requests over five minutes."""
CONNECT_SECONDS, READ_SECONDS = 10.0, 20.0
_SLOWEST_TRY = 20.0
_HOPS = 5
BUSY = (408, 425, 429, 500, 502, 503, 504, 520, 522, 524)
"""Answers that may be other ones soon."""
_REFUSED = (400, 401, 403, 404, 410)
"""How stores of files answer to a signed address that has expired."""
_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+)")
_WINDOW = re.compile(r";\s*r\s*=\s*0\s*;\s*t\s*=\s*(\d{1,6})")
_YES = ("1", "ON", "YES", "TRUE")


class _Again(Exception):
    """Worth another try. `wait`: seconds the server asked for."""

    def __init__(self, reason: str, wait: float = 0.0) -> None:
        super().__init__(reason)
        self.reason, self.wait = reason, wait


def endpoint() -> str:
    """The address of the Hub, without a slash at its end."""
    return (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")


def is_offline() -> bool:
    """Whether the environment forbids to ask the Hub."""
    said = os.environ.get("HF_HUB_OFFLINE") or os.environ.get("TRANSFORMERS_OFFLINE") or ""
    return said.upper() in _YES


class HubReader:
    """Reads ranges of files of the Hub. Safe for several threads.

    `note` is told of troubles that last; `stop` ends all waiting. `fetched` counts bytes, `requests` what was asked.
    """

    def __init__(
        self,
        note: Callable[[str], None] | None = None,
        stop: threading.Event | None = None,
        patience: float | None = None,
    ) -> None:
        self.stop = stop or threading.Event()
        self.fetched = self.requests = 0
        self._note, self._patience = note, PATIENCE if patience is None else patience
        self._lock = threading.Lock()
        self._signed: dict[HubFile, str] = {}
        self._quiet_until = self._noted = 0.0
        self._made: httpx.Client | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self.stop.set()
        with self._lock:
            if self._made is not None:
                self._made.close()

    def read(self, file: HubFile, offset: int, length: int) -> bytes:
        """These bytes of the file."""
        found = bytearray()
        self.fetch(file, offset, length, found.extend)
        return bytes(found)

    def fetch(self, file: HubFile, offset: int, length: int, take: Callable[[bytes], Any]) -> None:
        """Give these bytes of the file to `take`, piece by piece, going on after every break where it was.

        Raises Unavailable (no network, no access), SourceChanged, InvalidFile (an answer that cannot be right),
        PhituiError and Cancelled.
        """
        at, end = offset, offset + length
        failures, since = 0, 0.0
        while at < end:
            before = at
            try:
                with self._answer(file, at, end) as pieces:
                    for piece in pieces:
                        if at + len(piece) > end:
                            raise InvalidFile(f"{file}: the server sent more than it was asked for", _PULL)
                        take(piece)
                        at += len(piece)
                        self._count(len(piece))
                if at == before:
                    raise _Again("the answer was empty")
            except _Again as trouble:
                failures = failures + 1 if at == before else 1
                since = time.monotonic() if failures == 1 else since
                since += self._pause(file, trouble, failures, since)

    def _count(self, size: int) -> None:
        with self._lock:
            self.fetched += size
        if self.stop.is_set():
            raise Cancelled

    def _pause(self, file: HubFile, trouble: _Again, failures: int, since: float) -> float:
        """Wait before the next try. Returns the seconds a server asked for, in which nothing failed.

        `failures` came one after the other, the first of them at `since`.
        """
        if trouble.wait > LONGEST_WAIT:
            raise Unavailable(
                f"{file}: {trouble.reason}, and to come back in {trouble.wait:.0f} s", "try again later; " + _RESUME
            )
        now = time.monotonic()
        if not trouble.wait and now - since > self._patience:
            raise Unavailable(f"{file}: {trouble.reason}; tried for {now - since:.0f} s", f"{_NETWORK}; {_RESUME}")
        delay = trouble.wait or min(_SLOWEST_TRY, 0.25 * 2 ** min(failures - 1, 10)) * random.uniform(0.7, 1.3)  # noqa: S311
        if trouble.wait:
            self._quiet_until = max(self._quiet_until, now + trouble.wait)
        if self._note and (failures > 1 or trouble.wait) and now - self._noted > 1.0:
            self._noted = now
            self._note(f"{file}: {trouble.reason}; asking again in {delay:.1f} s")
        self._sleep(delay)
        return trouble.wait

    def _sleep(self, seconds: float) -> None:
        if self.stop.wait(max(0.0, seconds)):
            raise Cancelled

    @contextmanager
    def _answer(self, file: HubFile, at: int, end: int) -> Iterator[Iterator[bytes]]:
        """The body of a checked answer to a request for bytes `at` to `end`. Raises _Again for what may pass."""
        import httpx

        self._sleep(self._quiet_until - time.monotonic())
        response = None
        try:
            response = self._ask(file, at, end)
            _check_range(response, file, at, end)
            yield response.iter_raw()
        except (httpx.TransportError, httpx.StreamError) as error:
            self._signed.pop(file, None)
            raise _Again(f"the connection broke ({_words(error)})") from None
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise PhituiError(f"{file}: cannot be asked for: {_words(error)}", _NETWORK) from None
        finally:
            if response is not None:
                response.close()

    def _ask(self, file: HubFile, at: int, end: int) -> httpx.Response:
        """Follow the redirects, by hand: for the token, for what the Hub says on the way, to keep the last address."""
        home = endpoint()
        known = self._signed.get(file)
        url = known or f"{home}/{file.repo}/resolve/{file.commit}/{quote(file.name)}"
        for _ in range(_HOPS):
            own = _origin(url) == _origin(home)
            response = self._send(url, at, end, _authorization() if own else {})
            try:
                if own:
                    _check_pinned(response, file)
                if not response.is_redirect:
                    self._check_status(response, file, own)
                    if not own:
                        self._signed[file] = url
                    return response
                url = _next(response, file)
            except BaseException:
                response.close()
                raise
            response.close()
        raise PhituiError(f"{file}: the Hub sends from one address to the next, {_HOPS} times", _NETWORK)

    def _send(self, url: str, at: int, end: int, headers: dict[str, str]) -> httpx.Response:
        client = self._client()
        asked = {"Range": f"bytes={at}-{end - 1}", "Accept-Encoding": "identity", **headers}
        self.requests += 1
        return client.send(client.build_request("GET", url, headers=asked), stream=True, follow_redirects=False)

    def _client(self) -> httpx.Client:
        with self._lock:
            if self._made is None:
                if is_offline():
                    raise Unavailable("cannot ask the Hub: HF_HUB_OFFLINE is set", "unset HF_HUB_OFFLINE")
                self._made = _client()
            return self._made

    def _check_status(self, response: httpx.Response, file: HubFile, own: bool) -> None:
        status = response.status_code
        if status in (200, 206):
            return
        host = response.url.host
        if status in BUSY:
            raise _Again(f"{host} answers {status}", retry_after(response))
        if status == 416:
            raise _changed(file, "it is shorter now")
        if not own and status in _REFUSED:
            self._signed.pop(file, None)  # expired: the Hub signs another one
            raise _Again(f"{host} refuses the address that the Hub gave ({status})")
        raise _refusal(response, file)


def _client() -> httpx.Client:
    import httpx

    from phitui import __version__

    try:
        read = float(os.environ.get("HF_HUB_DOWNLOAD_TIMEOUT") or READ_SECONDS)
    except ValueError:
        read = READ_SECONDS
    timeout = httpx.Timeout(read, connect=min(CONNECT_SECONDS, read))
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=2 * CONNECTIONS)
    try:
        return httpx.Client(timeout=timeout, limits=limits, headers={"User-Agent": f"phitui/{__version__}"})
    except (ValueError, ImportError, OSError) as error:  # a proxy or certificate file that cannot be used
        raise Unavailable(
            f"cannot ask the Hub: {_words(error)}", "check HTTPS_PROXY, ALL_PROXY, SSL_CERT_FILE"
        ) from None


def _authorization() -> dict[str, str]:
    if os.environ.get("HF_HUB_DISABLE_IMPLICIT_TOKEN", "").upper() in _YES:
        return {}
    from huggingface_hub import get_token

    token = get_token()
    return {"Authorization": f"Bearer {token}"} if token else {}


def _origin(url: str) -> tuple[str, str, int | None]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname or "", parts.port


def _next(response: httpx.Response, file: HubFile) -> str:
    """Where a redirect leads. Never from a safe line to an open one."""
    target = response.url.join(response.headers["location"])
    if target.scheme not in ("https", "http") or (response.url.scheme == "https" and target.scheme != "https"):
        raise InvalidFile(f"{file}: the Hub sends to {visible(target.scheme)}://{target.host}, which is not safe")
    return str(target)


def _check_pinned(response: httpx.Response, file: HubFile) -> None:
    """What the Hub says of the file must be what it said first. Other hosts name files by other tags."""
    said = response.headers
    commit = said.get("x-repo-commit")
    if commit and commit != file.commit:
        raise _changed(file, f"the Hub now serves commit {visible(commit)[:12]}")
    size = said.get("x-linked-size")
    if size and size != str(file.size):
        raise _changed(file, f"it has {visible(size)[:20]} bytes now, not {file.size}")
    tag = said.get("x-linked-etag") or ("" if response.status_code not in (200, 206) else said.get("etag", ""))
    tag = tag.removeprefix("W/").strip('"')
    if file.etag and len(tag) == len(file.etag) and tag != file.etag:
        raise _changed(file, "its checksum on the Hub is another one now")


def _check_range(response: httpx.Response, file: HubFile, at: int, end: int) -> None:
    """The answer must be what was asked for. Raises InvalidFile or SourceChanged."""
    host, said = response.url.host, response.headers
    if said.get("content-encoding", "identity") != "identity":
        raise InvalidFile(f"{file}: {host} sends it compressed, though it was asked not to", _PULL)
    if response.status_code == 200:
        if (at, end) != (0, file.size):
            raise InvalidFile(f"{file}: {host} cannot send parts of a file (it ignores Range)", _PULL)
        if said.get("content-length", str(file.size)) != str(file.size):
            raise _changed(file, f"it has {visible(said['content-length'])[:20]} bytes now, not {file.size}")
        return
    found = _RANGE.fullmatch(said.get("content-range", ""))
    if found is None:
        raise InvalidFile(f"{file}: {host} sends a part of the file and does not say which", _PULL)
    first, last, total = map(int, found.groups())
    if total != file.size:
        raise _changed(file, f"it has {total} bytes now, not {file.size}")
    if first != at or not at <= last < end:
        raise InvalidFile(f"{file}: {host} sends bytes {first} to {last} where {at} to {end - 1} were asked for", _PULL)


def _changed(file: HubFile, how: str) -> SourceChanged:
    return SourceChanged(f"{file}: changed on the Hub: {how}", "start again: the output would be a mixture")


def _refusal(response: httpx.Response, file: HubFile) -> PhituiError:
    """The error for an answer that will not change by itself."""
    status, code = response.status_code, response.headers.get("x-error-code", "")
    if code == "GatedRepo" or (status == 403 and not code):
        return Unavailable(
            f"{file.repo} is gated, or your token may not read it ({status})",
            f"accept the terms at https://huggingface.co/{file.repo}, then: hf auth login",
        )
    if status == 401 or code == "RepoNotFound":
        return Unavailable(
            f"there is no {file.repo} on the Hub, or it is private", "for a private one: hf auth login, or set HF_TOKEN"
        )
    if status in (404, 410) or code in ("EntryNotFound", "RevisionNotFound"):
        return UsageError(f"{file} is not on the Hub any more", f"see https://huggingface.co/{file.repo}")
    return PhituiError(f"{file}: {response.url.host} refuses ({status} {visible(code)})".replace(" )", ")"), _NETWORK)


def retry_after(response: Any) -> float:
    """Seconds that an answer asks to wait; 0 if it does not say.

    By Retry-After, a number or a date; where requests are counted (429) also by RateLimit, as the Hub says it:
    `"resolvers";r=0;t=55` (draft-ietf-httpapi-ratelimit-headers).
    """
    said = response.headers.get("retry-after", "").strip()
    window = _WINDOW.search(response.headers.get("ratelimit", "")) if response.status_code == 429 else None
    if not said and window:
        return float(window[1])
    try:
        return max(0.0, float(said)) if said else 0.0
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(said).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError):
        return 0.0


def _words(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    return visible(text.splitlines()[0])[:200]


_PULL = "a proxy on the way may be the cause; download the whole files instead: phitui pull"
_NETWORK = "check the network (and HF_ENDPOINT, HTTPS_PROXY)"
_RESUME = "what is written stays: the same command, or phitui jobs resume, goes on"
