"""`phitui demo`: the whole way on a real model that comes with a package, without any network."""

from __future__ import annotations

from collections.abc import Iterable

from phitui.api import Command, hookimpl
from phitui_demo.command import Demo


@hookimpl
def phitui_commands() -> Iterable[Command]:
    return [Demo()]
