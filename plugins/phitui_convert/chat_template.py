"""Chat templates in all the places Hugging Face has put them over time.

tokenizer_config.json `chat_template` (a text, or a list of named ones) goes before chat_template.jinja (with more in
additional_chat_templates/), which goes before chat_template.json.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from phitui.api import Checkpoint, InvalidFile, Value, ValueType

_KEY = "tokenizer.chat_template"


def read(checkpoint: Checkpoint, config: Mapping[str, Any]) -> dict[str, Value]:
    """The keys of all templates; empty if there are none. Raises InvalidFile for an unreadable file."""
    found = config["chat_template"] if "chat_template" in config else _from_files(checkpoint)
    if isinstance(found, str):
        return {_KEY: Value.string(found)}
    if not isinstance(found, list):
        return {}
    values: dict[str, Value] = {}
    names = []
    for entry in found:
        name = re.sub(r"[^A-Za-z0-9]", "_", str(entry.get("name", ""))) if isinstance(entry, Mapping) else ""
        text = entry.get("template") if name else None
        if not isinstance(text, str):
            continue
        if name == "default":
            values[_KEY] = Value.string(text)
        else:
            values[f"{_KEY}.{name}"] = Value.string(text)
            names.append(name)
    if names:
        values["tokenizer.chat_templates"] = Value.array(ValueType.STRING, sorted(set(names)))
    return values


def _from_files(checkpoint: Checkpoint) -> Any:
    path = checkpoint.path("chat_template.jinja")
    if path is None:
        return (checkpoint.json("chat_template.json") or {}).get("chat_template")
    more = sorted((checkpoint.directory / "additional_chat_templates").glob("*.jinja"))
    if not more:
        return _text(path)
    return [{"name": "default", "template": _text(path)}, *({"name": f.stem, "template": _text(f)} for f in more)]


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidFile(f"{path}: {error}") from None
