"""`phitui gguf`: split, merge and edit GGUF files."""

from __future__ import annotations

import click

from phitui.actions.context import Context


def command(context: Context) -> click.Command:
    @click.group("gguf")
    def gguf() -> None:
        """Split, merge and edit GGUF files without quantizing them again."""

    return gguf
