"""What phitui_convert writes equals what llama.cpp's convert_hf_to_gguf.py writes, key by key and tensor by tensor.

data/convert/*.json are digests of the reference's files, frozen once from llama.cpp 0c1e57098 (transformers 5.23.0), so
that no test needs torch. To freeze them again:

    python tests/plugins/test_convert_parity.py checkpoints DIR    # writes the checkpoints
    convert_hf_to_gguf.py DIR/NAME --outtype bf16 --outfile DIR/NAME.bf16.gguf    # for every NAME and type of CASES,
                                                                                     # --mmproj where CASES says so
    python tests/plugins/test_convert_parity.py freeze DIR [NAME ...]

The byte-level BPE vocabularies are too small to have a known pre-tokenizer, so the reference's get_vocab_base_pre() was
made to answer "gpt-2", as phitui is by its --pre-tokenizer option.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from phitui_convert.converter import ConvertOptions, PhiConverter
from phitui_convert.floats import FloatQuantizer

from phitui import plugins
from phitui.api import write_gguf
from phitui.testing.checkpoints import converter_options, write_checkpoint

DATA = Path(__file__).parent / "data" / "convert"
ALL = ("bf16", "f16", "f32", "auto", "q8_0")
Tweak = Callable[[Path], None]


@dataclass(frozen=True)
class Case:
    """A checkpoint. `name` is the general.name where phitui writes another one than the reference."""

    spec: dict[str, Any]
    schemes: tuple[str, ...] = ("auto",)
    name: str = ""
    tweak: Tweak = field(default=lambda _: None)
    options: dict[str, Any] = field(default_factory=dict)


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
    unknown = {"__type": "AddedToken", "content": "<unk2>", "lstrip": False}
    edit(directory / "tokenizer_config.json", drop=("chat_template",), pad_token="<|pad|>", unk_token=unknown)
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

CASES: dict[str, Case] = {
    "Phi-3-tiny-4k-instruct": Case({"card": True}, ALL, "Phi-3-tiny-4k-instruct"),
    "Phi-3.5-tiny-instruct": Case(
        {"rope": "longrope", "context": 131072, "dtype": "F16", "shards": 2}, ALL, "Phi-3.5-tiny-instruct"
    ),
    "Phi-4-tiny": Case(
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
    "narrow": Case(
        {"rope": "longrope", "rope_schema": "rope_parameters", "context": 131072, "hidden": 96, "intermediate": 160},
        ("f16", "q8_0"),
        "Phi-3 Narrow",
    ),
    "su": Case({"rope": "su", "context": 8192, "dtype": "F32"}, ("auto", "bf16"), "Phi-3 Su"),
    "yarn": Case({"rope": "yarn", "context": 8192, "tokenizer": "bpe"}),
    "byte-level": Case({"tokenizer": "bpe"}, tweak=byte_level_processor),
    "template": Case({"tokenizer": "bpe", "card": True}, tweak=template_processor),
    "new-tokens": Case({"tokenizer": "bpe"}, tweak=new_tokens),
    "odd-added": Case({"tokenizer": "bpe"}, tweak=odd_added_tokens),
    "template-list": Case({}, name="Phi-3 Template List", tweak=template_list),
    "no-tokenizer-json": Case({"kv_heads": 4}, name="Phi-3 No Tokenizer Json", tweak=no_tokenizer_json),
    "hub-name": Case(
        {"rope": "longrope", "context": 131072, "tied": True}, name="Phi-3-mini-128k-instruct", tweak=hub_name
    ),
    "defaults": Case({}, name="Phi-3 Defaults", tweak=defaults),
    "phi-2-tiny": Case(
        PHI2 | {"dtype": "F16", "partial_rotary": 0.5, "shards": 2, "card": True, "context": 2048},
        ALL,
    ),
    "phi-1-tiny": Case(
        PHI2 | {"dtype": "F32", "partial_rotary": 0.25, "rope_schema": "rope_parameters"}, ("auto", "q8_0")
    ),
    "Phi-3.5-tiny-MoE": Case(
        {"family": "phimoe", "rope": "longrope", "context": 131072, "shards": 3}, ALL, "Phi-3.5-tiny-MoE"
    ),
    "Phi-mini-MoE": Case(
        {"family": "phimoe", "rope_schema": "rope_parameters", "dtype": "F16", "experts": 3},
        ("auto", "f32"),
        "Phi-3 Phi Mini MoE",
    ),
    "Phi-4-tiny-vision": Case({"family": "phi4v", "tokenizer": "bpe"}, ("auto", "q8_0")),
    "Phi-4-tiny-mmproj": Case({"family": "phi4v", "tokenizer": "bpe"}, ALL, options={"mmproj": True}),
}


def checkpoint(name: str, base: Path) -> Path:
    directory = write_checkpoint(base / name, **CASES[name].spec)
    CASES[name].tweak(directory)
    return directory


def digest(path: Path) -> dict[str, Any]:
    """Keys (long values as sha256) and tensors of a GGUF file, read by the gguf package."""
    import gguf

    reader = gguf.GGUFReader(path)
    keys = {}
    for key, found in reader.fields.items():
        if not key.startswith("GGUF."):
            text = json.dumps(found.contents(), ensure_ascii=True)
            text = text if len(text) < 80 else "sha256:" + hashlib.sha256(text.encode()).hexdigest()
            keys[key] = [*(kind.name for kind in found.types), text]
    tensors = {
        tensor.name: [
            tensor.tensor_type.name,
            [int(size) for size in tensor.shape],
            hashlib.sha256(tensor.data.tobytes()).hexdigest()[:32],
        ]
        for tensor in reader.tensors
    }
    return {"keys": keys, "tensors": tensors}


def build(directory: Path, scheme: str, out: Path) -> Path:
    case = CASES[directory.name]
    options = ConvertOptions(**converter_options(case.spec.get("tokenizer", "spm")), **case.options)
    source = PhiConverter().open(directory, options)
    quantizer: Any = FloatQuantizer()
    if scheme == "q8_0":
        offers = [offer for offer in plugins.load().quantizers if plugins.availability(offer).ok]
        quantizer = next((offer for offer in offers if "Q8_0" in {each.name for each in offer.schemes()}), None)
        if quantizer is None:
            pytest.skip("no quantizer for Q8_0 is available here")
    plan = quantizer.plan(source, [scheme.upper()], quantizer.options())[scheme.upper()]
    write_gguf(plan, out, quantizer.encoder(plan, quantizer.options()))
    return out


@pytest.mark.parametrize(("name", "scheme"), [(name, scheme) for name in CASES for scheme in CASES[name].schemes])
def test_equals_the_reference(name: str, scheme: str, tmp_path: Path) -> None:
    expected = json.loads((DATA / f"{name}.json").read_text(encoding="utf-8"))[scheme]
    written = digest(build(checkpoint(name, tmp_path), scheme, tmp_path / "out.gguf"))
    if CASES[name].name:
        expected["keys"]["general.name"][1] = json.dumps(CASES[name].name)
    assert written["keys"] == expected["keys"]
    assert written["tensors"] == expected["tensors"]


def freeze(base: Path, names: list[str]) -> None:
    DATA.mkdir(parents=True, exist_ok=True)
    for name in names or CASES:
        case = CASES[name]
        digests = {scheme: digest(base / f"{name}.{scheme}.gguf") for scheme in case.schemes}
        (DATA / f"{name}.json").write_text(json.dumps(digests, indent=0) + "\n", encoding="utf-8")


if __name__ == "__main__":
    action, where = sys.argv[1], Path(sys.argv[2])
    if action == "freeze":
        freeze(where, sys.argv[3:])
    else:
        for each, one in CASES.items():
            checkpoint(each, where)
            print(each, *one.schemes)
