"""A file of a few kilobytes that stands for a GGUF where only its sizes matter: the header without its vocabulary.

The tensor data is a hole (the file is made as long as the real one, and takes no disk), so the engine's `no_alloc`
loading accepts it, and loads it in milliseconds because no vocabulary of 200,000 tokens is built. The same works for
a file that is only planned. Stand-ins live in a directory of this process and are removed with it.
"""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from phitui.domain.tensors import FilePlan, PlannedTensor, SourceTensor, Value
from phitui.gguf.header import Header, encode_header, file_size, read_header

KEPT = 64
"""Models whose stand-in is remembered."""


@lru_cache(maxsize=KEPT)
def stand_in(path: Path, size: int, modified: int) -> Path:
    """The stand-in of a GGUF with that size and st_mtime_ns; the file itself where none can be made."""
    header = read_header(path)
    metadata = {key: header.value(key) for key in header.keys() if not key.startswith("tokenizer.")}  # noqa: SIM118
    tensors = tuple(
        PlannedTensor(t.name, t.shape, t.type, t.offset - header.data_start, SourceTensor(t.name, t.shape, t.type, ()))
        for t in header.tensors
    )
    plan = FilePlan("", metadata | _no_vocabulary(metadata, _vocabulary(header)), tensors, header.alignment)
    try:
        return write_stand_in(plan, f"{path.stem}-{abs(hash((path, size, modified))):x}")
    except OSError:
        return path


def write_stand_in(plan: FilePlan, name: str) -> Path:
    """Write the header of `plan` and a hole in place of its data. Raises OSError where the disk knows no holes."""
    target = _folder() / f"{name}.gguf"
    with target.open("wb") as out:
        out.write(encode_header(plan))
        out.truncate(file_size(plan))
    return target


def _no_vocabulary(metadata: Mapping[str, Value], tokens: int) -> dict[str, Value]:
    architecture = metadata["general.architecture"].value
    return {"tokenizer.ggml.model": Value.string("none"), f"{architecture}.vocab_size": Value.u32(tokens)}


def _vocabulary(header: Header) -> int:
    """The number of tokens; llama.cpp checks the embedding's rows against it."""
    shapes: Sequence[Any] = [tensor.shape for tensor in header.tensors if tensor.name == "token_embd.weight"]
    return int(shapes[0][1]) if shapes else header.length("tokenizer.ggml.tokens")


@lru_cache(maxsize=1)
def _folder() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="phitui-plan-"))
    owner = os.getpid()

    def remove() -> None:
        if os.getpid() == owner:
            shutil.rmtree(folder, ignore_errors=True)

    atexit.register(remove)
    return folder
