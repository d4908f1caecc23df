"""What is in a GGUF: keys with their types, tensors with their places."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from phitui.actions.context import Context
from phitui.actions.models import resolve_model
from phitui.domain.tensors import Value, ValueType
from phitui.errors import UsageError
from phitui.gguf.header import Header, read_header
from phitui.gguf.shards import read_model
from phitui.gguf.values import close, shortest, type_name

SHORT_TEXT, SHORT_ARRAY = 80, 8
"""Characters of a text and items of an array that are shown of long ones."""


def show(ctx: Context, file: str, this_file: bool = False) -> Header:
    """The header of a model, or with `this_file` of exactly one file of a split one, with its split keys."""
    if this_file:
        path = Path(file).expanduser()
        return read_header(path.absolute() if path.exists() else resolve_model(ctx, file))
    path = resolve_model(ctx, file)
    return read_model(path)


def as_document(header: Header, key: str = "") -> dict[str, Any]:
    """A header as JSON: keys with types (long values shortened, but for `key`), tensors with absolute offsets."""
    keys = [key] if key else list(header.keys())
    sizes = {path: path.stat().st_size for path in header.files}
    return {
        "path": str(header.path),
        "files": [
            {"path": str(path), "size": size, "tensors": sum(t.path == path for t in header.tensors)}
            for path, size in sizes.items()
        ],
        "version": header.version,
        "alignment": header.alignment,
        "data_start": header.data_start,
        "size": header.file_size,
        "keys": [_key_document(header, name, whole=bool(key)) for name in keys],
        "tensors": [
            {
                "name": tensor.name,
                "shape": list(tensor.shape),
                "type": tensor.type.name,
                "offset": tensor.offset,
                "size": tensor.size,
                "file": str(tensor.path),
            }
            for tensor in header.tensors
        ],
    }


def _key_document(header: Header, key: str, whole: bool) -> dict[str, Any]:
    if key not in header:
        raise UsageError(f"{key} is not in {header.path.name}", close(key, header.keys()))
    value = header.value(key)
    count = {"count": len(value.value)} if value.is_array else {}
    shown = _plain(value.value, value.type) if whole else brief(value)
    return {"key": key, "type": type_name(value.type, value.is_array), **count, "value": shown}


def brief(value: Value) -> Any:
    """A value that fits on a line or two: long texts and arrays are cut, marked by an ellipsis at the end."""
    if not value.is_array:
        return _cut(_plain(value.value, value.type))
    items = [_cut(_plain(item, value.type)) for item in value.value[:SHORT_ARRAY]]
    return [*items, "…"] if len(value.value) > SHORT_ARRAY else items


def _plain(value: Any, type_: ValueType) -> Any:
    if isinstance(value, list):
        return [_plain(item, type_) for item in value]
    if type_ is ValueType.FLOAT32:
        return shortest(value)
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


def _cut(value: Any) -> Any:
    return value[: SHORT_TEXT - 1] + "…" if isinstance(value, str) and len(value) > SHORT_TEXT else value


def text_of(value: Value, whole: bool) -> str:
    """A value for people, on one line unless it is shown whole."""
    if not whole:
        return json.dumps(brief(value), ensure_ascii=False)
    if value.is_array:
        return "\n".join(str(_plain(item, value.type)) for item in value.value)
    shown = _plain(value.value, value.type)
    return shown if isinstance(shown, str) else json.dumps(shown)
