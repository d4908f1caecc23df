"""What stands for the safetensors of a checkpoint whose weights stay on the Hub: their headers, and a list of them.

A directory with MANIFEST is a checkpoint like any other, but for the files named there: of each, `<name>.header` holds
the first bytes, up to where the tensor data begins. The rest is read from the Hub when it is needed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from phitui.domain.tensors import HubFile
from phitui.errors import InvalidFile

MANIFEST = "phitui-remote.json"
HEADER = ".header"
_LIMIT = 8 << 20
_REPO = re.compile(r"[\w.-]{1,96}/[\w.-]{1,96}")
_COMMIT = re.compile(r"[0-9a-f]{6,64}")
_NAME = re.compile(r"[^/\\\x00-\x1f]{1,250}")


def write_manifest(directory: Path, files: Iterable[HubFile]) -> None:
    """Name the files that stay on the Hub; the headers must be there already. Appears whole or not at all."""
    listed = list(files)
    document = {
        "repo": listed[0].repo,
        "commit": listed[0].commit,
        "files": [{"name": file.name, "size": file.size, "etag": file.etag} for file in listed],
    }
    put(directory / MANIFEST, json.dumps(document, indent=1).encode())


def put(path: Path, data: bytes) -> None:
    """Write a small file, whole or not at all, also while another phitui does the same."""
    import tempfile

    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
        file.write(data)
    Path(file.name).replace(path)


def read_manifest(directory: Path) -> dict[str, HubFile]:
    """The files that stay on the Hub, by name; empty for a checkpoint that is wholly here. Raises InvalidFile."""
    path = directory / MANIFEST
    try:
        if path.stat().st_size > _LIMIT:
            raise InvalidFile(f"{path}: is too large for what it is", _AGAIN)
        document = json.loads(path.read_bytes())
        files = [_file(document["repo"], document["commit"], entry) for entry in document["files"]]
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise InvalidFile(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, RecursionError):
        raise InvalidFile(f"{path}: is damaged", _AGAIN) from None
    return {file.name: file for file in files}


def _file(repo: Any, commit: Any, entry: Any) -> HubFile:
    """One entry. Raises ValueError, TypeError or KeyError for anything that phitui does not write."""
    name, size, etag = entry["name"], entry["size"], entry["etag"]
    if not (_REPO.fullmatch(repo) and _COMMIT.fullmatch(commit) and _NAME.fullmatch(name) and isinstance(etag, str)):
        raise ValueError(name)
    if not isinstance(size, int) or isinstance(size, bool) or size < 0:
        raise ValueError(size)
    return HubFile(repo, commit, name, size, etag)


_AGAIN = "remove its directory: it is a cache, and phitui fetches it again"
