"""The exporter: a start script, a router preset, a systemd user unit and a compose file, each of which is enough."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

from phitui.api import Availability, Bundle, BundleFile, ExportModel
from phitui_llamaserver import grammars
from phitui_llamaserver.command_line import alias_of, command, question, template_for
from phitui_llamaserver.options import LOOPBACK, ServerOptions, checked, context_of, flags, settings

SCRIPT, PRESET, UNIT, COMPOSE, README = (
    "llama-server.sh",
    "llama-server.ini",
    "llama-server.service",
    "compose.yaml",
    "LLAMA-SERVER.md",
)
_REGISTRY = "ghcr.io/ggml-org/llama.cpp"
_DEVICES = {
    "server-cuda": ["nvidia.com/gpu=all"],
    "server-rocm": ["/dev/kfd", "/dev/dri"],
    "server-vulkan": ["/dev/dri"],
    "server-intel": ["/dev/dri"],
}


class LlamaServer:
    """Writes files for llama-server, which need not be installed here for that."""

    name = "llamaserver"
    title = "llama-server (script, preset, systemd, compose)"
    options: type = ServerOptions

    def available(self) -> Availability:
        return Availability()

    def preview(self, model: ExportModel, options: ServerOptions, out: Path) -> Bundle:
        """The files. Raises UsageError for options that this model or llama-server cannot do."""
        checked(options, model.facts)
        alias = alias_of(model, options)
        values = settings(options, model.facts, template_for(model))
        notes = [*_notes(model, options)]
        preset = _preset(model.path, alias, values)
        if not preset:
            notes.append(f"no router preset: {PRESET} has no way to say a path with ; or # or blanks at its ends")
        files = (
            BundleFile(SCRIPT, _script(model.path, alias, values, options, out), "bash"),
            *([BundleFile(PRESET, preset, "ini")] if preset else []),
            BundleFile(UNIT, _unit(model.path, alias, values, options), "ini"),
            BundleFile(COMPOSE, _compose(model, alias, values, options, out), "yaml"),
        )
        run = (f"sh {shlex.quote(str(out / SCRIPT))}", question(options.host, options.port, alias))
        readme = _readme(out, bool(preset), run, options, notes)
        return Bundle((*files, BundleFile(README, readme, "markdown")), run, tuple(notes))


def _script(model: Path, alias: str, values: dict[str, str], options: ServerOptions, out: Path) -> str:
    """A shell script; a model in the same directory is found wherever the directory goes."""
    beside = model.parent.resolve() == out.resolve()
    words = [shlex.quote(word) for word in command(model.absolute(), alias, values, options)]
    if beside:
        words[words.index("--model") + 1] = f'"$here"/{shlex.quote(model.name)}'
    lines = grammars.shell_lines(words)
    here = 'here=$(CDPATH="" cd -- "$(dirname -- "$0")" && pwd) || exit\n' if beside else ""
    about = "# Starts llama-server with this model. Arguments of the script are added, and win.\n"
    return f'#!/bin/sh\n{about}{here}exec {lines} \\\n  "$@"\n'


def _preset(model: Path, alias: str, values: dict[str, str]) -> str:
    """A preset for the router; "" where its grammar cannot say the path. Host, port and keys are the router's own."""
    keys = {"model": str(model.absolute()), **values}
    if not all(map(grammars.ini_can_say, keys.values())):
        return ""
    return f"; llama-server --models-preset {PRESET}\n" + grammars.ini(alias, keys)


def _unit(model: Path, alias: str, values: dict[str, str], options: ServerOptions) -> str:
    words = command(model.absolute(), alias, values, options)
    found = shutil.which(options.program) or options.program
    plain = re.fullmatch(r"/[A-Za-z0-9/._+-]+", found)
    words[:1] = [found] if plain else ["/usr/bin/env", found]
    line = " ".join(map(grammars.systemd_word, words))
    return (
        f"[Unit]\nDescription=llama-server with {alias}\n\n"
        f"[Service]\nExecStart={line}\nRestart=on-failure\nRestartSec=5\n\n"
        "[Install]\nWantedBy=default.target\n"
    )


def _compose(model: ExportModel, alias: str, values: dict[str, str], options: ServerOptions, out: Path) -> str:
    """For docker and podman. Only the files of the model are mounted, read-only; the port opens where --host says."""
    y = grammars.yaml
    inner = f"/models/{model.path.name}"
    words = ["--model", inner, "--alias", alias, "--host", "0.0.0.0", "--port", "8080"]  # noqa: S104  (in the container)
    mounts = [(file, f"/models/{file.name}") for file in model.files]
    if options.api_key_file:
        mounts.append((options.api_key_file.absolute(), "/run/secrets/api-keys"))
        words += ["--api-key-file", "/run/secrets/api-keys"]
    words += flags(values)
    host = f"[{options.host}]" if ":" in options.host else "127.0.0.1" if options.host == "localhost" else options.host
    lines = ["services:", "  llama-server:", f"    image: {y(f'{_REGISTRY}:{options.image}')}", "    command:"]
    lines += [f"      - {y(word)}" for word in words]
    lines += ["    volumes:"]
    for source, target in mounts:
        beside = source.parent.resolve() == out.resolve()
        named = f"./{source.name}" if beside else str(source.absolute())
        lines += ["      - type: bind", f"        source: {y(named)}", f"        target: {y(target)}"]
        lines += ["        read_only: true"]
    lines += ["    ports:", f"      - {y(f'{host}:{options.port}:8080')}"]
    if options.image in _DEVICES:
        lines += ["    devices:", *(f"      - {y(device)}" for device in _DEVICES[options.image])]
    lines += ["    restart: unless-stopped"]
    return "\n".join(lines) + "\n"


def _notes(model: ExportModel, options: ServerOptions) -> list[str]:
    notes, facts = [], model.facts
    context, switch = context_of(options, facts), facts.rope.original_context
    if context is None:
        notes.append("--ctx max: the server takes the model's context, or less where memory is short; its log says it")
    elif switch and context > switch:
        notes.append(f"a context above {switch} runs the model with its long rope factors, also for short prompts")
    elif facts.context_length > context:
        notes.append(f"the context is {context} of {facts.context_length} tokens: --ctx gives more, for more memory")
    if not model.chat_template:
        built_in = template_for(model)
        if built_in:
            notes.append(f"the model has no chat template of its own: llama.cpp's {built_in} is used")
        else:
            notes.append(
                f"the model has no chat template of its own, and llama.cpp has none for {facts.chat_format}: "
                "chat answers will be odd, /v1/completions is right"
            )
    if options.host not in LOOPBACK and options.api_key_file is None:
        notes.append(f"on {options.host} everybody who reaches this machine can use it: --api-key-file asks for a key")
    if shutil.which(options.program) is None:
        notes.append(f"{options.program} is not on the PATH here: install llama.cpp, or say where it is with --program")
    return notes


def _readme(out: Path, preset: bool, run: tuple[str, ...], options: ServerOptions, notes: list[str]) -> str:
    router = (
        f"llama-server --models-preset {shlex.quote(str(out / PRESET))} --host {options.host} --port {options.port}"
    )
    unit = shlex.quote(str(out / UNIT))
    ways = [
        ("In this terminal", run[0]),
        *([("Beside other models (the router loads what is asked for)", router)] if preset else []),
        ("As a service of yours (systemd)", f"systemctl --user enable --now {unit}"),
        ("In a container (docker or podman)", f"docker compose -f {shlex.quote(str(out / COMPOSE))} up"),
        ("Then ask it", run[1]),
    ]
    parts = ["# llama-server", *(f"{title}:\n\n```sh\n{line}\n```" for title, line in ways)]
    parts += ["\n".join(f"- {note}" for note in notes)] if notes else []
    return "\n\n".join(parts) + "\n"
