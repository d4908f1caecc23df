"""What cannot be converted is refused by name, with the way out; and inspect() never raises."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from phitui_convert import pretokenizer
from phitui_convert.converter import ConvertOptions, PhiConverter
from phitui_convert.floats import FloatQuantizer

from phitui.api import (
    FileExtent,
    InvalidFile,
    Source,
    SourceTensor,
    TensorType,
    UnsupportedModel,
    UsageError,
)
from phitui.testing.checkpoints import TinyPhi, config, write_checkpoint

IDS = {"<|endoftext|>": 3}
GOOD = config(TinyPhi(rope="longrope", context=131072), IDS)


def opened(directory: Path, **options: Any) -> Any:
    return PhiConverter().open(directory, ConvertOptions(**options))


def edit(path: Path, **changes: Any) -> None:
    values = json.loads(path.read_text())
    path.write_text(json.dumps({key: value for key, value in (values | changes).items() if value != "DROP"}))


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "tiny", hidden=32, intermediate=32)


@pytest.mark.parametrize(
    ("architecture", "nearest"),
    [
        ("Phi3SmallForCausalLM", "Phi-3-medium"),
        ("Phi4FlashForCausalLM", "Phi-4-mini-reasoning"),
        ("LlamaForCausalLM", "Phi3ForCausalLM"),
    ],
)
def test_other_architectures_are_named_with_the_nearest(architecture: str, nearest: str, tiny: Path) -> None:
    verdict = PhiConverter().inspect({"architectures": [architecture]})
    assert not verdict.ok
    assert architecture in verdict.reason
    assert nearest in verdict.nearest
    edit(tiny / "config.json", architectures=[architecture])
    with pytest.raises(UnsupportedModel, match=architecture) as error:
        opened(tiny)
    assert nearest in error.value.hint


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"architectures": []}, "names no architecture"),
        ({"hidden_size": None}, "hidden_size is missing"),
        ({"hidden_size": "big"}, "hidden_size is 'big'"),
        ({"num_hidden_layers": 100_000}, "num_hidden_layers is 100000"),
        ({"num_attention_heads": 3}, "do not divide"),
        ({"head_dim": 100}, "head_dim is 100"),
        ({"vocab_size": 2**40}, "vocab_size"),
        ({"rope_theta": -1}, "rope_theta"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps"),
        ({"partial_rotary_factor": 1.5}, "partial_rotary_factor"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings"),
        ({"quantization_config": {"quant_method": "awq"}}, "already quantized (awq"),
        ({"rope_scaling": {"type": "longrope"}}, "short_factor is missing"),
        ({"rope_scaling": {"type": "longrope", "short_factor": [1.0] * 32}}, "long_factor is missing"),
        ({"rope_scaling": GOOD["rope_scaling"] | {"long_factor": [1.0] * 31}}, "31 values, not 32"),
        ({"rope_scaling": GOOD["rope_scaling"] | {"long_factor": [0.0] * 32}}, "long_factor[0] is 0.0"),
        ({"rope_scaling": {"type": "yarn", "factor": 4.0}}, "short_factor is missing"),
        ({"rope_scaling": {"type": "linear", "factor": 4.0}}, "'linear' is not known"),
        ({"rope_scaling": {"short_factor": [1.0] * 32}}, "neither type nor rope_type"),
        ({"rope_scaling": "longrope"}, "not an object"),
        ({"rope_scaling": None, "rope_parameters": {"full_attention": {}}}, "differ between layers"),
    ],
)
def test_configs_that_cannot_be(changes: dict[str, Any], said: str) -> None:
    assert PhiConverter().inspect(GOOD).ok
    verdict = PhiConverter().inspect(GOOD | changes)
    assert not verdict.ok
    assert said in verdict.reason


@pytest.mark.parametrize("kind", ["longrope", "su", "yarn", "LongRoPE"])
@pytest.mark.parametrize("schema", ["rope_scaling", "rope_parameters"])
@pytest.mark.parametrize("key", ["rope_type", "type"])
@pytest.mark.parametrize(
    ("factors", "said"),
    [
        ({}, "short_factor is missing"),
        ({"short_factor": [1.0] * 32}, "long_factor is missing"),
        ({"short_factor": [1.0] * 32, "long_factor": []}, "long_factor is missing"),
        ({"short_factor": [1.0] * 32, "long_factor": [1.0] * 48}, "48 values, not 32"),
        ({"short_factor": [1.0] * 32, "long_factor": "1.0"}, "not 32"),
        ({"short_factor": [1.0] * 32, "long_factor": [1.0] * 31 + [None]}, "long_factor[31] is None"),
    ],
)
def test_longrope_without_its_factors(factors: Any, said: str, key: str, schema: str, kind: str) -> None:
    """In both schemas, under each name: never a file without them."""
    plain = {name: value for name, value in GOOD.items() if name != "rope_scaling"}
    verdict = PhiConverter().inspect(plain | {schema: {key: kind, **factors}})
    assert not verdict.ok
    assert said in verdict.reason


def test_longrope_in_one_schema_and_not_in_the_other(tmp_path: Path) -> None:
    """The one that counts has no factors: the file would lack them, silently."""
    directory = write_checkpoint(tmp_path / "tiny", hidden=32, intermediate=32, rope="longrope", context=131072)
    assert [tensor.name for tensor in opened(directory).tensors][:2] == [
        "rope_factors_long.weight",
        "rope_factors_short.weight",
    ]
    values = json.loads((directory / "config.json").read_text())
    edit(directory / "config.json", rope_parameters=values["rope_scaling"], rope_scaling={"type": "default"})
    with pytest.raises(
        InvalidFile, match=r"tiny: config.json: rope_parameters says longrope, but its factors would not"
    ):
        opened(directory)
    edit(directory / "config.json", rope_scaling=None)
    assert "rope_factors_long.weight" in [tensor.name for tensor in opened(directory).tensors]


@pytest.mark.parametrize(
    ("file", "changes"),
    [
        ("config.json", {"hidden_size": "big"}),
        ("config.json", {"num_attention_heads": 3}),
        ("config.json", {"head_dim": 100}),
        ("config.json", {"rope_scaling": "longrope"}),
        ("config.json", {"vocab_size": 300}),
        ("tokenizer.json", {"added_tokens": {"x": 1}}),
        ("tokenizer_config.json", {"added_tokens_decoder": ["x"]}),
        ("tokenizer_config.json", {"added_tokens_decoder": {"x": {"content": "y"}}}),
    ],
)
def test_every_refusal_has_a_next_step(file: str, changes: dict[str, Any], tiny: Path) -> None:
    edit(tiny / file, **changes)
    with pytest.raises((InvalidFile, UnsupportedModel)) as error:
        opened(tiny)
    assert str(tiny) in error.value.message and error.value.hint


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@given(st.dictionaries(st.sampled_from(sorted(GOOD)), json_values), st.booleans())
@settings(max_examples=150, deadline=None)
def test_inspect_never_raises(changes: dict[str, Any], whole: bool) -> None:
    verdict = PhiConverter().inspect(GOOD | changes if whole else changes)
    assert verdict.reason


@pytest.mark.parametrize("value", [None, [], "x", {"architectures": "Phi3ForCausalLM"}, {"architectures": [3]}])
def test_inspect_of_things_that_are_no_config(value: Any) -> None:
    assert not PhiConverter().inspect(value).ok


def test_unknown_pre_tokenizer_names_the_option(tmp_path: Path) -> None:
    directory = write_checkpoint(tmp_path / "tiny", tokenizer="bpe", hidden=32, intermediate=32)
    with pytest.raises(UnsupportedModel, match="not a known one") as error:
        opened(directory)
    assert "--pre-tokenizer NAME" in error.value.hint
    assert opened(directory, pre_tokenizer="gpt-2").metadata["tokenizer.ggml.pre"].value == "gpt-2"


def test_another_tokenizer_class_is_judged_by_its_files(tmp_path: Path) -> None:
    """Fine-tunes save PreTrainedTokenizerFast and no tokenizer.model; the reference fails on them."""
    directory = write_checkpoint(tmp_path / "tiny", tokenizer="bpe", hidden=32, intermediate=32)
    edit(directory / "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast")
    assert opened(directory, pre_tokenizer="gpt-2").metadata["tokenizer.ggml.model"].value == "gpt2"


def test_sentencepiece_without_its_model(tiny: Path) -> None:
    """Phi-3-vision and many fine-tunes have only tokenizer.json, and everything but spaces can be told from it."""
    whole = opened(tiny).metadata
    (tiny / "tokenizer.model").unlink()
    rebuilt = opened(tiny)
    assert any("rebuilt" in note for note in rebuilt.notes)
    texts = whole["tokenizer.ggml.tokens"].value
    differ = {key for key, value in whole.items() if rebuilt.metadata[key] != value}
    assert differ == {"tokenizer.ggml.scores"}
    pairs = zip(
        texts, whole["tokenizer.ggml.scores"].value, rebuilt.metadata["tokenizer.ggml.scores"].value, strict=True
    )
    assert [text for text, before, after in pairs if before != after] == ["▁"]


def test_neither_tokenizer_file(tiny: Path) -> None:
    (tiny / "tokenizer.model").unlink()
    tokens = json.loads((tiny / "tokenizer.json").read_text())
    merges = tokens["model"].pop("merges")
    for broken, said in (([], "no merges"), ([["zz", "yy"]], "makes no piece")):
        edit(tiny / "tokenizer.json", model=tokens["model"] | {"merges": broken})
        with pytest.raises(InvalidFile, match=said):
            opened(tiny)
    holes = {text: 2 * number for text, number in tokens["model"]["vocab"].items()}
    edit(tiny / "tokenizer.json", model=tokens["model"] | {"merges": merges, "vocab": holes})
    with pytest.raises(InvalidFile, match="ids are not 0 to"):
        opened(tiny)
    edit(tiny / "tokenizer.json", model=tokens["model"] | {"merges": merges, "byte_fallback": False})
    with pytest.raises(UnsupportedModel, match="not byte-level"):
        opened(tiny)
    (tiny / "tokenizer.json").unlink()
    with pytest.raises(InvalidFile, match=r"neither tokenizer.model nor tokenizer.json"):
        opened(tiny)


def test_broken_tokenizer_files(tiny: Path, tmp_path: Path) -> None:
    (tiny / "tokenizer.model").write_bytes(b"\xff\xff not a model")
    with pytest.raises(InvalidFile, match="is not a SentencePiece model"):
        opened(tiny)
    bpe = write_checkpoint(tmp_path / "bpe", tokenizer="bpe", hidden=32, intermediate=32)
    edit(bpe / "tokenizer.json", version="9.9", pre_tokenizer={"type": "ByteLevel"})
    with pytest.raises(InvalidFile, match=r"tokenizer\.json"):
        opened(bpe)


def test_more_tokens_than_embeddings(tiny: Path) -> None:
    edit(tiny / "tokenizer_config.json", added_tokens_decoder={"640": {"content": "<|new|>", "special": True}})
    with pytest.raises(InvalidFile, match=r"id 640.*vocab_size 640"):
        opened(tiny)


def test_an_unreadable_model_card_costs_only_its_keys(tiny: Path) -> None:
    (tiny / "README.md").write_text("---\nlicense: [mit\n---\n")
    source = opened(tiny)
    assert any("model card" in note for note in source.notes)
    assert "general.license" not in source.metadata
    (tiny / "README.md").write_text("---\nlicense: [1, 2]\nversion: 1.0\n---\n")
    assert opened(tiny).metadata["general.architecture"].value == "phi3"


def test_numbers_that_no_key_can_hold_are_left_out(tmp_path: Path) -> None:
    directory = write_checkpoint(tmp_path / "tiny", tokenizer="bpe", hidden=32, intermediate=32)
    edit(directory / "config.json", sep_token_id=10**12)
    edit(directory / "generation_config.json", top_k=10**12, temperature=float("inf"), top_p=0.5)
    keys = opened(directory, pre_tokenizer="gpt-2").metadata
    assert "tokenizer.ggml.seperator_token_id" not in keys
    assert [key for key in keys if key.startswith("general.sampling.")] == ["general.sampling.top_p"]


def test_hub_snapshots_are_named_by_their_repository(tmp_path: Path) -> None:
    directory = tmp_path / "models--microsoft--Phi-3-mini-4k-instruct" / "snapshots" / "0123456789abcdef"
    source = opened(write_checkpoint(directory, hidden=32, intermediate=32))
    assert source.metadata["general.name"].value == "Phi-3-mini-4k-instruct"
    assert source.metadata["general.organization"].value == "Microsoft"


def test_a_broken_config_names_its_checkpoint_and_the_way_out(tiny: Path) -> None:
    edit(tiny / "config.json", rope_scaling={"type": "su"})
    with pytest.raises(InvalidFile, match=r"tiny: config\.json: rope scaling is su") as error:
        opened(tiny)
    assert "config.json the checkpoint came with" in error.value.hint


def quantized_source(tmp_path: Path) -> Source:
    extent = FileExtent(tmp_path / "x", 0, 34)
    return Source(tmp_path, "phi3", {}, (SourceTensor("a.weight", (32, 1), TensorType.Q8_0, (extent,)),))


def test_floats_refuse_what_they_cannot_do(tiny: Path, tmp_path: Path) -> None:
    floats = FloatQuantizer()
    with pytest.raises(UsageError, match="already Q8_0"):
        floats.plan(quantized_source(tmp_path), ["F16"], None)
    with pytest.raises(UsageError, match="not a float scheme"):
        floats.plan(opened(tiny), ["Q4_K_M"], None)


@pytest.mark.parametrize(("dtype", "wanted"), [("BF16", "BF16"), ("F16", "F16"), ("F32", "F16")])
def test_auto(dtype: str, wanted: str, tmp_path: Path) -> None:
    source = opened(write_checkpoint(tmp_path / "tiny", dtype=dtype, hidden=32, intermediate=32))
    plan = FloatQuantizer().plan(source, ["AUTO"], None)["AUTO"]
    assert plan.scheme == wanted
    assert {tensor.type.name for tensor in plan.tensors if len(tensor.shape) > 1} == {wanted}
    assert {tensor.type.name for tensor in plan.tensors if len(tensor.shape) == 1} == {"F32"}


def test_a_known_pre_tokenizer_is_recognized(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tokenizers import Tokenizer

    directory = write_checkpoint(tmp_path / "tiny", tokenizer="bpe", hidden=32, intermediate=32)
    ids = pretokenizer.check_ids(Tokenizer.from_file(str(directory / "tokenizer.json")))
    monkeypatch.setitem(pretokenizer.KNOWN, hashlib.sha256(str(ids).encode()).hexdigest(), "mine")
    assert opened(directory).metadata["tokenizer.ggml.pre"].value == "mine"


def test_the_check_text_is_llama_cpps() -> None:
    """One changed character would make every tokenizer unknown."""
    digest = hashlib.sha256(pretokenizer.CHECK_TEXT.encode()).hexdigest()
    assert digest == "a36179c1e2b1cfcfbfad1dc779addad2ffc778201e4cf0d538bddeafa2c526da"


def test_checkpoints_for_tests_are_the_same_everywhere(tmp_path: Path) -> None:
    first, again, other = (
        write_checkpoint(tmp_path / name, seed=seed, hidden=32, intermediate=32, shards=3)
        for name, seed in (("a", 0), ("b", 0), ("c", 1))
    )
    files = sorted(path.name for path in first.iterdir())
    assert "model-00003-of-00003.safetensors" in files
    assert all((first / name).read_bytes() == (again / name).read_bytes() for name in files)
    shard = "model-00001-of-00003.safetensors"
    assert (first / shard).read_bytes() != (other / shard).read_bytes()
