"""What a person can choose about an evaluation."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from phitui.api import option


@dataclass(frozen=True)
class JudgeOptions:
    """Defaults are llama-perplexity's, so that figures can be compared."""

    text: Path | None = option(None, help="text to evaluate on; a short text of phitui's own if not given")
    reference: Path | None = option(None, help="GGUF to compare with, usually the BF16 or F16 one")
    chunks: int | None = option(None, help="chunks of text to evaluate; all of the text if not given", minimum=1)
    ctx: int = option(512, help="tokens in a chunk; the second half of each is scored", minimum=16, maximum=1 << 20)
    tolerance: float | None = option(
        None,
        help="stop as soon as the standard error is at most this part of the value, such as 0.02: "
        "of the KL divergence if there is a reference, else of the perplexity",
        minimum=0.0,
    )
    speed: bool = option(True, help="measure prompt and decode speed too")
    threads: int | None = option(None, help="threads; all cores if not given", minimum=1, maximum=1024)
    layers: int = option(-1, help="layers on the GPU; -1 is all that llama.cpp can put there", minimum=-1)
    journal: Path | None = option(
        None, help="file for the chunks that are done, so that a stopped evaluation goes on from there", advanced=True
    )
