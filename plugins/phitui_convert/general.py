"""The `general.*` keys: what the model card, config.json and the directory's name say about a model.

The heuristics (basename, finetune, size label, ...) are gguf.Metadata's, the ones of convert_hf_to_gguf.py. Sampling
values are read here, because released versions of the gguf package differ in which ones they know.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from phitui.api import Checkpoint, InvalidFile, SourceTensor, Value, ValueType

_SAMPLING: dict[str, tuple[tuple[str, ...], ValueType]] = {
    "sequence": (("sequence",), ValueType.STRING),
    "top_k": (("top_k",), ValueType.INT32),
    "top_p": (("top_p",), ValueType.FLOAT32),
    "min_p": (("min_p",), ValueType.FLOAT32),
    "xtc_probability": (("xtc_probability",), ValueType.FLOAT32),
    "xtc_threshold": (("xtc_threshold",), ValueType.FLOAT32),
    "temp": (("temperature",), ValueType.FLOAT32),
    "penalty_last_n": (("penalty_last_n",), ValueType.INT32),
    "penalty_repeat": (("penalty_repeat", "repetition_penalty"), ValueType.FLOAT32),
    "mirostat": (("mirostat",), ValueType.INT32),
    "mirostat_tau": (("mirostat_tau",), ValueType.FLOAT32),
    "mirostat_eta": (("mirostat_eta",), ValueType.FLOAT32),
}
"""Key below general.sampling. -> names in generation_config.json, and the type it is written as."""
_LIMITS = {ValueType.INT32: 2.0**31, ValueType.FLOAT32: 3e38}
_SNAPSHOT = re.compile(r"models--(?P<owner>[^/]+?)--(?P<name>[^/]+)")
_UNREADABLE = "the model card (README.md) cannot be read, license and tags are left out"
_CONTROLLED = ("general.architecture", "general.type", "general.name")


@dataclass(frozen=True)
class Described:
    """`name` is the title gguf.Metadata makes up; `identifier` what it made it from, if known.

    `values` are all other keys.
    """

    name: str
    identifier: str
    values: dict[str, Value]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Parameters:
    """Counts of values: in all tensors, outside of experts, in one expert of each kind; and the number of experts."""

    total: int
    shared: int
    expert: int = 0
    experts: int = 0


def count(tensors: Iterable[SourceTensor]) -> Parameters:
    """What a size label ("3.8B", "16x3.8B") is made of."""
    total = shared = expert = experts = 0
    for tensor in tensors:
        total += tensor.elements
        if "_exps." in tensor.name:
            experts = tensor.shape[-1]
            expert += tensor.elements // experts
        else:
            shared += tensor.elements
    return Parameters(total, shared, expert, experts)


def read(checkpoint: Checkpoint, parameters: Parameters) -> Described:
    """Collect the keys. `parameters` decide what a "7B" in a name means."""
    card, notes = _card(checkpoint.directory)
    try:
        name, identifier, values = _described(checkpoint, card, parameters)
    except (TypeError, ValueError, AttributeError) as error:
        if not card:
            raise
        notes = (f"{_UNREADABLE}: {error}",)
        name, identifier, values = _described(checkpoint, {}, parameters)
    return Described(name, identifier, _sampling(checkpoint) | values, notes)


def _described(
    checkpoint: Checkpoint, card: dict[str, Any], parameters: Parameters
) -> tuple[str, str, dict[str, Value]]:
    """Title, identifier and keys. Raises whatever the library does with a card of unexpected shape."""
    import gguf

    directory = checkpoint.directory.absolute()
    config = dict(checkpoint.config)
    if not isinstance(config.get("_name_or_path"), str):
        config.pop("_name_or_path", None)
    repo = _hub_repo(directory)
    if repo and not config.get("_name_or_path"):
        config["_name_or_path"] = repo
    metadata = gguf.Metadata.apply_metadata_heuristic(
        gguf.Metadata(), card, config, None if repo else directory, parameters.total
    )
    if metadata.name is None:
        metadata.name = directory.name
    if metadata.size_label is None and parameters.total > 0:
        counts = (parameters.total, parameters.shared, parameters.expert, parameters.experts)
        metadata.size_label = gguf.size_label(*counts)
    name = str(metadata.name)
    raw = (config.get("_name_or_path", "").rpartition("/")[2], directory.name)
    identifier = next((text for text in raw if gguf.Metadata.id_to_title(text) == name), "")
    return name, identifier, _recorded(metadata)


def _hub_repo(directory: Path) -> str:
    """OWNER/NAME of a snapshot in the Hub's cache, whose own directory is named by a commit; else empty."""
    if directory.parent.name != "snapshots":
        return ""
    match = _SNAPSHOT.fullmatch(directory.parent.parent.name)
    return f"{match['owner']}/{match['name']}" if match else ""


def _card(directory: Path) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The front matter of README.md. A card that cannot be read costs its keys, not the conversion."""
    import gguf

    try:
        return gguf.Metadata.load_model_card(directory), ()
    except Exception as error:  # YAML written by people: whatever is wrong with it, the model is not
        reason = (str(error) or type(error).__name__).splitlines()[0]
        return {}, (f"{_UNREADABLE}: {reason}",)


def _recorded(metadata: Any) -> dict[str, Value]:
    """What gguf.Metadata would write, caught in a writer that never gets a file."""
    import gguf

    for field in fields(metadata):
        if field.name.startswith("sampling_"):
            setattr(metadata, field.name, None)
    writer = gguf.GGUFWriter(path=None, arch="phi3")
    metadata.set_gguf_meta_model(writer)
    values = {}
    for key, item in writer.kv_data[0].items():
        value = _value(item)
        if key not in _CONTROLLED and value is not None:
            values[key] = value
    return values


def _value(item: Any) -> Value | None:
    """A recorded value. Model cards are YAML, so a text may come as a number or a date: it is written as text."""
    kind = ValueType(int(item.type))
    if kind is ValueType.ARRAY:
        texts = [str(entry) for entry in item.value]
        return Value.array(ValueType.STRING, texts) if texts else None
    return Value(kind, str(item.value) if kind is ValueType.STRING else item.value)


def _sampling(checkpoint: Checkpoint) -> dict[str, Value]:
    try:
        config = checkpoint.json("generation_config.json") or {}
    except InvalidFile:  # an optional file, which convert_hf_to_gguf.py ignores as well when it is broken
        return {}
    values = {}
    for key, (names, kind) in _SAMPLING.items():
        given = next((config[name] for name in names if config.get(name) is not None), None)
        value = _sampled(given, kind)
        if value is not None:
            values[f"general.sampling.{key}"] = value
    return values


def _sampled(given: Any, kind: ValueType) -> Value | None:
    if kind is ValueType.STRING:
        return Value.string(given) if isinstance(given, str) and given else None
    if isinstance(given, bool) or not isinstance(given, (int, float)) or not abs(given) < _LIMITS[kind]:
        return None
    return Value(kind, int(given) if kind is ValueType.INT32 else float(given))
