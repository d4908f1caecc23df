"""What a native library says while it works: all of it to the log, the last complaints kept for error messages."""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections import deque
from collections.abc import Callable
from typing import Any

KEPT = 3
_DEBUG, _ERROR, _CONTINUED = 1, 4, 5  # ggml_log_level (ggml.h; the numbers in llama_cpp's comments are old)


class NativeLog:
    """Writes llama.cpp's log, all but debugging, to descriptor 2 and remembers its last complaints.

    `library` is the module llama_cpp.llama_cpp of the process that loaded it; this module loads nothing. Descriptor 2
    must be a log file by then: jobs, engines and other children of phitui see to that. `listen`, if set, is given every
    text too.
    """

    def __init__(self, library: Any, listen: Callable[[str], None] | None = None) -> None:
        self.listen = listen
        self._complaints: deque[str] = deque(maxlen=KEPT)
        self._level = 0
        self._callback = library.llama_log_callback(self._take)  # the library keeps only a pointer: this must live on
        library.llama_log_set(self._callback, ctypes.c_void_p(0))

    def _take(self, level: int, text: bytes, _data: Any) -> None:
        self._level = self._level if level == _CONTINUED else level
        if self._level == _DEBUG:
            return
        with contextlib.suppress(OSError):  # a full disk must not end the work
            os.write(2, text)
        if self.listen is not None:
            self.listen(text.decode("utf-8", "replace"))
        if self._level == _ERROR and text.strip():
            self._complaints.append(text.decode("utf-8", "replace").strip())

    def why(self) -> str:
        """The last complaints as part of a sentence."""
        return "; ".join(self._complaints) or "it does not say why"
