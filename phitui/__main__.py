"""The entrance: `phitui`, and `python -m phitui`. Without arguments it starts the terminal app."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from phitui.actions.context import Context


def main(argv: Sequence[str] | None = None) -> int:
    """Run phitui; returns the exit code (see phitui.cli)."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments == ["--version"]:
        from phitui import __version__

        sys.stdout.write(f"phitui {__version__}\n")
        return 0
    from phitui.cli.run import run

    return run(arguments, _terminal_app)


def _terminal_app(context: Context) -> None:
    from phitui.tui.app import start

    start(context)


if __name__ == "__main__":
    sys.exit(main())
