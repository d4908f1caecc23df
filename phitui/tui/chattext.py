"""What the Chat place says of an answer's figures and of an engine that stopped."""

from __future__ import annotations

from collections.abc import Sequence

from textual.content import Content

from phitui.domain.chat import ChatStats
from phitui.errors import ContextFull, DoesNotFit, EngineError, PhituiError
from phitui.tui import format as show
from phitui.tui.text import lines, styled

LOG_LINES = 6
"""Lines of the engine's log that are shown when it died."""


def explained(error: PhituiError, lost: Sequence[str] = ()) -> Content:
    """What happened, what to do, and the end of the engine's log."""
    parts: list[Content | str] = [styled(error.message, "$error bold")]
    parts += [styled(error.hint)] if error.hint else []
    if isinstance(error, DoesNotFit):
        parts.append(styled("L loads it all the same", "$accent"))
    elif isinstance(error, ContextFull):
        parts.append(styled("d leaves out the oldest questions and asks again; they stay saved", "$accent"))
        parts.append(styled("3 Plan gives it a larger context; ctrl+n begins a new conversation", "$accent"))
    elif not isinstance(error, EngineError):
        parts.append(styled("r asks once more; the conversation is kept", "$accent"))
    else:
        parts.append(styled("r starts it again and asks once more; the conversation is kept", "$accent"))
    if lost:
        parts.append(styled(f"w does so without {' and '.join(lost)}", "$accent"))
    if isinstance(error, EngineError) and error.log_tail:
        tail = error.log_tail.splitlines()[-LOG_LINES:]
        parts += ["", lines(tail).stylize("$muted")]
    return lines(parts)


def stopped(error: PhituiError) -> Content:
    """The state line after a failure."""
    if isinstance(error, ContextFull):
        return styled("the context is full", "$error") + styled(" · d leaves out the oldest questions", "$muted")
    if isinstance(error, DoesNotFit):
        return styled("not loaded", "$error") + styled(" · L loads it all the same, 3 Plan finds what fits", "$muted")
    if not isinstance(error, EngineError):
        return styled("no answer", "$error") + styled(" · r tries again", "$muted")
    return styled("the engine stopped", "$error") + styled(" · r restart", "$muted")


def figures(stats: ChatStats, width: int, forgotten: int = 0) -> Content:
    """The last answer in numbers; `forgotten` questions are not read by the model any more."""
    used = stats.context_used / stats.context if stats.context else 0.0
    reasons = {"length": "cut at the limit", "cancelled": "stopped"}
    parts = [
        f"{stats.decode_tokens_per_s:.1f} tokens/s",
        f"{stats.completion_tokens} tokens",
        f"prompt {stats.prompt_tokens} ({stats.evaluated_tokens} new)" if width >= 100 else "",
        reasons.get(stats.finish_reason, ""),
        f"{forgotten} oldest left out" if forgotten else "",
    ]
    meter = f"context {stats.context_used}/{stats.context} {show.bar(used, 10)}"
    left = styled(" · ".join(part for part in parts if part), "$muted")
    right = styled(meter, "$warning" if used > 0.85 else "$muted")
    return left + " " * max(2, width - 2 - left.cell_length - right.cell_length) + right
