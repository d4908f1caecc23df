"""Models in Ollama's store: found by the names that Ollama lists, and used where they lie."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from phitui_ollama.store import MODEL_LAYER, OllamaStore, stores

from phitui.actions import models, tidy
from phitui.actions.context import Context
from phitui.api import Artifact
from phitui.errors import UsageError

CONTENT = b"GGUF and more"


@pytest.fixture
def store(home: Path) -> Path:
    return home / "ollama"


def put(store: Path, name: str, content: bytes = CONTENT, **layer: Any) -> Path:
    """A manifest (HOST/NAMESPACE/MODEL/TAG) and the blob of its model layer, which is returned."""
    digest = hashlib.sha256(content).hexdigest()
    blob = store / "blobs" / f"sha256-{digest}"
    blob.parent.mkdir(parents=True, exist_ok=True)
    blob.write_bytes(content)
    manifest = store / "manifests" / name
    manifest.parent.mkdir(parents=True, exist_ok=True)
    template = {"mediaType": "application/vnd.ollama.image.template", "digest": f"sha256:{'0' * 64}", "size": 3}
    model = {"mediaType": MODEL_LAYER, "digest": f"sha256:{digest}", "size": len(content), **layer}
    manifest.write_text(json.dumps({"schemaVersion": 2, "config": {}, "layers": [template, model]}))
    return blob


def found() -> dict[str, Artifact]:
    return {artifact.name: artifact for artifact in OllamaStore().find()}


def test_names_are_those_of_ollama(store: Path) -> None:
    blob = put(store, "registry.ollama.ai/library/phi4-mini/latest")
    put(store, "registry.ollama.ai/jan/phi-3.5/q4_K_M", b"GGUF 2")
    put(store, "hf.co/acme/Phi-4-GGUF/Q4_K_M", b"GGUF 3")
    here = found()
    assert list(here) == ["hf.co/acme/Phi-4-GGUF:Q4_K_M", "jan/phi-3.5:q4_K_M", "phi4-mini:latest"]
    mini = here["phi4-mini:latest"]
    assert (mini.path, mini.kind, mini.size, mini.found_by) == (blob, "gguf", len(CONTENT), "ollama")
    assert mini.aliases == ("phi4-mini",)
    assert mini.sha256 == hashlib.sha256(CONTENT).hexdigest()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "not json",
        "[]",
        "null",
        "[" * 100_000,
        '{"layers": 3}',
        '{"layers": [3, {}]}',
        '{"layers": [{"mediaType": "application/vnd.ollama.image.model", "digest": "sha256:../../../etc/passwd"}]}',
        '{"layers": [{"mediaType": "application/vnd.ollama.image.tensor", "digest": "sha256:' + "0" * 64 + '"}]}',
        "\udcff",
    ],
)
def test_a_manifest_that_makes_no_sense_is_skipped(store: Path, text: str) -> None:
    put(store, "registry.ollama.ai/library/phi/good")
    (store / "manifests/registry.ollama.ai/library/phi/bad").write_bytes(text.encode("utf-8", "surrogateescape"))
    assert list(found()) == ["phi:good"]


def test_a_model_without_its_file_is_skipped(store: Path) -> None:
    put(store, "registry.ollama.ai/library/phi/gone").unlink()
    (store / "manifests" / "stray").write_text("{}")
    (store / "manifests/registry.ollama.ai/library/phi/deep/er").mkdir(parents=True)
    assert not found()


def test_where_the_store_is(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert stores() == [home / "ollama"]
    monkeypatch.delenv("OLLAMA_MODELS")
    assert stores() == [home / ".ollama" / "models", Path("/usr/share/ollama/.ollama/models")]


def test_it_is_found_by_name_and_belongs_to_ollama(context: Context, store: Path) -> None:
    blob = put(store, "registry.ollama.ai/library/phi4-mini/latest")
    for name in ("phi4-mini:latest", "phi4-mini", "PHI4-mini"):
        assert models.resolve_model(context, name) == blob
    with pytest.raises(UsageError, match="belongs to another program"):
        tidy.removal(context, "phi4-mini:latest")
    with pytest.raises(UsageError, match="belongs to another program"):
        tidy.rename(context, "phi4-mini", "mine.gguf")
    assert blob.exists()


def test_two_tags_of_one_file_are_one_model(context: Context, store: Path) -> None:
    blob = put(store, "registry.ollama.ai/library/phi4-mini/3.8b")
    put(store, "registry.ollama.ai/library/phi4-mini/latest")
    (one,) = models.library(context)
    assert (one.name, [(place.name, place.path) for place in one.also]) == (
        "phi4-mini:3.8b",
        [("phi4-mini:latest", blob)],
    )
    for name in ("phi4-mini:latest", "phi4-mini"):
        assert models.resolve_model(context, name) == blob
