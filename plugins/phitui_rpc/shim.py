"""Runs llama.cpp's own worker as a child: `python -P -m phitui_rpc.shim PROGRAM ARGUMENTS...`.

It ends it when its standard input ends: the program itself would not notice that phitui was killed, and go on lending.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading


def main(command: list[str]) -> int:
    """The program's exit code, 128 + N for signal N."""
    program = subprocess.Popen(command, stdin=subprocess.DEVNULL)

    def watch() -> None:
        while os.read(0, 1):
            pass
        program.kill()

    threading.Thread(target=watch, daemon=True).start()
    code = program.wait()
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    os._exit(main(sys.argv[1:]))
