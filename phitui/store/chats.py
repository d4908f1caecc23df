"""Conversations, saved as they stream: a killed phitui loses at most the piece of text in flight.

A chat is a tree of turns, since any turn can be asked anew or edited; the chat's `head` is the last turn of the branch
that is shown. One SQLite file in WAL mode, readable by its owner only, safe with several processes.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from phitui.domain.chat import Role
from phitui.errors import UsageError
from phitui.store.database import Store

UPGRADES: tuple[tuple[str, ...], ...] = (
    (
        """CREATE TABLE chats (
            id TEXT PRIMARY KEY, title TEXT NOT NULL, created REAL NOT NULL, updated REAL NOT NULL,
            model TEXT NOT NULL, settings TEXT NOT NULL, head INTEGER
        )""",
        """CREATE TABLE turns (
            id INTEGER PRIMARY KEY, chat TEXT NOT NULL REFERENCES chats (id), parent INTEGER REFERENCES turns (id),
            role TEXT NOT NULL, content TEXT NOT NULL, created REAL NOT NULL, model TEXT NOT NULL,
            complete INTEGER NOT NULL, stats TEXT NOT NULL
        )""",
        "CREATE INDEX turns_of ON turns (chat, parent)",
    ),
)


@dataclass(frozen=True)
class Turn:
    """One message. `parent` is the turn it follows (None: the first); `complete` is False for a text that was cut off.

    `model` is the file that answered, `stats` the figures of its answer by name.
    """

    id: int
    parent: int | None
    role: Role
    content: str
    created: float
    model: str = ""
    complete: bool = True
    stats: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class SavedChat:
    """A chat as listed. Times are unix seconds; `turns` counts those of all branches, `found` is where a search hit."""

    id: str
    title: str
    created: float
    updated: float
    model: str
    turns: int
    settings: Mapping[str, Any] = field(default_factory=dict)
    head: int | None = None
    found: str = ""


class ChatStore(Store):
    """The chats in the file `path`. One instance is for one thread."""

    UPGRADES = UPGRADES
    TABLE = "chats"
    KEEPS = "the conversations"
    PRIVATE = True

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._database.create_function("folded", 1, lambda text: str(text).casefold(), deterministic=True)

    # writing

    def create(self, title: str, model: str, settings: Mapping[str, Any] | None = None) -> str:
        """A new, empty chat; returns its id. `settings` (system prompt, sampling) are kept as JSON."""
        now, chat = time.time(), uuid.uuid4().hex[:12]
        with self._refusing():
            self._database.execute(
                "INSERT INTO chats VALUES (?, ?, ?, ?, ?, ?, NULL)",
                (chat, title, now, now, model, json.dumps(dict(settings or {}))),
            )
        return chat

    def add(
        self,
        chat: str,
        role: Role,
        content: str = "",
        parent: int | None = None,
        model: str = "",
        complete: bool = True,
    ) -> int:
        """A turn after `parent`, now the head of its chat; returns its id. Raises UsageError for an unknown chat."""
        now = time.time()
        with self._refusing(), self._together():
            cursor = self._database.execute(
                "INSERT INTO turns (chat, parent, role, content, created, model, complete, stats)"
                " SELECT id, ?, ?, ?, ?, ?, ?, '{}' FROM chats WHERE id = ?",
                (parent, role, content, now, model, int(complete), chat),
            )
            if not cursor.rowcount:
                raise _unknown(chat)
            self._database.execute("UPDATE chats SET head = ?, updated = ? WHERE id = ?", (cursor.lastrowid, now, chat))
        assert cursor.lastrowid is not None
        return cursor.lastrowid

    def append(self, turn: int, text: str) -> None:
        """More text of a turn that is being written."""
        with self._refusing():
            self._database.execute("UPDATE turns SET content = content || ? WHERE id = ?", (text, turn))

    def finish(self, turn: int, complete: bool, stats: Mapping[str, Any] | None = None) -> None:
        """The turn is written; `complete` False where it was cut off."""
        with self._refusing():
            self._database.execute(
                "UPDATE turns SET complete = ?, stats = ? WHERE id = ?",
                (int(complete), json.dumps(dict(stats or {})), turn),
            )

    def discard(self, turn: int) -> None:
        """Take back a turn that nothing follows; its parent becomes the head where it was that."""
        with self._refusing(), self._together():
            self._database.execute(
                "UPDATE chats SET head = (SELECT parent FROM turns WHERE id = ?) WHERE head = ?", (turn, turn)
            )
            self._database.execute(
                "DELETE FROM turns WHERE id = ? AND NOT EXISTS (SELECT 1 FROM turns AS t WHERE t.parent = ?)",
                (turn, turn),
            )

    def show(self, chat: str, turn: int | None) -> None:
        """Make `turn` the head: another branch is shown and continued. None: before the first turn."""
        self._update(chat, "head", turn)

    def rename(self, chat: str, title: str) -> None:
        self._update(chat, "title", title)

    def configure(self, chat: str, settings: Mapping[str, Any]) -> None:
        """Keep other settings with the chat."""
        self._update(chat, "settings", json.dumps(dict(settings)))

    def delete(self, chat: str) -> None:
        """Remove the chat with all of its branches."""
        with self._refusing(), self._together():
            self._database.execute("DELETE FROM turns WHERE chat = ?", (chat,))
            if not self._database.execute("DELETE FROM chats WHERE id = ?", (chat,)).rowcount:
                raise _unknown(chat)

    # reading

    def search(self, search: str = "") -> list[SavedChat]:
        """All chats, or those whose title or text has `search` (any case), the last used first."""
        pattern = "%" + "".join(f"\\{c}" if c in "%_\\" else c for c in search.casefold()) + "%"
        with self._refusing():
            rows = self._database.execute(
                "SELECT id, title, created, updated, model, settings, head,"
                " (SELECT count(*) FROM turns WHERE chat = c.id),"
                " CASE WHEN ? = '' THEN NULL ELSE (SELECT content FROM turns WHERE chat = c.id"
                " AND folded(content) LIKE ? ESCAPE '\\' LIMIT 1) END"
                " FROM chats AS c ORDER BY updated DESC",
                (search, pattern),
            ).fetchall()
        chats = [_saved(row, search) for row in rows]
        return [chat for chat in chats if not search or chat.found or search.casefold() in chat.title.casefold()]

    def get(self, chat: str) -> SavedChat:
        """The chat of that id or unique beginning. Raises UsageError."""
        with self._refusing():
            rows = self._database.execute(
                "SELECT id, title, created, updated, model, settings, head,"
                " (SELECT count(*) FROM turns WHERE chat = c.id), NULL"
                " FROM chats AS c WHERE substr(id, 1, ?) = ? ORDER BY id = ? DESC LIMIT 2",
                (len(chat), chat, chat),
            ).fetchall()
        if not chat or not rows or (len(rows) > 1 and rows[0][0] != chat):
            raise _unknown(chat)
        return _saved(rows[0], "")

    def branch(self, chat: str, head: int | None = None) -> list[Turn]:
        """The turns from the first to `head` (the chat's own head where None), in order."""
        turns = {turn.id: turn for turn in self.turns(chat)}
        at = self.get(chat).head if head is None else head
        found: list[Turn] = []
        while at is not None and at in turns:
            found.append(turns[at])
            at = turns[at].parent
        return found[::-1]

    def child(self, chat: str, parent: int | None, question: str) -> int | None:
        """The turn after `parent` that asks exactly this, if there is one."""
        with self._refusing():
            row = self._database.execute(
                "SELECT id FROM turns WHERE chat = ? AND parent IS ? AND role = 'user' AND content = ?"
                " ORDER BY id DESC",
                (chat, parent, question),
            ).fetchone()
        return None if row is None else int(row[0])

    def turns(self, chat: str) -> list[Turn]:
        """All turns of all branches, the oldest first."""
        with self._refusing():
            rows = self._database.execute(
                "SELECT id, parent, role, content, created, model, complete, stats FROM turns"
                " WHERE chat = ? ORDER BY id",
                (chat,),
            ).fetchall()
        return [_turn(row) for row in rows]

    # within

    def _update(self, chat: str, column: str, value: Any) -> None:
        with self._refusing():
            changed = self._database.execute(
                f"UPDATE chats SET {column} = ?, updated = ? WHERE id = ?",  # noqa: S608  (a name of ours)
                (value, time.time(), chat),
            ).rowcount
        if not changed:
            raise _unknown(chat)


def siblings(turns: Sequence[Turn], turn: Turn) -> list[Turn]:
    """The turns that stand in the same place of other branches, `turn` among them, the oldest first."""
    return [other for other in turns if other.parent == turn.parent and other.role == turn.role]


def leaf(turns: Sequence[Turn], turn: Turn) -> Turn:
    """The end of the newest branch that goes on from `turn`."""
    while True:
        after = [other for other in turns if other.parent == turn.id]
        if not after:
            return turn
        turn = after[-1]


def _saved(row: Sequence[Any], search: str) -> SavedChat:
    id_, title, created, updated, model, settings, head, turns, text = row
    found = _around(text or "", search)
    return SavedChat(id_, title, created, updated, model, turns, json.loads(settings), head, found)


def _turn(row: Sequence[Any]) -> Turn:
    id_, parent, role, content, created, model, complete, stats = row
    return Turn(id_, parent, role, content, created, model, bool(complete), json.loads(stats))


def _around(text: str, search: str) -> str:
    """The place of a long text where the search hit, on one line."""
    at = text.casefold().find(search.casefold())
    return " ".join(text[max(0, at - 30) : at + 90].split()) if search and at >= 0 else ""


def _unknown(chat: str) -> UsageError:
    return UsageError(f"there is no saved chat {chat!r}", "phitui chats lists them")
