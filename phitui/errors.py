"""Errors that a person is meant to read: what happened, why, and what to do next."""

from __future__ import annotations


class PhituiError(Exception):
    """An expected failure. Shown as `message` and, below it, `hint`; never as a traceback.

    `message` says what happened and why in one sentence; `hint` says what to do next, as a sentence or a command.
    """

    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n{self.hint}" if self.hint else self.message


class UsageError(PhituiError):
    """The request itself is wrong: an unknown scheme, a missing argument, an option out of range."""

    exit_code = 2


class OutputExists(UsageError):
    """What is to be written is there already, and nobody said that it may be replaced."""


class Cancelled(PhituiError):
    """The person, or the job's cancel request, stopped the work."""

    exit_code = 130

    def __init__(self, message: str = "cancelled") -> None:
        super().__init__(message)


class UnsupportedModel(PhituiError):
    """No converter takes this checkpoint."""


class NotMeasured(PhituiError):
    """A choice needs figures that nobody has taken yet."""


class InvalidFile(PhituiError):
    """A file is not what its name or header says: truncated, overlapping, absurd, or another format."""


class SourceChanged(InvalidFile):
    """A source became another one while it was read: what was written from it is worthless."""


class Unavailable(PhituiError):
    """Something optional is not installed or not present on this machine; `hint` is the install command."""


class ContextFull(PhituiError):
    """A conversation has more tokens than the context holds."""


class DoesNotFit(PhituiError):
    """The memory plan exceeds a device."""


class EngineError(PhituiError):
    """The engine's child process failed; `log_tail` holds the last lines it wrote."""

    def __init__(self, message: str, hint: str = "", log_tail: str = "") -> None:
        super().__init__(message, hint)
        self.log_tail = log_tail
