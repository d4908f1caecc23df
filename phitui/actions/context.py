"""What every action is given: paths, configuration and the loaded plugins, each made on first use."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

from phitui import config
from phitui.config import Config, Paths

if TYPE_CHECKING:
    from phitui.plugins import Registry


@dataclass(frozen=True)
class Context:
    """One phitui: made once by the CLI, the TUI or a job, and passed to every action."""

    paths: Paths = field(default_factory=config.paths)

    @cached_property
    def config(self) -> Config:
        return config.load(self.paths.config_file)

    @cached_property
    def registry(self) -> Registry:
        from phitui import plugins  # the terminal app paints before it looks for plugins

        return plugins.load()
