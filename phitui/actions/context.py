"""What every action is given: paths, configuration and the loaded plugins, each made on first use."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

from phitui import config, plugins
from phitui.config import Config, Paths
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
        return plugins.load()
