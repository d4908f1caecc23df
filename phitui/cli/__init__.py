"""The command line: thin commands over phitui.actions. `phitui` alone starts the terminal app.

Exit codes are a contract: 0 done, 1 failed, 2 usage, 130 cancelled. With --json, stdout carries one JSON document and
nothing else; progress and notes go to stderr.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Run phitui; returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments == ["--version"]:
        from phitui import __version__

        sys.stdout.write(f"phitui {__version__}\n")
        return 0
    from phitui.cli.run import run

    return run(arguments)
