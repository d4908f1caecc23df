"""What a person can say about an export to Ollama."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path

from phitui.api import UsageError, option
from phitui_ollama.modelfile import ROLES, Command
from phitui_ollama.parameters import parse_all, validated

FORMATS = ("phi-2", "phi-3", "phi-4", "phi-4-reasoning", "phi-4-mini", "phi-4-mini-reasoning", "chatml")
DEFAULT_CONTEXT = 4096
"""What Ollama itself takes on most machines; up to here Phi's longrope models use their short factors."""


@dataclass(frozen=True)
class OllamaOptions:
    """Fields that are called like a parameter of Ollama become that PARAMETER."""

    name: str = option("", help="name of the model in Ollama, [NAMESPACE/]NAME[:TAG]")
    system: str | None = option(None, help='system prompt; "" for none')
    num_ctx: int | None = option(
        None, help=f"context length in tokens, {DEFAULT_CONTEXT} if not given", minimum=1, planned="context"
    )
    num_gpu: int | None = option(
        None, help="layers on the GPU; the output layer counts, so all is layers + 1", minimum=-1, planned="layers"
    )
    temperature: float | None = option(None, help="randomness of the answers, 0 for none", minimum=0)
    top_p: float | None = option(None, help="share of probability to pick tokens from", minimum=0, maximum=1)
    top_k: int | None = option(None, help="number of tokens to pick from, 0 for all", minimum=0, advanced=True)
    min_p: float | None = option(
        None, help="least share of the best token's probability", minimum=0, maximum=1, advanced=True
    )
    repeat_penalty: float | None = option(None, help="penalty of repeated tokens, 1 for none", minimum=0, advanced=True)
    num_predict: int | None = option(None, help="longest answer in tokens, -1 until a stop", minimum=-2, advanced=True)
    seed: int | None = option(None, help="seed of the random numbers", minimum=-1, advanced=True)
    num_thread: int | None = option(None, help="CPU threads, 0 for automatic", minimum=0, advanced=True)
    stop: tuple[str, ...] = option((), help="a further text that ends an answer; repeatable", advanced=True)
    parameter: tuple[str, ...] = option((), help="any other PARAMETER as NAME=VALUE; repeatable", advanced=True)
    message: tuple[str, ...] = option((), help="an example turn as ROLE: TEXT; repeatable", advanced=True)
    license_file: Path | None = option(None, help="file with the text of the license", advanced=True)
    format: str = option(
        "auto", help="chat format, if the model's own is not recognised", choices=("auto", *FORMATS), advanced=True
    )


NUMBERS = tuple(
    field.name
    for field in fields(OllamaOptions)
    if field.name not in ("name", "system", "stop", "parameter", "message", "license_file", "format")
)


def parameters(options: OllamaOptions, stops: tuple[str, ...]) -> list[Command]:
    """PARAMETER commands: the numbers sorted by name (the last one said wins), then all stops, each once."""
    numbers: dict[str, str] = {}
    for name in NUMBERS:
        value = getattr(options, name)
        if value is not None:
            numbers[name] = validated(name, str(value))
    extra = list(options.stop)
    for name, text in parse_all(options.parameter):
        if name == "stop":
            extra.append(text)
        else:
            numbers[name] = text
    numbers.setdefault("num_ctx", str(DEFAULT_CONTEXT))
    commands = [Command("parameter", value, name) for name, value in sorted(numbers.items())]
    return commands + [Command("parameter", text, "stop") for text in dict.fromkeys((*stops, *extra))]


def messages(options: OllamaOptions) -> list[Command]:
    """MESSAGE commands. Raises UsageError for one that is not ROLE: TEXT."""
    commands = []
    for text in options.message:
        role, found, content = text.partition(":")
        if not found or role.strip() not in ROLES:
            raise UsageError(f"--message {text!r} is not ROLE: TEXT", f"roles: {', '.join(ROLES)}")
        commands.append(Command("message", content.strip(), role.strip()))
    return commands
