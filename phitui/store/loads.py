"""What loads were planned to take, what they then took, and how fast they answered: on this machine, kept for good.

One SQLite file in WAL mode, safe with several processes.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from phitui.domain.memory import Learned
from phitui.store.database import Store

UPGRADES: tuple[tuple[str, ...], ...] = (
    (
        """CREATE TABLE loads (
            id INTEGER PRIMARY KEY, created REAL NOT NULL, machine TEXT NOT NULL, library TEXT NOT NULL,
            model TEXT NOT NULL, fingerprint TEXT NOT NULL, settings TEXT NOT NULL, context INTEGER NOT NULL,
            decode_tokens INTEGER NOT NULL DEFAULT 0, decode_seconds REAL NOT NULL DEFAULT 0
        )""",
        """CREATE TABLE devices (
            load INTEGER NOT NULL REFERENCES loads (id), device TEXT NOT NULL, backend TEXT NOT NULL,
            predicted INTEGER NOT NULL, buffers INTEGER NOT NULL, actual INTEGER NOT NULL,
            PRIMARY KEY (load, device)
        ) WITHOUT ROWID""",
        "CREATE INDEX loads_of ON loads (fingerprint, settings, created)",
    ),
)
MIB = 1024 * 1024
REMEMBERED = 9
"""Loads per device that a correction is the median of: enough to outvote one that another program disturbed."""

FEWEST_TOKENS = 16
"""Tokens that a speed must rest on."""


@dataclass(frozen=True)
class DeviceLoad:
    """One device in one load; bytes. `device` names it and what it is.

    `predicted` is the plan without any correction, `buffers` what the engine said it allocated, `actual` what it took
    in all: beyond its buffers a load needs what drivers and libraries keep for themselves.
    """

    device: str
    backend: str
    predicted: int
    buffers: int
    actual: int


@dataclass(frozen=True)
class Load:
    """One load of a model file. `created` in unix seconds; `settings` is a text equal for loads of equal speed."""

    created: float
    machine: str
    library: str
    model: str
    fingerprint: str
    settings: str
    context: int
    devices: tuple[DeviceLoad, ...]


@dataclass(frozen=True)
class Answered:
    """How fast the last `loads` loads answered: the median of their speeds. `created` is the time of the newest."""

    created: float
    tokens_per_s: float
    loads: int


def _whole(size: float) -> int:
    """Whole MiB, none below 0: what is less is what the engine's log rounds away."""
    return max(0, round(size / MIB)) * MIB


class LoadStore(Store):
    """The loads in the file `path`. One instance is for one thread."""

    UPGRADES = UPGRADES
    TABLE = "loads"
    KEEPS = "the records of loads"

    def add(self, load: Load) -> int:
        """Remember a load; its number."""
        row = (load.created, load.machine, load.library, load.model, load.fingerprint, load.settings, load.context)
        with self._refusing(), self._together():
            cursor = self._database.execute(
                "INSERT INTO loads (created, machine, library, model, fingerprint, settings, context)"
                " VALUES (?, ?, ?, ?, ?, ?, ?)",
                row,
            )
            number = int(cursor.lastrowid or 0)
            self._database.executemany(
                "INSERT INTO devices VALUES (?, ?, ?, ?, ?, ?)",
                [(number, d.device, d.backend, d.predicted, d.buffers, d.actual) for d in load.devices],
            )
        return number

    def add_answer(self, number: int, tokens: int, seconds: float) -> None:
        """Count an answer of `tokens` generated in `seconds` to that load."""
        with self._refusing():
            self._database.execute(
                "UPDATE loads SET decode_tokens = decode_tokens + ?, decode_seconds = decode_seconds + ? WHERE id = ?",
                (tokens, seconds, number),
            )

    def answered(self, machine: str, fingerprint: str, settings: str) -> Answered | None:
        """The newest loads of that file with those settings that answered anything worth counting."""
        with self._refusing():
            rows = self._database.execute(
                "SELECT created, decode_tokens / decode_seconds FROM loads WHERE machine = ? AND fingerprint = ?"
                " AND settings = ? AND decode_tokens >= ? AND decode_seconds > 0 ORDER BY created DESC LIMIT ?",
                (machine, fingerprint, settings, FEWEST_TOKENS, REMEMBERED),
            ).fetchall()
        return Answered(rows[0][0], statistics.median(rate for _, rate in rows), len(rows)) if rows else None

    def learned(self, machine: str) -> dict[tuple[str, str], Learned]:
        """By (device, backend): the median of what its last loads took beyond their plan, in whole MiB.

        Only loads with the library of the newest one count: another version has other needs.
        """
        with self._refusing():
            rows = self._database.execute(
                "SELECT device, backend, library, actual - predicted FROM devices JOIN loads ON load = id"
                " WHERE machine = ? ORDER BY created DESC, id DESC LIMIT 1000",
                (machine,),
            ).fetchall()
        beyond: dict[tuple[str, str], list[int]] = {}
        library: dict[tuple[str, str], str] = {}
        for device, backend, version, excess in rows:
            key = (device, backend)
            if library.setdefault(key, version) == version and len(beyond.setdefault(key, [])) < REMEMBERED:
                beyond[key].append(excess)
        return {key: Learned(_whole(statistics.median(found)), len(found)) for key, found in beyond.items()}

    def last(self, count: int = 20) -> Sequence[Load]:
        """The newest loads, newest first."""
        with self._refusing():
            rows = self._database.execute(
                "SELECT id, created, machine, library, model, fingerprint, settings, context FROM loads"
                " ORDER BY created DESC, id DESC LIMIT ?",
                (count,),
            ).fetchall()
            return [
                Load(created, machine, library, model, mark, settings, context, self._devices(number))
                for number, created, machine, library, model, mark, settings, context in rows
            ]

    def _devices(self, number: int) -> tuple[DeviceLoad, ...]:
        query = "SELECT device, backend, predicted, buffers, actual FROM devices WHERE load = ?"
        return tuple(DeviceLoad(*row) for row in self._database.execute(query, (number,)))
