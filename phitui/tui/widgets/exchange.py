"""One question and its answer on the screen, while the answer streams in."""

from __future__ import annotations

from textual.widget import Widget

from phitui.domain.thinking import Piece, Thinking
from phitui.tui.widgets.transcript import Answer, Question, Thought, Transcript


class Exchange:
    """Shows the thought of a reasoning model apart from its answer. `text` is the answer so far."""

    def __init__(self, said: Transcript, question: str) -> None:
        self.question = question
        self.text = ""
        self._said = said
        self._parts = Thinking()
        self._thought: Thought | None = None
        self._question = Question(question)
        self._answer = Answer()

    @property
    def thinking(self) -> bool:
        return self._parts.thinking

    @property
    def began(self) -> bool:
        """Whether anything came."""
        return bool(self.text) or self._thought is not None

    async def show(self, *, asked: bool) -> None:
        """Put it at the end of the transcript; `asked` if the question stands there already."""
        if asked:
            self._question = list(self._said.query(Question))[-1]
        turns: list[Widget] = [self._answer] if asked else [self._question, self._answer]
        self._said.following = True
        await self._said.mount_all(turns, before=".room")
        self._said.call_after_refresh(self._said.reveal, self._answer)

    async def add(self, text: str) -> None:
        """More of the stream."""
        await self._show(self._parts.feed(text))

    async def end(self, *, complete: bool) -> None:
        """Nothing more comes. A question that got no answer at all is no part of the conversation."""
        await self._show(self._parts.end())
        self._question.answered = complete or self.began
        if self._thought is not None:
            self._thought.finish()

    async def remove_answer(self) -> None:
        """Take the answer off the screen; the question stays."""
        if self._thought is not None:
            await self._thought.remove()
        await self._answer.remove()

    async def _show(self, pieces: list[Piece]) -> None:
        for piece in pieces:
            if piece.kind == "answer":
                self.text += piece.text
                await self._answer.append(piece.text)
                continue
            if self._thought is None:
                self._thought = Thought()
                await self._said.mount(self._thought, before=self._answer)
            self._thought.append(piece.text)
        if self._thought is not None and not self.thinking:
            self._thought.finish()
        if pieces:
            self._said.call_after_refresh(self._said.reveal, self._answer)
