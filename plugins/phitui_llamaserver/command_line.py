"""The command line of a llama-server with a model, and how to ask it something."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

from phitui.api import ExportModel, UsageError
from phitui_llamaserver.options import Serving, flags

BUILT_IN = {"phi-3": "phi3", "phi-4": "phi4", "chatml": "chatml"}
"""Chat templates that llama.cpp has built in, by chat format."""
_SHARD = re.compile(r"(?P<stem>.+)-\d{5}-of-\d{5}\.gguf")
_ALIAS = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]*")


def template_for(model: ExportModel) -> str:
    """The built-in chat template for a model that brings none of its own; "" for the model's own or llama.cpp's."""
    return "" if model.chat_template else BUILT_IN.get(model.facts.chat_format, "")


def command(model: Path, alias: str, values: dict[str, str], options: Serving) -> list[str]:
    """The whole command line."""
    where = ["--host", options.host, "--port", str(options.port)]
    keys = ["--api-key-file", str(options.api_key_file.absolute())] if options.api_key_file else []
    return [options.program, "--model", str(model), "--alias", alias, *where, *keys, *flags(values)]


def url(host: str, port: int) -> str:
    """The address for a client on this machine."""
    seen = "127.0.0.1" if host == "0.0.0.0" else "::1" if host == "::" else host  # noqa: S104  (what others would type)
    return f"http://[{seen}]:{port}" if ":" in seen else f"http://{seen}:{port}"


def question(host: str, port: int, alias: str) -> str:
    """A first question to the server, as a line for a shell."""
    asked = json.dumps({"model": alias, "messages": [{"role": "user", "content": "Why is the sky blue?"}]})
    return f"curl {url(host, port)}/v1/chat/completions -H 'Content-Type: application/json' -d {shlex.quote(asked)}"


def alias_of(model: ExportModel, options: Serving) -> str:
    """The name in the API, which is also the section of a preset. Raises UsageError for one they cannot hold."""
    if not options.alias:
        shard = _SHARD.fullmatch(model.path.name)
        stem = shard["stem"] if shard else model.path.name.removesuffix(".gguf")
        made = re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip("-._")
        return "model" if made in ("", "default") else made
    if not _ALIAS.fullmatch(options.alias) or options.alias == "default":
        raise UsageError(
            f"--alias {options.alias!r} cannot be a model's name here",
            "letters, digits and . _ / -, a letter or digit first, and not the word default",
        )
    return options.alias
