"""The exporter: what stands in the Modelfile, and what it says besides."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from phitui_ollama.exporter import Ollama
from phitui_ollama.modelfile import parse
from phitui_ollama.options import OllamaOptions

from phitui.api import Bundle, ExportModel
from phitui.errors import UsageError
from phitui.testing.facts import PHI_4_MINI

PHI_3 = (
    "{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content + '<|end|>\n' }}{% endfor %}{{ '<|assistant|>\n' }}"
)
MINI = "{% for m in messages %}{{ '<|' + m.role + '|>' + m.content + '<|end|>' }}{% endfor %}<|assistant|>"
FACTS = PHI_4_MINI


@pytest.fixture
def model(tmp_path: Path) -> ExportModel:
    path = tmp_path / "models" / "Phi-4-mini.Q4_K_M.gguf"
    path.parent.mkdir()
    path.write_bytes(b"GGUF")
    return ExportModel(path, FACTS, MINI, {})


def preview(model: ExportModel, out: Path, **options: object) -> Bundle:
    return Ollama().preview(model, OllamaOptions(**options), out)  # type: ignore[arg-type]


def commands(bundle: Bundle) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for command in parse(bundle.files[0].text):
        found.setdefault(command.key or command.name, []).append(command.value)
    return found


def test_the_modelfile(model: ExportModel, tmp_path: Path) -> None:
    bundle = preview(model, tmp_path / "out", system="Be brief.", num_gpu=33, temperature=0.2)
    found = commands(bundle)
    assert found["from"] == [str(model.path)]
    assert found["system"] == ["Be brief."]
    assert found["num_ctx"] == ["4096"]
    assert found["num_gpu"] == ["33"]
    assert found["temperature"] == ["0.2"]
    assert found["license"] == ["mit"]
    assert found["stop"][0] == "<|end|>"
    assert ".Tools" in found["template"][0]
    assert bundle.run == (
        f"ollama create phi-4-mini:q4_k_m -f {tmp_path}/out/Modelfile",
        "ollama run phi-4-mini:q4_k_m",
    )
    assert not (tmp_path / "out").exists()


def test_a_model_in_the_output_directory_is_named_relatively(model: ExportModel) -> None:
    assert commands(preview(model, model.path.parent))["from"] == ["./Phi-4-mini.Q4_K_M.gguf"]


def test_odd_paths_survive(model: ExportModel, tmp_path: Path) -> None:
    path = tmp_path / 'it is "here" #1 ' / "my model.gguf"
    bundle = preview(dataclasses.replace(model, path=path), tmp_path, name="x")
    assert commands(bundle)["from"] == [str(path)]


def test_a_path_that_ollama_would_change_is_refused(model: ExportModel, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"FROM contains U\+00A0") as caught:
        preview(dataclasses.replace(model, path=tmp_path / "a\u00a0b.gguf"), tmp_path)
    assert "rename" in caught.value.hint


def test_split_models_name_every_part(model: ExportModel, tmp_path: Path) -> None:
    parts = [tmp_path / f"phi-{n:05}-of-00002.gguf" for n in (1, 2)]
    parts[0].write_bytes(b"GGUF")
    with pytest.raises(UsageError, match=r"00002-of-00002\.gguf is missing"):
        preview(dataclasses.replace(model, path=parts[0]), tmp_path / "out")
    parts[1].write_bytes(b"GGUF")
    bundle = preview(dataclasses.replace(model, path=parts[0]), tmp_path / "out")
    assert commands(bundle)["from"] == [str(part) for part in parts]
    assert any("0.30" in note for note in bundle.notes)
    assert bundle.run[1] == "ollama run phi:q4_k_m"


@pytest.mark.parametrize(
    ("chat_format", "template", "mark"),
    [
        ("phi-3", PHI_3, "<|{{ .Role }}|>\n"),
        ("phi-2", "", "Instruct: "),
        ("phi-4", "{{ '' }}", "<|im_sep|>{{ .Content }}"),
        ("phi-4", "x <think> y", "{{- if .Thinking }}"),
        (
            "phi-4-mini",
            "<|system|>Your name is Phi, an AI math expert",
            "<|{{ .Role }}|>{{ .Content }}<|end|>\n{{- end }}",
        ),
        ("chatml", "", "<|im_start|>{{ .Role }}\n"),
    ],
)
def test_the_format_is_chosen_by_tokens_and_template(
    model: ExportModel, tmp_path: Path, chat_format: str, template: str, mark: str
) -> None:
    facts = dataclasses.replace(FACTS, chat_format=chat_format)
    bundle = preview(dataclasses.replace(model, facts=facts, chat_template=template), tmp_path)
    assert mark in commands(bundle)["template"][0]


def test_the_models_own_template_beats_its_tokens(model: ExportModel, tmp_path: Path) -> None:
    bundle = preview(dataclasses.replace(model, chat_template=PHI_3), tmp_path)
    assert "<|{{ .Role }}|>\n" in commands(bundle)["template"][0]
    assert "has the tokens of phi-4-mini, but" in bundle.notes[0]


def test_the_format_can_be_said(model: ExportModel, tmp_path: Path) -> None:
    bundle = preview(model, tmp_path, format="chatml")
    assert "<|im_start|>" in commands(bundle)["template"][0]
    assert "another prompt" in bundle.notes[0]


def test_context_is_limited_by_the_model(model: ExportModel, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="more than the model's 131072 tokens"):
        preview(model, tmp_path, num_ctx=131073)
    short = dataclasses.replace(model, facts=dataclasses.replace(FACTS, context_length=2048))
    assert commands(preview(short, tmp_path))["num_ctx"] == ["2048"]


def test_notes(model: ExportModel, tmp_path: Path) -> None:
    notes = "\n".join(preview(model, tmp_path, num_ctx=8192, num_gpu=32).notes)
    assert "above 4096 runs the model with its long rope factors" in notes
    assert "everything is 33" in notes
    assert "base model" in "\n".join(preview(dataclasses.replace(model, chat_template=""), tmp_path).notes)


def test_messages_and_license_file(model: ExportModel, tmp_path: Path) -> None:
    text = 'MIT License\n\nCopyright "me"\n'
    (tmp_path / "LICENSE").write_text(text)
    bundle = preview(model, tmp_path, license_file=tmp_path / "LICENSE", message=("user: hi", "assistant: hello"))
    found = commands(bundle)
    assert found["license"] == [text.strip("\n")]
    assert (found["user"], found["assistant"]) == (["hi"], ["hello"])
    with pytest.raises(UsageError, match="cannot read"):
        preview(model, tmp_path, license_file=tmp_path / "none")


@pytest.mark.parametrize(
    "options",
    [{"name": "a b"}, {"system": "a\u200bb"}, {"parameter": ("nope=1",)}, {"message": ("x",)}, {"system": 'a"""\nb'}],
)
def test_what_ollama_would_refuse_is_refused(model: ExportModel, tmp_path: Path, options: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        preview(model, tmp_path, **options)


def test_a_file_that_is_named_by_its_content_gets_the_models_name(model: ExportModel, tmp_path: Path) -> None:
    blob = dataclasses.replace(model, path=tmp_path / f"sha256-{'0a' * 32}")
    assert preview(blob, tmp_path / "out").run[1] == "ollama run phi-4-mini:q4_k_m"
