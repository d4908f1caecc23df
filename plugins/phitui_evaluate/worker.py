"""One model in a process of its own: `python -m phitui_evaluate.worker REQUEST`, a JSON object
(see native.Setup).

Commands come on stdin, one JSON object a line. Replies go to stdout: four bytes of length (little endian), a JSON
object, then as many raw bytes as its "bytes" says.

    {"op": "tokens", "text": BASE64}                                          {"tokens": [...]}
    {"op": "decode", "tokens": [...], "position": 0, "outputs": [256, 511]}   {"rows": 255, "bytes": N}, float32 logits
    {"op": "speed", "tokens": [...], "prompt": 512, "decode": 64, "patience": 10}    {"prompt_tokens_per_s": ...}

A decode at position 0 begins a new text. The first replies are {"part": 0.3} while the model loads and then
{"vocabulary", "bos", "trained"}. A refusal is {"error", "hint"}. Native code prints to stderr. The process ends when
stdin does, even in the middle of a decode: nobody is left to want the answer.
"""

from __future__ import annotations

import base64
import json
import os
import queue
import sys
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from phitui.api import PhituiError

if TYPE_CHECKING:
    from phitui_evaluate.native import Model


class Replies:
    """The way back. Whatever native code prints to descriptor 1 goes to stderr from now on."""

    def __init__(self) -> None:
        self._out = os.dup(1)
        os.dup2(2, 1)

    def send(self, reply: dict[str, Any], body: memoryview | None = None) -> None:
        """Write a reply and its bytes. Raises BrokenPipeError if nobody reads any more."""
        if body is not None:
            reply = reply | {"bytes": body.nbytes}
        text = json.dumps(reply).encode()
        self._write(memoryview(len(text).to_bytes(4, "little") + text))
        if body is not None:
            self._write(body)

    def _write(self, data: memoryview) -> None:
        while data:
            data = data[os.write(self._out, data) :]


def commands() -> Iterator[dict[str, Any]]:
    """The commands as they come. A thread of its own waits for the end of stdin."""
    lines: queue.SimpleQueue[bytes] = queue.SimpleQueue()

    def read() -> None:
        for line in sys.stdin.buffer:
            lines.put(line)
        os._exit(0)

    threading.Thread(target=read, daemon=True).start()
    while True:
        yield json.loads(lines.get())


def answer(model: Model, command: dict[str, Any]) -> tuple[dict[str, Any], memoryview | None]:
    """The reply to one command, and its bytes."""
    match command["op"]:
        case "tokens":
            return {"tokens": model.tokens(base64.b64decode(command["text"]))}, None
        case "decode":
            position = command["position"]
            if position == 0:
                model.clear()
            rows = model.decode(command["tokens"], position, range(*command["outputs"]))
            return {"rows": rows}, model.logits(rows) if rows else None
        case "speed":
            figures = model.speed(command["tokens"], command["prompt"], command["decode"], command["patience"])
            return dict(figures), None
        case unknown:
            return {"error": f"unknown command {unknown!r}", "hint": ""}, None


def main() -> None:
    values = json.loads(sys.argv[1])
    replies = Replies()
    incoming = commands()
    try:
        from phitui_evaluate.native import Model, Setup

        model = Model(Setup(**values), lambda part: replies.send({"part": part}))
        replies.send({"vocabulary": model.vocabulary, "bos": model.bos, "trained": model.trained})
        for command in incoming:
            replies.send(*answer(model, command))
    except BrokenPipeError:
        pass
    except PhituiError as error:
        replies.send({"error": error.message, "hint": error.hint})
    os._exit(0)  # freeing gigabytes takes time, and the system does it anyway


if __name__ == "__main__":
    main()
