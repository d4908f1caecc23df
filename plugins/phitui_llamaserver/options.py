"""What a person can say about a llama-server, and the flags it comes to."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from phitui.api import ModelFacts, UsageError, option

KV_TYPES = ("f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl")
LOOPBACK = ("127.0.0.1", "localhost", "::1")
DEFAULT_CONTEXT = 4096
"""Up to here Phi's longrope models use their short factors."""
_HOST = re.compile(r"[A-Za-z0-9][A-Za-z0-9.-]*|[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*")
_WORKER = re.compile(r"([A-Za-z0-9][A-Za-z0-9.-]*|\[[0-9A-Fa-f:.]+\]):\d{1,5}")


@dataclass(frozen=True)
class Serving:
    """How a model is served. Everything else stays as llama-server has it."""

    alias: str = option("", help="name of the model in the server's API")
    host: str = option("127.0.0.1", help="address to listen on")
    port: int = option(8080, help="port to listen on", minimum=1, maximum=65535)
    context: int | None = option(
        None, flag="--ctx", words={"max": -1}, help="context in tokens; max: the most there is"
    )
    layers: int | None = option(
        None, words={"auto": None, "all": -1}, help="layers to offload; auto: as the program does by itself"
    )
    parallel: int | None = option(None, help="requests at a time, which share the context", minimum=1, maximum=256)
    kv_type: str = option("f16", choices=KV_TYPES, help="type of the KV cache", advanced=True)
    flash_attention: bool | None = option(
        None, flag="--flash-attn", words={"auto": None, "on": True, "off": False}, help="flash attention", advanced=True
    )
    n_cpu_moe: int | None = option(None, help="layers whose experts stay in RAM", minimum=0, advanced=True)
    tensor_split: tuple[float, ...] = option(
        (), joined=True, help="parts of the layers for each device, such as 3,1", minimum=0, advanced=True
    )
    rpc: tuple[str, ...] = option((), help="HOST:PORT of an RPC worker to use. Repeatable.", advanced=True)
    threads: int | None = option(None, help="CPU threads", minimum=1, advanced=True)
    temperature: float | None = option(None, help="randomness of the answers, 0 for none", minimum=0, advanced=True)
    top_p: float | None = option(
        None, help="share of probability to pick tokens from", minimum=0, maximum=1, advanced=True
    )
    top_k: int | None = option(None, help="number of tokens to pick from, 0 for all", minimum=0, advanced=True)
    min_p: float | None = option(
        None, help="least share of the best token's probability", minimum=0, maximum=1, advanced=True
    )
    repeat_penalty: float | None = option(None, help="penalty of repeated tokens, 1 for none", minimum=0, advanced=True)
    num_predict: int | None = option(None, help="longest answer in tokens, -1 until a stop", minimum=-1, advanced=True)
    api_key_file: Path | None = option(
        None, help="file with the keys that clients must have, one a line", advanced=True
    )
    program: str = option("llama-server", help="the llama-server to start, if it is not on the PATH", advanced=True)


@dataclass(frozen=True)
class ServerOptions(Serving):
    """And what only the exported files need."""

    image: str = option(
        "server",
        help="llama.cpp's container image for the compose file",
        choices=("server", "server-cuda", "server-rocm", "server-vulkan", "server-intel"),
    )


def checked(options: Serving, facts: ModelFacts) -> None:
    """Raise UsageError for what this model or llama-server cannot do."""
    limit = facts.context_length
    if options.context is not None and options.context != -1 and options.context < 1:
        raise UsageError(f"--ctx {options.context} is no context", f"1 to {limit or 'what the model has'}, or max")
    if options.layers is not None and options.layers < -1:
        raise UsageError(f"--layers {options.layers} is no number of layers", "0 or more, all or auto")
    if options.context is not None and limit and options.context > limit:
        raise UsageError(
            f"--ctx {options.context} is more than the model's {limit} tokens", f"--ctx {limit} or less, or --ctx max"
        )
    if options.layers is not None and facts.layers and options.layers > facts.layers + 1:
        raise UsageError(
            f"--layers {options.layers} is more than the model has",
            f"{facts.layers} layers and the output layer: --layers {facts.layers + 1}, or --layers all",
        )
    wrong = next((worker for worker in options.rpc if not _WORKER.fullmatch(worker)), None)
    if wrong is not None:
        raise UsageError(f"--rpc {wrong!r} is not HOST:PORT", "for example: --rpc 127.0.0.1:50052")
    if not _HOST.fullmatch(options.host):
        raise UsageError(f"--host {options.host!r} is no address", "for example: --host 127.0.0.1")
    if options.program.startswith("-") or not options.program.strip():
        raise UsageError(f"--program {options.program!r} is no program", "its name or its path")


def context_of(options: Serving, facts: ModelFacts) -> int | None:
    """Tokens of context; None where the server is to take the most that fits."""
    if options.context == -1:
        return None
    limit = facts.context_length or DEFAULT_CONTEXT
    return options.context if options.context is not None else min(DEFAULT_CONTEXT, limit)


def settings(options: Serving, facts: ModelFacts, template: str) -> dict[str, str]:
    """How the model is loaded and sampled: long flags of llama-server without dashes, as text, in its order.

    `template` is the name of a chat template that llama.cpp has built in; "" for the model's own.
    """
    layers = {None: None, -1: "all"}.get(options.layers, options.layers)
    quantized = options.kv_type != "f16"
    values = {
        "ctx-size": context_of(options, facts),
        "n-gpu-layers": layers,
        "n-cpu-moe": options.n_cpu_moe,
        "rpc": ",".join(options.rpc) or None,
        "tensor-split": ",".join(f"{part:g}" for part in options.tensor_split) or None,
        "cache-type-k": options.kv_type if quantized else None,
        "cache-type-v": options.kv_type if quantized else None,
        "flash-attn": {None: None, True: "on", False: "off"}[options.flash_attention],
        "parallel": options.parallel,
        "threads": options.threads,
        "chat-template": template or None,
        "temp": options.temperature,
        "top-p": options.top_p,
        "top-k": options.top_k,
        "min-p": options.min_p,
        "repeat-penalty": options.repeat_penalty,
        "n-predict": options.num_predict,
    }
    return {
        name: f"{value:g}" if isinstance(value, float) else str(value)
        for name, value in values.items()
        if value is not None
    }


def flags(values: dict[str, str]) -> list[str]:
    """The same as a command line."""
    return [part for name, value in values.items() for part in (f"--{name}", value)]
