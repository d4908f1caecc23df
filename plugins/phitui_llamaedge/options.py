"""What a person can say about an export to LlamaEdge, and what it has built in for Phi."""

from __future__ import annotations

from dataclasses import dataclass

from phitui.api import ModelFacts, UsageError, option

PROMPTS = ("phi-2-instruct", "phi-2-chat", "phi-3-instruct", "phi-3-chat", "phi-4-chat", "chatml")
"""The prompt templates of LlamaEdge for Phi, which are all there are, and that of ChatML."""
FOR_FORMAT = {
    "phi-2": "phi-2-instruct",
    "phi-3": "phi-3-chat",
    "phi-4": "phi-4-chat",
    "phi-4-mini": "phi-3-chat",
    "chatml": "chatml",
}
WITH_SYSTEM = ("phi-3-chat", "phi-4-chat", "chatml")
LAST_ONLY = ("phi-2-instruct", "phi-3-instruct")
"""Templates that only show the model the last message."""
DEFAULT_CONTEXT = 4096
"""Up to here Phi's longrope models use their short factors. llama-chat itself would take 512."""
ALL_LAYERS = 100
"""LlamaEdge's own default of --n-gpu-layers: more than any Phi has. It knows no -1."""


@dataclass(frozen=True)
class LlamaEdgeOptions:
    """Everything else stays as LlamaEdge has it."""

    model_name: str = option("", help="name of the model in LlamaEdge's API")
    prompt_template: str = option(
        "auto", choices=("auto", *PROMPTS), help="LlamaEdge's prompt template; auto: by the model's chat format"
    )
    context: int | None = option(
        None, flag="--ctx", words={"max": -1}, help="context in tokens; max: the most there is"
    )
    layers: int | None = option(
        None, words={"auto": None, "all": -1}, help="layers to offload; auto: as the program does by itself"
    )
    host: str = option("127.0.0.1", help="address to listen on")
    port: int = option(8080, help="port to listen on", minimum=1, maximum=65535)
    batch: int = option(512, help="logical batch, tokens", minimum=1, advanced=True)
    ubatch: int = option(512, help="physical batch, tokens", minimum=1, advanced=True)
    threads: int | None = option(None, help="CPU threads", minimum=1, advanced=True)
    system: str | None = option(None, help='system prompt; "" for none')
    temperature: float | None = option(None, help="randomness of the answers, 0 for none", minimum=0)
    top_p: float | None = option(None, help="share of probability to pick tokens from", minimum=0, maximum=1)
    repeat_penalty: float | None = option(None, help="penalty of repeated tokens, 1 for none", minimum=0, advanced=True)
    num_predict: int | None = option(None, help="longest answer in tokens, -1 until a stop", minimum=-1, advanced=True)
    url: str = option("", help="where a GaiaNet node can download the GGUF, for its config.json", advanced=True)


@dataclass(frozen=True)
class Numbers:
    """The options with nothing left open."""

    context: int
    layers: int
    batch: int
    ubatch: int
    threads: int
    predict: int
    temperature: float
    top_p: float
    repeat_penalty: float


def numbers(options: LlamaEdgeOptions, facts: ModelFacts) -> Numbers:
    """Raises UsageError for what this model or LlamaEdge cannot do."""
    limit, context = facts.context_length, options.context
    if context is not None and context != -1 and (context < 1 or (limit and context > limit)):
        raise UsageError(f"--ctx {context}: the model has {limit} tokens", f"1 to {limit}, or max")
    if context == -1 and not limit:
        raise UsageError("--ctx max: the model does not say its context", "--ctx with a number of tokens")
    layers = options.layers
    if layers is not None and (layers < -1 or (facts.layers and layers > facts.layers + 1)):
        raise UsageError(
            f"--layers {layers}: the model has {facts.layers} layers and the output layer",
            f"0 to {facts.layers + 1}, all or auto",
        )
    if options.ubatch > options.batch:
        raise UsageError(f"--ubatch {options.ubatch} is more than --batch {options.batch}", "the same or less")
    chosen = limit if context == -1 else context or min(DEFAULT_CONTEXT, limit or DEFAULT_CONTEXT)
    return Numbers(
        chosen,
        ALL_LAYERS if layers in (None, -1) else layers or 0,
        options.batch,
        options.ubatch,
        options.threads or 2,
        -1 if options.num_predict is None else options.num_predict,
        1.0 if options.temperature is None else float(options.temperature),
        1.0 if options.top_p is None else float(options.top_p),
        1.1 if options.repeat_penalty is None else float(options.repeat_penalty),
    )


def prompt_for(options: LlamaEdgeOptions, facts: ModelFacts) -> str:
    """The prompt template. Raises UsageError for a chat format that LlamaEdge has no Phi template for."""
    if options.prompt_template != "auto":
        return options.prompt_template
    if facts.chat_format not in FOR_FORMAT:
        raise UsageError(
            f"LlamaEdge has no prompt template of Phi for the chat format {facts.chat_format}",
            f"--prompt-template takes one anyway: {', '.join(PROMPTS)}",
        )
    return FOR_FORMAT[facts.chat_format]
