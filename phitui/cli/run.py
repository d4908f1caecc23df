"""`phitui run`: make again what a recipe describes."""

from __future__ import annotations

import click

from phitui.actions.context import Context
from phitui.errors import UsageError


def command(context: Context) -> click.Command:
    @click.command("run")
    @click.argument("recipe", type=click.Path())
    def run(recipe: str) -> None:
        """Carry out RECIPE, the TOML file that phitui writes beside every model it makes."""
        raise UsageError(f"{recipe} cannot be run yet")

    return run
