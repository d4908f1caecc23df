"""What a conversation holds: system prompt, going back, making room. No engine is asked."""

from __future__ import annotations

from typing import Any

import pytest

from phitui.actions.chat import Chat
from phitui.domain import options
from phitui.domain.chat import Manner, Message, Sampling
from phitui.engine import protocol


def talk(*texts: str, system: str = "") -> Chat:
    process: Any = None
    chat = Chat(process, system)
    for number, text in enumerate(texts):
        chat.messages.append(Message("assistant" if number % 2 else "user", text))
    return chat


def texts(chat: Chat) -> list[str]:
    return [message.content for message in chat.messages]


def test_another_system_prompt_takes_the_place_of_the_first() -> None:
    chat = talk("one", "1", system="old")
    chat.instruct("new")
    assert texts(chat) == ["new", "one", "1"] and chat.messages[0].role == "system"
    chat.instruct("")
    assert texts(chat) == ["one", "1"]
    chat.instruct("again")
    chat.reset()
    assert texts(chat) == ["again"]


def test_going_back_before_a_question() -> None:
    chat = talk("one", "1", "two", "2", "three", "3", system="s")
    assert chat.rewind(1) == "two"
    assert texts(chat) == ["s", "one", "1"]
    with pytest.raises(IndexError):
        chat.rewind(1)


@pytest.mark.parametrize(
    ("said", "keep", "left", "dropped"),
    [
        (["a" * 50, "b" * 50, "c" * 10, "d" * 10], 0.7, ["c" * 10, "d" * 10], 1),
        (["a", "b", "c" * 50, "d" * 50], 0.7, ["c" * 50, "d" * 50], 1),
        (["a", "b", "c", "d", "e", "f"], 0.9, ["c", "d", "e", "f"], 1),
        (["a", "b", "c", "d", "e", "f"], 0.1, ["e", "f"], 2),
        (["a", "b"], 0.1, ["a", "b"], 0),
        ([], 0.7, [], 0),
    ],
)
def test_making_room_leaves_the_oldest_out(said: list[str], keep: float, left: list[str], dropped: int) -> None:
    for system in ("", "be brief"):
        chat = talk(*said, system=system)
        assert chat.make_room(keep) == dropped
        assert texts(chat) == ([system] if system else []) + left


def test_an_engine_is_given_the_sampling_of_a_manner_and_nothing_else() -> None:
    manner = options.build(Manner, {"system": "brief", "temperature": "0.2", "stop": ["x"]})
    assert type(manner.sampling) is Sampling
    message = protocol.decode(protocol.encode(protocol.ask_message(1, [], manner.sampling)))
    assert protocol.sampling_of(message) == Sampling(temperature=0.2, stop=("x",))
