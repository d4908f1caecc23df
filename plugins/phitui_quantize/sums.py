"""Sums of squared activations: one chunk of text at a time, so that a chunk that was cut short leaves no trace."""

from __future__ import annotations

import contextlib
import json
import os
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from phitui.api import InvalidFile

_STATE = "state"


@dataclass
class Sums:
    """Per weight tensor: `squares` float64 (matrices, columns) and `counts` int64 (matrices,) or (1,).

    A dense weight has one count, a weight of experts one per expert (llama.cpp's convention). `chunks` are whole ones.
    """

    squares: dict[str, Any] = field(default_factory=dict)
    counts: dict[str, Any] = field(default_factory=dict)
    chunks: int = 0
    _squares: dict[str, Any] = field(default_factory=dict)
    _counts: dict[str, Any] = field(default_factory=dict)

    def dense(self, name: str, values: Any, matrices: int) -> None:
        """Add the activations (outer, inner, rows, columns) that met a weight of so many matrices."""
        import numpy as np

        if matrices == 1:
            total = np.einsum("abij,abij->j", values, values).reshape(1, -1)
        else:
            each = np.einsum("abij,abij->abj", values, values).reshape(-1, values.shape[-1])
            total = each.reshape(-1, matrices, values.shape[-1]).sum(axis=0)
        rows = values.shape[0] * values.shape[1] * values.shape[2]
        self._add(name, total, np.array([rows // matrices]))

    def experts(self, name: str, values: Any, ids: Any, count: int) -> None:
        """Add the activations (tokens, slots, columns) that the router sent to `count` experts.

        `ids` (tokens, chosen) are the chosen experts; with one slot, all that were chosen see the same activations.
        """
        import numpy as np

        tokens, slots, columns = values.shape
        chosen = ids.shape[1]
        rows = np.arange(tokens)[:, None] * slots + np.arange(chosen)[None, :] % slots
        order = np.argsort(ids, axis=None, kind="stable")
        expert = ids.reshape(-1)[order]
        taken = values.reshape(tokens * slots, columns)[rows.reshape(-1)[order]]
        total = np.zeros((count, columns), np.float32)
        found, starts = np.unique(expert, return_index=True)
        for one, part in zip(found, np.split(taken, starts[1:]), strict=True):
            total[one] = np.einsum("ij,ij->j", part, part)
        self._add(name, total, np.bincount(expert, minlength=count))

    def _add(self, name: str, squares: Any, counts: Any) -> None:
        import numpy as np

        if not np.isfinite(squares).all():
            raise InvalidFile(
                f"the activations that meet {name} are not finite: the model's weights are damaged, or overflow",
                "try the checkpoint's own type: phitui build CHECKPOINT --scheme AUTO",
            )
        if name in self._squares:
            self._squares[name] += squares
            self._counts[name] += counts
        else:
            self._squares[name], self._counts[name] = squares.astype(np.float64), counts.astype(np.int64)

    def begin(self) -> None:
        """Forget what was added since the last `commit`."""
        self._squares, self._counts = {}, {}

    def commit(self) -> None:
        """The chunk is complete."""
        for name, squares in self._squares.items():
            if name in self.squares:
                self.squares[name] += squares
                self.counts[name] += self._counts[name]
            else:
                self.squares[name], self.counts[name] = squares, self._counts[name]
        self.chunks += 1
        self.begin()

    def unused(self) -> dict[str, list[int]]:
        """Experts that saw no token, by the name of the weight."""
        found = {name: [i for i, count in enumerate(counts) if count == 0] for name, counts in self.counts.items()}
        return {name: experts for name, experts in sorted(found.items()) if experts}

    def save(self, path: Path, identity: Mapping[str, Any]) -> None:
        """Keep the whole chunks in a file, which replaces the former one at once. Raises OSError."""
        import numpy as np

        state = json.dumps({"identity": dict(identity), "chunks": self.chunks})
        arrays = {f"squares {name}": values for name, values in self.squares.items()}
        arrays |= {f"counts {name}": values for name, values in self.counts.items()}
        draft = path.with_name(path.name + ".new")
        try:
            with draft.open("wb") as file:
                np.savez(file, **{_STATE: np.array(state)}, **arrays)  # type: ignore[arg-type]
                file.flush()
                os.fsync(file.fileno())
            draft.replace(path)
        except OSError:
            with contextlib.suppress(OSError):
                draft.unlink()
            raise


def load(path: Path, identity: Mapping[str, Any]) -> Sums | None:
    """What `save` kept, or None if there is nothing that belongs to this very work."""
    import numpy as np

    sums = Sums()
    try:
        with np.load(path, allow_pickle=False) as kept:
            state = json.loads(str(kept[_STATE]))
            if state["identity"] != dict(identity):
                return None
            sums.chunks = int(state["chunks"])
            for key in kept.files:
                part, _, name = key.partition(" ")
                if name:
                    (sums.squares if part == "squares" else sums.counts)[name] = kept[key]
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile):
        return None
    return sums if sums.squares.keys() == sums.counts.keys() else None
