"""Commands that plugins offer, rendered like phitui's own."""

from __future__ import annotations

from typing import Any

import click

from phitui.actions.context import Context
from phitui.actions.facade import Facade
from phitui.cli import flags, output
from phitui.domain.offers import Command
from phitui.domain.options import build
from phitui.plugins import require


def offered_command(context: Context, offer: Command) -> click.Command:
    """The click command of a plugin's command offer."""

    @click.command(offer.name, help=offer.title)
    @output.json_flag
    def run(as_json: bool, **values: Any) -> None:
        require(offer)
        say = output.say if as_json else output.speak
        document = offer.run(Facade(context), build(offer.options, flags.given(offer.options, values)), say)
        if as_json:
            output.emit(document, as_json)

    return flags.with_options(run, [offer.options])
