"""`phitui chats`: saved conversations."""

from __future__ import annotations

import time
from pathlib import Path

import click

from phitui.actions import history
from phitui.actions.context import Context
from phitui.cli import output
from phitui.domain.text import visible
from phitui.store.chats import SavedChat

_CHAT = click.argument("chat", metavar="ID")


def command(context: Context) -> click.Command:
    @click.group("chats", invoke_without_command=True)
    @click.option("--search", default="", metavar="TEXT", help="Only those with TEXT in title or words, in any case.")
    @output.json_flag
    @click.pass_context
    def chats(ctx: click.Context, search: str, as_json: bool) -> None:
        """Saved conversations, the last used first. ID may be the beginning of an id."""
        if ctx.invoked_subcommand is None:
            found = history.list_chats(context, search)
            output.emit({"chats": [history.as_document(chat) for chat in found]}, as_json, _table(found, search))

    _add_reading(chats, context)
    _add_changing(chats, context)
    return chats


def _add_reading(group: click.Group, context: Context) -> None:
    @group.command("show")
    @_CHAT
    @output.json_flag
    def show(chat: str, as_json: bool) -> None:
        """Print a conversation as markdown."""
        found, turns = history.get_chat(context, chat)
        text = visible(history.as_markdown(found, turns), keep="\n\t").rstrip()
        output.emit(history.as_document(found, turns), as_json, text)

    @group.command("export")
    @_CHAT
    @click.option("--out", required=True, type=click.Path(), help="The file to write: markdown, or JSON for .json.")
    @click.option("--overwrite", is_flag=True, help="Replace a file that is there already.")
    @output.json_flag
    def export(chat: str, out: str, overwrite: bool, as_json: bool) -> None:
        """Write a conversation to a file."""
        path = history.export_chat(context, chat, Path(out), overwrite=overwrite)
        output.emit({"path": str(path), "size": path.stat().st_size}, as_json, f"wrote {visible(str(path))}")


def _add_changing(group: click.Group, context: Context) -> None:
    @group.command("rename")
    @_CHAT
    @click.argument("title")
    @output.json_flag
    def rename(chat: str, title: str, as_json: bool) -> None:
        """Give a conversation another title."""
        found = history.rename_chat(context, chat, title)
        output.emit(history.as_document(found), as_json, f"{found.id}  {visible(found.title)}")

    @group.command("delete")
    @_CHAT
    @output.json_flag
    def delete(chat: str, as_json: bool) -> None:
        """Remove a conversation for good."""
        found = history.delete_chat(context, chat)
        output.emit(history.as_document(found), as_json, f"{visible(found.title)} is deleted")


def _table(found: list[SavedChat], search: str) -> str:
    if not found:
        return "nothing found" if search else "no conversation yet: phitui chat starts one"
    rows = [
        (chat.id, _when(chat.updated), str(chat.turns), visible(Path(chat.model).name), visible(chat.title))
        for chat in found
    ]
    return output.table(("id", "last used", "turns", "model", "title"), rows, right=(2,))


def _when(moment: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(moment))
