"""What llama.cpp's convert_hf_to_gguf.py writes: keys and digests of tensors, for twenty tiny checkpoints.

data/*.json were frozen once from llama.cpp 0c1e57098 (transformers 5.23.0), so that nobody needs torch. To freeze them
again:

    python -m phitui.testing.conformance.golden checkpoints DIR   # writes the checkpoints
    convert_hf_to_gguf.py DIR/NAME --outtype bf16 --outfile DIR/NAME.bf16.gguf    # for every NAME and type it prints,
                                                                                     # --mmproj where GOLDEN says so
    python -m phitui.testing.conformance.golden freeze DIR [NAME ...]

The byte-level BPE vocabularies are too small to have a known pre-tokenizer, so the reference's get_vocab_base_pre() was
made to answer "gpt-2", as a converter is by an option of its own.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from phitui.testing.checkpoints import write_checkpoint

DATA = Path(__file__).parent / "data"
ALL = ("bf16", "f16", "f32", "auto", "q8_0")
Tweak = Callable[[Path], None]


@dataclass(frozen=True)
class Golden:
    """A checkpoint (fields of TinyPhi, then `tweak`), the converter's `options`, and the types that were frozen.

    `name` is the general.name that llama.cpp needs, where the reference writes another one: with it, special tokens eat
    the whitespace after them as the checkpoint's own tokenizer lets them.
    """

    spec: dict[str, Any]
    schemes: tuple[str, ...] = ("auto",)
    name: str = ""
    tweak: Tweak = field(default=lambda _: None)
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def tokenizer(self) -> str:
        return str(self.spec.get("tokenizer", "spm"))


def edit(path: Path, drop: tuple[str, ...] = (), **changes: Any) -> None:
    values = json.loads(path.read_text(encoding="utf-8"))
    for key in drop:
        values.pop(key, None)
    path.write_text(json.dumps(values | changes, indent=1), encoding="utf-8")


def byte_level_processor(directory: Path) -> None:
    """Its flags win over those of tokenizer_config.json."""
    level = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False, "use_regex": True}
    edit(directory / "tokenizer.json", post_processor=level)
    edit(directory / "tokenizer_config.json", add_bos_token=True)


def template_processor(directory: Path) -> None:
    """A start token, and another end than eos_token; sampling values of both spellings."""
    start, end, text = (
        {"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}},
        {"SpecialToken": {"id": "<|end|>", "type_id": 0}},
        {"Sequence": {"id": "A", "type_id": 0}},
    )
    other = {"Sequence": {"id": "B", "type_id": 0}}
    ids = {
        token["content"]: token["id"]
        for token in json.loads((directory / "tokenizer.json").read_text())["added_tokens"]
    }
    used = {name: {"id": name, "ids": [ids[name]], "tokens": [name]} for name in ("<|endoftext|>", "<|end|>")}
    processor = {
        "type": "TemplateProcessing",
        "single": [start, text, end],
        "pair": [start, text, other, end],
        "special_tokens": used,
    }
    edit(directory / "tokenizer.json", post_processor=processor)
    edit(directory / "generation_config.json", temperature=0.8, top_p=0.95, top_k=50, repetition_penalty=1.05)


def new_tokens(directory: Path) -> None:
    """Named tokens that the vocabulary lacks, a template in a file of its own, and a rich model card."""
    named = {"pad_token": "<|pad|>", "unk_token": {"__type": "AddedToken", "content": "<unk2>", "lstrip": False}}
    edit(directory / "tokenizer_config.json", drop=("chat_template",), **named)
    (directory / "chat_template.jinja").write_text("{{ messages }}")
    card = {
        "license": ["mit", "apache-2.0"],
        "base_model": "microsoft/Phi-4-mini-instruct",
        "datasets": ["a/b"],
        "version": "v1.0",
        "model_name": "Foo",
    }
    (directory / "README.md").write_text(f"---\n{json.dumps(card)}\n---\ntext")


def odd_added_tokens(directory: Path) -> None:
    """Added tokens that are in the vocabulary already, look special, or hold spaces; flags that the files differ in."""
    more = [
        {"id": 420, "content": "Ġthe"},
        {"id": 421, "content": "<|looks_special|>"},
        {"id": 422, "content": "  ▁x"},
        {"id": 423, "content": "İşlem"},
        {"id": 430, "content": "<pad>", "normalized": True},
    ]
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": False}
    tokens = json.loads((directory / "tokenizer.json").read_text())
    tokens["added_tokens"] += [flags | token for token in more]
    tokens["truncation"] = {"direction": "Right", "max_length": 8, "strategy": "LongestFirst", "stride": 0}
    (directory / "tokenizer.json").write_text(json.dumps(tokens))
    config = json.loads((directory / "tokenizer_config.json").read_text())
    for token in config["added_tokens_decoder"].values():
        token["normalized"] = not token["normalized"]
        token["special"] = token["special"] or token["content"] == "kept"
    edit(directory / "tokenizer_config.json", **config, additional_special_tokens=["<|more|>", "<|end|>"])


def template_list(directory: Path) -> None:
    templates = [{"name": "default", "template": "a"}, {"name": "tool use", "template": "b"}]
    edit(directory / "tokenizer_config.json", chat_template=templates, add_bos_token=True, add_eos_token=False)


def no_tokenizer_json(directory: Path) -> None:
    (directory / "tokenizer.json").unlink()
    (directory / "chat_template.json").write_text('{"chat_template": "{{ messages }}"}')
    edit(directory / "tokenizer_config.json", drop=("chat_template",))


def hub_name(directory: Path) -> None:
    """A name in config.json goes before the directory's; a list of ends of text is not one eos token."""
    edit(directory / "config.json", _name_or_path="microsoft/Phi-3-mini-128k-instruct", eos_token_id=[1, 2])


def defaults(directory: Path) -> None:
    edit(
        directory / "config.json",
        drop=("original_max_position_embeddings", "rms_norm_eps", "sliding_window", "tie_word_embeddings"),
    )


PHI2 = {"family": "phi2", "tokenizer": "bpe", "kv_heads": 4, "intermediate": 1024}

GOLDEN: dict[str, Golden] = {
    "Phi-3-tiny-4k-instruct": Golden({"card": True}, ALL, "Phi-3-tiny-4k-instruct"),
    "Phi-3.5-tiny-instruct": Golden(
        {"rope": "longrope", "context": 131072, "dtype": "F16", "shards": 2}, ALL, "Phi-3.5-tiny-instruct"
    ),
    "Phi-4-tiny": Golden(
        {
            "tokenizer": "bpe",
            "rope": "longrope",
            "rope_schema": "rope_parameters",
            "context": 131072,
            "partial_rotary": 0.75,
            "tied": True,
        },
        ALL,
    ),
    "narrow": Golden(
        {"rope": "longrope", "rope_schema": "rope_parameters", "context": 131072, "hidden": 96, "intermediate": 160},
        ("f16", "q8_0"),
        "Phi-3 Narrow",
    ),
    "su": Golden({"rope": "su", "context": 8192, "dtype": "F32"}, ("auto", "bf16"), "Phi-3 Su"),
    "yarn": Golden({"rope": "yarn", "context": 8192, "tokenizer": "bpe"}),
    "byte-level": Golden({"tokenizer": "bpe"}, tweak=byte_level_processor),
    "template": Golden({"tokenizer": "bpe", "card": True}, tweak=template_processor),
    "new-tokens": Golden({"tokenizer": "bpe"}, tweak=new_tokens),
    "odd-added": Golden({"tokenizer": "bpe"}, tweak=odd_added_tokens),
    "template-list": Golden({}, name="Phi-3 Template List", tweak=template_list),
    "no-tokenizer-json": Golden({"kv_heads": 4}, name="Phi-3 No Tokenizer Json", tweak=no_tokenizer_json),
    "hub-name": Golden(
        {"rope": "longrope", "context": 131072, "tied": True}, name="Phi-3-mini-128k-instruct", tweak=hub_name
    ),
    "defaults": Golden({}, name="Phi-3 Defaults", tweak=defaults),
    "phi-2-tiny": Golden(
        PHI2 | {"dtype": "F16", "partial_rotary": 0.5, "shards": 2, "card": True, "context": 2048},
        ALL,
    ),
    "phi-1-tiny": Golden(
        PHI2 | {"dtype": "F32", "partial_rotary": 0.25, "rope_schema": "rope_parameters"}, ("auto", "q8_0")
    ),
    "Phi-3.5-tiny-MoE": Golden(
        {"family": "phimoe", "rope": "longrope", "context": 131072, "shards": 3}, ALL, "Phi-3.5-tiny-MoE"
    ),
    "Phi-mini-MoE": Golden(
        {"family": "phimoe", "rope_schema": "rope_parameters", "dtype": "F16", "experts": 3},
        ("auto", "f32"),
        "Phi-3 Phi Mini MoE",
    ),
    "Phi-4-tiny-vision": Golden({"family": "phi4v", "tokenizer": "bpe"}, ("auto", "q8_0")),
    "Phi-4-tiny-mmproj": Golden({"family": "phi4v", "tokenizer": "bpe"}, ALL, options={"mmproj": True}),
}


def checkpoint(name: str, base: Path) -> Path:
    """Write the checkpoint of that name below `base`."""
    directory = write_checkpoint(base / name, **GOLDEN[name].spec)
    GOLDEN[name].tweak(directory)
    return directory


def digest(path: Path) -> dict[str, Any]:
    """Keys (long values as sha256) and tensors of a GGUF file, read by the gguf package."""
    import gguf

    reader = gguf.GGUFReader(path)
    keys = {}
    for key, found in reader.fields.items():
        if not key.startswith("GGUF."):
            text = json.dumps(found.contents(), ensure_ascii=True)
            text = text if len(text) < 80 else "sha256:" + hashlib.sha256(text.encode()).hexdigest()[:24]
            keys[key] = [*(kind.name for kind in found.types), text]
    tensors = {
        tensor.name: [
            tensor.tensor_type.name,
            [int(size) for size in tensor.shape],
            hashlib.sha256(tensor.data.tobytes()).hexdigest()[:16],
        ]
        for tensor in reader.tensors
    }
    return {"keys": keys, "tensors": tensors}


def expected(name: str, scheme: str) -> dict[str, Any]:
    """The digest of the reference's file, with the name that llama.cpp needs."""
    found: dict[str, Any] = json.loads((DATA / f"{name}.json").read_text(encoding="utf-8"))[scheme]
    if GOLDEN[name].name:
        found["keys"]["general.name"][1] = json.dumps(GOLDEN[name].name)
    return found


def freeze(base: Path, names: list[str]) -> None:
    """Write data/*.json from the reference's files in `base`."""
    DATA.mkdir(parents=True, exist_ok=True)
    for name in names or GOLDEN:
        digests = {scheme: digest(base / f"{name}.{scheme}.gguf") for scheme in GOLDEN[name].schemes}
        (DATA / f"{name}.json").write_text(_lines(digests), encoding="utf-8")


def _lines(digests: dict[str, Any]) -> str:
    """JSON with a line for each key and tensor."""
    schemes = []
    for scheme, parts in digests.items():
        texts = []
        for part, entries in parts.items():
            rows = (f"{json.dumps(name)}:{json.dumps(entry, separators=(',', ':'))}" for name, entry in entries.items())
            texts.append(f'"{part}":{{\n' + ",\n".join(rows) + "\n}")
        schemes.append(f'"{scheme}":{{' + ",".join(texts) + "}")
    return "{" + ",\n".join(schemes) + "}\n"


def main() -> None:
    """`checkpoints DIR` or `freeze DIR [NAME ...]`."""
    action, where = sys.argv[1], Path(sys.argv[2])
    if action == "freeze":
        freeze(where, sys.argv[3:])
        return
    for name, golden in GOLDEN.items():
        checkpoint(name, where)
        sys.stdout.write(" ".join((name, *golden.schemes, *(f"--{option}" for option in golden.options))) + "\n")


if __name__ == "__main__":
    main()
