"""Files that are not built yet, as models to plan: what a checkpoint, here or on the Hub, would become."""

from __future__ import annotations

from pathlib import Path

from phitui.actions import models
from phitui.actions.context import Context
from phitui.domain.text import visible
from phitui.errors import UsageError


def is_checkpoint(ctx: Context, source: str) -> bool:
    """Whether `source` is a checkpoint directory, the name of one in the library, or a repository of the Hub."""
    path = Path(source).expanduser()
    if path.exists():
        return path.is_dir()
    artifact = models.named(ctx, source)
    return artifact.kind == "checkpoint" if artifact else models.is_hub_id(source)


def planned_file(ctx: Context, source: str, scheme: str) -> Path:
    """A GGUF without data, with the sizes of what `source` would become: planning needs no more.

    Raises what a build would raise.
    """
    if not scheme:
        raise UsageError(
            f"{visible(source)} is a checkpoint, which no engine loads", "say what it is to become: --scheme Q4_K_M"
        )
    from phitui.actions.build import BuildRequest, preview
    from phitui.actions.standin import stand_in_of

    return stand_in_of(preview(ctx, BuildRequest(source, scheme)))
