"""What was said: turns below each other, painted with as few and as cheap repaints as possible."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, ClassVar

from markdown_it import MarkdownIt
from textual.binding import Binding
from textual.containers import VerticalScroll
from textual.content import Content
from textual.events import MouseScrollDown, MouseScrollUp
from textual.widget import Widget
from textual.widgets import Markdown, Static

from phitui.domain.thinking import split
from phitui.tui.format import duration
from phitui.tui.text import harmless, lines, one_line, styled

if TYPE_CHECKING:
    from phitui.store.chats import Turn


@lru_cache(maxsize=1)
def _parser() -> MarkdownIt:
    """One parser for all answers: making one costs as much as parsing. HTML is shown as text, links are not guessed."""
    return MarkdownIt("gfm-like", {"html": False, "linkify": False})


class Answer(Markdown):
    """An answer. Its text is already harmless; links are shown, never opened by a click."""

    DEFAULT_CSS = """
    Answer { height: auto; padding: 0 1 0 2; margin: 0; background: transparent; }
    Answer MarkdownH1, Answer MarkdownH2, Answer MarkdownH3, Answer MarkdownH4 {
        content-align: left middle; color: $primary; text-style: bold; margin: 0 0 1 0; background: transparent;
    }
    Answer MarkdownFence { margin: 0 0 1 0; background: $panel; }
    Answer MarkdownFence > Label { padding: 0 1; }
    Answer MarkdownBullet { color: $accent; }
    """

    def __init__(self, text: str = "", **kwargs: Any) -> None:
        super().__init__(harmless(text) or None, parser_factory=_parser, open_links=False, **kwargs)


class Thought(Static, can_focus=True):
    """What a reasoning model thinks before it answers: one line, which unfolds to the whole text."""

    BINDINGS: ClassVar = [Binding("enter,space", "fold", "unfold or fold", show=False)]
    DEFAULT_CSS = """
    Thought { height: auto; margin: 0 0 1 0; padding: 0 1; color: $muted; border-left: outer $border; }
    Thought:focus { border-left: outer $accent; }
    """

    def __init__(self, text: str = "") -> None:
        super().__init__(markup=False)
        self._text = text
        self._began = time.monotonic()
        self._seconds: float | None = None
        self.unfolded = False
        self._paint()

    def append(self, text: str) -> None:
        """More of it."""
        self._text += text
        self._paint()

    def finish(self, seconds: float | None = None) -> None:
        """The thought is over; 0 seconds where nobody knows how long it took."""
        if self._seconds is None:
            self._seconds = time.monotonic() - self._began if seconds is None else seconds
            self._paint()

    def action_fold(self) -> None:
        """Show all of it, or one line."""
        self.unfolded = not self.unfolded
        self._paint()

    def on_click(self) -> None:
        self.action_fold()

    def _paint(self) -> None:
        going = self._seconds is None
        took = duration(time.monotonic() - self._began if self._seconds is None else self._seconds)
        said = f"thinking … {took}" if going else f"thought for {took}" if self._seconds else "thought"
        head = f"{'▾' if self.unfolded else '▸'} {said}"
        if self.unfolded:
            self.update(lines([styled(head), "", self._text.rstrip()]))
            return
        tail = one_line(self._text.rstrip()[-200:]).rpartition("  ")[2] if going else ""
        room = max(0, self.size.width - len(head) - 4)
        self.update(styled(head) + styled(f"  {tail[-room:]}" if tail and room > 10 else "", "italic"))


class Question(Static):
    """What the person said."""

    DEFAULT_CSS = """
    Question { height: auto; margin: 1 0; padding: 0 1; border-left: outer $accent; background: $surface; }
    """

    def __init__(self, text: str, *, answered: bool = False) -> None:
        super().__init__(Content(harmless(text)), markup=False)
        self.text = text
        self.answered = answered


class Note(Static):
    """A remark of phitui itself, such as an error of the engine."""

    DEFAULT_CSS = """
    Note { height: auto; margin: 1 0; padding: 0 1; color: $muted; border-left: outer $border; }
    Note.-error { border-left: outer $error; background: $surface; color: $foreground; }
    """


def answered(text: str, complete: bool) -> list[Widget]:
    """The widgets of a saved answer."""
    thought, answer = split(text)
    before: list[Widget] = []
    if thought:
        folded = Thought(thought)
        folded.finish(0.0)
        before = [folded]
    return [*before, Answer(answer), *([] if complete else [Note("stopped here", markup=False)])]


class Transcript(VerticalScroll, can_focus=True):
    """Follows the answer while it grows, unless the person scrolled up.

    It scrolls by a third of its height at a time: most updates then repaint only the last lines, where scrolling
    line by line would repaint the whole region each time.
    """

    DEFAULT_CSS = """
    Transcript { height: 1fr; padding: 0 1; scrollbar-size-vertical: 1; background: $background; }
    Transcript > .room { height: 0; }
    """

    following = True

    @property
    def questions(self) -> list[Question]:
        """The questions of the conversation, in order: those that got an answer."""
        return [question for question in self.query(Question) if question.answered]

    @property
    def last_answer(self) -> str:
        """The newest answer, without what the model thought before it."""
        answers = list(self.query(Answer))
        return answers[-1].source.strip("\n") if answers else ""

    async def forget_from(self, question: int) -> None:
        """Take the turns from that question on (from 0) off the screen."""
        turns = [turn for turn in self.children if isinstance(turn, (Question, Thought, Answer, Note))]
        for turn in turns[turns.index(self.questions[question]) if question else 0 :]:
            await turn.remove()

    async def show_saved(self, turns: Sequence[Turn]) -> None:
        """Show a saved conversation, its end in sight."""
        widgets: list[Widget] = []
        for turn in turns:
            asked = turn.role == "user"
            widgets += [Question(turn.content, answered=True)] if asked else answered(turn.content, turn.complete)
        await self.mount_all(widgets, before=".room")
        self.following = True
        self.call_after_refresh(self.scroll_end, animate=False)

    def reveal(self, turn: Static | Markdown) -> None:
        """Scroll so that the end of a turn can be seen."""
        height = self.scrollable_content_region.height
        bottom = turn.virtual_region.bottom
        if not self.following or bottom <= self.scroll_offset.y + height:
            return
        lead = max(1, height // 3)
        room = self.query_one(".room", Static)
        if room.styles.height is None or room.styles.height.value != lead:
            room.styles.height = lead
        self.call_after_refresh(self.scroll_to, y=bottom - height + lead, animate=False, immediate=True)

    def _judge(self) -> None:
        """After the person scrolled: follow again only if the end is in sight."""
        self.following = self.scroll_offset.y >= self.max_scroll_y - self.scrollable_content_region.height // 3 - 1

    def _action_done(self) -> None:
        self.call_after_refresh(self._judge)

    def action_scroll_up(self) -> None:
        super().action_scroll_up()
        self._action_done()

    def action_scroll_down(self) -> None:
        super().action_scroll_down()
        self._action_done()

    def action_page_up(self) -> None:
        super().action_page_up()
        self._action_done()

    def action_page_down(self) -> None:
        super().action_page_down()
        self._action_done()

    def action_scroll_home(self) -> None:
        super().action_scroll_home()
        self._action_done()

    def action_scroll_end(self) -> None:
        super().action_scroll_end()
        self._action_done()

    def on_mouse_scroll_up(self, event: MouseScrollUp) -> None:
        self._action_done()

    def on_mouse_scroll_down(self, event: MouseScrollDown) -> None:
        self._action_done()
