"""What an exporter produces: files, shown before they are written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from phitui.domain.model import ModelFacts


@dataclass(frozen=True)
class ExportModel:
    """The model that is exported: its file, facts and the raw chat template and metadata of its header.

    `shards` are all files of a split model, the first one first; empty where there is only `path`.
    """

    path: Path
    facts: ModelFacts
    chat_template: str
    metadata: Mapping[str, Any]
    shards: tuple[Path, ...] = ()

    @property
    def files(self) -> tuple[Path, ...]:
        """The GGUF files, the first one first."""
        return self.shards or (self.path,)


@dataclass(frozen=True)
class BundleFile:
    """A file of the bundle. `path` is relative to the output directory; `language` is for syntax colours."""

    path: str
    text: str
    language: str = "text"


@dataclass(frozen=True)
class BundleLink:
    """A file of the model (`source`) that is to be at `path` too: by hard link, by sharing its blocks, or by copying.

    `path` is relative to the output directory, or absolute where another program wants its models in its own folder.
    """

    path: str
    source: Path


@dataclass(frozen=True)
class Bundle:
    """Everything an export writes. `run` are the commands to type next; `notes` what a person should know."""

    files: tuple[BundleFile, ...]
    run: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    links: tuple[BundleLink, ...] = ()
