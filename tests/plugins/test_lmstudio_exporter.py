"""The model in LM Studio's folders, its preset, and the line that loads it."""

from __future__ import annotations

import json
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from phitui_lmstudio.exporter import LMStudio
from phitui_lmstudio.options import LMStudioOptions

from phitui.__main__ import main
from phitui.api import Bundle, ExportModel
from phitui.domain import options as declared
from phitui.domain.tensors import FilePlan, InlineExtent, SourceTensor, TensorType, Value, ValueType, place
from phitui.errors import UsageError
from phitui.gguf.writer import write_gguf
from phitui.testing.facts import PHI_3_MINI

FACTS = PHI_3_MINI


@pytest.fixture
def model(tmp_path: Path) -> ExportModel:
    path = tmp_path / "mine" / "Phi-3.Q4_K_M.gguf"
    path.parent.mkdir()
    path.write_bytes(b"GGUF")
    return ExportModel(path, FACTS, "{{ messages }}", {})


@pytest.fixture
def studio(home: Path) -> Path:
    """The home of an LM Studio that was started once."""
    folder = home / ".lmstudio"
    folder.mkdir()
    return folder


def preview(model: ExportModel, out: Path, **options: object) -> Bundle:
    return LMStudio().preview(model, declared.build(LMStudioOptions, options), out)


def fields(bundle: Bundle) -> dict[str, Any]:
    document = json.loads(bundle.files[0].text)
    assert document["load"] == {"fields": []}
    assert document["changed"] is True
    assert all(set(field) == {"key", "value"} for field in document["operation"]["fields"])
    return {field["key"].removeprefix("llm.prediction."): field["value"] for field in document["operation"]["fields"]}


def test_where_the_model_goes(model: ExportModel, studio: Path, tmp_path: Path) -> None:
    bundle = preview(model, tmp_path / "out")
    (link,) = bundle.links
    assert link.path == str(studio / "models" / "local" / "Phi-3.Q4_K_M" / "Phi-3.Q4_K_M.gguf")
    assert link.source == model.path
    assert [file.path for file in bundle.files] == ["phi-3-q4-k-m.preset.json", "LMSTUDIO.md"]
    key = "local/Phi-3.Q4_K_M/Phi-3.Q4_K_M.gguf"
    assert bundle.run == (f"lms load {key} --context-length 4096 -y",)
    assert not (studio / "models").exists()


def test_the_models_folder(model: ExportModel, studio: Path, home: Path, tmp_path: Path) -> None:
    def folder(**options: object) -> str:
        return str(Path(preview(model, tmp_path / "out", **options).links[0].path).parent.parent.parent)

    (studio / "settings.json").write_text(json.dumps({"downloadsFolder": "/big disk/models"}), "utf-8-sig")
    assert folder() == "/big disk/models"
    for broken in ("{", '{"downloadsFolder": 5}', '{"downloadsFolder": "relative"}', "[]", ""):
        (studio / "settings.json").write_text(broken)
        assert folder() == str(studio / "models")
    (home / ".cache" / "lm-studio").mkdir(parents=True)
    assert folder() == str(home / ".cache" / "lm-studio" / "models")
    elsewhere = tmp_path / "else where"
    elsewhere.mkdir()
    (home / ".lmstudio-home-pointer").write_text(f"{elsewhere}\n")
    assert folder() == str(elsewhere / "models")
    (home / ".lmstudio-home-pointer").write_bytes(b"\xff\xfe")
    assert folder() == str(home / ".cache" / "lm-studio" / "models")
    assert folder(models="~/m") == str(home / "m")


def test_without_lm_studio_nothing_leaves_the_directory(model: ExportModel, tmp_path: Path) -> None:
    bundle = preview(model, tmp_path / "out", publisher="me", repo="phi")
    assert bundle.links[0].path == "models/me/phi/Phi-3.Q4_K_M.gguf"
    assert "was not found" in bundle.notes[0]
    placed = f"{tmp_path}/out/models/me/phi/Phi-3.Q4_K_M.gguf"
    assert bundle.run[0] == f"lms import {placed} --user-repo me/phi --hard-link"


def test_a_model_that_is_there_already_keeps_its_place(model: ExportModel, studio: Path, tmp_path: Path) -> None:
    own = studio / "models" / "microsoft" / "phi" / "Phi.gguf"
    bundle = preview(replace(model, path=own), tmp_path / "out")
    assert bundle.links[0].path == str(own)
    assert shlex.split(bundle.run[0])[2] == "microsoft/phi/Phi.gguf"
    moved = preview(replace(model, path=own), tmp_path / "out", publisher="me")
    assert moved.links[0].path == str(studio / "models" / "me" / "Phi" / "Phi.gguf")


def test_all_shards_go(model: ExportModel, studio: Path, tmp_path: Path) -> None:
    shards = tuple(tmp_path / f"phi-{n:05}-of-00002.gguf" for n in (1, 2))
    bundle = preview(replace(model, path=shards[1], shards=shards), tmp_path / "out")
    assert [link.source for link in bundle.links] == list(shards)
    assert shlex.split(bundle.run[0])[2] == "local/phi/phi-00001-of-00002.gguf"


@pytest.mark.parametrize(
    ("layers", "gpu"),
    [("auto", None), (0, "off"), (1, "0.0312"), (8, "0.25"), (31, "0.9688"), (32, "max"), (33, "max"), ("all", "max")],
)
def test_layers_are_a_share(model: ExportModel, tmp_path: Path, layers: object, gpu: str | None) -> None:
    bundle = preview(model, tmp_path, layers=layers, identifier="my phi", context=8192)
    words = shlex.split(bundle.run[-1])
    assert (words[words.index("--gpu") + 1] if "--gpu" in words else None) == gpu
    assert words[words.index("--identifier") + 1] == "my phi"
    assert words[words.index("--context-length") + 1] == "8192"
    assert any("how LM Studio rounds it" in note for note in bundle.notes) == (gpu not in (None, "off", "max"))
    assert any("long rope factors" in note for note in bundle.notes)


def test_the_preset(model: ExportModel, tmp_path: Path) -> None:
    bundle = preview(
        model,
        tmp_path,
        system='Say "ü"\nand \\ and \u2028.',
        temperature=0,
        top_p=0.9,
        top_k=20,
        min_p=0.1,
        repeat_penalty=1.1,
        num_predict=100,
        stop=["END", "<|end|>"],
    )
    assert fields(bundle) == {
        "systemPrompt": 'Say "ü"\nand \\ and \u2028.',
        "temperature": 0.0,
        "topKSampling": 20,
        "topPSampling": {"checked": True, "value": 0.9},
        "minPSampling": {"checked": True, "value": 0.1},
        "repeatPenalty": {"checked": True, "value": 1.1},
        "maxPredictedTokens": {"checked": True, "value": 100},
        "stopStrings": ["<|end|>", "<|user|>", "<|assistant|>", "<|system|>", "<|endoftext|>", "END"],
    }
    assert json.loads(bundle.files[0].text)["identifier"] == "@local:phi-3-q4-k-m"
    assert fields(preview(model, tmp_path, num_predict=-1))["maxPredictedTokens"]["checked"] is False


@pytest.mark.parametrize(
    ("chat_format", "prompt"),
    [
        ("phi-2", "S\nInstruct: U\nOutput: "),
        ("phi-3", "<|system|>\nS<|end|>\n<|user|>\nU<|end|>\n<|assistant|>\n"),
        (
            "phi-4",
            "<|im_start|>system<|im_sep|>S<|im_end|><|im_start|>user<|im_sep|>U<|im_end|><|im_start|>assistant<|im_sep|>",
        ),
        ("phi-4-mini", "<|system|>S<|end|><|user|>U<|end|><|assistant|>"),
        ("chatml", "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nU<|im_end|>\n<|im_start|>assistant\n"),
    ],
)
def test_without_a_chat_template_the_preset_has_the_prompt(
    model: ExportModel, tmp_path: Path, chat_format: str, prompt: str
) -> None:
    facts = replace(FACTS, chat_format=chat_format)
    bundle = preview(replace(model, facts=facts, chat_template=""), tmp_path)
    template = fields(bundle)["promptTemplate"]
    parts = template["manualPromptTemplate"]
    made = "".join(
        f"{parts[f'before{role}']}{text}{parts[f'after{role}']}" for role, text in (("System", "S"), ("User", "U"))
    )
    assert template["type"] == "manual"
    assert made + parts["beforeAssistant"] == prompt
    assert any("no chat template" in note for note in bundle.notes)
    with_its_own = preview(replace(model, facts=facts), tmp_path)
    assert "promptTemplate" not in fields(with_its_own)
    assert not any("no chat template" in note for note in with_its_own.notes)


@pytest.mark.parametrize(
    "name",
    [
        'it\'s "quoted" : <x>.gguf',
        "$(touch pwned) ${X}.gguf",
        "100% %h.gguf",
        "\N{PILE OF POO} é.gguf",
        "--gpu.gguf",
        "a...gguf",
    ],
)
def test_hostile_names(model: ExportModel, studio: Path, tmp_path: Path, name: str) -> None:
    bundle = preview(replace(model, path=tmp_path / "a dir" / name), tmp_path / "out")
    parts = Path(bundle.links[0].path).relative_to(studio / "models").parts
    assert (len(parts), parts[0], parts[2]) == (3, "local", name)
    assert not set(parts[1]) & set('/<>:"\\|?*')
    assert parts[1] == parts[1].strip(". ")
    assert shlex.split(bundle.run[0])[2] == "/".join(parts)
    assert "/" not in bundle.files[0].path


@pytest.mark.parametrize("name", ["a\nb.gguf", "model.bin", ".hidden.gguf", "a\u200bb.gguf"])
def test_names_that_lm_studio_does_not_list(model: ExportModel, tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match="does not list"):
        preview(replace(model, path=tmp_path / name), tmp_path / "out")


@pytest.mark.parametrize(
    "options",
    [
        {"publisher": ""},
        {"publisher": "a/b"},
        {"publisher": ".."},
        {"publisher": "-x"},
        {"publisher": "x" * 101},
        {"repo": "a:b"},
        {"repo": "a\nb"},
        {"repo": "a "},
        {"repo": "../../x"},
        {"context": 131073},
        {"context": 0},
        {"layers": 34},
        {"layers": -2},
        {"temperature": -1},
        {"top_p": 1.1},
    ],
)
def test_what_cannot_be_is_refused(model: ExportModel, tmp_path: Path, options: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        preview(model, tmp_path, **options)


def test_by_the_command_line(studio: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tensor = SourceTensor("token_embd.weight", (32, 2), TensorType.F32, (InlineExtent(bytes(256)),))
    metadata = {
        "general.architecture": Value.string("phi3"),
        "phi3.block_count": Value.u32(2),
        "phi3.context_length": Value.u32(8192),
        "tokenizer.ggml.tokens": Value.array(ValueType.STRING, ["<|end|>", "<|user|>"]),
    }
    source = tmp_path / "Phi-tiny.gguf"
    write_gguf(FilePlan("F32", metadata, place([(tensor, TensorType.F32, None)])), source)
    arguments = ["export", str(source), "--to", "lmstudio", "--out", str(tmp_path / "out"), "--layers", "1"]
    placed = studio / "models" / "local" / "Phi-tiny" / "Phi-tiny.gguf"
    assert main([*arguments, "--preview"]) == 0
    assert f"==> {placed} <==" in capsys.readouterr().out
    assert not placed.exists()
    assert main([*arguments, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["files"][-1] == str(placed)
    assert document["run"][-1].endswith("--context-length 4096 --gpu 0.5 -y")
    assert placed.samefile(source)
    assert main(arguments) == 2
    placed.unlink()
    placed.write_bytes(b"another")
    assert main([*arguments, "--out", str(tmp_path / "new")]) == 2
    assert placed.read_bytes() == b"another"
    assert "is there already" in capsys.readouterr().err
