"""Other values for the keys of a GGUF: checked, typed like the ones they replace, and written without touching tensors.

An `Editor` collects changes; `plan` says what they come to: the same header size, so that only the header has to be
written, or another one, so that the file has to be written anew.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from phitui.domain.tensors import FilePlan, Value, ValueType
from phitui.errors import InvalidFile, UsageError
from phitui.gguf import values
from phitui.gguf.encode import encode_header
from phitui.gguf.header import Header
from phitui.gguf.regroup import ALIGN_KEY, copied
from phitui.gguf.shards import SPLIT_KEYS

TOKENS = "tokenizer.ggml.tokens"
PER_TOKEN = (TOKENS, "tokenizer.ggml.token_type", "tokenizer.ggml.scores")
"""Arrays that have an entry for each row of the embedding."""
SPECIAL = {
    "bos": "tokenizer.ggml.bos_token_id",
    "eos": "tokenizer.ggml.eos_token_id",
    "eot": "tokenizer.ggml.eot_token_id",
    "eom": "tokenizer.ggml.eom_token_id",
    "pad": "tokenizer.ggml.padding_token_id",
    "unk": "tokenizer.ggml.unknown_token_id",
    "sep": "tokenizer.ggml.seperator_token_id",
    "mask": "tokenizer.ggml.mask_token_id",
}
"""Names of special tokens -> keys (the spelling of `seperator` is the format's own)."""
_SHAPING = (
    *(
        "block_count",
        "embedding_length",
        "feed_forward_length",
        "vocab_size",
        "expert_count",
        "leading_dense_block_count",
    ),
    *("expert_feed_forward_length", "expert_shared_feed_forward_length", "expert_shared_count", "rope.dimension_count"),
    *("attention.head_count", "attention.head_count_kv", "attention.key_length", "attention.value_length"),
)
"""Keys <architecture>.<...> that llama.cpp derives the shapes of tensors from."""
_FORCE = "--force changes it all the same, and the file may not load any more"


@dataclass(frozen=True)
class Change:
    """One key before and after; None where it is not there. `index`: only this entry of an array."""

    key: str
    before: Value | None
    after: Value | None
    index: int | None = None


class Editor:
    """Collects changes to the keys of one file. All methods raise UsageError for what cannot be or must not be."""

    def __init__(self, header: Header, force: bool = False) -> None:
        self.header = header
        self.force = force
        self.metadata = header.metadata()
        self.changes: list[Change] = []
        self.notes: list[str] = []
        self._indexes: dict[str | bytes, int] | None = None

    def set(self, key: str, text: str, type_: str = "") -> None:
        """Give a key a value, as text; arrays as a JSON list. A new key gets `type_`, or the type it looks like."""
        found = self.metadata.get(key)
        self._refuse(key)
        if found is None:
            value = self._new(key, text, type_)
        else:
            value = values.parse(key, text, *self._type(key, found, type_))
        if key in PER_TOKEN:
            self._check_count(key, value)
        self._check_id(key, value)
        self._put(key, value)

    def set_item(self, key: str, index: int, text: str) -> None:
        """Change one entry of an array."""
        self._refuse(key)
        found = self.metadata.get(key)
        if found is None or not found.is_array:
            raise UsageError(f"{key} is no array in this file", "phitui gguf show lists the keys with their types")
        if not 0 <= index < len(found.value):
            raise UsageError(f"{key} has {len(found.value)} entries; there is no {index}", "entries are counted from 0")
        item = values.parse(f"{key}[{index}]", text, found.type, is_array=False)
        before = found.value[index]
        if before == item.value:
            return
        found = self._own(key)
        found.value[index] = item.value
        self.changes.append(Change(key, Value(found.type, before), item, index))

    def set_token(self, index: int, text: str) -> None:
        """Give a token another text."""
        items = self.metadata[TOKENS].value if TOKENS in self.metadata else []
        if self._indexes is None:
            self._indexes = {item: number for number, item in enumerate(items)}
        other = self._indexes.get(text, index)
        if other != index and not self.force:
            raise UsageError(f"token {other} is {text!r} already, and two cannot be the same", _FORCE)
        self.set_item(TOKENS, index, text)

    def set_special(self, name: str, index: int) -> None:
        """Say which token is the beginning of a text, its end, the end of a turn, ..."""
        if name not in SPECIAL:
            raise UsageError(f"there is no special token {name!r}", f"there are: {', '.join(SPECIAL)}")
        self.set(SPECIAL[name], str(index), "" if SPECIAL[name] in self.metadata else "u32")

    def remove(self, key: str) -> None:
        """Take a key out."""
        if key not in self.metadata:
            raise UsageError(f"{key} is not in this file", values.close(key, self.metadata))
        self._refuse(key)
        if key in (*PER_TOKEN, "tokenizer.ggml.model", "tokenizer.ggml.merges") and not self.force:
            raise UsageError(f"{key} is a part of the tokenizer: without it no model loads", _FORCE)
        self.changes.append(Change(key, self.metadata.pop(key), None))

    def _put(self, key: str, value: Value) -> None:
        before = self.metadata.get(key)
        if before != value:
            self.metadata[key] = value
            self.changes.append(Change(key, before, value))

    def _own(self, key: str) -> Value:
        """The array of a key as one that may be changed: not the one that earlier changes remember."""
        found = self.metadata[key]
        self.metadata[key] = copy = dataclasses.replace(found, value=list(found.value))
        return copy

    def _new(self, key: str, text: str, type_: str) -> Value:
        values.check_key(key)
        if type_:
            return values.parse(key, text, *values.named(type_))
        kind, is_array = values.guess(text)
        self.notes.append(
            f"{key} is new and taken as {values.type_name(kind, is_array)}; --set-type {key}=TYPE says else"
        )
        return values.parse(key, text, kind, is_array)

    def _type(self, key: str, found: Value, type_: str) -> tuple[ValueType, bool]:
        own = (found.type, found.is_array)
        wanted = values.named(type_) if type_ else own
        if wanted != own and not self.force:
            raise UsageError(f"{key} is {values.type_name(*own)} in this file, not {type_}", _FORCE)
        return wanted

    def _refuse(self, key: str) -> None:
        """Keys that describe the tensors, not the model, are not for editing."""
        reason = protected(key, self.metadata)
        if reason and not self.force:
            raise UsageError(f"{key} is not changed: {reason}", _FORCE)

    def _check_count(self, key: str, value: Value) -> None:
        before = self.metadata.get(key) or self.metadata.get(TOKENS)
        count = len(value.value) if value.is_array else 0
        if before is not None and count != len(before.value) and not self.force:
            raise UsageError(f"{key} would have {count} entries instead of {len(before.value)}", _FORCE)

    def _check_id(self, key: str, value: Value) -> None:
        """The id of a special token must be one of the vocabulary."""
        tokens = self.metadata.get(TOKENS)
        if not key.endswith("_token_id") or tokens is None or not isinstance(value.value, int) or self.force:
            return
        if not 0 <= value.value < len(tokens.value):
            raise UsageError(f"{key}: there is no token {value.value}", f"ids are 0 to {len(tokens.value) - 1}")


def protected(key: str, metadata: dict[str, Value]) -> str:
    """Why a key should stay as it is; empty if it may be changed."""
    if key in ("general.architecture", "general.file_type", "general.quantization_version"):
        return "it says what the tensors are"
    if key == ALIGN_KEY:
        return "it says where the tensors are"
    if key in SPLIT_KEYS:
        return "it says which part of a split model this is"
    architecture = metadata.get("general.architecture")
    if architecture and key in {f"{architecture.value}.{name}" for name in _SHAPING}:
        return "the shapes of the tensors follow from it"
    return ""


@dataclass(frozen=True)
class EditPlan:
    """What an edit comes to. `old` and `new` are the whole headers, padded; `rewritten` is the file written anew.

    `fits`: the tensors can stay where they are, and only the header has to be written.
    """

    old: bytes
    new: bytes
    rewritten: FilePlan
    fits: bool


def plan(editor: Editor) -> EditPlan:
    """What the collected changes come to. Raises UsageError for an alignment that cannot be, InvalidFile if the file
    changed meanwhile."""
    header = editor.header
    alignment = _alignment(editor)
    rewritten = copied(header, editor.metadata)
    old = _start(header.path, header.data_start)
    new = encode_header(_where_they_are(header, rewritten) if alignment == header.alignment else rewritten)
    return EditPlan(old, new, rewritten, fits=alignment == header.alignment and len(old) == len(new))


def _where_they_are(header: Header, rewritten: FilePlan) -> FilePlan:
    """The plan with the offsets that the tensors have now; they count from the end of the header."""
    tensors = tuple(
        dataclasses.replace(new, offset=old.offset - header.data_start)
        for new, old in zip(rewritten.tensors, header.tensors, strict=True)
    )
    return dataclasses.replace(rewritten, tensors=tensors)


def _alignment(editor: Editor) -> int:
    value: Any = editor.metadata.get(ALIGN_KEY, Value.u32(editor.header.alignment)).value
    if not isinstance(value, int) or isinstance(value, bool) or not 8 <= value <= 1 << 16 or value & value - 1:
        raise UsageError(f"{ALIGN_KEY} cannot be {value!r}", "it is a power of two, 32 if it is not given")
    return value


def _start(path: Path, length: int) -> bytes:
    try:
        with path.open("rb") as stream:
            return stream.read(length)
    except OSError as error:
        raise InvalidFile(f"{path}: cannot be read: {error.strerror}") from None
