"""How the suite makes a GGUF of a checkpoint: with whatever converter and quantizer are installed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

from phitui import plugins
from phitui.domain.tensors import TensorSource
from phitui.gguf.safetensors import open_checkpoint
from phitui.gguf.writer import write_gguf
from phitui.testing.checkpoints import Tokenizer, converter_options

Change = Callable[[TensorSource], TensorSource]
"""Something done to the model on its way into the file: how the suite's own tests damage it."""


class NotHere(Exception):
    """No converter or quantizer that could do it is installed."""


def build(
    checkpoint: Path,
    out: Path,
    scheme: str = "AUTO",
    tokenizer: str = "spm",
    change: Change | None = None,
    **options: Any,
) -> Path:
    """Convert a checkpoint. `options` are the converter's. Raises NotHere."""
    config = open_checkpoint(checkpoint).config
    converter = next((one for one in plugins.load().converters if one.inspect(config).ok), None)
    if converter is None:
        raise NotHere(f"no converter takes {config['architectures'][0]}")
    known: Tokenizer = "bpe" if tokenizer == "bpe" else "spm"
    given = {**converter_options(known), **options}
    names = {field.name for field in fields(converter.options)}
    source = converter.open(checkpoint, converter.options(**{key: given[key] for key in given if key in names}))
    quantizer = _quantizer(scheme)
    plan = quantizer.plan(change(source) if change else source, [scheme], quantizer.options())[scheme]
    write_gguf(plan, out, quantizer.encoder(plan, quantizer.options()), threads=1)
    return out


def _quantizer(scheme: str) -> Any:
    for offer in plugins.load().quantizers:
        if plugins.availability(offer).ok and scheme in {each.name for each in offer.schemes()}:
            return offer
    raise NotHere(f"no quantizer has {scheme} here")
