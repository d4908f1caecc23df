"""Commands that plugins offer, rendered like phitui's own."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import click

from phitui.actions.context import Context
from phitui.actions.facade import Facade
from phitui.cli import flags, output
from phitui.domain.offers import Command
from phitui.domain.options import build
from phitui.errors import Cancelled
from phitui.plugins import require


def offered_command(context: Context, offer: Command) -> click.Command:
    """The click command of a plugin's command offer."""

    @click.command(offer.name, help=offer.title)
    @output.json_flag
    def run(as_json: bool, **values: Any) -> int | None:
        require(offer)
        say = output.say if as_json else output.speak
        announced: list[Mapping[str, Any]] = []

        def announce(document: Mapping[str, Any]) -> None:
            if as_json and not announced:
                output.emit(document, as_json)
                sys.stdout.flush()
            announced.append(document)

        options = build(offer.options, flags.given(offer.options, values))
        try:
            document = offer.run(Facade(context, announce), options, say)
        except Cancelled as error:
            if not announced:
                raise
            output.say(error.message)  # its one document is out; what ends it is no failure
            return error.exit_code
        if not announced:
            announce(document)
        return None

    return flags.with_options(run, [offer.options])
