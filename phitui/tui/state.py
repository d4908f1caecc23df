"""What the app remembers: the model in hand."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from phitui.domain.model import Artifact


@dataclass(frozen=True)
class Hand:
    """The model that all places work with. `kind` is "gguf" or "checkpoint", `size` in bytes (0: unknown)."""

    path: str
    name: str
    kind: str
    scheme: str = ""
    size: int = 0

    @staticmethod
    def of(artifact: Artifact) -> Hand:
        return Hand(str(artifact.path), artifact.name, artifact.kind, artifact.scheme, artifact.size)

    @staticmethod
    def at(path: Path) -> Hand:
        """A file or directory that is in no library."""
        kind = "checkpoint" if path.is_dir() else "gguf"
        return Hand(str(path), path.name, kind, size=path.stat().st_size if path.is_file() else 0)


def load(file: Path) -> Hand | None:
    """The model that was in hand last time, if it is still there. A damaged file is as good as none."""
    try:
        values = json.loads(file.read_text("utf-8"))
        hand = Hand(**values["hand"])
        return hand if Path(hand.path).exists() else None
    except (OSError, ValueError, TypeError, KeyError):
        return None


def save(file: Path, hand: Hand | None) -> None:
    """Remember it for the next start; a full or read-only disk only means that it is forgotten."""
    temporary = file.with_name(f"{file.name}.{os.getpid()}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps({"hand": asdict(hand) if hand else None}), "utf-8")
        temporary.replace(file)
    except OSError:
        return
