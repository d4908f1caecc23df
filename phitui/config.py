"""Where phitui keeps things, and its configuration file.

`PHITUI_HOME=DIR` puts config, data, state and cache below DIR; otherwise they are at the platform's own places.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from phitui.domain import options
from phitui.errors import PhituiError, UsageError


@dataclass(frozen=True)
class Paths:
    """Directories, made on first use."""

    config: Path
    data: Path
    state: Path
    cache: Path

    @property
    def jobs(self) -> Path:
        return self.state / "jobs"

    @property
    def models(self) -> Path:
        """Where builds land by default; the library always looks here."""
        return self.data / "models"

    @property
    def config_file(self) -> Path:
        return self.config / "config.toml"


def paths() -> Paths:
    """The directories for this environment. Creates nothing."""
    home = os.environ.get("PHITUI_HOME")
    if home:
        base = Path(home).expanduser().absolute()
        return Paths(base / "config", base / "data", base / "state", base / "cache")
    from platformdirs import PlatformDirs

    dirs = PlatformDirs("phitui", appauthor=False)
    return Paths(dirs.user_config_path, dirs.user_data_path, dirs.user_state_path, dirs.user_cache_path)


@dataclass(frozen=True)
class Config:
    """config.toml. Unknown keys are errors, so that a typo is never silent."""

    folders: tuple[str, ...] = options.option((), help="more folders to look for models in")
    workers: tuple[str, ...] = options.option((), help="RPC workers, HOST:PORT: their devices are in plans and chats")
    threads: int | None = options.option(None, help="threads for builds and chat; all cores if not set", minimum=1)
    theme: str = options.option("phitui", help="theme of the terminal app")
    file: Path | None = field(default=None, metadata={"phitui": {"help": "where this was read from"}})


def load(file: Path | None = None) -> Config:
    """Read config.toml; defaults if there is none. Raises PhituiError naming the file and the line."""
    import tomllib

    file = file or paths().config_file
    try:
        with file.open("rb") as stream:
            values = tomllib.load(stream)
    except FileNotFoundError:
        return Config(file=file)
    except tomllib.TOMLDecodeError as error:
        raise PhituiError(f"{file}: {error}", "correct that line, or move the file away to get defaults") from None
    except OSError as error:
        raise PhituiError(f"cannot read {file}: {error.strerror}") from None
    try:
        loaded: Config = options.build(Config, values | {"file": file})
    except UsageError as error:
        raise PhituiError(f"{file}: {error.message}", error.hint) from None
    return loaded


def plugin_folders() -> tuple[Path, ...]:
    """Folders a finder should look into: phitui's own models and the ones in the configuration."""
    return (paths().models, *(Path(folder).expanduser() for folder in load().folders))


def configured_workers() -> tuple[str, ...]:
    """HOST:PORT of the RPC workers that are used where a request names none."""
    return load().workers


def modelfiles() -> Path:
    """The directory of the shipped Modelfile templates: inside the package, or beside it in a checkout."""
    packaged = Path(__file__).parent / "modelfiles"
    return packaged if packaged.is_dir() else Path(__file__).parent.parent / "modelfiles"
