"""Files for LlamaEdge and GaiaNet: what a shell, a TOML reader and awk make of them."""

from __future__ import annotations

import json
import shlex
import subprocess
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest
from phitui_llamaedge.exporter import LlamaEdge
from phitui_llamaedge.options import LlamaEdgeOptions

from phitui.api import Bundle, ExportModel
from phitui.domain import options as declared
from phitui.errors import UsageError
from phitui.testing.facts import PHI_3_MINI

FACTS = PHI_3_MINI


@pytest.fixture
def model(tmp_path: Path) -> ExportModel:
    path = tmp_path / "models" / "Phi-3.Q4_K_M.gguf"
    path.parent.mkdir()
    path.write_bytes(b"GGUF")
    return ExportModel(path, FACTS, "{{ messages }}", {})


def preview(model: ExportModel, out: Path, **options: object) -> Bundle:
    return LlamaEdge().preview(model, declared.build(LlamaEdgeOptions, options), out)


def text(bundle: Bundle, name: str) -> str:
    return next(file.text for file in bundle.files if file.path == name)


def run_script(bundle: Bundle, name: str, folder: Path) -> list[str]:
    """The words that a script gives to wasmedge, which here prints them; its .wasm files are there already."""
    programs = folder.parent / "programs"
    programs.mkdir(exist_ok=True)
    (programs / "wasmedge").write_text("#!/bin/sh\nprintf '%s\\0' wasmedge \"$@\"\n")
    (programs / "wasmedge").chmod(0o755)
    folder.mkdir(exist_ok=True)
    for program in ("llama-chat.wasm", "llama-api-server.wasm"):
        (folder / program).touch()
    (folder / name).write_text(text(bundle, name))
    environment = {"PATH": f"{programs}:/usr/bin:/bin"}
    done = subprocess.run(["sh", str(folder / name)], capture_output=True, check=True, env=environment, cwd="/")
    assert not list(folder.glob("pwned*"))
    return done.stdout.decode().split("\0")[:-1]


@pytest.mark.parametrize(
    ("chat_format", "prompt", "note"),
    [
        ("phi-2", "phi-2-instruct", "the last message only"),
        ("phi-3", "phi-3-chat", "own prompt templates"),
        ("phi-4", "phi-4-chat", "own prompt templates"),
        ("phi-4-mini", "phi-3-chat", "none for Phi-4-mini: phi-3-chat adds line breaks"),
        ("chatml", "chatml", "own prompt templates"),
    ],
)
def test_each_chat_format(model: ExportModel, tmp_path: Path, chat_format: str, prompt: str, note: str) -> None:
    bundle = preview(replace(model, facts=replace(FACTS, chat_format=chat_format)), tmp_path / "out")
    front = ["wasmedge", "--dir", ".:.", "--nn-preload", f"default:GGML:AUTO:{model.path}"]
    load = ["--ctx-size", "4096", "--n-gpu-layers", "100", "--batch-size", "512", "--threads", "2"]
    said = ["--prompt-template", prompt, "--model-name", "Phi-3.Q4_K_M", *load]
    serve = ["--ubatch-size", "512", "--socket-addr", "127.0.0.1:8080"]
    assert run_script(bundle, "llamaedge-chat.sh", tmp_path / "out") == [*front, "llama-chat.wasm", *said]
    served = [*front, "llama-api-server.wasm", *said, *serve]
    assert run_script(bundle, "llamaedge-server.sh", tmp_path / "out") == served
    assert shlex.split(bundle.run[-1]) == served
    assert run_script(bundle, "llamaedge-server-toml.sh", tmp_path / "out") == [
        *front,
        *("llama-api-server.wasm", "config", "--file", "llamaedge-server.toml", "--chat"),
    ]
    assert any(note in line for line in bundle.notes)
    assert not any("not made for" in line for line in bundle.notes)


def test_the_toml_has_all_tables_and_keys(model: ExportModel, tmp_path: Path) -> None:
    bundle = preview(
        model, tmp_path, layers=20, context=8192, temperature=0, num_predict=100, ubatch=256, port=9000, host="::1"
    )
    found = tomllib.loads(text(bundle, "llamaedge-server.toml"))
    assert list(found) == ["server", "chat", "embedding", "tts"]
    assert found["server"] == {"socket_addr": "[::1]:9000"}
    assert found["chat"] == {
        "model_name": "Phi-3.Q4_K_M",
        "model_alias": "default",
        "ctx_size": 8192,
        "batch_size": 512,
        "ubatch_size": 256,
        "prompt_template": "phi-3-chat",
        "n_predict": 100,
        "n_gpu_layers": 20,
        "split_mode": "layer",
        "threads": 2,
        "no_mmap": False,
        "temp": 0.0,
        "top_p": 1.0,
        "repeat_penalty": 1.1,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "include_usage": False,
    }
    floats = ("temp", "top_p", "repeat_penalty", "presence_penalty", "frequency_penalty")
    assert all(isinstance(found["chat"][name], float) for name in floats)
    assert set(found["embedding"]) == {
        *("model_name", "model_alias", "ctx_size", "batch_size", "ubatch_size", "split_mode", "threads")
    }
    assert set(found["tts"]) == {
        *("model_name", "model_alias", "codec_model", "speaker_file", "ctx_size", "batch_size", "ubatch_size"),
        *("n_predict", "n_gpu_layers", "temp"),
    }
    assert any("long rope factors" in note for note in bundle.notes)


def test_gaianet_reads_it_with_awk(model: ExportModel, tmp_path: Path) -> None:
    url = "https://example.org/phi/Phi-3.gguf?download=true"
    bundle = preview(model, tmp_path, url=url, system="Sei höflich, $USER 100%!", context="max")
    config = tmp_path / "config.json"
    config.write_text(text(bundle, "gaianet/config.json"))
    values = json.loads(config.read_text())
    assert all(isinstance(value, str) for value in values.values())
    for key, value in values.items():
        program = f'/"{key}":/ {{print $4}}'
        read = subprocess.run(["awk", '-F"', program, str(config)], capture_output=True, text=True, check=True).stdout
        assert read == value + "\n", key
    assert values["chat"] == url
    assert values["chat_ctx_size"] == "131072"
    assert values["prompt_template"] == "phi-3-chat"
    assert values["system_prompt"] == "Sei höflich, $USER 100%!"
    assert not any("GaiaNet downloads" in note for note in bundle.notes)
    assert any("Phi-3.Q4_K_M.gguf" in note for note in preview(model, tmp_path).notes)


def test_what_gaianet_cannot_hold_is_left_out(model: ExportModel, tmp_path: Path) -> None:
    system = 'Say "yes".\nOr\\no.'
    bundle = preview(model, tmp_path / "out", system=system)
    assert "gaianet/config.json" not in [file.path for file in bundle.files]
    assert any("no GaiaNet config" in note for note in bundle.notes)
    assert run_script(bundle, "llamaedge-chat.sh", tmp_path / "out")[-1] == f"--system-prompt={system}"


@pytest.mark.parametrize(
    "name",
    [
        'it\'s "quoted".gguf',
        "$(touch pwned) `touch pwned` ${X}.gguf",
        "100% %h.gguf",
        "a\nb; touch pwned.gguf",
        "\N{PILE OF POO} é.gguf",
        "--threads.gguf",
    ],
)
def test_hostile_names(model: ExportModel, tmp_path: Path, name: str) -> None:
    path = tmp_path / "a dir" / name
    bundle = preview(replace(model, path=path), tmp_path / "out")
    for script in ("llamaedge-chat.sh", "llamaedge-server.sh", "llamaedge-server-toml.sh"):
        assert run_script(bundle, script, tmp_path / "out")[4] == f"default:GGML:AUTO:{path}"
    tomllib.loads(text(bundle, "llamaedge-server.toml"))
    assert " " not in json.loads(text(bundle, "gaianet/config.json"))["chat"]
    beside = preview(replace(model, path=path), path.parent)
    assert shlex.split(beside.run[2])[4] == f"default:GGML:AUTO:./{name}"


def test_chat_takes_one_of_temp_and_top_p(model: ExportModel, tmp_path: Path) -> None:
    bundle = preview(model, tmp_path / "out", temperature=0.5, top_p=0.9, repeat_penalty=1)
    chat = run_script(bundle, "llamaedge-chat.sh", tmp_path / "out")
    assert chat[-4:] == ["--temp", "0.5", "--repeat-penalty", "1.0"]
    assert "--top-p" not in chat
    assert "--top-p" in run_script(bundle, "llamaedge-server.sh", tmp_path / "out")
    assert any("only one of --temp and --top-p" in note for note in bundle.notes)
    assert run_script(preview(model, tmp_path / "out", top_p=0.9), "llamaedge-chat.sh", tmp_path / "out")[-2:] == [
        *("--top-p", "0.9")
    ]


def test_system_prompts_have_no_place_everywhere(model: ExportModel, tmp_path: Path) -> None:
    bundle = preview(model, tmp_path / "out", system="-x", prompt_template="phi-3-instruct")
    assert any("no place for a system prompt" in note for note in bundle.notes)
    assert "--system-prompt=-x" not in run_script(bundle, "llamaedge-chat.sh", tmp_path / "out")
    fitting = preview(model, tmp_path / "out", system="-x")
    assert "--system-prompt=-x" in run_script(fitting, "llamaedge-chat.sh", tmp_path / "out")
    wrong = preview(model, tmp_path, prompt_template="phi-4-chat")
    assert any("not made for the chat format of this model (phi-3)" in note for note in wrong.notes)


def test_reasoning_and_tools_are_missed(model: ExportModel, tmp_path: Path) -> None:
    notes = "\n".join(preview(replace(model, chat_template="<think> {{ tools }}"), tmp_path).notes)
    assert "reasoning models" in notes
    assert "no tools" in notes


@pytest.mark.parametrize(
    "options",
    [
        {"context": 131073},
        {"context": 0},
        {"layers": 34},
        {"layers": -2},
        {"batch": 0},
        {"batch": 256, "ubatch": 512},
        {"host": "localhost"},
        {"host": "1.2.3"},
        {"port": 0},
        {"model_name": "a,b"},
        {"model_name": "-x"},
        {"model_name": "a\nb"},
        {"url": 'http://x/"'},
        {"url": "http://x/a b"},
        {"prompt_template": "phi-5-chat"},
        {"top_p": 2},
    ],
)
def test_what_cannot_be_is_refused(model: ExportModel, tmp_path: Path, options: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        preview(model, tmp_path, **options)


def test_models_it_cannot_take(model: ExportModel, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="a colon separates"):
        preview(replace(model, path=tmp_path / "a:b.gguf"), tmp_path / "out")
    strange = replace(model, facts=replace(FACTS, chat_format="mistral"))
    with pytest.raises(UsageError, match="no prompt template of Phi"):
        preview(strange, tmp_path)
    assert preview(strange, tmp_path, prompt_template="phi-3-chat").files
