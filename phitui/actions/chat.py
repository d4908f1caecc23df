"""Talk to a model: load it in an engine's child process, ask, stop, go on after a crash."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from phitui import plugins
from phitui.actions.context import Context
from phitui.domain.chat import ChatStats, Chunk, EngineSettings, Message, Sampling, SessionInfo, TextChunk
from phitui.engine.client import EngineProcess
from phitui.errors import DoesNotFit, PhituiError

if TYPE_CHECKING:
    from phitui.domain.offload import OffloadPlan

Progress = Callable[[float], None]


@dataclass(frozen=True)
class ChatRequest:
    """What to load. `layers` None offloads what fits; `force` loads even what the plan says does not fit."""

    model: str
    system: str = ""
    context: int | None = None
    layers: int | None = None
    kv_type: str = "f16"
    flash_attention: bool | None = None
    threads: int | None = None
    sampling: Sampling = field(default_factory=Sampling)
    engine: str | None = None
    rpc: tuple[str, ...] = ()
    force: bool = False


class Chat:
    """A conversation with a loaded model. One thread asks; stop() and close() may come from others."""

    def __init__(self, process: EngineProcess, system: str = "", sampling: Sampling | None = None) -> None:
        self.process = process
        self.system = system
        self.sampling = sampling or Sampling()
        self.messages: list[Message] = []
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

    def restart(self, progress: Progress | None = None) -> SessionInfo:
        """Load the model again in a new process, after a crash or a hang. The messages stay."""
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
    settings = _settings(context, request, path)
    process = EngineProcess(engine.name, path, settings, context.paths.state / "engine")
    process.start(progress)
    return Chat(process, request.system, request.sampling)


def _settings(context: Context, request: ChatRequest, model: Path) -> EngineSettings:
    """The settings for the engine: what the plan says, where the request leaves it open."""
    from phitui.actions.plan import plan, release
    from phitui.domain.offload import PlanRequest

    found = plan(
        context,
        PlanRequest(
            model=str(model),
            context=request.context,
            layers=request.layers,
            kv_type=request.kv_type,
            flash_attention=request.flash_attention,
            rpc=request.rpc,
        ),
    )
    release(context)  # a probe that stays alive would keep its GPU context beside the model's
    if not found.fits and not request.force:
        raise _does_not_fit(found)
    return EngineSettings(
        context=found.n_ctx,
        layers=found.n_gpu_layers,
        kv_type=request.kv_type,
        flash_attention=request.flash_attention,
        threads=request.threads or context.config.threads,
        rpc=request.rpc,
    )


def _does_not_fit(found: OffloadPlan) -> DoesNotFit:
    gib = 1 << 30
    needs = "; ".join(
        f"{device.name} needs {device.sum / gib:.2f} GiB of {device.free / gib:.2f} GiB free"
        for device in found.devices
        if not device.fits
    )
    return DoesNotFit(
        f"{Path(found.model).name} does not fit with {found.n_gpu_layers} of {found.layers_total} layers offloaded "
        f"and a context of {found.n_ctx}: {needs or 'no device has room'}",
        "use a smaller context (--ctx), fewer layers (--layers), a quantized KV cache (--kv-type q8_0) or a smaller "
        "scheme; --force loads it all the same",
    )
