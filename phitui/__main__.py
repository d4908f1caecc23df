"""The entrance: `phitui`, and `python -m phitui`. Without arguments it starts the terminal app."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from phitui.errors import PhituiError


def main(argv: Sequence[str] | None = None) -> int:
    """Run phitui; returns the exit code (see phitui.cli)."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments:
        return _terminal_app()
    if arguments == ["--version"]:
        from phitui import __version__

        sys.stdout.write(f"phitui {__version__}\n")
        return 0
    from phitui.cli.dispatch import run

    return run(arguments)


def _terminal_app() -> int:
    """Start the app without the modules of the command line, which would cost a third of its start."""
    from phitui.actions.context import Context
    from phitui.errors import Cancelled, PhituiError

    context = Context()
    try:
        from phitui.tui.app import start

        start(context)
    except KeyboardInterrupt:
        return Cancelled.exit_code
    except PhituiError as error:
        return _failure(error)
    except Exception as error:
        from phitui.crash import unexpected

        return _failure(unexpected(error, context.paths.state))
    return 0


def _failure(error: PhituiError) -> int:
    from phitui.cli import output

    return output.failure(error, False)


if __name__ == "__main__":
    sys.exit(main())
