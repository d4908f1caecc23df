"""The exporter: scripts for llama-chat and llama-api-server, its TOML, and GaiaNet's config.json."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Sequence
from pathlib import Path

from phitui.api import Availability, Bundle, BundleFile, ExportModel, UsageError
from phitui_llamaedge.options import (
    LAST_ONLY,
    WITH_SYSTEM,
    LlamaEdgeOptions,
    Numbers,
    numbers,
    prompt_for,
)

CHAT, SERVER, TOML, TOML_SERVER, GAIANET, README = (
    "llamaedge-chat.sh",
    "llamaedge-server.sh",
    "llamaedge-server.toml",
    "llamaedge-server-toml.sh",
    "gaianet/config.json",
    "LLAMAEDGE.md",
)
RELEASES = "https://github.com/LlamaEdge/LlamaEdge/releases/latest/download"
ALIAS = "default"
"""The name in --nn-preload, which must be that of --model-alias; both programs have this one by themselves."""
EMBEDDING = (
    "https://huggingface.co/gaianet/Nomic-embed-text-v1.5-Embedding-GGUF/resolve/main/nomic-embed-text-v1.5.f16.gguf"
)
_AWKWARD = re.compile(r'["\\\x00-\x1f\x7f]')
_SHARD = re.compile(r"(?P<stem>.+)-\d{5}-of-\d{5}\.gguf")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]*")


class LlamaEdge:
    """Writes files for LlamaEdge, which need not be installed here for that."""

    name = "llamaedge"
    title = "LlamaEdge (WasmEdge) and GaiaNet"
    options: type = LlamaEdgeOptions

    def available(self) -> Availability:
        return Availability()

    def preview(self, model: ExportModel, options: LlamaEdgeOptions, out: Path) -> Bundle:
        """The files. Raises UsageError for options or paths that LlamaEdge cannot take."""
        chosen, prompt, name = numbers(options, model.facts), prompt_for(options, model.facts), _name(model, options)
        address = _address(options)
        gguf = _gguf(model.path, out)
        chat = _chat(gguf, prompt, name, options, chosen)
        server = _server(gguf, prompt, name, options, chosen)
        by_file = [*_wasmedge(gguf, "llama-api-server.wasm"), "config", "--file", TOML, "--chat"]
        notes = _notes(model, options, prompt, chosen)
        gaianet = _gaianet(options, prompt, name, chosen)
        if gaianet and not options.url:
            notes.append(
                f"GaiaNet downloads the model that its config.json names, unless {json.loads(gaianet)['chat']} is in "
                "the node's directory: put the GGUF there under that name, or give --url"
            )
        elif not gaianet:
            notes.append("no GaiaNet config: its config.json cannot hold quotes, backslashes or line breaks (--system)")
        run = (
            f"cd {shlex.quote(str(out))}",
            f"curl -LO {RELEASES}/llama-chat.wasm -LO {RELEASES}/llama-api-server.wasm",
            shlex.join(chat),
            shlex.join(server),
        )
        files = (
            BundleFile(CHAT, _script("Talks to this model in the terminal.", "llama-chat.wasm", chat), "bash"),
            BundleFile(SERVER, _script("Serves this model (OpenAI API).", "llama-api-server.wasm", server), "bash"),
            BundleFile(TOML, _toml(prompt, name, address, chosen), "toml"),
            BundleFile(
                TOML_SERVER, _script(f"Serves this model as {TOML} says.", "llama-api-server.wasm", by_file), "bash"
            ),
            *([BundleFile(GAIANET, gaianet, "json")] if gaianet else []),
            BundleFile(README, _readme(run, notes, bool(gaianet)), "markdown"),
        )
        return Bundle(files, run, tuple(notes))


def _wasmedge(gguf: str, program: str) -> list[str]:
    return ["wasmedge", "--dir", ".:.", "--nn-preload", f"{ALIAS}:GGML:AUTO:{gguf}", program]


def _chat(gguf: str, prompt: str, name: str, options: LlamaEdgeOptions, n: Numbers) -> list[str]:
    """llama-chat takes only one of --temp and --top-p."""
    words = [*_wasmedge(gguf, "llama-chat.wasm"), "--prompt-template", prompt, "--model-name", name, *_load(n)]
    if options.temperature is not None:
        words += ["--temp", str(n.temperature)]
    elif options.top_p is not None:
        words += ["--top-p", str(n.top_p)]
    if options.repeat_penalty is not None:
        words += ["--repeat-penalty", str(n.repeat_penalty)]
    if options.system and prompt in WITH_SYSTEM:
        words += [f"--system-prompt={options.system}"]
    return words


def _server(gguf: str, prompt: str, name: str, options: LlamaEdgeOptions, n: Numbers) -> list[str]:
    words = [*_wasmedge(gguf, "llama-api-server.wasm"), "--prompt-template", prompt, "--model-name", name, *_load(n)]
    words += ["--ubatch-size", str(n.ubatch)]
    given = (("--temp", options.temperature), ("--top-p", options.top_p), ("--repeat-penalty", options.repeat_penalty))
    words += [part for flag, value in given if value is not None for part in (flag, str(float(value)))]
    if options.host in ("0.0.0.0", "::"):  # noqa: S104  (what --port alone means to LlamaEdge)
        return [*words, "--port", str(options.port)]
    return [*words, "--socket-addr", _address(options)]


def _load(n: Numbers) -> list[str]:
    words = ["--ctx-size", str(n.context), "--n-gpu-layers", str(n.layers), "--batch-size", str(n.batch)]
    words += ["--threads", str(n.threads)]
    return [*words, f"--n-predict={n.predict}"] if n.predict != -1 else words


def _toml(prompt: str, name: str, address: str, n: Numbers) -> str:
    """All four tables must be there with all these keys, whatever is used of them. The GGUF is not in it."""
    import tomli_w

    shared = {"model_name": name, "model_alias": ALIAS, "ctx_size": n.context, "batch_size": n.batch}
    chat = {
        **shared,
        "ubatch_size": n.ubatch,
        "prompt_template": prompt,
        "n_predict": n.predict,
        "n_gpu_layers": n.layers,
        "split_mode": "layer",
        "threads": n.threads,
        "no_mmap": False,
        "temp": n.temperature,
        "top_p": n.top_p,
        "repeat_penalty": n.repeat_penalty,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "include_usage": False,
    }
    unused = {"model_name": "unused", "model_alias": "unused", "ctx_size": 512, "batch_size": 512, "ubatch_size": 512}
    speech = {**unused, "codec_model": "", "speaker_file": "", "n_predict": -1, "n_gpu_layers": 0, "temp": 1.0}
    tables = {
        "server": {"socket_addr": address},
        "chat": chat,
        "embedding": {**unused, "split_mode": "layer", "threads": n.threads},
        "tts": speech,
    }
    return tomli_w.dumps(tables)


def _gaianet(options: LlamaEdgeOptions, prompt: str, name: str, n: Numbers) -> str:
    """Flat, one key a line, all values strings without escapes: GaiaNet reads it with awk, not as JSON.

    Empty where the system prompt cannot be said that way. The embedding model is the one of its own default, since a
    node needs one.
    """
    chat = options.url or (name.replace("/", "-") + ".gguf")
    if not re.fullmatch(r'[^\s"\\\x00-\x1f\x7f]+', chat):
        raise UsageError(f"--url {chat!r} cannot stand in GaiaNet's config.json", "no quotes, backslashes or blanks")
    system = options.system or ""
    if _AWKWARD.search(system):
        return ""
    values = {
        "address": "",
        "description": f"{name}, by phitui",
        "domain": "gaia.domains",
        "llamaedge_port": str(options.port),
        "chat": chat,
        "chat_name": name,
        "chat_ctx_size": str(n.context),
        "chat_batch_size": str(n.batch),
        "chat_ubatch_size": str(n.ubatch),
        "prompt_template": prompt,
        "reverse_prompt": "",
        "system_prompt": system,
        "embedding": EMBEDDING,
        "embedding_name": "Nomic-embed-text-v1.5",
        "embedding_ctx_size": "8192",
        "embedding_batch_size": "8192",
        "embedding_ubatch_size": "8192",
        "snapshot": "",
        "embedding_collection_name": "default",
        "qdrant_limit": "1",
        "qdrant_score_threshold": "0.5",
        "rag_policy": "system-message",
        "rag_prompt": "",
        "context_window": "1",
    }
    return json.dumps(values, indent=4, ensure_ascii=False) + "\n"


def _script(about: str, program: str, words: Sequence[str]) -> str:
    """A script that runs in its own directory and says where the program comes from if it is not there."""
    lines: list[str] = []
    for word in map(shlex.quote, words):
        if lines and not word.startswith("--") and lines[-1].startswith("--") and " " not in lines[-1]:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    command = " \\\n  ".join([*lines, '"$@"'])
    return (
        f"#!/bin/sh\n# {about} Arguments of the script are added.\n"
        'cd -- "$(dirname -- "$0")" || exit\n'
        f"[ -f {program} ] || curl -fLO {RELEASES}/{program} || exit\n"
        f"exec {command}\n"
    )


def _gguf(path: Path, out: Path) -> str:
    """The path as it stands in --nn-preload: relative where the model lies beside the scripts. Raises UsageError."""
    named = f"./{path.name}" if path.parent.resolve() == out.resolve() else str(path.absolute())
    if ":" in named:
        raise UsageError(
            f"{named} cannot stand in wasmedge's --nn-preload, where a colon separates its parts",
            "rename the file or its directory",
        )
    return named


def _name(model: ExportModel, options: LlamaEdgeOptions) -> str:
    if not options.model_name:
        shard = _SHARD.fullmatch(model.path.name)
        stem = shard["stem"] if shard else model.path.name.removesuffix(".gguf")
        return re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip("-._") or "model"
    if not _NAME.fullmatch(options.model_name):
        raise UsageError(
            f"--model-name {options.model_name!r} cannot be a model's name in LlamaEdge",
            "letters, digits and . _ / -, a letter or digit first (a comma would separate two models)",
        )
    return options.model_name


def _address(options: LlamaEdgeOptions) -> str:
    """IP:PORT: a name, also localhost, is no socket address. Raises UsageError."""
    import ipaddress

    try:
        address = ipaddress.ip_address(options.host)
    except ValueError:
        raise UsageError(f"--host {options.host!r} is no IP address", "LlamaEdge takes no names: 127.0.0.1") from None
    return f"[{address}]:{options.port}" if address.version == 6 else f"{address}:{options.port}"


def _notes(model: ExportModel, options: LlamaEdgeOptions, prompt: str, n: Numbers) -> list[str]:
    facts, notes = model.facts, ["LlamaEdge has its own prompt templates and never reads the one in the GGUF"]
    fits = {"phi-2": "phi-2-", "phi-3": "phi-3-", "phi-4": "phi-4-", "phi-4-mini": "phi-3-", "chatml": "chatml"}
    if not prompt.startswith(fits.get(facts.chat_format, "none")):
        notes.append(f"{prompt} is not made for the chat format of this model ({facts.chat_format})")
    elif facts.chat_format == "phi-4-mini":
        notes.append(f"it has none for Phi-4-mini: {prompt} adds line breaks that the model was not trained with")
    if "<think>" in model.chat_template:
        notes.append("it has none for the reasoning models: their fixed system text is missing, --system can give it")
    if "tool" in model.chat_template:
        notes.append("its templates for these models know no tools")
    if prompt in LAST_ONLY:
        notes.append(f"{prompt} shows the model the last message only: a conversation is not remembered")
    if options.system and prompt not in WITH_SYSTEM:
        notes.append(f"{prompt} has no place for a system prompt: it is left out")
    elif options.system:
        notes.append("llama-api-server takes no system prompt at its start: send it with each request")
    if options.temperature is not None and options.top_p is not None:
        notes.append("llama-chat takes only one of --temp and --top-p: --temp it is; the server takes both")
    if options.threads is None and n.layers == 0:
        notes.append("2 threads, LlamaEdge's own default: --threads gives more")
    switch = facts.rope.original_context
    if switch and n.context > switch:
        notes.append(f"a context above {switch} runs the model with its long rope factors, also for short prompts")
    elif facts.context_length > n.context:
        notes.append(f"the context is {n.context} of {facts.context_length} tokens: --ctx gives more, for more memory")
    return notes


def _readme(run: tuple[str, ...], notes: list[str], gaianet: bool) -> str:
    enter, fetch, chat, server = run
    parts = [
        "# LlamaEdge",
        "WasmEdge with its GGML plugin runs it: https://wasmedge.org/docs/start/install",
        f"Once:\n\n```sh\n{enter}\n{fetch}\n```",
        f"Talk to it (`sh {CHAT}` does the same):\n\n```sh\n{chat}\n```",
        f"Serve it (`sh {SERVER}`, or `sh {TOML_SERVER}` with the settings in {TOML}):\n\n```sh\n{server}\n```",
        *(
            [f"In a GaiaNet node: {GAIANET} is the config.json of its directory, then `gaianet init`."]
            if gaianet
            else []
        ),
        "\n".join(f"- {note}" for note in notes),
    ]
    return "\n\n".join(parts) + "\n"
