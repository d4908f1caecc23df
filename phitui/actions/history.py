"""Saved conversations: listed, searched, renamed, exported; and the recorder that saves one while it streams."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from phitui.actions.context import Context
from phitui.actions.texts import write_text
from phitui.domain.chat import Chunk, Message, TextChunk
from phitui.domain.thinking import split
from phitui.errors import PhituiError, UsageError
from phitui.store.chats import ChatStore, SavedChat, Turn

T = TypeVar("T")

TITLE_LENGTH = 60
SAVE_SECONDS = 0.1
"""Text of so many seconds is saved at once: what a kill can lose."""


def store(ctx: Context) -> ChatStore:
    """The saved conversations. Close it."""
    return ChatStore(ctx.paths.data / "chats.db")


def list_chats(ctx: Context, search: str = "") -> list[SavedChat]:
    """All conversations, or those with `search` in title or text, the last used first."""
    with store(ctx) as chats:
        return chats.search(search)


def get_chat(ctx: Context, chat: str) -> tuple[SavedChat, list[Turn]]:
    """A conversation and the turns of its branch in hand."""
    with store(ctx) as chats:
        found = chats.get(chat)
        return found, chats.branch(found.id)


def rename_chat(ctx: Context, chat: str, title: str) -> SavedChat:
    """Give a conversation another title."""
    title = " ".join(title.split())
    if not title:
        raise UsageError("a conversation needs a title", "give some words")
    with store(ctx) as chats:
        chats.rename(chats.get(chat).id, title)
        return chats.get(chat)


def delete_chat(ctx: Context, chat: str) -> SavedChat:
    """Remove a conversation with all of its branches."""
    with store(ctx) as chats:
        found = chats.get(chat)
        chats.delete(found.id)
        return found


def export_chat(ctx: Context, chat: str, out: Path, *, overwrite: bool = False) -> Path:
    """Write a conversation as markdown, or as JSON where the name ends so. Readable by its owner only.

    Raises OutputExists for a file that is there, PhituiError where it cannot be written.
    """
    found, turns = get_chat(ctx, chat)
    out = out.expanduser().absolute()
    text = json.dumps(as_document(found, turns), ensure_ascii=False, indent=2) + "\n"
    if out.suffix.lower() != ".json":
        text = as_markdown(found, turns)
    write_text(out, text, overwrite=overwrite, private=True)
    return out


def as_document(chat: SavedChat, turns: list[Turn] | None = None) -> dict[str, Any]:
    """A conversation, JSON-ready; with its turns where they are given. Times are unix seconds."""
    document = asdict(chat)
    del document["head"]
    if not chat.found:
        del document["found"]
    if turns is not None:
        document["messages"] = [asdict(turn) for turn in turns]
    return document


def as_markdown(chat: SavedChat, turns: list[Turn]) -> str:
    """A conversation to read: who said what; a model's thoughts are quoted before its answer."""
    when = time.strftime("%Y-%m-%d %H:%M", time.localtime(chat.created))
    parts = [f"# {chat.title}", f"{Path(chat.model).name} · {when}"]
    if system := str(chat.settings.get("system") or ""):
        parts += ["## System", system]
    for turn in turns:
        if turn.role == "user":
            parts += ["## You", turn.content]
            continue
        thought, answer = split(turn.content)
        parts.append(f"## {Path(turn.model or chat.model).name.removesuffix('.gguf') or 'Model'}")
        parts += ["\n".join(f"> {line}".rstrip() for line in thought.splitlines())] if thought else []
        parts.append(answer if turn.complete else f"{answer.rstrip()} …\n\n*(stopped)*")
    return "\n\n".join(part.strip("\n") for part in parts) + "\n"


def title_of(question: str) -> str:
    """A title made of the first question: its first line, cut at a word."""
    line = next((" ".join(row.split()) for row in question.splitlines() if row.strip()), "") or "conversation"
    if len(line) <= TITLE_LENGTH:
        return line
    return (line[:TITLE_LENGTH].rsplit(" ", 1)[0] or line[:TITLE_LENGTH]) + " …"


class Recorder:
    """Saves one conversation while it streams. One thread at a time.

    A store that fails (disk full, read-only) never stops a conversation: `trouble` says once why nothing is saved.
    """

    def __init__(self, ctx: Context, model: str, settings: Mapping[str, Any] | None = None, chat: str = "") -> None:
        """Go on with the saved `chat`, or begin a new one with the first question."""
        self.chat = chat
        self.trouble = ""
        self.model, self._ctx, self._settings = model, ctx, dict(settings or {})
        self._store: ChatStore | None = None
        self.head: int | None = None
        if chat:
            self.head = self._safely(lambda chats: chats.get(chat).head)
            self._close()

    def record(self, question: str, answer: Iterator[Chunk]) -> Iterator[Chunk]:
        """Pass an answer through and save it piece by piece, after its question.

        A question without any answer is taken back, as the conversation itself does it.
        """
        asked = self._asked(question)
        turn = self._begin(asked)
        held: list[str] = []
        last, said, stats = time.monotonic(), False, None
        try:
            for chunk in answer:
                if isinstance(chunk, TextChunk):
                    held.append(chunk.text)
                    if time.monotonic() - last >= SAVE_SECONDS:
                        said = self._append(turn, held) or said
                        last = time.monotonic()
                else:
                    stats = chunk
                yield chunk
        finally:
            said = self._append(turn, held) or said
            complete = stats is not None and stats.finish_reason != "cancelled"
            self._finish(asked, turn, said or complete, complete, asdict(stats) if stats else {})
            self._close()

    def configure(self, settings: Mapping[str, Any]) -> None:
        """Keep other settings with the conversation."""
        if dict(settings) != self._settings:
            self._settings = dict(settings)
            if self.chat:
                self._safely(lambda chats: chats.configure(self.chat, self._settings))
                self._close()

    def rewind(self, question: int) -> None:
        """Go on before the question of that number (from 0): what was said from there on stays as another branch."""

        def show(chats: ChatStore) -> int | None:
            asked = [turn for turn in chats.branch(self.chat) if turn.role == "user"]
            chats.show(self.chat, asked[question].parent)
            return asked[question].parent

        if self.chat:
            self.head = self._safely(show)
            self._close()

    def _asked(self, question: str) -> int | None:
        def save(chats: ChatStore) -> int:
            if not self.chat:
                self.chat = chats.create(title_of(question), self.model, self._settings)
            again = chats.child(self.chat, self.head, question)  # another answer to the same question
            return again if again is not None else chats.add(self.chat, "user", question, self.head)

        return self._safely(save)

    def _begin(self, asked: int | None) -> int | None:
        if asked is None:
            return None
        return self._safely(lambda chats: chats.add(self.chat, "assistant", "", asked, self.model, complete=False))

    def _append(self, turn: int | None, held: list[str]) -> bool:
        """Save the pieces held; returns whether there were any."""
        text = "".join(held)
        held.clear()
        if text and turn is not None:
            self._safely(lambda chats: chats.append(turn, text))
        return bool(text)

    def _finish(
        self, asked: int | None, turn: int | None, kept: bool, complete: bool, stats: Mapping[str, Any]
    ) -> None:
        if asked is None or turn is None:
            return
        if kept:
            self._safely(lambda chats: chats.finish(turn, complete, stats))
            self.head = turn
        else:
            self._safely(lambda chats: chats.discard(turn))
            self._safely(lambda chats: chats.discard(asked))

    def _safely(self, save: Callable[[ChatStore], T]) -> T | None:
        """What cannot be saved is said once, not raised; after that, nothing more is tried."""
        if self.trouble:
            return None
        try:
            if self._store is None:
                self._store = store(self._ctx)
            return save(self._store)
        except PhituiError as error:
            self.trouble = f"this conversation is not saved: {error.message}"
            return None

    def _close(self) -> None:
        """Every answer may come in a thread of its own, and SQLite wants a connection each."""
        if self._store is not None:
            self._store.close()
            self._store = None


def messages_of(turns: list[Turn]) -> list[Message]:
    """The turns as an engine takes them."""
    return [Message(turn.role, turn.content) for turn in turns]
