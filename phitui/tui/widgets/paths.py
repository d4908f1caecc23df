"""Completion of paths while they are typed."""

from __future__ import annotations

from pathlib import Path

from textual.suggester import Suggester


class PathSuggester(Suggester):
    """Suggests the first directory entry that continues what is typed; directories end in a slash."""

    def __init__(self) -> None:
        super().__init__(use_cache=False, case_sensitive=True)

    async def get_suggestion(self, value: str) -> str | None:
        head, slash, start = value.rpartition("/")
        try:
            entries = sorted(Path(f"{head}{slash}" or ".").expanduser().iterdir())
        except (OSError, RuntimeError):
            return None
        for entry in entries:
            if entry.name.startswith(start) and entry.name != start and (start or not entry.name.startswith(".")):
                return f"{head}{slash}{entry.name}{'/' if entry.is_dir() else ''}"
        return None
