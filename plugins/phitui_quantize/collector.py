"""Collecting an importance matrix: which matrix products are watched, and what becomes of their activations.

The rules are llama-imatrix's: the right side of every product with experts, and of every product with a weight of a
block (`blk.*`) for at least 16 tokens; `output.weight` only if asked for. Every chunk begins with an empty cache.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from phitui.api import EngineError, ImatrixSettings, JobContext, UsageError
from phitui_quantize import sums as kept
from phitui_quantize.graph import F32, Ggml, Tensor
from phitui_quantize.imatrix_file import write_imatrix
from phitui_quantize.sums import Sums

SAVE_SECONDS = 10.0
"""Work that a crash can cost, at most, besides the chunk at hand."""
_FEWEST_TOKENS = 16


class Watcher:
    """The callback's work. Learns in the first graph which product is the last, and leaves out what comes after it."""

    def __init__(self, sums: Sums, process_output: bool, job: JobContext) -> None:
        self._sums = sums
        self._ggml = Ggml()
        self._output = process_output
        self._job = job
        self._seen: list[str] = []
        self._all: list[str] = []

    def begin(self) -> None:
        """A new graph comes: one per decode, since a decode is one piece."""
        self._all = self._all or self._seen
        self._seen = []

    def __call__(self, node: int, ask: bool) -> bool:
        tensor = Tensor.from_address(node)
        operation = tensor.op
        if operation not in (self._ggml.mul_mat, self._ggml.mul_mat_id):
            return False
        weight, rows = Tensor.from_address(tensor.src[0]), Tensor.from_address(tensor.src[1])
        name = plain_name(weight.name.decode("utf-8", "replace"))
        if ask:
            return rows.type == F32 and (operation == self._ggml.mul_mat_id or self._wanted(name, rows))
        self._job.check()
        if operation == self._ggml.mul_mat_id:
            self._experts(name, tensor, weight)
        else:
            self._sums.dense(name, self._ggml.values(tensor.src[1]), weight.ne[2] * weight.ne[3])
        self._seen.append(name)
        return not (self._all and len(self._seen) == len(self._all))

    def _wanted(self, name: str, rows: Tensor) -> bool:
        if rows.ne[1] < _FEWEST_TOKENS:
            return False
        return name.startswith("blk.") or (self._output and name == "output.weight")

    def _experts(self, name: str, tensor: Tensor, weight: Tensor) -> None:
        values = self._ggml.values(tensor.src[1])
        ids = self._ggml.values(tensor.src[2], "<i4")
        if values.shape[0] != 1:
            raise EngineError(f"the activations that meet {name} have more than three dimensions")
        count = int(weight.ne[2])
        chosen = ids[0, 0]
        if chosen.size and not 0 <= int(chosen.min()) <= int(chosen.max()) < count:
            raise EngineError(f"the router sent a token to an expert that {name} does not have")
        self._sums.experts(name, values[0], chosen, count)


def plain_name(name: str) -> str:
    """The weight's name without what the scheduler puts around a copy: CUDA0#blk.0.attn_k.weight#0."""
    return name.split("#")[1] if "#" in name else name


def collect(model: Path, text: str, out: Path, settings: ImatrixSettings, job: JobContext) -> Mapping[str, Any]:
    """Read the text with the model, chunk by chunk, and write the matrix. Goes on where a former try stopped.

    Whole chunks are kept beside the result (`OUT.state`) until it is there. Returns figures for people and machines:
    path, size (bytes), seconds, chunks, resumed_chunks, tokens, entries, unused_experts {weight: [expert, ...]}.
    """
    began = time.monotonic()
    state = out.with_name(out.name + ".state")
    identity = _identity(model, text, settings)
    sums = kept.load(state, identity) or Sums()
    if settings.chunks is not None and sums.chunks > settings.chunks:
        sums = Sums()
    resumed = sums.chunks
    keeper = _Keeper(sums, state, identity, job.note)
    try:
        _read(model, text, sums, keeper, settings, job)
        if not sums.squares:
            raise EngineError(f"{model.name} has no matrix products that an importance matrix could be made of")
        for note in _unused(sums):
            job.note(note)
        size = write_imatrix(out, sums, settings)
    except BaseException:
        keeper.save()
        raise
    with contextlib.suppress(OSError):
        state.unlink()
    return {
        "path": str(out),
        "size": size,
        "chunks": sums.chunks,
        "resumed_chunks": resumed,
        "tokens": sums.chunks * settings.context,
        "entries": len(sums.squares),
        "unused_experts": sums.unused(),
        "seconds": round(time.monotonic() - began, 3),
    }


class _Keeper:
    """Saves whole chunks now and then. A disk that refuses costs the chance to resume, not the work."""

    def __init__(self, sums: Sums, path: Path, identity: Mapping[str, Any], note: Callable[[str], None]) -> None:
        self._sums, self._path, self._identity, self._note = sums, path, identity, note
        self._saved, self._at = sums.chunks, time.monotonic()

    def chunk(self) -> None:
        """One more chunk is whole."""
        if time.monotonic() - self._at >= SAVE_SECONDS:
            self.save()

    def save(self) -> None:
        """Save what is not saved yet."""
        if self._sums.chunks == self._saved:
            return
        try:
            self._sums.save(self._path, self._identity)
        except OSError as error:
            self._note(f"cannot keep what is done so far in {self._path}: {error.strerror}")
        self._saved, self._at = self._sums.chunks, time.monotonic()


def _read(path: Path, text: str, sums: Sums, keeper: _Keeper, settings: ImatrixSettings, job: JobContext) -> None:
    """Read the chunks that `sums` lacks."""
    from phitui_quantize.forward import Model

    job.progress(0, 0, f"loading {path.name}")
    watcher = Watcher(sums, settings.process_output, job)
    model = Model(path, settings.context, _threads(settings), settings.layers, watcher, job.check)
    try:
        if settings.context > model.trained > 0:
            job.note(f"the chunks have {settings.context} tokens, but the model was trained on {model.trained}")
        tokens = model.tokens(text.encode(), settings.parse_special)
        total = _chunks(tokens, settings)
        if sums.chunks:
            job.note(f"going on after chunk {sums.chunks} of {total}")
        while sums.chunks < total:
            done = sums.chunks
            job.progress(done, total, "reading the text")
            sums.begin()
            model.read(tokens[done * settings.context : (done + 1) * settings.context])
            sums.commit()
            keeper.chunk()
        job.progress(total, total, "writing the matrix")
    finally:
        model.close()


def _chunks(tokens: Sequence[int], settings: ImatrixSettings) -> int:
    """How many chunks there are to read. Raises UsageError for a text that does not fill one."""
    found = len(tokens) // settings.context
    if not found:
        raise UsageError(
            f"the text has {len(tokens)} tokens, and one chunk has {settings.context}",
            "use a longer text, or a smaller --ctx",
        )
    return found if settings.chunks is None else min(found, settings.chunks)


def _identity(model: Path, text: str, settings: ImatrixSettings) -> dict[str, Any]:
    """What must be the same for chunks of a former try to count."""
    stat = model.stat()
    return {
        "model": [model.name, stat.st_size, stat.st_mtime_ns],
        "text": hashlib.sha256(text.encode()).hexdigest(),
        "context": settings.context,
        "parse_special": settings.parse_special,
        "process_output": settings.process_output,
    }


def _threads(settings: ImatrixSettings) -> int:
    """As asked; else the physical cores that this process may use."""
    import psutil

    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return settings.threads or min(usable, psutil.cpu_count(logical=False) or usable)


def _unused(sums: Sums) -> list[str]:
    """One sentence per block (its tensors share a router) about experts that saw no token."""
    said: dict[str, None] = {}
    for name, experts in sums.unused().items():
        shown = ", ".join(map(str, experts[:8])) + (", ..." if len(experts) > 8 else "")
        block = ".".join(name.split(".")[:2])
        said[f"{block}: {len(experts)} of {len(sums.counts[name])} experts saw no token ({shown})"] = None
    return list(said)
