"""llama.cpp in a child process: logits and tokens of GGUF files. One child serves many files; a crash is an error.

`python -m phitui.testing.conformance.native` is the child: JSON lines in, JSON lines out.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any, Self

_F32 = 0
"""GGML_TYPE_F32: the KV cache must not round what is compared."""

SINGLE = 4
"""So many tokens at the end of a text are read one by one, as in a chat: llama.cpp has other code for that."""


class NativeError(Exception):
    """llama.cpp refused a file, or the process died on it."""


class Llama:
    """A child process with llama.cpp, started on first use and again after a crash."""

    def __init__(self) -> None:
        self._child: subprocess.Popen[str] | None = None
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the child

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def logits(self, model: Path, ids: list[int], context: int) -> Any:
        """float32 (tokens, vocabulary): the logits of every position, of a model loaded with `context` tokens."""
        import numpy as np

        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "logits.npy"
            self._ask({"model": str(model), "ids": ids, "context": context, "out": str(out)})
            return np.load(out)

    def tokens(self, model: Path, texts: list[str]) -> list[list[int]]:
        """The ids of each text, special tokens recognized, nothing added before or after."""
        found: list[list[int]] = self._ask({"model": str(model), "texts": texts})
        return found

    def _ask(self, request: dict[str, Any]) -> Any:
        child = self._running()
        assert child.stdin and child.stdout
        try:
            child.stdin.write(json.dumps(request) + "\n")
            child.stdin.flush()
            line = child.stdout.readline()
        except OSError:
            line = ""
        if not line:
            code = child.wait(10)
            self._log.seek(0)
            said = self._log.read()[-2000:].decode(errors="replace")
            raise NativeError(f"llama.cpp died on {request['model']} (exit code {code}):\n{said}")
        answer = json.loads(line)
        if "error" in answer:
            raise NativeError(f"{request['model']}: {answer['error']}")
        return answer["result"]

    def _running(self) -> subprocess.Popen[str]:
        if self._child is None or self._child.poll() is not None:
            self._log.seek(0)
            self._log.truncate()
            self._child = subprocess.Popen(
                [sys.executable, "-m", __name__],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._log,
                text=True,
                env=os.environ | {"GGML_NO_BACKTRACE": "1"},
            )
        return self._child

    def close(self) -> None:
        if self._child and self._child.poll() is None:
            assert self._child.stdin
            self._child.stdin.close()
            self._child.wait(10)
        self._log.close()


def _answer(request: dict[str, Any]) -> Any:
    import llama_cpp
    import numpy as np

    model, quiet = request["model"], {"verbose": False, "n_threads": 1, "n_threads_batch": 1}
    if "texts" in request:
        vocabulary = llama_cpp.Llama(model, vocab_only=True, **quiet)
        return [vocabulary.tokenize(text.encode(), add_bos=False, special=True) for text in request["texts"]]
    ids, context = request["ids"], request["context"]
    llama = llama_cpp.Llama(
        model, n_ctx=context, n_batch=context, n_ubatch=context, logits_all=True, type_k=_F32, type_v=_F32, **quiet
    )
    for part in (ids[:-SINGLE], *([token] for token in ids[-SINGLE:])):
        llama.eval(part)
    np.save(request["out"], llama.scores[: len(ids)])
    llama.close()
    return len(ids)


def main() -> None:
    """Answer requests until stdin ends. Native code writes to stdout, too: answers go to a copy of it."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        try:
            answer = {"result": _answer(json.loads(line))}
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
