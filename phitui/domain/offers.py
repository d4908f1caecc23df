"""The protocols behind the hooks: what a plugin's offer must be able to do. A hook discovers, a protocol behaves.

Every offer has a `name` (lower case, unique among the offers of its hook), a `title` for people, and `available()`.
Constructing an offer must be cheap: heavy imports belong inside its methods.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from phitui.domain.bundle import Bundle, ExportModel
from phitui.domain.chat import Chunk, EngineSettings, Message, Sampling, SessionInfo
from phitui.domain.hardware import BackendReport, Bandwidth, Device, MemoryBuffer
from phitui.domain.model import Artifact, KnownModel, Verdict
from phitui.domain.quant import Scheme
from phitui.domain.tensors import FilePlan, PlannedTensor, TensorSource


@dataclass(frozen=True)
class Availability:
    """Whether an offer can be used here. If not: `reason` in one sentence and `hint`, usually an install command."""

    ok: bool = True
    reason: str = ""
    hint: str = ""


class JobContext(Protocol):
    """What long work is given: a way to report and to be stopped. Safe to call from any thread."""

    def progress(self, done: int, total: int, text: str = "") -> None:
        """Report `done` of `total` (bytes or items); calls are thinned out. Raises Cancelled when asked to stop."""

    def note(self, text: str) -> None:
        """Say something a person should see in the job's log."""

    def check(self) -> None:
        """Raise Cancelled if the work was asked to stop."""


@runtime_checkable
class Offer(Protocol):
    """What every offer has."""

    name: str
    title: str

    def available(self) -> Availability: ...


@runtime_checkable
class Converter(Offer, Protocol):
    """Turns a Hugging Face checkpoint into a tensor source. `architectures`: the values of config.json it may take."""

    @property
    def architectures(self) -> tuple[str, ...]: ...
    @property
    def options(self) -> type: ...

    def inspect(self, config: Mapping[str, Any]) -> Verdict:
        """Judge a config.json alone, before any download. Never raises for a strange config: says so in the verdict."""
        ...

    def open(self, checkpoint: Path, options: Any) -> TensorSource:
        """Describe the checkpoint as GGUF metadata and tensors. Reads headers and the tokenizer, no tensor data."""
        ...


@runtime_checkable
class Versioned(Protocol):
    """A converter or quantizer may also be one: it tells which libraries decide the bytes it makes."""

    def versions(self) -> Mapping[str, str]:
        """Version by name. It goes into the lineage of files, and explains why a recipe made another one."""
        ...


class Encoder(Protocol):
    """Encodes rows of one tensor. Called from several threads at once, with rows of one matrix (expert) at a time.

    Where more than the plan decides the bytes (an importance matrix), give it an `identity: str`: an interrupted write
    is only resumed by an encoder of the same identity.
    """

    def __call__(self, tensor: PlannedTensor, first_row: int, rows: Any) -> Any:
        """`rows` is a C-contiguous float32 numpy array (rows, row length); returns a bytes-like of encoded rows."""
        ...


@runtime_checkable
class Quantizer(Offer, Protocol):
    """Knows schemes: which tensor gets which type, and how rows are encoded."""

    @property
    def options(self) -> type: ...

    def schemes(self) -> Sequence[Scheme]:
        """All schemes, from large to small."""
        ...

    def plan(self, source: TensorSource, schemes: Sequence[str], options: Any) -> Mapping[str, FilePlan]:
        """The exact file for each scheme, without reading tensor data. Raises UsageError for an unknown scheme."""
        ...

    def encoder(self, plan: FilePlan, options: Any) -> Encoder:
        """The function that encodes this plan's rows. Raises UsageError if an imatrix is needed and missing."""
        ...


@dataclass(frozen=True)
class ImatrixSettings:
    """How an importance matrix is collected. `context`: tokens per chunk; `chunks`: at most that many, None for all.

    `layers` go to the GPU. `parse_special` takes spelled out special tokens of the text as such, `process_output`
    includes output.weight. `dataset` is the name of the text, noted in the file.
    """

    context: int = 512
    chunks: int | None = None
    threads: int | None = None
    layers: int = 0
    parse_special: bool = False
    process_output: bool = False
    dataset: str = ""


@runtime_checkable
class ImatrixCollector(Protocol):
    """A quantizer may also be one: it makes the importance matrices that its schemes need."""

    @property
    def calibration_text(self) -> Path:
        """The text that is used where a person gives none."""
        ...

    def collect(
        self, model: Path, text: str, out: Path, settings: ImatrixSettings, job: JobContext
    ) -> Mapping[str, Any]:
        """Run the text through the GGUF and write the matrix to `out`, replacing it; native code runs in this process.

        Goes on by itself where a former, interrupted try with the same arguments stopped. Returns path, size (bytes),
        seconds, chunks, resumed_chunks, tokens, entries and unused_experts ({tensor: [expert, ...]}).
        """
        ...


@runtime_checkable
class Backend(Offer, Protocol):
    """One kind of hardware.

    One with `remote = True` has devices on other machines, which a plan asks for itself: where it is asked for the
    devices of this machine, such a backend is left out.
    """

    def probe(self) -> BackendReport:
        """Look at the engine and the machine. Must not load native code into this process: use a child process."""
        ...


@runtime_checkable
class MemoryProbe(Protocol):
    """A backend may also be one: it asks the engine, in a child process that stays warm, what a load would allocate."""

    def workers(self, rpc: Sequence[str]) -> Sequence[Device]:
        """The devices of RPC workers (HOST:PORT each). Raises PhituiError for one that does not answer within 3 s."""
        ...

    def measure(self, model: Path, settings: EngineSettings) -> Sequence[MemoryBuffer]:
        """The buffers of a load with these settings, without allocating them. Raises PhituiError where it cannot."""
        ...

    def release(self) -> None:
        """End the child process: a GPU gives a few hundred MiB to every process that has opened it."""
        ...


@runtime_checkable
class BandwidthMeter(Protocol):
    """A backend may also be one: it measures how fast its devices read memory. Only when a person asks for it."""

    def bandwidth(self) -> Sequence[Bandwidth]:
        """Measure, for about a second each, in a child process. Raises PhituiError where it cannot."""
        ...


class Session(Protocol):
    """A loaded model."""

    info: SessionInfo

    def stream(self, messages: Sequence[Message], sampling: Sampling) -> Iterator[Chunk]:
        """Answer the last message. Text comes in whole characters; the last item is the ChatStats."""
        ...

    def stop(self) -> None:
        """End the running answer at once. May be called from another thread."""
        ...

    def close(self) -> None: ...


@runtime_checkable
class Engine(Offer, Protocol):
    """Runs a model. phitui calls `open` in a child process of its own, so native code may crash there."""

    def open(self, model: Path, settings: EngineSettings, progress: Callable[[float], None]) -> Session:
        """Load the model, calling `progress` with the part loaded (0 to 1). Raises PhituiError where it cannot."""
        ...


@runtime_checkable
class Exporter(Offer, Protocol):
    """Makes a model known to another program."""

    @property
    def options(self) -> type: ...

    def preview(self, model: ExportModel, options: Any, out: Path) -> Bundle:
        """The files of the export, exactly as they will be written below `out`. Writes nothing."""
        ...


@dataclass(frozen=True)
class Delivery:
    """How a model is to be handed over: to `url`, as `Publisher.destination` told it, and whether to `test` it there.

    `sha256` tells the SHA-256 of one of the model's files in hex: at once where phitui knows it, else by reading it.
    """

    url: str
    test: bool
    sha256: Callable[[Path], str]


@runtime_checkable
class Publisher(Protocol):
    """An exporter may also be one: it hands the model to a program that is running, here or on another machine."""

    def destination(self, model: ExportModel, options: Any, url: str, overwrite: bool) -> str:
        """The whole address that `url` means ("": the program's usual one), after a short look that all is well there.

        Raises UsageError, Unavailable or PhituiError where a push would fail: a bad option or address, nobody there, a
        version that is too old; OutputExists for a model of that name, unless `overwrite`. Sends nothing.
        """
        ...

    def push(self, model: ExportModel, options: Any, delivery: Delivery, job: JobContext) -> Mapping[str, Any]:
        """Hand the model over. What is there already is not sent again, so that an interrupted push can be resumed.

        Returns, JSON-ready: `name` and `url` of the model, `sent` and `present` (bytes of its files), `answer` (to the
        test's question, empty without a test), `notes` and `run` (lists of texts, as in a Bundle), and more if it
        likes.
        """
        ...


@runtime_checkable
class Finder(Offer, Protocol):
    """Finds models that are already on this machine."""

    def find(self) -> Iterable[Artifact]:
        """Yield artifacts. What cannot be looked at is skipped, never fatal.

        Names and sizes are enough: an empty `architecture` (and `scheme`) is read from the header by phitui, which
        remembers it. A file whose header cannot be read is listed, with the architecture "unreadable".
        """
        ...


@runtime_checkable
class Catalogue(Offer, Protocol):
    """Known models, as data."""

    def models(self) -> Sequence[KnownModel]: ...


@dataclass(frozen=True)
class Measures:
    """Quality and speed of an artifact. `values` by name (perplexity, kld_mean, ...); `source`: how they came.

    `facts` are what must be equal for two figures of quality to be comparable, such as the digest of the text;
    `conditions` are what else is worth knowing, such as the threads that a speed depends on.
    """

    values: Mapping[str, float]
    source: str
    facts: Mapping[str, str] = field(default_factory=dict)
    conditions: Mapping[str, str] = field(default_factory=dict)


@runtime_checkable
class Evaluator(Offer, Protocol):
    """Measures quality or speed of a GGUF."""

    @property
    def options(self) -> type: ...

    def evaluate(self, model: Path, options: Any, job: JobContext) -> Measures: ...


@runtime_checkable
class Command(Offer, Protocol):
    """An extra command of the command line. `run` returns a JSON-ready document."""

    @property
    def options(self) -> type: ...

    def run(self, phitui: Phitui, options: Any, say: Say) -> Mapping[str, Any]:
        """Do the work; `say` writes a line for people (stderr under --json)."""
        ...


class Say(Protocol):
    def __call__(self, text: str) -> None: ...


class Phitui(Protocol):
    """What a command plugin can ask of phitui: the same actions that the CLI and the TUI call."""

    @property
    def data_dir(self) -> Path: ...
    @property
    def cache_dir(self) -> Path: ...
    def announce(self, document: Mapping[str, Any]) -> None:
        """Show the command's document (under --json: print it) now, because it goes on working."""
        ...

    def models(self) -> Sequence[Artifact]:
        """What is on this machine, as `phitui models` lists it."""
        ...

    def model(self, name: str) -> ExportModel:
        """A GGUF by its path or its name in the library. Raises PhituiError where there is none."""
        ...

    def build(self, source: str, scheme: str, out: Path, **settings: Any) -> Mapping[str, Any]: ...
    def plan(self, model: str, **settings: Any) -> Mapping[str, Any]: ...
    def ask(self, model: str, prompt: str, **settings: Any) -> Mapping[str, Any]: ...
    def export(self, model: str, to: str, out: Path, **options: Any) -> Mapping[str, Any]: ...
