"""Special token ids, add_*_token flags, BPE merges and chat templates.

Does what gguf.SpecialVocab does, but the same whatever version of the gguf package is installed: its rules for
the flags changed between releases, and it writes the names of several chat templates in random order.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from phitui.api import Checkpoint, InvalidFile, Value, ValueType
from phitui_convert import chat_template
from phitui_convert.added import from_json

_KEYS = {
    "bos": "bos",
    "eos": "eos",
    "unk": "unknown",
    "sep": "seperator",  # llama.cpp's own spelling of the key
    "pad": "padding",
    "mask": "mask",
    "eot": "eot",
}
_FLAGGED = ("bos", "eos", "sep")


def read(
    checkpoint: Checkpoint, fast: Mapping[str, Any] | None, config: Mapping[str, Any], merges: bool, limit: int | None
) -> dict[str, Value]:
    """The keys. `fast` is tokenizer.json or None; ids of `limit` and above are left out. Raises InvalidFile."""
    values: dict[str, Value] = {}
    if merges:
        values["tokenizer.ggml.merges"] = Value.array(ValueType.STRING, _merges(checkpoint, fast or {"model": {}}))
    named, flags = _around(fast or {}, config)
    for kind, token in _ids(checkpoint, fast or {}, named).items():
        if kind in _KEYS and (limit is None or token < limit):
            values[f"tokenizer.ggml.{_KEYS[kind]}_token_id"] = Value.u32(token)
    for kind in _FLAGGED:
        given = config.get(f"add_{kind}_token")
        flag = flags.get(kind, given if isinstance(given, bool) else None)
        if flag is not None:
            values[f"tokenizer.ggml.add_{kind}_token"] = Value.boolean(flag)
    return values | chat_template.read(checkpoint, config)


def _ids(checkpoint: Checkpoint, fast: Mapping[str, Any], named: Mapping[str, Any]) -> dict[str, int]:
    """Ids by kind: those that the tokenizer names come first, then config.json's `*_token_id`."""
    by_text: dict[str, int] = {}
    for added in from_json(checkpoint, fast):
        by_text.setdefault(added.content, added.id)
    ids: dict[str, int] = {}
    for kind in _KEYS:
        entry = named.get(f"{kind}_token")
        text = entry.get("content") if isinstance(entry, Mapping) else entry
        token = by_text.get(text) if isinstance(text, str) else None
        if token is None:
            token = checkpoint.config.get(f"{kind}_token_id") if kind != "eot" else None
        if isinstance(token, int) and not isinstance(token, bool) and 0 <= token < 2**32:
            ids[kind] = token
    return ids


def _around(fast: Mapping[str, Any], config: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, bool]]:
    """What the post-processor puts around a text: the named tokens it changes, and its flags, which win."""
    named, flags = dict(config), dict[str, bool]()
    named.pop("eot_token", None)
    named["bos_token"] = named.get("bos_token") or named.get("cls_token")
    named["eos_token"] = named.get("eos_token") or named.get("sep_token")
    processor = fast.get("post_processor")
    if not isinstance(processor, Mapping):
        return named, flags
    steps = processor.get("processors") or [processor]
    for step in (step for step in steps if isinstance(step, Mapping)):
        if step.get("type") == "ByteLevel":
            flags.setdefault("bos", False)
            flags.setdefault("eos", False)
        elif step.get("type") == "RobertaProcessing":
            flags |= {"bos": True, "eos": True, "sep": True}
        elif step.get("type") == "TemplateProcessing" and len(step.get("single") or []) > 1:
            _template(step["single"], named, flags)
    return named, flags


def _template(single: list[Any], named: dict[str, Any], flags: dict[str, bool]) -> None:
    """A TemplateProcessing: the special tokens at both ends of a single text."""
    first, last = (
        (end.get("SpecialToken") or {}).get("id") if isinstance(end, Mapping) else None
        for end in (single[0], single[-1])
    )
    if first:
        named["bos_token"] = named["bos_token"] or first
        flags["bos"] = first in (_content(named["bos_token"]), _content(named.get("cls_token")))
    if last:
        if last != _content(named["eos_token"]):
            # what the template ends with is the end of a text; what was named so far ends a turn
            named["eot_token"], named["eos_token"] = named["eos_token"], last
        flags["eos"] = True


def _content(token: Any) -> Any:
    return token.get("content") if isinstance(token, Mapping) else token


def _merges(checkpoint: Checkpoint, fast: Mapping[str, Any]) -> list[str]:
    """The merges as "left right"; a space inside a part (pairs can have one) becomes "Ġ". Raises InvalidFile."""
    merges = fast["model"].get("merges")
    texts = []
    for merge in merges if isinstance(merges, list) else []:
        parts = merge.split(" ") if isinstance(merge, str) else merge
        if not isinstance(parts, list) or len(parts) != 2 or not all(isinstance(part, str) for part in parts):
            raise InvalidFile(f"{checkpoint.directory}: tokenizer.json: {merge!r} is not a merge of two parts")
        texts.append(" ".join(part.replace(" ", "Ġ") for part in parts))
    if not texts:
        raise InvalidFile(f"{checkpoint.directory}: tokenizer.json has no merges: it could not join any bytes")
    return texts
