"""Dispatch and the one place where errors become text, JSON and exit codes."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence

import click

from phitui import __version__
from phitui.actions.context import Context
from phitui.cli import output
from phitui.config import paths
from phitui.errors import Cancelled, PhituiError

COMMANDS = {
    "models": "what is on this machine, and the catalogue",
    "inspect": "facts of one model, from its header or config alone",
    "pull": "download a checkpoint or GGUF from the Hub",
    "build": "convert and quantize in one pass",
    "schemes": "quantization schemes; with a source, exact sizes",
    "eval": "quality and speed of a model, measured",
    "imatrix": "importance matrix for low-bit schemes",
    "gguf": "split, merge and edit GGUF files",
    "run": "make again what a recipe describes",
    "plan": "which layers fit where",
    "chat": "talk to a model",
    "chats": "saved conversations: search, show, export",
    "export": "write files for Ollama and other programs",
    "jobs": "running, finished and interrupted work",
    "plugins": "loaded plugins, and why others failed",
    "doctor": "what the engine can use, and how to install the rest",
}


class Commands(click.Group):
    """Loads a command's module when it is called; commands of plugins come after phitui's own."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*COMMANDS, *(offer.name for offer in _context(ctx).registry.commands if offer.name not in COMMANDS)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in COMMANDS:
            command: click.Command = importlib.import_module(f"phitui.cli.{cmd_name}").command(_context(ctx))
            return command
        for offer in _context(ctx).registry.commands:
            if offer.name == cmd_name:
                from phitui.cli.offered import offered_command

                return offered_command(_context(ctx), offer)
        return None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        rows = list(COMMANDS.items())
        rows += [(o.name, o.title) for o in _context(ctx).registry.commands if o.name not in COMMANDS]
        with formatter.section("Commands"):
            formatter.write_dl(rows)


def _context(ctx: click.Context) -> Context:
    context: Context = ctx.ensure_object(Context)
    return context


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="phitui", message="%(prog)s %(version)s")
def phitui() -> None:
    """Take a Phi model from a Hugging Face checkpoint to a quantized, running and exported local model.

    Without a command, starts the terminal app.
    """


def run(arguments: Sequence[str]) -> int:
    """Run the command line and turn every outcome into an exit code."""
    as_json = "--json" in arguments
    try:
        result = phitui.main(list(arguments), prog_name="phitui", standalone_mode=False)
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (click.exceptions.Abort, KeyboardInterrupt):
        return output.failure(Cancelled(), as_json)
    except click.ClickException as error:
        return output.click_failure(error, as_json)
    except PhituiError as error:
        return output.failure(error, as_json)
    except Exception as error:
        from phitui.crash import unexpected

        return output.failure(unexpected(error, paths().state), as_json)
    return result if isinstance(result, int) else 0
