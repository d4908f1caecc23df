"""What a person can say about an export to LM Studio."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from phitui.api import ModelFacts, UsageError, option

_FORBIDDEN = '/<>:"\\|?*'
_LONGEST = 100
DEFAULT_CONTEXT = 4096


@dataclass(frozen=True)
class LMStudioOptions:
    """The last ones go into the preset, where they are given."""

    publisher: str = option("local", help="folder of the publisher, as LM Studio shows it")
    repo: str = option("", help="folder of the model in it; the file's name if not given")
    models: Path | None = option(None, help="LM Studio's models folder; found by itself if not given")
    identifier: str = option("", help="name of the loaded model in LM Studio's API", advanced=True)
    context: int | None = option(
        None, flag="--ctx", words={"max": -1}, help="context in tokens; max: the most there is"
    )
    layers: int | None = option(
        None,
        words={"auto": None, "all": -1},
        help="layers to offload; auto: as the program does by itself",
    )
    system: str | None = option(None, help='system prompt; "" for none')
    temperature: float | None = option(None, help="randomness of the answers, 0 for none", minimum=0)
    top_p: float | None = option(None, help="share of probability to pick tokens from", minimum=0, maximum=1)
    top_k: int | None = option(None, help="number of tokens to pick from, 0 for all", minimum=0, advanced=True)
    min_p: float | None = option(
        None, help="least share of the best token's probability", minimum=0, maximum=1, advanced=True
    )
    repeat_penalty: float | None = option(None, help="penalty of repeated tokens, 1 for none", minimum=0, advanced=True)
    num_predict: int | None = option(None, help="longest answer in tokens, -1 until a stop", minimum=-1, advanced=True)
    stop: tuple[str, ...] = option((), help="a further text that ends an answer; repeatable", advanced=True)


def folder_name(flag: str, value: str) -> str:
    """A folder name that LM Studio takes. Raises UsageError."""
    bad = next((each for each in value if each in _FORBIDDEN or not each.isprintable()), "")
    if not value or len(value) > _LONGEST or value.strip(". ") != value or value[0] == "-" or bad:
        why = (
            f"it contains {bad!r}" if bad else f"1 to {_LONGEST} characters, no dot or blank at its ends, no dash first"
        )
        raise UsageError(f"{flag} {value!r} cannot be a folder of LM Studio: {why}", f"for example: {flag} phi")
    return value


def made_folder(text: str) -> str:
    """A folder name for this text."""
    kept = "".join("-" if each in _FORBIDDEN or not each.isprintable() else each for each in text)
    return kept[:_LONGEST].strip(". -") or "model"


def context_of(options: LMStudioOptions, facts: ModelFacts) -> int:
    """Tokens of context. Raises UsageError for more than the model has."""
    limit, asked = facts.context_length, options.context
    if asked == -1 and limit:
        return limit
    if asked is None:
        return min(DEFAULT_CONTEXT, limit or DEFAULT_CONTEXT)
    if asked < 1 or (limit and asked > limit):
        raise UsageError(f"--ctx {asked}: the model has {limit} tokens", f"1 to {limit}, or max")
    return asked


def ratio(layers: int | None, facts: ModelFacts) -> str | None:
    """What `lms load --gpu` takes for so many layers (-1: all); None where LM Studio is to choose.

    phitui counts the output layer, LM Studio's share is of the others. How it rounds is not known.
    """
    if layers is None:
        return None
    total = facts.layers
    if layers < -1 or (total and layers > total + 1):
        raise UsageError(f"--layers {layers}: the model has {total} layers and the output layer", f"0 to {total + 1}")
    if layers == 0:
        return "off"
    if layers == -1 or not total or layers >= total:
        return "max"
    return f"{layers / total:.4f}".rstrip("0")
