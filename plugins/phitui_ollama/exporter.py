"""The exporter: fills the Modelfile of the model's chat format."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from phitui.api import (
    Availability,
    Bundle,
    BundleFile,
    Delivery,
    ExportModel,
    InvalidFile,
    JobContext,
    ModelFacts,
    PhituiError,
    UsageError,
    modelfiles,
)
from phitui_ollama.modelfile import Command, parse, write
from phitui_ollama.names import checked, made
from phitui_ollama.options import DEFAULT_CONTEXT, FORMATS, OllamaOptions, messages, parameters
from phitui_ollama.prompts import Settled, settle

FILE = "Modelfile"
_BLOB = re.compile(r"(sha256-)?[0-9a-f]{64}")
_SHARD = re.compile(r"(?P<stem>.*)-\d{5}-of-(?P<count>\d{5})\.gguf")


class Ollama:
    """Writes a Modelfile, for which Ollama need not be installed; or pushes the model to a server that runs."""

    name = "ollama"
    title = "Ollama (Modelfile)"
    options: type = OllamaOptions

    def available(self) -> Availability:
        return Availability()

    def preview(self, model: ExportModel, options: OllamaOptions, out: Path) -> Bundle:
        """The Modelfile for this model. Raises UsageError for what Ollama would refuse."""
        filled = fill(model, options)
        commands = [*_from(model, out), *filled.commands]
        text = f"{filled.comment}\n{write(commands)}"
        if parse(text) != tuple(commands):
            raise PhituiError("the Modelfile is not read back as it was meant; nothing was written")
        file = shlex.quote(str(out / FILE))
        run = (f"ollama create {filled.name} -f {file}", f"ollama run {filled.name}")
        return Bundle((BundleFile(FILE, text, "dockerfile"),), run, filled.notes)

    def destination(self, model: ExportModel, options: OllamaOptions, url: str, overwrite: bool) -> str:
        """The server's address, if it can take this model."""
        from phitui_ollama.push import destination

        return destination(fill(model, options), model, url, overwrite)

    def push(
        self, model: ExportModel, options: OllamaOptions, delivery: Delivery, job: JobContext
    ) -> Mapping[str, Any]:
        """Upload the model and create it on the server, over Ollama's HTTP API."""
        from phitui_ollama.push import push

        return push(fill(model, options), model, delivery, job)


@dataclass(frozen=True)
class Filled:
    """What Ollama is told of a model, in a Modelfile or over HTTP: its name and all commands but FROM."""

    name: str
    comment: str
    commands: tuple[Command, ...]
    notes: tuple[str, ...]


def fill(model: ExportModel, options: OllamaOptions) -> Filled:
    """The Modelfile of the model's chat format, filled in. Raises UsageError for what Ollama would refuse."""
    name = checked(options.name) if options.name else _default_name(model)
    options = _with_context(options, model.facts)
    shape, settled = _shape(model, options)
    commands = (
        Command("template", shape.template),
        *([Command("system", settled.system)] if settled.system else []),
        *parameters(options, shape.stops),
        *_license(model.facts, options),
        *messages(options),
    )
    return Filled(name, shape.comment, commands, (*settled.notes, *_notes(model, commands)))


@dataclass(frozen=True)
class Format:
    """What the Modelfile of a chat format says."""

    comment: str
    template: str
    system: str
    stops: tuple[str, ...]


def _shape(model: ExportModel, options: OllamaOptions) -> tuple[Format, Settled]:
    """The chat format and its system text. A model whose own template is another format's gets that one."""
    first = format_of(model) if options.format == "auto" else options.format
    shape = load_format(first)
    settled = settle(model.chat_template, shape.template, options.system, shape.system)
    if options.format == "auto" and not settled.equal:
        for other in FORMATS:
            candidate = load_format(other)
            found = settle(model.chat_template, candidate.template, options.system, candidate.system)
            if found.equal:
                note = f"the model has the tokens of {first}, but its own chat template is that of {other}"
                return candidate, replace(found, notes=(note, *found.notes))
    return shape, settled


def format_of(model: ExportModel) -> str:
    """The chat format by what the model's own template says, never by its name: fine-tunes keep it, names lie."""
    base, jinja = model.facts.chat_format, model.chat_template
    if base == "phi-4" and "<think>" in jinja:
        return "phi-4-reasoning"
    if base == "phi-4-mini" and "an AI math expert" in jinja:
        return "phi-4-mini-reasoning"
    return base


def load_format(name: str) -> Format:
    """The shipped Modelfile of that chat format. Raises UsageError if there is none."""
    file = modelfiles() / f"{name}.modelfile"
    try:
        text = file.read_text("utf-8")
    except FileNotFoundError:
        known = ", ".join(sorted(path.stem for path in modelfiles().glob("*.modelfile")))
        raise UsageError(f"there is no Modelfile for the chat format {name!r}", f"known: {known}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise PhituiError(f"cannot read {file}: {error}") from None
    commands = parse(text)
    values = {command.name: command.value for command in commands}
    if "template" not in values:
        raise InvalidFile(f"{file} has no TEMPLATE")
    comment = "\n".join(line for line in text.split("\nFROM ")[0].splitlines() if line.startswith("#"))
    stops = tuple(command.value for command in commands if command.key == "stop")
    return Format(comment, values["template"], values.get("system", ""), stops)


def _default_name(model: ExportModel) -> str:
    scheme = model.facts.scheme
    stem = model.path.name.removesuffix(".gguf")
    shard = _SHARD.fullmatch(model.path.name)
    stem = shard["stem"] if shard else stem
    if _BLOB.fullmatch(stem):  # from a store that names files by their content
        stem = model.facts.name
    if scheme and stem.lower().endswith(scheme.lower()):
        stem = stem[: -len(scheme)]
    return made(stem, scheme if re.fullmatch(r"\w+", scheme) else "")


def _with_context(options: OllamaOptions, facts: ModelFacts) -> OllamaOptions:
    """The options with a num_ctx that the model can do. Raises UsageError for a larger one."""
    limit = facts.context_length
    if options.num_ctx is None:
        return replace(options, num_ctx=min(DEFAULT_CONTEXT, limit) if limit else DEFAULT_CONTEXT)
    if limit and options.num_ctx > limit:
        raise UsageError(
            f"num_ctx {options.num_ctx} is more than the model's {limit} tokens", f"--num-ctx {limit} or less"
        )
    return options


def _from(model: ExportModel, out: Path) -> list[Command]:
    """One FROM a file: relative where the model lies in the output directory itself, so that both can move together."""
    path, files = model.path, parts(model)
    beside = path.parent.resolve() == out.resolve()
    return [Command("from", f"./{file.name}" if beside else str(file.absolute())) for file in files]


def parts(model: ExportModel) -> list[Path]:
    """The files of the model. Raises UsageError if one is missing."""
    shard = _SHARD.fullmatch(model.path.name)
    if not shard:
        return [model.path]
    count = int(shard["count"])
    files = [model.path.with_name(f"{shard['stem']}-{n:05}-of-{count:05}.gguf") for n in range(1, count + 1)]
    missing = [file.name for file in files if not file.exists()]
    if missing:
        raise UsageError(f"the model is split, and {missing[0]} is missing", "put all parts into one directory")
    return files


def _license(facts: ModelFacts, options: OllamaOptions) -> list[Command]:
    if options.license_file is None:
        return [Command("license", facts.license)] if facts.license else []
    try:
        return [Command("license", options.license_file.read_text("utf-8").strip("\n"))]
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read {options.license_file}: {error}") from None


def _notes(model: ExportModel, commands: tuple[Command, ...]) -> tuple[str, ...]:
    facts = model.facts
    given = {command.key: command.value for command in commands if command.name == "parameter"}
    notes = []
    context, switch = int(given["num_ctx"]), facts.rope.original_context
    if switch and context > switch:
        notes.append(f"num_ctx above {switch} runs the model with its long rope factors, also for short prompts")
    elif facts.context_length > context:
        notes.append(f"num_ctx is {context} of {facts.context_length} tokens: --num-ctx gives more, for more memory")
    layers = int(given.get("num_gpu", -1))
    if facts.layers and layers == facts.layers:
        notes.append(f"num_gpu {layers} leaves the first block on the CPU: everything is {facts.layers + 1}")
    if _SHARD.fullmatch(model.path.name):
        notes.append("a split model needs Ollama 0.30 or newer")
    if not model.chat_template:
        notes.append("the model has no chat template of its own: it may be a base model that was not trained to chat")
    return tuple(notes)
