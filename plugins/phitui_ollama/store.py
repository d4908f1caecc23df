"""The finder: models in Ollama's own store on this machine.

`manifests/HOST/NAMESPACE/MODEL/TAG` is a JSON document that names layers by digest; `blobs/sha256-HEX` holds them. The
layer of a model is a plain GGUF, which everything in phitui can read where it lies.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from phitui.api import Artifact, Availability

MODEL_LAYER = "application/vnd.ollama.image.model"
SYSTEM_STORE = Path("/usr/share/ollama/.ollama/models")
"""Where the service keeps models that the installer of Ollama sets up on Linux."""
_HOST, _NAMESPACE = "registry.ollama.ai", "library"
_LATEST = ":latest"
"""What Ollama takes for granted where a name has no tag."""
_DIGEST = re.compile(r"sha256[:-]([0-9a-f]{64})")
_LIMIT = 1 << 20
"""Bytes of a manifest; a real one has about a thousand."""


class OllamaStore:
    """Models that were pulled or created with Ollama, by the names that Ollama lists them with."""

    name = "ollama"
    title = "Ollama's store"

    def available(self) -> Availability:
        return Availability()

    def find(self) -> Iterator[Artifact]:
        for store in stores():
            for manifest in _manifests(store / "manifests"):
                yield from _models(store, manifest)


def stores() -> list[Path]:
    """The stores to look into: the one of OLLAMA_MODELS, else that of this person and that of the service."""
    if os.environ.get("OLLAMA_MODELS"):
        return [Path(os.environ["OLLAMA_MODELS"]).expanduser()]
    return [Path.home() / ".ollama" / "models", SYSTEM_STORE]


def _manifests(folder: Path, depth: int = 4) -> Iterator[Path]:
    """Files HOST/NAMESPACE/MODEL/TAG, sorted. What cannot be looked at is left out."""
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError:
        return
    for entry in entries:
        if entry.name.startswith("."):
            continue
        if depth > 1:
            yield from _manifests(Path(entry.path), depth - 1)
        else:
            yield Path(entry.path)


def _models(store: Path, manifest: Path) -> Iterator[Artifact]:
    """The model of a manifest; none if it has no GGUF, or if its file is not there."""
    for layer in _layers(manifest):
        digest = _DIGEST.fullmatch(str(layer.get("digest", "")))
        if layer.get("mediaType") != MODEL_LAYER or digest is None:
            continue
        blob = store / "blobs" / f"sha256-{digest[1]}"
        try:
            size, modified = blob.stat().st_size, manifest.stat().st_mtime
        except OSError:
            continue
        name = _name(manifest)
        aliases = (name.removesuffix(_LATEST),) if name.endswith(_LATEST) else ()
        yield Artifact(blob, "gguf", name, "", "", size, OllamaStore.name, modified, sha256=digest[1], aliases=aliases)
        return  # the further ones are parts that Ollama has not merged: no file of their own


def _layers(manifest: Path) -> list[dict[str, Any]]:
    try:
        with manifest.open("rb") as file:
            document = json.loads(file.read(_LIMIT))
        layers = document["layers"]
        return [layer for layer in layers if isinstance(layer, dict)]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return []


def _name(manifest: Path) -> str:
    """As `ollama list` says it: without the host and the namespace that are understood."""
    host, namespace, model, tag = manifest.parts[-4:]
    parts = [model] if (host, namespace) == (_HOST, _NAMESPACE) else [namespace, model]
    return "/".join([*([] if host == _HOST else [host]), *parts]) + f":{tag}"
