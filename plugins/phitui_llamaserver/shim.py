"""Runs a server as a child: `python -P -m phitui_llamaserver.shim PROGRAM ARGUMENTS...`.

It ends it when its standard input ends: that is how it learns that phitui was killed, which the server would not.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading

_GRACE = 5.0
"""Seconds that the server has to end by itself."""


def main(command: list[str]) -> int:
    """The server's exit code, 128 + N for signal N."""
    try:
        server = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    except OSError as error:
        print(f"cannot start {command[0]}: {error.strerror}", file=sys.stderr, flush=True)  # noqa: T201  (to the log)
        return 127

    def watch() -> None:
        while os.read(0, 1):
            pass
        server.terminate()
        try:
            server.wait(_GRACE)
        except subprocess.TimeoutExpired:
            server.kill()

    threading.Thread(target=watch, daemon=True).start()
    code = server.wait()
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    os._exit(main(sys.argv[1:]))
