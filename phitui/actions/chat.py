"""Talk to a model: load it in an engine's child process, ask, stop, go on after a crash."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from phitui import plugins
from phitui.actions import loads, workers
from phitui.actions.context import Context
from phitui.domain.chat import ChatStats, Chunk, EngineSettings, Message, Sampling, SessionInfo, TextChunk
from phitui.domain.load import LoadOptions
from phitui.domain.options import specs
from phitui.engine.client import EngineProcess
from phitui.errors import DoesNotFit, PhituiError

if TYPE_CHECKING:
    from phitui.domain.hardware import Device
    from phitui.domain.offload import OffloadPlan, Tradeoff

Progress = Callable[[float], None]


@dataclass(frozen=True)
class ChatRequest(LoadOptions):
    """What to load and how. `force` loads even what the plan says does not fit."""

    model: str
    system: str = ""
    threads: int | None = None
    sampling: Sampling = field(default_factory=Sampling)
    engine: str | None = None
    force: bool = False


class Chat:
    """A conversation with a loaded model. One thread asks; stop() and close() may come from others."""

    def __init__(self, process: EngineProcess, system: str = "", sampling: Sampling | None = None) -> None:
        self.process = process
        self.system = system
        self.sampling = sampling or Sampling()
        self.messages: list[Message] = []
        self.plan: OffloadPlan | None = None
        """What the load was planned to take."""
        self.replan: Callable[[tuple[str, ...]], EngineSettings] | None = None
        """The settings with only these RPC workers."""
        self.answered: Callable[[ChatStats], None] | None = None
        """Called with the figures of every answer."""
        self.reset()

    @property
    def info(self) -> SessionInfo:
        """What is loaded. Raises EngineError if nothing is."""
        return self.process.info

    @property
    def alive(self) -> bool:
        """Whether the engine's process runs; if not, restart() brings it back."""
        return self.process.alive

    def ask(self, text: str) -> Iterator[Chunk]:
        """Answer `text`: pieces of text, then the figures. A full answer, or the part before stop(), joins `messages`.

        A question that gets no text at all (the engine died, the context is full, stopped at once) is taken back, so
        that it can be asked again and the roles keep alternating. Raises EngineError when the engine fails.
        """
        return self._keep(text, self.process.stream([*self.messages, Message("user", text)], self.sampling))

    def _keep(self, question: str, stream: Generator[Chunk, None, None]) -> Iterator[Chunk]:
        answer: list[str] = []
        stats: ChatStats | None = None
        failed = False
        try:
            for chunk in stream:
                if isinstance(chunk, TextChunk):
                    answer.append(chunk.text)
                else:
                    stats = chunk
                    self._remember(question, "".join(answer), stats.finish_reason != "cancelled")
                    if self.answered is not None:
                        self.answered(stats)
                yield chunk
        except PhituiError:
            failed = True
            raise
        finally:
            stream.close()
            if stats is None and not failed:  # the caller left the loop: what was shown, stays
                self._remember(question, "".join(answer), False)

    def _remember(self, question: str, answer: str, complete: bool) -> None:
        if answer or complete:
            self.messages += [Message("user", question), Message("assistant", answer)]

    def stop(self) -> None:
        """End the running answer at once. Safe from any thread."""
        self.process.stop()

    def reset(self) -> None:
        """Forget the conversation, but not the system prompt."""
        self.messages[:] = [Message("system", self.system)] if self.system else []

    def instruct(self, system: str) -> None:
        """Another system prompt, from the next question on; empty for none."""
        self.system = system
        said = [message for message in self.messages if message.role != "system"]
        self.messages[:] = ([Message("system", system)] if system else []) + said

    def make_room(self, keep: float = 0.7) -> int:
        """Leave the oldest questions out with their answers until at most this part of the text is left.

        The last question and its answer stay. Returns how many questions were left out; they stay saved.
        """
        start = 1 if self.messages and self.messages[0].role == "system" else 0
        limit = keep * sum(len(message.content) for message in self.messages)
        dropped = 0
        while len(self.messages) - start > 2 and (
            not dropped or sum(len(message.content) for message in self.messages) > limit
        ):
            del self.messages[start : start + 2]
            dropped += 1
        return dropped

    def rewind(self, question: int) -> str:
        """Forget from the question of that number on (from 0) what was said; returns its text."""
        asked = [place for place, message in enumerate(self.messages) if message.role == "user"]
        text = self.messages[asked[question]].content
        del self.messages[asked[question] :]
        return text

    @property
    def lost(self) -> tuple[str, ...]:
        """HOST:PORT of the RPC workers that took the engine with them; restart() can do without them."""
        return tuple(worker.endpoint for worker in self.process.lost)

    def restart(self, progress: Progress | None = None, without: Sequence[str] = ()) -> SessionInfo:
        """Load the model again in a new process, after a crash or a hang. The messages stay.

        `without`: RPC workers to leave out; then it is planned anew for the devices that are left. Raises Unavailable
        for a worker that is still away, DoesNotFit where the others have no room.
        """
        if without:
            self.process.close()
            rest = tuple(each for each in self.process.settings.rpc if each not in without)
            self.process.settings = self.replan(rest) if self.replan else replace(self.process.settings, rpc=rest)
        return self.process.restart(progress)

    def close(self) -> None:
        """Unload the model. Safe from any thread, also while an answer is running."""
        self.process.close()


def as_document(stats: ChatStats) -> dict[str, Any]:
    """The figures of an answer, JSON-ready: times in seconds, rates in tokens per second."""
    return {
        **asdict(stats),
        "decode_tokens_per_s": round(stats.decode_tokens_per_s, 3),
        "prompt_tokens_per_s": round(stats.prompt_tokens_per_s, 3),
    }


def open_chat(context: Context, request: ChatRequest, progress: Progress | None = None) -> Chat:
    """Plan, then load. `progress` is called about ten times a second with the part loaded (0 to 1).

    Raising Cancelled in `progress` cancels the load. Raises DoesNotFit (unless forced), Unavailable, EngineError.
    """
    from phitui.actions.models import resolve_model

    path = resolve_model(context, request.model)
    engines = context.registry.engines
    if request.engine:
        engine = plugins.named(engines, request.engine, "engine")
    else:
        engine = plugins.first_available(engines, "engine")

    def settings_of(found: OffloadPlan) -> EngineSettings:
        return replace(found.settings, threads=request.threads or context.config.threads)

    def replan(rpc: tuple[str, ...]) -> EngineSettings:
        planned, _ = _planned(context, replace(request, rpc=rpc, no_rpc=not rpc), path)
        chat.plan = planned
        return settings_of(planned)

    found, machine = _planned(context, request, path)
    settings = settings_of(found)
    process = EngineProcess(engine.name, path, settings, context.paths.state / "engine")
    info = process.start(progress)
    number = loads.remember(context, path, found, settings, info, machine)
    chat = Chat(process, request.system, request.sampling)
    chat.plan, chat.replan = found, replan
    chat.answered = lambda stats: loads.remember_answer(context, number, stats)
    return chat


def _planned(context: Context, request: ChatRequest, model: Path) -> tuple[OffloadPlan, Sequence[Device]]:
    """The plan for the engine and its devices. Raises DoesNotFit where it does not fit and was not forced."""
    from phitui.actions.plan import machine_of, plan, release, tradeoffs
    from phitui.domain.offload import PlanRequest

    names = {spec.name for spec in specs(LoadOptions)}
    workers.refresh(context, request)
    asked = PlanRequest(model=str(model), **{name: getattr(request, name) for name in names})
    found = plan(context, asked)
    machine = machine_of(context, found.rpc)
    release(context)  # a probe that stays alive would keep its GPU context beside the model's
    if not found.fits and not request.force:
        raise _does_not_fit(found, tradeoffs(context, asked, found))
    return found, machine


def _does_not_fit(found: OffloadPlan, reach: Sequence[Tradeoff]) -> DoesNotFit:
    gib = 1 << 30
    needs = "; ".join(
        f"{device.name} needs {device.sum / gib:.2f} GiB of {device.free / gib:.2f} GiB free"
        for device in found.devices
        if not device.fits
    )
    shared = next((text for text in found.warnings if "shares the RAM" in text), "")
    ways = []
    here = [row for row in reach if row.layers == found.n_gpu_layers and row.context]
    if same := next((row for row in here if row.kv_type == found.kv_type and row.context < found.n_ctx), None):
        ways.append(f"--ctx {same.context}")
    if other := next((row for row in here if row.kv_type != found.kv_type), None):
        ways.append(f"--kv-type {other.kv_type} --ctx {min(other.context, found.n_ctx)}")
    if found.n_gpu_layers:
        ways.append("--layers auto")
    return DoesNotFit(
        f"{Path(found.model).name} does not fit with {found.n_gpu_layers} of {found.layers_total} layers offloaded "
        f"and a context of {found.n_ctx}: {needs or shared or 'no device has room'}",
        f"{' or '.join(ways) or 'a smaller scheme'}; --force loads it all the same",
    )
