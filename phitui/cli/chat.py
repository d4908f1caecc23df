"""`phitui chat`."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from types import FrameType
from typing import IO, Any

import click

from phitui.actions.chat import Chat, ChatRequest, as_document, open_chat
from phitui.actions.context import Context
from phitui.cli import flags, output
from phitui.domain.chat import ChatStats, Manner, Sampling, TextChunk
from phitui.domain.load import LoadOptions
from phitui.domain.text import visible
from phitui.errors import Cancelled, EngineError, PhituiError, UsageError


def command(context: Context) -> click.Command:
    @click.command("chat")
    @click.argument("model")
    @click.option("-p", "--prompt", help="Ask this and print the answer; without it, lines are read from stdin.")
    @click.option("--threads", type=click.IntRange(min=1), help="Threads; all physical cores if not given.")
    @click.option("--engine", help="Name of the engine; see phitui plugins.")
    @click.option("--force", is_flag=True, help="Load even what does not fit.")
    @output.json_flag
    def chat(model: str, prompt: str | None, as_json: bool, **options: Any) -> None:
        """Talk to MODEL, a GGUF file or a name in the library."""
        if as_json and prompt is None:
            raise UsageError("--json needs a question", "add -p TEXT")
        with _loaded(context, _request(model, options)) as session:
            if prompt is None:
                _converse(session, sys.stdin)
            else:
                _one(session, prompt, as_json)

    return flags.with_options(chat, [Manner, LoadOptions])


def _request(model: str, options: dict[str, Any]) -> ChatRequest:
    return ChatRequest(
        model=model,
        system=options["system"] or "",
        threads=options["threads"],
        sampling=flags.built(Sampling, options),
        engine=options["engine"],
        force=options["force"],
        **vars(flags.built(LoadOptions, options)),
    )


@contextmanager
def _loaded(context: Context, request: ChatRequest) -> Iterator[Chat]:
    """The chat, with a line of progress while it loads; always closed."""
    session = open_chat(context, request, _progress_line())
    try:
        if session.plan is not None:
            forced = "" if session.plan.fits else "loaded by force: "
            for note in session.plan.warnings:
                output.say(f"note: {forced}{visible(note)}")
        for note in session.info.details.get("notes", ()):
            output.say(f"note: {visible(str(note))}")
        yield session
    finally:
        session.close()


def _progress_line() -> Callable[[float], None] | None:
    if not sys.stderr.isatty():
        return None

    def show(part: float) -> None:
        text = "" if part >= 1 else f"loading {part:.0%}"
        click.echo(f"\r{text:<14}" + ("\r" if not text else ""), nl=False, err=True)

    return show


def _one(session: Chat, prompt: str, as_json: bool) -> None:
    text, stats = "", None
    for chunk in session.ask(prompt):
        if isinstance(chunk, ChatStats):
            stats = chunk
        else:
            text += chunk.text
            if not as_json:
                _write(chunk)
    if as_json:
        assert stats is not None
        output.emit(document(session, text, stats), as_json)
    else:
        click.echo()


def document(session: Chat, text: str, stats: ChatStats) -> dict[str, Any]:
    """What `--json` prints."""
    info = session.info
    return {
        "text": text,
        **as_document(stats),
        "load_seconds": info.load_seconds,
        "model": info.model,
        "chat_format": info.chat_format,
        "layers_offloaded": info.layers_offloaded,
        "layers_total": info.layers_total,
        "details": info.details,
    }


def _write(chunk: TextChunk) -> None:
    """Print a piece of an answer; on a terminal, nothing in it may move the cursor or ring."""
    text = visible(chunk.text.replace("\r", ""), keep="\n\t") if sys.stdout.isatty() else chunk.text
    click.echo(text, nl=False)


def _converse(session: Chat, stdin: IO[str]) -> None:
    """A conversation, line by line. Ctrl-C stops an answer; a second one, or one at the prompt, ends it all."""
    tty = stdin.isatty()
    if tty:
        output.say(f"{session.info.model}: context {session.info.context}. /reset forgets, /quit ends, Ctrl-C stops.")
    for line in _typed() if tty and sys.stdout.isatty() else stdin:
        text = line.strip()
        if text == "/quit":
            return
        if text == "/reset":
            session.reset()
            output.say("the conversation is forgotten")
        elif text == "/restart" or text.split()[:1] == ["/without"]:
            _revive(session, text.split()[1:] or session.lost if text != "/restart" else ())
        elif text:
            _answer(session, text, tty)


def _typed() -> Iterator[str]:
    """Lines typed at a terminal, with editing and history where Python has them."""
    with suppress(ImportError):
        import readline  # noqa: F401  (input() uses it once it is loaded)
    with suppress(EOFError):
        while True:
            yield input("> ")


def _answer(session: Chat, text: str, tty: bool) -> None:
    """One answer. At a terminal an engine that fails is started again; a script gets the error."""
    try:
        _streamed(session, text)
    except Cancelled:
        raise
    except PhituiError as error:
        if not tty:
            raise
        output.failure(error, False)
        if isinstance(error, EngineError) and not session.alive:
            _revive(session)


def _revive(session: Chat, without: Sequence[str] = ()) -> None:
    """Start the engine again, perhaps without some RPC workers. Where that fails, the conversation waits."""
    output.say("starting the engine again" + (f" without {', '.join(without)}" if without else "") + " ...")
    lost, progress = session.lost, _progress_line()
    try:
        session.restart(progress, without)
    except Cancelled:
        raise
    except PhituiError as error:
        if progress is not None:
            progress(1)  # wipes its line
        output.failure(error, False)
        without_it = f"; /without {' '.join(lost)} goes on without it" if lost else ""
        output.say(f"the conversation is kept: /restart tries again{without_it}")


def _streamed(session: Chat, text: str) -> None:
    with _interrupts(session):
        try:
            for chunk in session.ask(text):
                if isinstance(chunk, TextChunk):
                    _write(chunk)
        finally:
            click.echo()


@contextmanager
def _interrupts(session: Chat) -> Iterator[None]:
    """Meanwhile, the first Ctrl-C stops the answer and the second is a KeyboardInterrupt."""
    stopped = False

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal stopped
        if stopped:
            raise KeyboardInterrupt
        stopped = True
        # not here: this very thread may hold the lock that stop() needs
        threading.Thread(target=session.stop, name="stop").start()

    before = signal.signal(signal.SIGINT, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
