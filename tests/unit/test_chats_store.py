"""Conversations on disk: branches, search, streaming, two at once, a process that is killed."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from phitui.errors import PhituiError, UsageError
from phitui.store.chats import ChatStore, leaf, siblings


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "data" / "chats.db"


def test_a_conversation_comes_back_as_it_was(file: Path) -> None:
    with ChatStore(file) as store:
        chat = store.create("Capitals", "/m/phi.gguf", {"system": "short", "sampling": {"temperature": 0.2}})
        question = store.add(chat, "user", "capital of France?")
        answer = store.add(chat, "assistant", "", question, "/m/phi.gguf", complete=False)
        for piece in ("Par", "is", " é漢👍"):
            store.append(answer, piece)
        store.finish(answer, True, {"decode_tokens_per_s": 12.5})
    with ChatStore(file) as store:
        found = store.get(chat)
        assert (found.title, found.model, found.turns) == ("Capitals", "/m/phi.gguf", 2)
        assert found.settings == {"system": "short", "sampling": {"temperature": 0.2}}
        one, two = store.branch(chat)
        assert (one.role, one.content, one.parent) == ("user", "capital of France?", None)
        assert (two.content, two.complete, two.stats["decode_tokens_per_s"]) == ("Paris é漢👍", True, 12.5)
    assert file.stat().st_mode & 0o777 == 0o600
    assert all(path.stat().st_mode & 0o077 == 0 for path in file.parent.iterdir())


def test_editing_a_turn_makes_a_branch_and_keeps_the_other(file: Path) -> None:
    with ChatStore(file) as store:
        chat = store.create("x", "m")
        first = store.add(chat, "user", "one")
        answer = store.add(chat, "assistant", "1", first)
        second = store.add(chat, "user", "two", answer)
        store.add(chat, "assistant", "2", second)
        edited = store.add(chat, "user", "three", answer)
        assert [turn.content for turn in store.branch(chat)] == ["one", "1", "three"]
        turns = store.turns(chat)
        here = next(turn for turn in turns if turn.id == edited)
        assert [turn.content for turn in siblings(turns, here)] == ["two", "three"]
        other = siblings(turns, here)[0]
        store.show(chat, leaf(turns, other).id)
        assert [turn.content for turn in store.branch(chat)] == ["one", "1", "two", "2"]
        store.show(chat, None)
        assert store.branch(chat) == []


def test_a_question_without_an_answer_is_taken_back(file: Path) -> None:
    with ChatStore(file) as store:
        chat = store.create("x", "m")
        first = store.add(chat, "user", "one")
        second = store.add(chat, "assistant", "", first)
        store.discard(first)  # something follows: it stays
        assert len(store.turns(chat)) == 2
        store.discard(second)
        store.discard(first)
        assert store.turns(chat) == [] and store.get(chat).head is None


def test_search_in_titles_and_texts_of_any_case_and_script(file: Path) -> None:
    with ChatStore(file) as store:
        for title, text in (("Straße", "x"), ("b", "Ο ΣΊΣΥΦΟΣ"), ("c", "100% of a_b\\c"), ("سلام", "y")):
            store.add(store.create(title, "m"), "user", text)
        hits = {
            search: [chat.title for chat in store.search(search)]
            for search in ("strasse", "σίσυφος", "100%", "a_b\\", "100x", "سلام", "")
        }
    assert hits["strasse"] == ["Straße"] and hits["σίσυφος"] == ["b"]
    assert hits["100%"] == ["c"] == hits["a_b\\"] and hits["100x"] == []
    assert hits["سلام"] == ["سلام"] and len(hits[""]) == 4


def test_the_last_used_is_listed_first_and_a_search_shows_the_place(file: Path) -> None:
    with ChatStore(file) as store:
        old = store.create("old", "m")
        store.create("new", "m")
        store.add(old, "user", "first line\n" * 20 + "the needle\nand more")
        assert [chat.title for chat in store.search()] == ["old", "new"]
        assert "the needle and more" in store.search("NEEDLE")[0].found


def test_unknown_and_ambiguous_ids(file: Path) -> None:
    with ChatStore(file) as store:
        chat = store.create("x", "m")
        assert store.get(chat[:6]).id == chat
        for bad in ("", "zzz"):
            with pytest.raises(UsageError, match="no saved chat"):
                store.get(bad)
        for act in (lambda: store.rename("zzz", "y"), lambda: store.delete("zzz"), lambda: store.add("zzz", "user")):
            with pytest.raises(UsageError):
                act()
        store.delete(chat)
        assert store.search() == []


def test_two_processes_write_the_same_chat(file: Path) -> None:
    with ChatStore(file) as store:
        chat = store.create("x", "m")
        turn = store.add(chat, "assistant", "")
        code = (
            "import sys; from pathlib import Path; from phitui.store.chats import ChatStore\n"
            "store = ChatStore(Path(sys.argv[1]))\n"
            "[store.append(int(sys.argv[2]), 'b') for _ in range(200)]"
        )
        other = subprocess.Popen([sys.executable, "-c", code, str(file), str(turn)])
        for _ in range(200):
            store.append(turn, "a")
        assert other.wait(30) == 0
        content = store.turns(chat)[0].content
        assert (content.count("a"), content.count("b")) == (200, 200)


def test_a_kill_loses_nothing_that_was_appended(file: Path) -> None:
    with ChatStore(file) as store:
        chat = store.create("x", "m")
        turn = store.add(chat, "assistant", "", complete=False)
    code = (
        "import sys; from pathlib import Path; from phitui.store.chats import ChatStore\n"
        "store = ChatStore(Path(sys.argv[1])); n = 0\n"
        "while True:\n    store.append(int(sys.argv[2]), f'{n} '); n += 1; print(n, flush=True)"
    )
    writer = subprocess.Popen([sys.executable, "-c", code, str(file), str(turn)], stdout=subprocess.PIPE, text=True)
    assert writer.stdout is not None
    said = [writer.stdout.readline() for _ in range(50)]
    os.kill(writer.pid, signal.SIGKILL)
    rest = writer.stdout.read().split()
    writer.wait()
    count = int(rest[-1] if rest else said[-1])
    with ChatStore(file) as store:
        kept = store.branch(chat)[0]
    assert not kept.complete
    assert kept.content.split()[:count] == [str(n) for n in range(count)]


def test_a_damaged_file_is_moved_aside_and_a_later_one_left_alone(file: Path) -> None:
    file.parent.mkdir()
    file.write_bytes(b"no database" * 1000)
    with ChatStore(file) as store:
        assert store.search() == []
    assert list(file.parent.glob("chats.db.damaged-*"))
    with sqlite3.connect(file) as database:
        database.execute("PRAGMA user_version = 99")
    with pytest.raises(PhituiError, match="later"):
        ChatStore(file)
