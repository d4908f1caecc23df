"""What a build reads: a checkpoint, here or on the Hub, through the converter that takes it, or an existing GGUF."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from phitui.actions import models, remote
from phitui.actions.context import Context
from phitui.domain import options
from phitui.domain.offers import Converter
from phitui.domain.tensors import TensorSource
from phitui.domain.text import visible
from phitui.errors import UnsupportedModel, UsageError
from phitui.plugins import require

_SCHEME_SUFFIX = re.compile(r"[.-](b?f16|f32|fp16|i?q\d\w*|tq\d_\d|mxfp4\w*)$", re.IGNORECASE)
_CACHED = re.compile(r"models--(?:.+--)?(.+)")


def source_path(ctx: Context, source: str, stream: bool = False) -> Path:
    """The checkpoint directory or GGUF that `source` means: a path, or a name in the library.

    With `stream` also a repository of the Hub: the directory then holds all but its weights. Raises UsageError.
    """
    path = Path(source).expanduser()
    if path.exists():
        return models.first_file(path)
    artifact = models.named(ctx, source)
    if artifact is not None:
        return models.first_file(artifact.path)
    shown = visible(source)
    if models.is_hub_id(source):
        if stream:
            return remote.look(ctx, source).directory
        raise UsageError(
            f"there is no {shown} on this machine",
            f"download it first: phitui pull {shown} (or build with --stream, which keeps none of its weights here)",
        )
    raise UsageError(
        f"{shown} does not exist",
        "a source is a checkpoint directory, a GGUF file or a name that phitui models lists",
    )


def source_name(path: Path) -> str:
    """A name for files made of this source: without a scheme at its end, and not the hash of a cache's snapshot."""
    if path.is_dir():
        cached = _CACHED.fullmatch(path.parent.parent.name) if path.parent.name == "snapshots" else None
        return cached[1] if cached else path.resolve().name
    if not path.exists() and models.is_hub_id(str(path)):
        return path.parts[1].partition("@")[0]
    from phitui.gguf.shards import model_stem

    stem = model_stem(path)
    return _SCHEME_SUFFIX.sub("", stem) or stem


def converter_for(ctx: Context, directory: Path) -> Converter:
    """The first converter that takes this checkpoint. Raises UnsupportedModel with the reason and what is near."""
    config = models.read_config(directory / "config.json")
    architecture = models.architecture_of(config)
    for converter in ctx.registry.converters:
        if architecture in converter.architectures and converter.inspect(config).ok:
            require(converter)
            return converter
    verdict = models.judge(ctx, config)
    nearest = f"the nearest that can be converted: {verdict.nearest}" if verdict.nearest else ""
    raise UnsupportedModel(f"{directory.name} cannot be converted: {verdict.reason}", nearest)


def open_source(ctx: Context, source: str, converter_options: Mapping[str, Any] | None = None) -> TensorSource:
    """Describe the source's tensors; no tensor data is read. Raises UsageError, UnsupportedModel or InvalidFile.

    Of a repository of the Hub config.json, tokenizer and headers are fetched, if they are not in the cache.
    """
    path = source_path(ctx, source, stream=True)
    given = dict(converter_options or {})
    if path.is_dir():
        converter = converter_for(ctx, path)
        return remote.traced(converter.open(path, options.build(converter.options, given)))
    if given:
        raise UsageError(
            f"--{next(iter(given)).replace('_', '-')} is for checkpoints, and {path.name} is a file", "leave it out"
        )
    if path.suffix in (".safetensors", ".json"):
        raise UsageError(f"{path.name} is one file of a checkpoint", f"give the directory: {path.parent}")
    from phitui.gguf.source import gguf_source

    return gguf_source(path)
