"""Files for llama-server: every grammar is read back by a reader of its own, and says the same as the command line."""

from __future__ import annotations

import configparser
import json
import re
import shlex
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from phitui_llamaserver.exporter import LlamaServer
from phitui_llamaserver.options import ServerOptions

from phitui.api import Bundle, ExportModel
from phitui.domain import options as declared
from phitui.errors import UsageError
from phitui.testing.facts import PHI_4_MINI

FACTS = PHI_4_MINI
HOSTILE = [
    'it\'s "quoted".gguf',
    "$(touch pwned) `touch pwned` $HOME ${X}.gguf",
    "100% %h %%.gguf",
    "a\nExecStart=evil.gguf",
    "\N{SNOWMAN} \N{PILE OF POO} é.gguf",
    "--port.gguf",
    "back\\slash\\n.gguf",
    "no\u00a0break\u2028line\x85.gguf",
    "semi;colon #hash.gguf",
    " blank at the ends.gguf ",
    "[section] = {yaml: *x}.gguf",
]


@pytest.fixture
def model(tmp_path: Path) -> ExportModel:
    path = tmp_path / "models" / "Phi-4-mini.Q4_K_M.gguf"
    path.parent.mkdir()
    path.write_bytes(b"GGUF")
    return ExportModel(path, FACTS, "{{ messages }}", {})


def preview(model: ExportModel, out: Path, **options: object) -> Bundle:
    return LlamaServer().preview(model, declared.build(ServerOptions, options), out)


def text(bundle: Bundle, name: str) -> str:
    return next(file.text for file in bundle.files if file.path == name)


def words_of_script(bundle: Bundle, folder: Path) -> list[str]:
    """What a shell makes of the script, seen by a llama-server that prints its arguments."""
    programs = folder.parent / "programs"
    programs.mkdir(exist_ok=True)
    program = programs / "llama-server"
    program.write_text("#!/bin/sh\nprintf '%s\\0' \"$@\"\n")
    program.chmod(0o755)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "llama-server.sh").write_text(text(bundle, "llama-server.sh"))
    command = ["sh", str(folder / "llama-server.sh")]
    done = subprocess.run(
        command, capture_output=True, check=True, cwd=folder, env={"PATH": f"{programs}:/usr/bin:/bin"}
    )
    assert not (folder / "pwned").exists()
    return done.stdout.decode().split("\0")[:-1]


def words_of_unit(bundle: Bundle) -> list[str]:
    """ExecStart as systemd splits it: quotes, C escapes, then %% and $$."""
    unit = text(bundle, "llama-server.service")
    assert unit.count("\nExecStart=") == 1
    line = next(line for line in unit.splitlines() if line.startswith("ExecStart=")).removeprefix("ExecStart=")
    words, at = [], 0
    while at < len(line):
        found = re.compile(r'"((?:[^"\\]|\\.)*)"(?: |$)|([^\s"\\]+)(?: |$)').match(line, at)
        assert found, line[at:]
        word = found[1] if found[1] is not None else found[2]
        raw = re.sub(rb"\\x(..)|\\(.)", lambda m: bytes.fromhex(m[1].decode()) if m[1] else m[2], word.encode())
        word = raw.decode()
        assert not re.search(r"%", word.replace("%%", "")) and not re.search(r"\$", word.replace("$$", ""))
        words.append(word.replace("%%", "%").replace("$$", "$"))
        at = found.end()
    return words


def compose(bundle: Bundle) -> dict[str, list[str]]:
    """The strings of the compose file by key; each is a JSON string, in which compose halves `$$`."""
    found: dict[str, list[str]] = {}
    key = ""
    for line in text(bundle, "compose.yaml").splitlines():
        if named := re.fullmatch(r"\s*(?:- )?([a-z_-]+): ?(.*)", line):
            key, rest = named.groups()
        else:
            rest = line.strip().removeprefix("- ")
        if rest.startswith('"'):
            value = json.loads(rest)
            assert "$" not in value.replace("$$", "")
            found.setdefault(key, []).append(value.replace("$$", "$"))
    return found


def preset(bundle: Bundle) -> dict[str, str]:
    parser = configparser.RawConfigParser(inline_comment_prefixes=(";", "#"), strict=True, delimiters=("=",))
    parser.read_string(text(bundle, "llama-server.ini"))
    (section,) = parser.sections()
    return {"section": section, **parser[section]}


def flags(words: list[str]) -> dict[str, str]:
    return {name.removeprefix("--"): value for name, value in zip(words[::2], words[1::2], strict=True)}


def test_the_command_line(model: ExportModel, tmp_path: Path) -> None:
    bundle = preview(
        model,
        tmp_path / "out",
        layers="all",
        context=8192,
        kv_type="q8_0",
        flash_attention="on",
        tensor_split="3,1.5",
        temperature=0,
        top_p=0.9,
        port=9000,
    )
    assert flags(words_of_script(bundle, tmp_path / "out")) == {
        "model": str(model.path),
        "alias": "Phi-4-mini.Q4_K_M",
        "host": "127.0.0.1",
        "port": "9000",
        "ctx-size": "8192",
        "n-gpu-layers": "all",
        "tensor-split": "3,1.5",
        "cache-type-k": "q8_0",
        "cache-type-v": "q8_0",
        "flash-attn": "on",
        "temp": "0",
        "top-p": "0.9",
    }
    assert "long rope factors" in bundle.notes[0]
    assert bundle.run[0] == f"sh {tmp_path}/out/llama-server.sh"
    asked = shlex.split(bundle.run[1])
    assert asked[1] == "http://127.0.0.1:9000/v1/chat/completions"
    assert json.loads(asked[-1])["model"] == "Phi-4-mini.Q4_K_M"


def test_every_file_says_the_same(model: ExportModel, tmp_path: Path) -> None:
    bundle = preview(model, tmp_path / "out", layers=20, threads=4, alias="org/phi-4")
    line = flags(words_of_script(bundle, tmp_path / "out"))
    assert words_of_unit(bundle)[:2] == ["/usr/bin/env", "llama-server"]
    assert flags(words_of_unit(bundle)[2:]) == line
    router = {"host", "port", "alias"}
    assert preset(bundle) == {"section": "org/phi-4"} | {k: v for k, v in line.items() if k not in router}
    container = compose(bundle)
    inner = {"model": "/models/Phi-4-mini.Q4_K_M.gguf", "host": "0.0.0.0", "port": "8080"}
    assert flags(container["command"]) == line | inner
    assert container["source"] == [str(model.path)]
    assert container["target"] == ["/models/Phi-4-mini.Q4_K_M.gguf"]
    assert container["ports"] == ["127.0.0.1:8080:8080"]


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names(model: ExportModel, tmp_path: Path, name: str) -> None:
    path = tmp_path / "a dir" / name
    bundle = preview(replace(model, path=path), tmp_path / "out")
    assert flags(words_of_script(bundle, tmp_path / "out"))["model"] == str(path)
    assert flags(words_of_unit(bundle)[2:])["model"] == str(path)
    assert compose(bundle)["source"] == [str(path)]
    assert compose(bundle)["target"] == [f"/models/{name}"]
    assert not re.search(r"[^\n\x20-\x7e\xa1-\U0010ffff]", text(bundle, "compose.yaml"))
    if any(file.path.endswith(".ini") for file in bundle.files):
        assert preset(bundle)["model"] == str(path)
        assert not set(";#\n") & set(name)
    else:
        assert set(";#\n") & set(name) or name != name.strip(" ")
        assert any("no router preset" in note for note in bundle.notes)
    assert re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", flags(words_of_unit(bundle)[2:])["alias"])


@pytest.mark.parametrize("name", ["it's $HOME.gguf", "--port.gguf"])
def test_beside_the_model_paths_are_relative(model: ExportModel, tmp_path: Path, name: str) -> None:
    path = model.path.with_name(name)
    bundle = preview(replace(model, path=path), path.parent)
    assert flags(words_of_script(bundle, path.parent))["model"] == str(path)
    moved = tmp_path / "moved"
    path.parent.rename(moved)
    assert flags(words_of_script(bundle, moved))["model"] == str(moved / path.name)
    assert compose(bundle)["source"] == [f"./{name}"]


def test_split_models_are_mounted_whole(model: ExportModel, tmp_path: Path) -> None:
    shards = tuple(tmp_path / f"phi-{n:05}-of-00002.gguf" for n in (1, 2))
    bundle = preview(replace(model, path=shards[0], shards=shards), tmp_path / "out")
    assert compose(bundle)["source"] == [str(shard) for shard in shards]
    assert flags(words_of_unit(bundle)[2:])["alias"] == "phi"


@pytest.mark.parametrize(
    ("chat_format", "template", "built_in"),
    [
        ("phi-2", "", ""),
        ("phi-3", "", "phi3"),
        ("phi-4", "", "phi4"),
        ("phi-4-mini", "", ""),
        ("chatml", "", "chatml"),
        ("phi-3", "{{ x }}", ""),
    ],
)
def test_models_without_a_chat_template(
    model: ExportModel, tmp_path: Path, chat_format: str, template: str, built_in: str
) -> None:
    facts = replace(FACTS, chat_format=chat_format)
    bundle = preview(replace(model, facts=facts, chat_template=template), tmp_path)
    assert preset(bundle).get("chat-template", "") == built_in
    assert any("no chat template" in note for note in bundle.notes) == (template == "")


def test_keys_and_other_machines(model: ExportModel, tmp_path: Path) -> None:
    assert any("everybody" in note for note in preview(model, tmp_path, host="0.0.0.0").notes)
    bundle = preview(model, tmp_path, host="::", api_key_file=tmp_path / "keys")
    assert not any("everybody" in note for note in bundle.notes)
    assert bundle.run[1].startswith("curl http://[::1]:8080/")
    assert compose(bundle)["ports"] == ["[::]:8080:8080"]
    assert compose(bundle)["target"][1:] == ["/run/secrets/api-keys"]
    assert flags(words_of_unit(bundle)[2:])["api-key-file"] == str(tmp_path / "keys")
    assert "nvidia.com/gpu=all" in compose(preview(model, tmp_path, image="server-cuda"))["devices"]


def test_max_leaves_the_context_to_the_server(model: ExportModel, tmp_path: Path) -> None:
    bundle = preview(model, tmp_path, context="max")
    assert "ctx-size" not in preset(bundle)
    assert "--ctx max" in bundle.notes[0]


@pytest.mark.parametrize(
    "options",
    [
        {"context": 131073},
        {"context": 0},
        {"context": -2},
        {"layers": 34},
        {"layers": -2},
        {"port": 0},
        {"port": 65536},
        {"host": "a b"},
        {"host": "-x"},
        {"host": ""},
        {"alias": "a,b"},
        {"alias": "a]b"},
        {"alias": "a\nb"},
        {"alias": "default"},
        {"alias": "-x"},
        {"program": "--help"},
        {"program": " "},
        {"kv_type": "q4_K"},
        {"top_p": 1.5},
        {"parallel": 0},
        {"image": "latest"},
    ],
)
def test_what_cannot_be_is_refused(model: ExportModel, tmp_path: Path, options: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        preview(model, tmp_path, **options)


def test_workers_are_given_to_the_server(model: ExportModel, tmp_path: Path) -> None:
    bundle = LlamaServer().preview(
        model, declared.build(ServerOptions, {"rpc": ["box:50052", "[::1]:50053"], "layers": 5}), tmp_path
    )
    script = next(file.text for file in bundle.files if file.path.endswith(".sh"))
    assert "--rpc" in script and "box:50052,[::1]:50053" in script
    for bad in ("box", "box:x", ":50052", "a b:1", "--x:1"):
        with pytest.raises(UsageError, match="HOST:PORT"):
            LlamaServer().preview(model, declared.build(ServerOptions, {"rpc": [bad]}), tmp_path)
