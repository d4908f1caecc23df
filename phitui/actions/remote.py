"""Checkpoints that stay on the Hub: everything but their weights, fetched once per commit into the cache.

That is config.json, the tokenizer, the model card and the headers of the safetensors (range requests), some MB at most.
The directory then is a checkpoint like any other; its tensors are read from the Hub by whoever needs them.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from phitui import hub
from phitui.actions import models, pull
from phitui.actions.context import Context
from phitui.domain.recipe import FileRecord, SourceRecord
from phitui.domain.tensors import HubFile, RemoteExtent, Source, TensorSource
from phitui.errors import InvalidFile, Unavailable, UnsupportedModel
from phitui.gguf.manifest import HEADER, MANIFEST, put, read_manifest, write_manifest
from phitui.gguf.readahead import matches
from phitui.gguf.remote import CONNECTIONS, HubReader, is_offline

FIRST = 64 << 10
"""Bytes of a shard that are asked for first: the headers of most are shorter."""
LARGEST = 64 << 20
"""Bytes of the largest file that is no weights; the largest tokenizer of a Phi has 16 MB."""
PATIENCE = 20.0
"""Seconds of tries before somebody who waits is told that the line is cut."""
_INSTEAD = {"vocab.json": "tokenizer.json", "merges.txt": "tokenizer.json"}
"""Files that say nothing which the other one does not say too."""
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class RemoteCheckpoint:
    """A checkpoint on the Hub as it is known here. `weights`: bytes that stay there; `fetched`: bytes read for this."""

    directory: Path
    repo: str
    commit: str
    weights: int
    fetched: int

    @property
    def pinned(self) -> str:
        """ORG/NAME@COMMIT."""
        return f"{self.repo}@{self.commit}"

    @property
    def parameters(self) -> int:
        """Values of all tensors, counted from the headers of the shards. Raises InvalidFile."""
        from phitui.gguf.safetensors import open_checkpoint

        return sum(math.prod(tensor.shape) for tensor in open_checkpoint(self.directory).tensors.values())

    @property
    def text(self) -> str:
        """One sentence for a person."""
        read = f"read {_size(self.fetched)}" if self.fetched else "everything needed was in the cache"
        return f"{self.repo}@{self.commit[:12]}: {read}; its weights ({_size(self.weights)}) stay on the Hub"


def seen(ctx: Context, source: str, note: Callable[[str], None] | None = None) -> RemoteCheckpoint | None:
    """The checkpoint on the Hub that a source means; None if it means something on this machine, or nothing.

    `note` is told of a Hub that has to be asked again.
    """
    if not models.is_hub_id(source) or Path(source).expanduser().exists() or models.named(ctx, source) is not None:
        return None
    return look(ctx, source, note)


def look(ctx: Context, text: str, note: Callable[[str], None] | None = None) -> RemoteCheckpoint:
    """Fetch what describes the checkpoint REPO[@REVISION], if it is not in the cache.

    Raises UnsupportedModel before the tokenizer is fetched, UsageError, Unavailable (no network, gated) or InvalidFile.
    """
    name, revision = hub.split(text)
    if revision and _COMMIT.fullmatch(revision):
        known = _known(_directory(ctx, name, revision), 0)
        if known:
            return known
    if is_offline():
        raise Unavailable(f"cannot ask the Hub for {text}: HF_HUB_OFFLINE is set", "unset HF_HUB_OFFLINE")
    source = hub.repository(text)
    directory = _directory(ctx, source.id, source.revision)
    known = _known(directory, 0)
    if known:
        return known
    directory.mkdir(parents=True, exist_ok=True)
    with HubReader(note, patience=PATIENCE) as reader:
        _fetch(ctx, source, directory, reader)
        found = _known(directory, reader.fetched)
    if found is None:
        raise InvalidFile(f"{directory} was removed by another program", "try again")
    return found


def hub_id(directory: Path) -> str:
    """ORG/NAME@COMMIT of a directory that `look` made; empty for any other path."""
    files = read_manifest(directory) if directory.is_dir() else {}
    return next((f"{file.repo}@{file.commit}" for file in files.values()), "")


@dataclass(frozen=True)
class RemoteSource(Source):
    """A source whose weights stay on the Hub. It knows where it came from (recipe.Traced)."""

    def provenance(self) -> SourceRecord:
        """The repository, the commit, and its files with SHA-256: of the weights as the Hub tells it."""
        files = read_manifest(self.origin)
        records = [
            FileRecord(file.name, file.size, file.etag if len(file.etag) == 64 else "") for file in files.values()
        ]
        for path in self.origin.iterdir():
            if path.is_file() and path.suffix != HEADER and path.name != MANIFEST and not path.name.startswith("."):
                data = path.read_bytes()
                records.append(FileRecord(path.name, len(data), hashlib.sha256(data).hexdigest()))
        repo, _, commit = hub_id(self.origin).partition("@")
        records.sort(key=lambda record: record.path)
        return SourceRecord("checkpoint", self.origin.name, repo, commit, files=tuple(records))


def traced(source: TensorSource) -> TensorSource:
    """The source, able to tell where it came from if its weights stay on the Hub."""
    if not any(isinstance(extent, RemoteExtent) for tensor in source.tensors for extent in tensor.extents):
        return source
    return RemoteSource(source.origin, source.architecture, source.metadata, tuple(source.tensors), tuple(source.notes))


def _directory(ctx: Context, repo: str, commit: str) -> Path:
    """Named like the directory that a download would make: names of models are made of it."""
    return ctx.paths.cache / "hub" / repo.replace("/", "--") / commit / repo.partition("/")[2]


def _known(directory: Path, fetched: int) -> RemoteCheckpoint | None:
    try:
        files = list(read_manifest(directory).values())
    except InvalidFile:
        return None
    if not files:
        return None
    return RemoteCheckpoint(directory, files[0].repo, files[0].commit, sum(file.size for file in files), fetched)


def _fetch(ctx: Context, source: hub.Repository, directory: Path, reader: HubReader) -> None:
    """config.json, then all small files, then the headers of the shards that hold the model; the manifest last."""
    chosen = pull.chosen(source)
    weights = {file.name: _pinned(source, file) for file in chosen if file.name.endswith(".safetensors")}
    config = next(file for file in chosen if file.name == hub.CONFIG)
    _small(_pinned(source, config), directory, reader)
    verdict = models.judge(ctx, models.read_config(directory / hub.CONFIG))
    if not verdict.ok:
        nearest = f"the nearest that can be converted: {verdict.nearest}" if verdict.nearest else ""
        raise UnsupportedModel(f"{source.id} cannot be converted: {verdict.reason}", nearest)
    names = {file.name for file in chosen}
    others = [
        file
        for file in chosen
        if file.name not in weights and file is not config and _INSTEAD.get(file.name) not in names
    ]
    _each(lambda file: _small(_pinned(source, file), directory, reader), others, reader)
    from phitui.gguf.safetensors import shard_names

    shards = [weights[name] for name in shard_names(directory, weights)]
    _each(lambda file: _header(file, directory, reader), shards, reader)
    write_manifest(directory, shards)


def _each(work: Callable[[Any], None], items: Sequence[Any], reader: HubReader) -> None:
    """Do it for all of them, a few at a time. Raises what the first one raises."""
    with ThreadPoolExecutor(CONNECTIONS, thread_name_prefix="phitui-hub") as pool:
        try:
            for future in [pool.submit(work, item) for item in items]:
                future.result()
        except BaseException:  # Ctrl-C too: nobody waits for the others
            reader.stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _pinned(source: hub.Repository, file: hub.RemoteFile) -> HubFile:
    return HubFile(source.id, source.revision, file.name, file.size, file.sha256 or file.blob)


def _small(file: HubFile, directory: Path, reader: HubReader) -> None:
    """Fetch a whole file, unless it is there."""
    target = directory / file.name
    if file.size > LARGEST:
        raise InvalidFile(f"{file} has {_size(file.size)}: too much for what it should be")
    if target.is_file() and matches(file, target.read_bytes()):
        return
    data = reader.read(file, 0, file.size)
    if not matches(file, data):
        raise InvalidFile(f"{file} came damaged: its checksum is not the one of the Hub", "try again")
    put(target, data)


def _header(file: HubFile, directory: Path, reader: HubReader) -> None:
    """Fetch the header of a shard: its length stands in the first 8 bytes."""
    from phitui.gguf.safetensors import header_length

    data = reader.read(file, 0, min(FIRST, file.size))
    needed = 8 + header_length(str(file), file.size, data[:8])
    if needed > len(data):
        data += reader.read(file, len(data), needed - len(data))
    put(directory / (file.name + HEADER), data[:needed])


def _size(count: int) -> str:
    return f"{count / 2**30:.2f} GiB" if count >= 2**30 else f"{count / 2**20:.2f} MiB"
