"""A file of a few kilobytes that stands for a GGUF where only its sizes matter: the header without its vocabulary.

The tensor data is a hole (the file is made as long as the real one, and takes no disk), so the engine's `no_alloc`
loading accepts it, and loads it in milliseconds because no vocabulary of 200,000 tokens is built. The same works for
a file that is only planned. Stand-ins live in a directory of this process and are removed with it.
"""

from __future__ import annotations

import atexit
import itertools
import os
import shutil
import tempfile
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

from phitui.domain.tensors import FilePlan, SourceTensor, Value, place
from phitui.gguf.header import encode_header, file_size
from phitui.gguf.shards import read_model

KEPT = 64
"""Models whose stand-in is remembered."""


@lru_cache(maxsize=KEPT)
def stand_in(path: Path, size: int, modified: int) -> Path:
    """The stand-in of a GGUF with that size and st_mtime_ns; the file itself where none can be made."""
    header = read_model(path)
    metadata = {key: header.value(key) for key in header.keys() if not _tokenizer(key)}  # noqa: SIM118
    described = [(SourceTensor(t.name, t.shape, t.type, ()), t.type, None) for t in header.tensors]
    tensors = place(described, header.alignment)
    try:
        return write_stand_in(_slim(FilePlan("", metadata, tensors, header.alignment)), path.stem)
    except OSError:
        return path


def stand_in_of(plan: FilePlan) -> Path:
    """The stand-in of a file that is only planned. Raises OSError where the disk knows no holes."""
    return write_stand_in(_slim(plan), plan.scheme or "planned")


def write_stand_in(plan: FilePlan, name: str) -> Path:
    """Write the header of `plan` and a hole in place of its data."""
    target = _folder() / f"{name}-{next(_numbers)}.gguf"
    with target.open("wb") as out:
        out.write(encode_header(plan))
        out.truncate(file_size(plan))
    return target


def _slim(plan: FilePlan) -> FilePlan:
    """The plan without its vocabulary; llama.cpp checks the number of tokens against the embedding's rows."""
    kept = {key: value for key, value in plan.metadata.items() if not _tokenizer(key)}
    tokens = next((tensor.shape[1] for tensor in plan.tensors if tensor.name == "token_embd.weight"), 0)
    architecture = kept["general.architecture"].value
    kept |= {"tokenizer.ggml.model": Value.string("none"), f"{architecture}.vocab_size": Value.u32(tokens)}
    return replace(plan, metadata=kept)


def _tokenizer(key: str) -> bool:
    return key.startswith("tokenizer.")


_numbers = itertools.count()


@lru_cache(maxsize=1)
def _folder() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="phitui-plan-"))
    owner = os.getpid()

    def remove() -> None:
        if os.getpid() == owner:
            shutil.rmtree(folder, ignore_errors=True)

    atexit.register(remove)
    return folder
