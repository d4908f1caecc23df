"""The log of a native library: shown, thinned, and quoted in errors."""

from __future__ import annotations

import ctypes
from typing import Any

import pytest

from phitui.engine.complaints import NativeLog


class Library:
    """The two names that NativeLog needs of llama_cpp."""

    llama_log_callback = staticmethod(ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p))

    def llama_log_set(self, callback: Any, data: Any) -> None:
        self.say = callback


def test_the_last_errors_are_kept_and_debugging_is_dropped(capfd: pytest.CaptureFixture[str]) -> None:
    library = Library()
    log = NativeLog(library)
    assert log.why() == "it does not say why"
    for number in range(4):
        library.say(4, f"error {number}\n".encode(), None)
    library.say(1, b"debugging\n", None)
    library.say(5, b"more debugging\n", None)
    library.say(2, b"information\n", None)
    assert log.why() == "error 1; error 2; error 3"
    shown = capfd.readouterr().err
    assert "information" in shown and "error 0" in shown
    assert "debugging" not in shown


def test_text_goes_on_at_its_own_level() -> None:
    library = Library()
    log = NativeLog(library)
    library.say(4, b"cannot ", None)
    library.say(5, b"go on\xff", None)
    assert log.why() == "cannot; go on\ufffd"
