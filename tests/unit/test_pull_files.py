"""Which files of a repository are taken, and which names are trusted."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from phitui import hub
from phitui.actions import pull
from phitui.errors import InvalidFile, PhituiError, UnsupportedModel, UsageError
from phitui.hub import RemoteFile, Repository


def repository(*names: str) -> Repository:
    return Repository("acme/phi", "abc", tuple(RemoteFile(name, 10) for name in names))


def names(files: list[RemoteFile]) -> list[str]:
    return [file.name for file in files]


def test_a_checkpoints_files() -> None:
    source = repository(
        "config.json",
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
        "tokenizer.model",
        "tokenizer_config.json",
        "modeling_phi3.py",
        "pytorch_model.bin",
        "original/model.safetensors",
        "sample.png",
        "LICENSE",
    )
    assert names(pull.chosen(source)) == [
        "LICENSE",
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
        "tokenizer.model",
        "tokenizer_config.json",
        "config.json",
    ]


@pytest.mark.parametrize(
    ("files", "error", "match"),
    [
        (("config.json", "pytorch_model.bin"), UnsupportedModel, "pickles"),
        (("config.json", "a.gguf"), UsageError, "ready GGUF"),
        (("config.json",), UnsupportedModel, "no \\*.safetensors"),
        (("model.safetensors",), UnsupportedModel, "no config.json"),
    ],
)
def test_repositories_that_are_no_checkpoint(files: tuple[str, ...], error: type[PhituiError], match: str) -> None:
    with pytest.raises(error, match=match):
        pull.chosen(repository(*files))


def test_included_patterns_never_take_pickles() -> None:
    source = repository("a/q4.gguf", "b.bin", "c.gguf")
    assert names(pull.chosen(source, ("*.gguf", "*.bin"))) == ["a/q4.gguf", "c.gguf"]
    with pytest.raises(UsageError, match="no file of acme/phi fits"):
        pull.chosen(source, ("*.bin",))


@pytest.mark.parametrize("name", ["../x", "/etc/x", "a/../../x", "a\\b", "a\x1b[2J", "", ".cache/x", "a\nb"])
def test_names_that_are_not_trusted(name: str) -> None:
    assert not hub._safe(name)


def test_names_that_are() -> None:
    assert all(map(hub._safe, ("config.json", "a/b.gguf", ".gitattributes", "ü.txt")))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("microsoft/phi-4", ("microsoft/phi-4", None)),
        ("a/b@refs/pr/1", ("a/b", "refs/pr/1")),
        ("https://huggingface.co/a/b", ("a/b", None)),
    ],
)
def test_ids(text: str, expected: tuple[str, str | None]) -> None:
    assert hub.split(text) == expected


@pytest.mark.parametrize("text", ["phi", "a/b/c", "a b/c", "", "a/b@", "\x1b/x"])
def test_what_is_no_id(text: str) -> None:
    with pytest.raises(UsageError, match="no repository") as caught:
        hub.split(text)
    assert "\x1b" not in str(caught.value)


def test_verify(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"abc")
    good = RemoteFile("x", 3, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad")
    counted: list[int] = []
    hub.verify(path, good, counted.append)
    assert counted == [3]
    for wrong in (dataclasses.replace(good, sha256="0" * 64), dataclasses.replace(good, size=4), RemoteFile("x", 4)):
        path.write_bytes(b"abc")
        with pytest.raises(InvalidFile, match="damaged"):
            hub.verify(path, wrong, counted.append)
        assert not path.exists()


def test_a_full_disk_is_seen_beforehand(tmp_path: Path) -> None:
    with pytest.raises(PhituiError, match="GiB free"):
        pull._check_space(tmp_path / "not" / "there", [RemoteFile("x", 1 << 60)])
    (tmp_path / "x").write_bytes(b"abc")
    pull._check_space(tmp_path, [RemoteFile("x", 3)])
