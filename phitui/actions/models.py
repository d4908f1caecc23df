"""What is on this machine, what is known about Phi models, and the facts of one."""

from __future__ import annotations

import dataclasses
import difflib
import json
import re
import traceback
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from phitui.actions.context import Context
from phitui.actions.places import once
from phitui.domain.model import Artifact, KnownModel, ModelFacts, Verdict
from phitui.domain.text import visible
from phitui.errors import InvalidFile, PhituiError, UnsupportedModel, UsageError
from phitui.plugins import Failure, availability
from phitui.store.library import Entry, Library

UNREADABLE = "unreadable"
"""The architecture of an artifact whose header cannot be read; its scheme is "?". It is listed, so that it is seen."""

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(@[\w./-]+)?")
_CONFIG_LIMIT = 8 << 20


def library(context: Context) -> list[Artifact]:
    """Artifacts of all finders, equal content once, sorted by name; a split model is one artifact.

    What a finder left empty (architecture, scheme) is read from the header, through a cache on disk. A finder that
    fails is recorded among the plugin failures; the others go on.
    """
    found: dict[tuple[int, int], list[Artifact]] = {}
    with Library(context.paths.cache / "library.db") as cache:
        for listed in _found(context):
            try:
                artifact = _whole(listed)
                stat = artifact.path.stat()
                same = found.get((stat.st_dev, stat.st_ino), [])
                if same:  # its header has been read
                    artifact = dataclasses.replace(artifact, architecture=same[0].architecture, scheme=same[0].scheme)
                found[stat.st_dev, stat.st_ino] = [*same, _described(artifact, cache)]
            except (OSError, RuntimeError):
                continue  # gone since it was found, or a loop of links
    artifacts = once(context, found.values())
    return sorted(artifacts, key=lambda item: (item.name.lower(), str(item.path)))


def catalogue(context: Context) -> list[KnownModel]:
    """Known models of all catalogues, in their order; the first of two equal ids stays."""
    known: dict[str, KnownModel] = {}
    for offer in context.registry.catalogues:
        if availability(offer).ok:
            try:
                for model in offer.models():
                    known.setdefault(model.id, model)
            except Exception as error:  # a stranger's code must not take the list down
                _record(context, offer.name, "models", error)
    return list(known.values())


def resolve_model(context: Context, text: str) -> Path:
    """The GGUF that `text` means: a path, or a name in the library; of a split model the first file.

    Raises UsageError saying what else it may be, InvalidFile if parts of a split model are missing.
    """
    path = Path(text).expanduser()
    if path.is_file():
        return first_file(path)
    if path.is_dir():
        raise UsageError(
            f"{visible(text)} is a directory; a GGUF file is needed here",
            f"make one with: phitui build {visible(text)} --scheme Q4_K_M --out model.gguf",
        )
    artifact = named(context, text)
    if artifact is None:
        raise _unknown(context, text)
    if artifact.kind != "gguf":
        raise UsageError(
            f"{artifact.name} is a checkpoint; a GGUF file is needed here",
            f"make one with: phitui build {artifact.path} --scheme Q4_K_M --out model.gguf",
        )
    return first_file(artifact.path)


def first_file(path: Path) -> Path:
    """The absolute path of a file; of any file of a split model, that of the first. Raises InvalidFile."""
    from phitui.gguf.shards import shard_name, shards_of

    path = path.absolute()
    return shards_of(path)[0] if shard_name(path.name) else path


def named(context: Context, text: str) -> Artifact | None:
    """The artifact of that name in the library; case counts only to tell two apart.

       ".gguf" may be left out. Of a split model the name of any file will do, and so will what their names begin with.
    if there is none; UsageError if there are several.
    """
    from phitui.gguf.shards import shard_name, shard_path

    part = shard_name(text)
    text = shard_path(Path(part[0]), 1, part[2]).name if part and "/" not in text else text
    artifacts = library(context)
    for fold in (str, str.lower):
        for names in (_names, _aliases):
            wanted = fold(text)
            found = [a for a in artifacts if wanted in {fold(name) for name in names(a)}]
            if len(found) > 1:
                raise UsageError(
                    f"{len(found)} models are named {visible(text)!r}",
                    "give the path of one: " + ", ".join(str(artifact.path) for artifact in found[:5]),
                )
            if found:
                return found[0]
    return None


def _names(artifact: Artifact) -> tuple[str, ...]:
    return _spellings(artifact, artifact.name)


def _aliases(artifact: Artifact) -> tuple[str, ...]:
    names = [*artifact.aliases, *(name for place in artifact.also for name in (place.name, *place.aliases))]
    return tuple(spelling for name in names for spelling in _spellings(artifact, name))


def is_name_elsewhere(artifact: Artifact, text: str) -> bool:
    """Whether a text that was resolved to this artifact is the name of the same content in another place."""
    own = [name for said in (artifact.name, *artifact.aliases) for name in _spellings(artifact, said)]
    folded = text.lower()
    return folded in map(str.lower, _aliases(artifact)) and folded not in map(str.lower, own)


def _spellings(artifact: Artifact, name: str) -> tuple[str, ...]:
    """A name, and what it is called without ".gguf" and without the number of a shard."""
    from phitui.gguf.shards import model_stem

    if artifact.kind == "gguf" and name.lower().endswith(".gguf"):
        return (name, name.removesuffix(".gguf"), model_stem(Path(name)))
    return (name,)


def inspect(context: Context, source: str) -> ModelFacts:
    """Facts of one model, from its header or config.json alone: GGUF file, checkpoint directory, library name, Hub id.

    All strings are shown with control characters made visible. Checkpoints carry the converters' verdict.
    """
    path = Path(source).expanduser()
    if not path.exists():
        artifact = named(context, source)
        if artifact is None and is_hub_id(source):
            return _clean(_remote_facts(context, source))
        if artifact is None:
            raise _unknown(context, source)
        path = artifact.path
    from phitui.actions.lineage import lineage_of

    if path.is_dir():
        path = path / "config.json"
    if path.suffix == ".json":
        config, folder = read_config(path), path.absolute().parent
        facts = _config_facts(context, config, _name_of(folder), _weights(folder), _special_tokens(folder))
        return _clean(dataclasses.replace(facts, lineage=lineage_of(folder)))
    from phitui.gguf.facts import facts_from_header
    from phitui.gguf.shards import read_model

    try:
        return _clean(dataclasses.replace(facts_from_header(read_model(path)), lineage=lineage_of(path)))
    except (ValueError, TypeError, KeyError, ArithmeticError) as error:
        raise InvalidFile(f"{visible(source)} has a header that makes no sense: {error}") from None


def _remote_facts(context: Context, source: str) -> ModelFacts:
    """From config.json and the headers of the weights on the Hub; from config.json alone where no converter helps."""
    from phitui.actions import remote
    from phitui.hub import fetch_config

    try:
        found = remote.look(context, source)
    except (UnsupportedModel, InvalidFile, UsageError):
        return _config_facts(context, fetch_config(source), source, 0)
    config, folder = read_config(found.directory / "config.json"), found.directory
    facts = _config_facts(context, config, found.repo, found.weights, _special_tokens(folder))
    return dataclasses.replace(facts, parameters=found.parameters)


def judge(context: Context, config: Mapping[str, Any]) -> Verdict:
    """Whether some converter here takes a checkpoint with this config.json. Never raises for a strange config."""
    architecture = architecture_of(config)
    refused: Verdict | None = None
    for converter in context.registry.converters:
        if architecture in converter.architectures:
            try:
                verdict = converter.inspect(config)
            except Exception as error:  # a stranger's code: the others may still take it
                _record(context, converter.name, "inspect", error)
                verdict = Verdict(False, f"the converter {converter.name} failed: {type(error).__name__}: {error}")
            if verdict.ok:
                return verdict
            refused = refused or verdict
    return refused or _unsupported(context, architecture)


def architecture_of(config: Mapping[str, Any]) -> str:
    """`architectures[0]` of a config.json; empty if there is none."""
    names = config.get("architectures")
    return names[0] if isinstance(names, list) and names and isinstance(names[0], str) else ""


def is_hub_id(text: str) -> bool:
    """Whether a text can be a Hub repo id, ORG/NAME or ORG/NAME@REVISION."""
    return _HUB_ID.fullmatch(text) is not None and not text.endswith(".gguf")


def read_config(path: Path) -> dict[str, Any]:
    """A config.json. Raises InvalidFile or UsageError saying what is wrong with it."""
    try:
        with path.open("rb") as stream:
            data = stream.read(_CONFIG_LIMIT + 1)
    except FileNotFoundError:
        raise InvalidFile(
            f"{path.parent} has no {path.name}: it is not a checkpoint",
            "a checkpoint is a directory with config.json, *.safetensors and the tokenizer",
        ) from None
    except OSError as error:
        raise PhituiError(f"cannot read {path}: {error.strerror}") from None
    if len(data) > _CONFIG_LIMIT:
        raise InvalidFile(f"{path} is over {_CONFIG_LIMIT >> 20} MiB: that is no config.json")
    try:
        config = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise InvalidFile(f"{path} is not JSON: {error}", "download the file again") from None
    if not isinstance(config, dict):
        raise InvalidFile(f"{path} holds a {type(config).__name__}, not an object", "download the file again")
    return config


def _found(context: Context) -> Iterable[Artifact]:
    for finder in context.registry.finders:
        if availability(finder).ok:
            try:
                yield from finder.find()
            except Exception as error:  # a stranger's code must not take the list down
                _record(context, finder.name, "find", error)


def _record(context: Context, name: str, stage: str, error: Exception) -> None:
    failure = Failure(name, stage, f"{type(error).__name__}: {error}", traceback.format_exc())
    if all((old.plugin, old.stage, old.error) != (name, stage, failure.error) for old in context.registry.failures):
        context.registry.failures.append(failure)


def _files(artifact: Artifact) -> tuple[Path, ...]:
    """The files that an artifact should have, by its name: several for a split model."""
    from phitui.gguf.shards import named_shards

    return named_shards(artifact.path) if artifact.kind == "gguf" else (artifact.path,)


def _whole(artifact: Artifact) -> Artifact:
    """A finder may list every file of a split model, or one: it becomes the first file, with the size of all."""
    files = _files(artifact)
    if len(files) == 1 or not files[0].is_file():
        return artifact
    size = sum(file.stat().st_size for file in files if file.is_file())
    name = files[0].name if artifact.name == artifact.path.name else artifact.name
    return dataclasses.replace(artifact, path=files[0], name=name, size=size)


def _described(artifact: Artifact, cache: Library) -> Artifact:
    if not artifact.architecture:
        source = artifact.path if artifact.kind == "gguf" else artifact.path / "config.json"
        files = _files(artifact)[1:]
        entry = cache.entry(source, _read_gguf if artifact.kind == "gguf" else _read_checkpoint, files)
        architecture = entry.facts.architecture if entry.facts else UNREADABLE
        scheme = entry.facts.scheme if entry.facts else "?"
        artifact = dataclasses.replace(artifact, architecture=architecture, scheme=artifact.scheme or scheme)
    return dataclasses.replace(
        artifact,
        name=visible(artifact.name),
        aliases=tuple(map(visible, artifact.aliases)),
        architecture=visible(artifact.architecture),
        scheme=visible(artifact.scheme),
    )


def _read_gguf(path: Path) -> Entry:
    from phitui.gguf.facts import facts_from_header
    from phitui.gguf.shards import read_model

    try:
        return Entry(path, facts_from_header(read_model(path)))
    except PhituiError as error:
        return Entry(path, None, error.message)
    except (ValueError, TypeError, KeyError, ArithmeticError) as error:
        return Entry(path, None, f"{type(error).__name__}: {error}")


def _read_checkpoint(path: Path) -> Entry:
    from phitui.gguf.facts import facts_from_config

    try:
        config = read_config(path)
        facts = facts_from_config(config, path.parent.name)
        return Entry(path, dataclasses.replace(facts, architecture=architecture_of(config) or facts.architecture))
    except PhituiError as error:
        return Entry(path, None, error.message)
    except (ValueError, TypeError, KeyError, ArithmeticError) as error:
        return Entry(path, None, f"{type(error).__name__}: {error}")


def _config_facts(
    context: Context, config: dict[str, Any], name: str, size: int, tokens: set[str] | None = None
) -> ModelFacts:
    from phitui.gguf.facts import facts_from_config

    try:
        facts = facts_from_config(config, name, size, tokens)
    except (ValueError, TypeError, KeyError, ArithmeticError) as error:
        raise InvalidFile(f"the config.json of {visible(name)} makes no sense: {error}") from None
    return dataclasses.replace(facts, verdict=judge(context, config))


def _special_tokens(directory: Path) -> set[str] | None:
    """Texts of a checkpoint's added tokens, for its chat format; None if its tokenizer_config.json does not say."""
    try:
        added = read_config(directory / "tokenizer_config.json").get("added_tokens_decoder")
    except PhituiError:
        return None
    entries = added.values() if isinstance(added, dict) else ()
    return {str(entry.get("content")) for entry in entries if isinstance(entry, dict)} or None


def _name_of(folder: Path) -> str:
    """The name of a checkpoint directory; in the Hugging Face cache that of the repository, not of the commit."""
    repository = folder.parent.parent.name
    cached = folder.parent.name == "snapshots" and repository.startswith("models--")
    return repository.removeprefix("models--").replace("--", "/", 1) if cached else folder.name


def _weights(directory: Path) -> int:
    """Bytes of all safetensors files of a checkpoint."""
    return sum(file.stat().st_size for file in directory.glob("*.safetensors") if file.is_file())


def _unsupported(context: Context, architecture: str) -> Verdict:
    if not architecture:
        return Verdict(False, 'its config.json names no "architectures"')
    for known in catalogue(context):
        if known.architecture == architecture and not known.verdict.ok:
            return known.verdict
    supported = sorted({name for converter in context.registry.converters for name in converter.architectures})
    nearest = difflib.get_close_matches(architecture, supported, 1, 0.0)
    known_text = f"supported: {', '.join(supported)}" if supported else "no converter plugin is loaded"
    return Verdict(False, f"no converter takes {visible(architecture)} ({known_text})", nearest[0] if nearest else "")


def _unknown(context: Context, text: str) -> UsageError:
    shown = visible(text)
    if is_hub_id(text):
        return UsageError(f"there is no {shown} on this machine", f"download it first: phitui pull {shown}")
    names = {artifact.name.removesuffix(".gguf").lower(): artifact.name for artifact in library(context)}
    close = [names[name] for name in difflib.get_close_matches(text.removesuffix(".gguf").lower(), names, 3)]
    hint = f"did you mean: {', '.join(close)}" if close else "phitui models lists what is on this machine"
    return UsageError(f"{shown} is neither a file nor a model in the library", hint)


def _clean(facts: ModelFacts) -> ModelFacts:
    """The same facts, all strings inside made safe to print."""
    cleaned: ModelFacts = _printable(facts)
    return cleaned


def _printable(value: Any) -> Any:
    if isinstance(value, str):
        return visible(value)
    if isinstance(value, dict):
        return {_printable(key): _printable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_printable(item) for item in value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: _printable(getattr(value, field.name)) for field in dataclasses.fields(value)}
        return dataclasses.replace(value, **fields)
    return value
