"""The library, names in it, and facts of one model."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from phitui.actions import models
from phitui.actions.context import Context
from phitui.domain.model import Artifact, KnownModel, Verdict
from phitui.domain.offers import Availability
from phitui.domain.tensors import FilePlan, InlineExtent, SourceTensor, TensorType, Value, place
from phitui.errors import InvalidFile, PhituiError, UsageError
from phitui.gguf.writer import write_gguf
from phitui.testing.checkpoints import write_checkpoint

ESCAPE = "\x1b[2Jred\u202e"


def tiny_gguf(path: Path, name: str = "tiny", **more: Value) -> Path:
    tensor = SourceTensor("token_embd.weight", (32, 2), TensorType.F32, (InlineExtent(bytes(256)),))
    metadata = {
        "general.architecture": Value.string("phi3"),
        "general.name": Value.string(name),
        "general.file_type": Value.u32(0),
        "phi3.block_count": Value.u32(2),
        "phi3.context_length": Value.u32(4096),
        **more,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    write_gguf(FilePlan("F32", metadata, place([(tensor, TensorType.F32, None)])), path)
    return path


@pytest.fixture
def own(context: Context) -> Path:
    """phitui's own models folder."""
    context.paths.models.mkdir(parents=True)
    return context.paths.models


class Finder:
    name = "fake"
    title = "Fake"

    def __init__(self, find: Callable[[], Iterator[Artifact]], ok: bool = True) -> None:
        self.find = find
        self._ok = ok

    def available(self) -> Availability:
        return Availability(self._ok)


def test_library(context: Context, own: Path) -> None:
    tiny_gguf(own / "b.gguf")
    write_checkpoint(own / "Phi-tiny")
    (own / "c.gguf").write_bytes(b"GGUF")
    (own / "d.gguf").write_bytes(b"not at all")
    tiny_gguf(own / "whole.gguf").rename(own / "e.gguf.partial")
    listed = {a.name: (a.kind, a.architecture, a.scheme, a.found_by) for a in models.library(context)}
    assert listed == {
        "b.gguf": ("gguf", "phi3", "F32", "folders"),
        "Phi-tiny": ("checkpoint", "Phi3ForCausalLM", "BF16", "folders"),
        "c.gguf": ("gguf", models.UNREADABLE, "?", "folders"),
        "d.gguf": ("gguf", models.UNREADABLE, "?", "folders"),
    }
    assert list(listed) == sorted(listed, key=str.lower)


def test_each_file_is_listed_once(context: Context, own: Path, tmp_path: Path) -> None:
    path = tiny_gguf(own / "a.gguf")
    (own / "link.gguf").symlink_to(path)
    context.registry.finders.append(
        Finder(lambda: iter([Artifact(path, "gguf", "again", "", "", 1, "fake")]))  # type: ignore[arg-type]
    )
    assert [artifact.name for artifact in models.library(context)] == ["a.gguf"]


def test_a_finder_that_fails_is_recorded_once(context: Context, own: Path) -> None:
    path = tiny_gguf(own / "a.gguf")

    def broken() -> Iterator[Artifact]:
        yield Artifact(path, "gguf", f"a{ESCAPE}", "", "", 1, "fake")
        raise RuntimeError("boom")

    def unavailable() -> Iterator[Artifact]:
        raise AssertionError("must not be asked")

    context.registry.finders[:] = [Finder(broken), Finder(unavailable, ok=False)]  # type: ignore[list-item]
    for _ in range(2):
        (artifact,) = models.library(context)
    assert artifact.name == "a\\x1b[2Jred\\u202e"
    assert [(failure.plugin, failure.error) for failure in context.registry.failures] == [
        ("fake", "RuntimeError: boom")
    ]


def test_resolve_a_path_or_a_name(context: Context, own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tiny_gguf(own / "Phi-tiny.Q4_K_M.gguf")
    other = tiny_gguf(tmp_path / "other.gguf")
    monkeypatch.chdir(tmp_path)
    assert models.resolve_model(context, "other.gguf") == other
    for name in ("Phi-tiny.Q4_K_M.gguf", "Phi-tiny.Q4_K_M", "phi-TINY.q4_k_m"):
        assert models.resolve_model(context, name) == path


def test_names_that_do_not_resolve(context: Context, own: Path, tmp_path: Path) -> None:
    tiny_gguf(own / "phi-tiny.gguf")
    tiny_gguf(own / "1" / "same.gguf")
    tiny_gguf(own / "2" / "same.gguf")
    write_checkpoint(own / "Phi-checkpoint")
    cases = {
        "phi-tyni": "did you mean: phi-tiny.gguf",
        "qqqqqq": "phitui models",
        "microsoft/phi-4": "phitui pull microsoft/phi-4",
        "same": str(own / "1" / "same.gguf"),
        "Phi-checkpoint": "phitui build",
        str(tmp_path): "phitui build",
        ESCAPE: "phitui models",
    }
    for text, hint in cases.items():
        with pytest.raises(UsageError) as caught:
            models.resolve_model(context, text)
        assert hint in caught.value.hint, text
        assert "\x1b" not in str(caught.value)


def test_inspect_a_gguf(context: Context, own: Path) -> None:
    path = tiny_gguf(own / "a.gguf", f"n{ESCAPE}")
    for source in (str(path), "a"):
        facts = models.inspect(context, source)
        assert (facts.architecture, facts.layers, facts.verdict) == ("phi3", 2, None)
        assert facts.name == "n\\x1b[2Jred\\u202e"


def test_inspect_a_checkpoint(context: Context, tmp_path: Path) -> None:
    directory = write_checkpoint(tmp_path / "Phi-tiny")
    for source in (directory, directory / "config.json"):
        facts = models.inspect(context, str(source))
        assert (facts.name, facts.architecture, facts.layers) == ("Phi-tiny", "phi3", 2)
        assert facts.verdict is not None
        assert facts.verdict.ok
        assert facts.size == sum(file.stat().st_size for file in directory.glob("*.safetensors"))


@pytest.mark.parametrize(
    ("config", "reason", "nearest"),
    [
        ({"architectures": ["Phi3SmallForCausalLM"]}, "blocksparse", "microsoft/Phi-3-mini-4k-instruct"),
        ({"architectures": ["Phi3ForCausalLN"]}, "no converter takes Phi3ForCausalLN", "Phi3ForCausalLM"),
        ({"architectures": []}, 'names no "architectures"', ""),
        ({"architectures": [3]}, 'names no "architectures"', ""),
        ({"architectures": "Phi3ForCausalLM"}, 'names no "architectures"', ""),
        ({}, 'names no "architectures"', ""),
    ],
)
def test_verdicts(context: Context, config: dict[str, object], reason: str, nearest: str) -> None:
    verdict = models.judge(context, config)
    assert not verdict.ok
    assert reason in verdict.reason
    assert verdict.nearest == nearest


def test_a_converter_that_raises(context: Context) -> None:
    class Broken(Finder):
        architectures = ("Odd",)

        def inspect(self, config: object) -> Verdict:
            raise ZeroDivisionError

    context.registry.converters.insert(0, Broken(lambda: iter(())))  # type: ignore[arg-type]
    verdict = models.judge(context, {"architectures": ["Odd"]})
    assert not verdict.ok
    assert "ZeroDivisionError" in verdict.reason


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("{", "not JSON"),
        ("[1]", "holds a list"),
        ("[" * 100_000, "not JSON"),
        ('"\\ud800"', "holds a str"),
    ],
)
def test_configs_that_are_none(context: Context, tmp_path: Path, text: str, match: str) -> None:
    (tmp_path / "config.json").write_text(text)
    for source in (tmp_path, tmp_path / "config.json"):
        with pytest.raises(InvalidFile, match=match):
            models.inspect(context, str(source))


def test_strange_configs_make_no_traceback(context: Context, tmp_path: Path) -> None:
    for value in ("x", -1, 1e400, None, [], {"a": 1}, True):
        config = dict.fromkeys(
            ("hidden_size", "num_attention_heads", "vocab_size", "rope_scaling", "model_type"), value
        )
        (tmp_path / "config.json").write_text(json.dumps({"architectures": ["Phi3ForCausalLM"], **config}))
        try:
            models.inspect(context, str(tmp_path))
        except PhituiError as error:
            assert error.message


def test_a_directory_without_config(context: Context, tmp_path: Path) -> None:
    with pytest.raises(InvalidFile, match=r"has no config\.json"):
        models.inspect(context, str(tmp_path))


def test_a_truncated_gguf(context: Context, tmp_path: Path) -> None:
    path = tiny_gguf(tmp_path / "a.gguf")
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(InvalidFile):
        models.inspect(context, str(path))


def test_a_catalogue_that_fails_is_recorded(context: Context) -> None:
    class Broken(Finder):
        def models(self) -> list[KnownModel]:
            raise ValueError("no")

    class Good(Finder):
        name = "good"

        def models(self) -> list[KnownModel]:
            row = KnownModel("a/b", "b", "X", "1B", 1, "", "MIT", Verdict(True, ""))
            return [row, row]

    context.registry.catalogues[:] = [Broken(lambda: iter(())), Good(lambda: iter(()))]  # type: ignore[list-item]
    assert [model.id for model in models.catalogue(context)] == ["a/b"]
    assert context.registry.failures[-1].error == "ValueError: no"


def test_hub_ids() -> None:
    assert models.is_hub_id("microsoft/phi-4")
    assert models.is_hub_id("a/b@v1.0")
    assert not any(map(models.is_hub_id, ("a", "a/b/c", "./a", "../a/b", "a/b.gguf", "~/x", "a/b c")))
