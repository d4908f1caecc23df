"""The Hugging Face Hub, through huggingface_hub: what a repository holds, its config.json, and its files.

Everything the Hub says (names of files, sizes) is checked before it is used; every failure becomes a PhituiError.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import os
import random
import re
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from phitui.domain.text import visible
from phitui.errors import InvalidFile, PhituiError, Unavailable, UsageError
from phitui.gguf.remote import BUSY, endpoint, retry_after

_ID = re.compile(r"(?P<repo>[\w.-]{1,96}/[\w.-]{1,96})(?:@(?P<revision>[\w./-]+))?")
_NETWORK = ("httpx", "httpx2", "httpcore", "httpcore2", "requests", "urllib3")
_CHUNK = 4 << 20
_PATIENCE = 30.0
CONFIG = "config.json"
CONFIG_LIMIT = 8 << 20


@dataclass(frozen=True)
class RemoteFile:
    """A file of a repository. `sha256` is empty for small files, which the Hub keeps in git itself, as `blob`."""

    name: str
    size: int
    sha256: str = ""
    blob: str = ""


@dataclass(frozen=True)
class Repository:
    """A repository at one commit."""

    id: str
    revision: str
    files: tuple[RemoteFile, ...]

    def file(self, name: str) -> RemoteFile | None:
        return next((file for file in self.files if file.name == name), None)


def split(text: str) -> tuple[str, str | None]:
    """(repo, revision or None) of REPO[@REVISION]. Raises UsageError."""
    match = _ID.fullmatch(text.removeprefix("https://huggingface.co/"))
    if match is None:
        raise UsageError(f"{visible(text)} is no repository of the Hub", "ORG/NAME, for example microsoft/phi-4")
    return match["repo"], match["revision"]


def repository(text: str) -> Repository:
    """What REPO[@REVISION] holds, pinned to a commit."""
    name, revision = split(text)
    from huggingface_hub import HfApi

    with _errors(name, revision):
        found = _patiently(lambda: HfApi(endpoint=endpoint()).model_info(name, revision=revision, files_metadata=True))
    files = []
    for item in found.siblings or []:
        if _safe(item.rfilename):
            lfs = item.lfs
            sha256 = str(lfs.get("sha256", "") if isinstance(lfs, dict) else lfs.sha256) if lfs else ""
            files.append(RemoteFile(item.rfilename, int(item.size or 0), sha256.lower(), item.blob_id or ""))
    return Repository(name, found.sha or revision or "main", tuple(files))


def _patiently(ask: Callable[[], Any]) -> Any:
    """The answer, asked for again while the Hub is too busy to give one: half a minute at most."""
    from huggingface_hub.errors import HfHubHTTPError

    began, delay = time.monotonic(), 0.5
    while True:
        try:
            return ask()
        except HfHubHTTPError as error:
            response: Any = getattr(error, "response", None)
            if response is None or response.status_code not in BUSY:
                raise
            wait = retry_after(response) or delay * random.uniform(0.7, 1.3)  # noqa: S311
            if time.monotonic() + wait - began > _PATIENCE:
                raise
            time.sleep(wait)
            delay *= 2


def fetch_config(text: str) -> dict[str, Any]:
    """The config.json of REPO[@REVISION], and nothing else."""
    name, revision = split(text)
    from huggingface_hub import hf_hub_download

    with tempfile.TemporaryDirectory(prefix="phitui-") as directory, _errors(name, revision, CONFIG):
        path = Path(
            hf_hub_download(name, CONFIG, revision=revision, local_dir=directory, endpoint=endpoint(), **_quiet())
        )
        if path.stat().st_size > CONFIG_LIMIT:
            raise InvalidFile(f"the {CONFIG} of {name} is over {CONFIG_LIMIT >> 20} MiB: that is none")
        data = path.read_bytes()
    try:
        config = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise InvalidFile(f"the {CONFIG} of {name} is not JSON: {error}") from None
    if not isinstance(config, dict):
        raise InvalidFile(f"the {CONFIG} of {name} holds a {type(config).__name__}, not an object")
    return config


def download(source: Repository, file: RemoteFile, directory: Path, count: Callable[[int], None]) -> Path:
    """Download a file into `directory`, going on where an earlier download stopped. It appears only when complete.

    `count` is given the bytes as they come (and, first, those that were there); an exception of it stops the download.
    """
    from huggingface_hub import hf_hub_download

    with _errors(source.id, source.revision, file.name):
        return Path(
            hf_hub_download(
                source.id,
                file.name,
                revision=source.revision,
                local_dir=directory,
                endpoint=endpoint(),
                **_quiet(count),
            )
        )


def verify(path: Path, file: RemoteFile, count: Callable[[int], None]) -> None:
    """Compare size and SHA-256 with what the Hub says; a file that differs is removed. Raises InvalidFile."""
    if path.stat().st_size == file.size and not file.sha256:
        return
    digest = hashlib.sha256()
    if path.stat().st_size == file.size:
        with path.open("rb") as stream:
            while chunk := stream.read(_CHUNK):
                digest.update(chunk)
                count(len(chunk))
    if path.stat().st_size != file.size or digest.hexdigest() != file.sha256:
        path.unlink()
        raise InvalidFile(
            f"{file.name} came damaged: its checksum is not the one of the Hub; it was removed", "download it once more"
        )


def _safe(name: str) -> bool:
    """Whether a file name of a repository stays inside the directory it is downloaded to."""
    path = PurePosixPath(name)
    inside = bool(path.parts) and not path.is_absolute() and ".." not in path.parts
    return inside and "\\" not in name and name == visible(name) and path.parts[0] != ".cache"


def _quiet(count: Callable[[int], None] | None = None) -> dict[str, Any]:
    """Arguments of hf_hub_download that turn its progress bar into calls of `count`, where this version can."""
    from huggingface_hub import hf_hub_download

    if "tqdm_class" not in inspect.signature(hf_hub_download).parameters:
        return {}
    from tqdm import tqdm  # type: ignore[import-untyped]

    class Counter(tqdm):  # type: ignore[misc]
        monitor_interval = 0

        def __init__(self, *args: Any, **values: Any) -> None:
            super().__init__(*args, **{**values, "file": _Nowhere(), "mininterval": 3600})
            if count is not None:
                count(int(values.get("initial") or 0))

        def update(self, n: float | None = 1) -> bool | None:
            if count is not None:
                count(int(n or 0))
            return bool(super().update(n))

    return {"tqdm_class": Counter}


class _Nowhere:
    """Where the bar is painted."""

    def write(self, text: str) -> int:
        return len(text)

    def flush(self) -> None:
        """Nothing is kept."""


@contextmanager
def _errors(repo: str, revision: str | None, file: str = "") -> Iterator[None]:
    """Turn what huggingface_hub and its HTTP library raise into errors that a person can act on."""
    try:
        yield
    except PhituiError:
        raise
    except Exception as error:
        translated = _translated(error, repo, revision, file)
        if translated is None:
            raise
        raise translated from error


def _translated(error: Exception, repo: str, revision: str | None, file: str) -> PhituiError | None:
    from huggingface_hub import errors

    at = f"{repo}@{revision}" if revision else repo
    if isinstance(error, errors.GatedRepoError):
        return Unavailable(
            f"{repo} is gated: its owner wants to know who downloads it",
            f"accept the terms at https://huggingface.co/{repo}, then: hf auth login",
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return UsageError(f"{repo} has no revision {revision!r}", "leave out @REVISION for the newest")
    if isinstance(error, errors.RepositoryNotFoundError):
        return UsageError(
            f"there is no {repo} on the Hub, or it is private", "check the name; for a private one: hf auth login"
        )
    if isinstance(error, errors.OfflineModeIsEnabled) or os.environ.get("HF_HUB_OFFLINE", "0").upper() in _YES:
        return Unavailable(f"cannot ask the Hub for {at}: HF_HUB_OFFLINE is set", "unset HF_HUB_OFFLINE")
    if _is_network(error):
        return Unavailable(
            f"cannot reach the Hub for {at}: {_innermost(error)}", "check the network (and HF_ENDPOINT, HTTPS_PROXY)"
        )
    if isinstance(error, errors.EntryNotFoundError):
        return UsageError(f"{at} has no {file or 'such file'}", f"see https://huggingface.co/{repo}")
    if isinstance(error, errors.HfHubHTTPError):
        return PhituiError(f"the Hub refused {at}: {_innermost(error)}", "try again later")
    if isinstance(error, (OSError, errors.HFValidationError)):
        return PhituiError(f"downloading {at} failed: {_innermost(error)}")
    return None


_YES = ("1", "ON", "YES", "TRUE")


def _is_network(error: BaseException | None) -> bool:
    """Whether the cause of an error lies in the network: a library of that trade raised it, or one it came from."""
    seen = 0
    while error is not None and seen < 10:
        names = {base.__name__ for base in type(error).__mro__}
        refused = isinstance(error, (ConnectionError, TimeoutError)) or "HTTPStatusError" in names
        if refused and "HTTPStatusError" not in names:
            return True
        module = type(error).__module__.partition(".")[0]
        if module in _NETWORK and "HTTPStatusError" not in names:
            return True
        error, seen = error.__cause__ or error.__context__, seen + 1
    return False


def _innermost(error: BaseException) -> str:
    """The first line of what an error says, safe to print."""
    text = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return visible(text)[:300]
