"""Models: what is known about one, and what is on this machine."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

ArtifactKind = Literal["gguf", "checkpoint"]


@dataclass(frozen=True)
class Verdict:
    """Whether a checkpoint can be converted, from its config.json alone.

    `reason` is one sentence; `nearest` names a supported sibling when `ok` is False.
    """

    ok: bool
    reason: str
    nearest: str = ""


@dataclass(frozen=True)
class Rope:
    """Rotary position embedding. `scaling` is "none", "longrope", "linear" or "yarn".

    `original_context` is where longrope switches from the short to the long factors (tokens).
    """

    dimensions: int
    base: float
    scaling: str = "none"
    original_context: int | None = None


@dataclass(frozen=True)
class ModelFacts:
    """Facts of one model, from a GGUF header or a config.json. Counts are plain numbers, sizes bytes."""

    name: str
    architecture: str
    parameters: int
    layers: int
    context_length: int
    embedding_length: int
    feed_forward_length: int
    heads: int
    heads_kv: int
    key_length: int
    value_length: int
    vocabulary: int
    rope: Rope
    tokenizer: str
    chat_format: str
    scheme: str = ""
    size: int = 0
    experts: int = 0
    experts_used: int = 0
    tied_embeddings: bool = False
    license: str = ""
    verdict: Verdict | None = None
    lineage: str = ""
    """What it was made from, by the recipe beside it, in one line."""
    extra: dict[str, Any] | None = None


@dataclass(frozen=True)
class Place:
    """Where the content of an artifact lies too."""

    path: Path
    name: str
    found_by: str
    aliases: tuple[str, ...] = ()


@dataclass(frozen=True)
class Artifact:
    """A model file or checkpoint directory on this machine.

    `sha256` is that of the file, where its store tells it; `aliases` are other names that the finder knows it by. The
    library lists equal content once: `also` is then where else it lies, or under which other names.
    """

    path: Path
    kind: ArtifactKind
    name: str
    architecture: str
    scheme: str
    size: int
    found_by: str
    modified: float = 0.0
    sha256: str = ""
    aliases: tuple[str, ...] = ()
    also: tuple[Place, ...] = ()


@dataclass(frozen=True)
class KnownModel:
    """A row of the catalogue."""

    id: str
    title: str
    architecture: str
    parameters: str
    context_length: int
    chat_format: str
    license: str
    verdict: Verdict
    note: str = ""
