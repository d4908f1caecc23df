"""Recipes: what to get, build, evaluate, plan and export, as TOML. Beside every model lies one: its lineage.

A recipe written by hand has steps; the one that phitui writes (`model.gguf.toml`) also has records: who made the
file, from which bytes, and what came out. Both have the same keys: those of the dataclasses here, against which
`recipe_reading` checks a text.
Paths in a recipe are relative to the directory it lies in.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from phitui.domain.options import option

FORMAT = 1
"""Version of the format. A later phitui may raise it; this one refuses what it does not know."""
SUFFIX = ".toml"


@dataclass(frozen=True)
class GetStep:
    """Download from the Hub."""

    repo: str = option("", help="ORG/NAME on the Hugging Face Hub")
    revision: str = option("", help="branch, tag or commit; a commit makes the recipe exact")
    to: str = option("", help="directory for the files; phitui's models folder if not given")
    include: tuple[str, ...] = option((), help="patterns of file names, instead of a checkpoint's files")


@dataclass(frozen=True)
class ImatrixStep:
    """Make an importance matrix."""

    model: str = option("", help="GGUF to run; one is built from the source if not given")
    text: str = option("", help="UTF-8 text; the one that comes with phitui if not given")
    out: str = option("", help="file to write")
    context: int = option(512, help="tokens in a chunk", minimum=16)
    chunks: int | None = option(None, help="read at most so many chunks", minimum=1)
    layers: int | None = option(None, help="layers on the GPU, -1 for all; what fits if not given", minimum=-1)
    parse_special: bool | None = option(None, help="take special tokens that the text spells out as such")
    process_output: bool = option(False, help="include output.weight")


@dataclass(frozen=True)
class BuildStep:
    """Convert and quantize. `converter` and `quantizer` are tables of the plugins' own options."""

    source: str = option("", help="checkpoint directory, GGUF or library name; what [get] downloaded if not given")
    scheme: str = option("", help="scheme, as phitui schemes lists them")
    out: str = option("", help="GGUF to write")
    known_as: str = option("", help="treat the checkpoint's directory as if it were called so")
    allow_nan: bool = option(False, help="write weights that are NaN or infinite, instead of refusing them")
    stream: bool = option(False, help="read the source from the Hub while building, without a local copy")


@dataclass(frozen=True)
class EvaluateStep:
    """Measure quality and speed. `options` is a table of the evaluator's own options."""

    model: str = option("", help="GGUF to measure; what [build] made if not given")
    reference: str = option("", help="GGUF to compare with")
    text: str = option("", help="UTF-8 text; the evaluator's own if not given")
    evaluator: str = option("", help="which evaluator; the first that can be used if not given")
    chunks: int | None = option(None, help="evaluate at most so many chunks", minimum=1)


@dataclass(frozen=True)
class PlanStep:
    """Plan the layers. `layers` is a number, "all" or "auto"."""

    model: str = option("", help="GGUF to plan; what [build] made if not given")
    context: int | None = option(None, help="context in tokens", minimum=1)
    layers: str = option("auto", help="layers to offload: a number, all, or auto")
    kv_type: str = option("f16", help="type of the KV cache")
    flash_attention: bool | None = option(None, help="flash attention; decided by the engine if not given")
    devices: tuple[str, ...] = option((), help='plan for another machine: "RTX 4070=12GiB", "RAM=32GiB"')
    must_fit: bool = option(True, help="fail if it does not fit")


@dataclass(frozen=True)
class ExportStep:
    """Write files for another program. `options` is a table of the exporter's own options."""

    model: str = option("", help="GGUF to export; what [build] made if not given")
    to: str = option("", help="target, as phitui export --help lists them")
    out: str = option("", help="directory to write to; the recipe's if not given")


@dataclass(frozen=True)
class FileRecord:
    """A file that was read: its path (below the source, or relative to the recipe), bytes, and SHA-256 in hex.

    `option` names the option that it was given by, for files that are not the source's.
    """

    path: str = ""
    size: int = 0
    sha256: str = ""
    option: str = ""


@dataclass(frozen=True)
class SourceFacts:
    """What a model was made from. `kind` is "checkpoint", "gguf" or "repository" (read from the Hub itself).

    `name` is what a checkpoint's directory was called, which decides metadata; `made_from` tells in words what is
    known of a source that phitui made itself.
    """

    kind: str = option("", help="checkpoint, gguf or repository", choices=("checkpoint", "gguf", "repository"))
    name: str = option("", help="name of the checkpoint's directory")
    repo: str = option("", help="ORG/NAME on the Hub")
    revision: str = option("", help="commit")
    made_from: str = option("", help="lineage of the source itself, in words")


@dataclass(frozen=True)
class SourceRecord(SourceFacts):
    """The same, with every file that was read."""

    files: tuple[FileRecord, ...] = ()

    @property
    def title(self) -> str:
        """microsoft/Phi-4@0123abc, or what else the source is called."""
        return f"{self.repo}@{self.revision[:12]}" if self.repo else self.made_from or self.name


@dataclass(frozen=True)
class ResultRecord:
    """What came out. `sha256` is of the whole file; `size` in bytes."""

    file: str = option("", help="name of the file")
    size: int = option(0, help="bytes", minimum=0)
    sha256: str = option("", help="SHA-256 of the whole file")
    tensors: int = option(0, help="number of tensors", minimum=0)
    bits_per_weight: float = option(0.0, help="bits per weight", minimum=0)


@dataclass(frozen=True)
class MadeFacts:
    """Who made it, when (RFC 3339), on which kind of machine."""

    phitui: str = option("", help="version of phitui")
    date: str = option("", help="when")
    machine: str = option("", help="operating system and processor architecture")


@dataclass(frozen=True)
class MadeRecord(MadeFacts):
    """The same, with the versions of what decides the bytes."""

    versions: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class EditRecord:
    """A change of the file after it was made, which a recipe cannot make again. `size`, `sha256`: afterwards."""

    date: str = ""
    what: str = ""
    size: int = 0
    sha256: str = ""


@dataclass(frozen=True)
class Recipe:
    """A checked recipe. Steps are carried out in this order: get, imatrix, build, evaluate, plan, export."""

    get: GetStep | None = None
    imatrix: ImatrixStep | None = None
    build: BuildStep | None = None
    evaluate: EvaluateStep | None = None
    plan: PlanStep | None = None
    export: ExportStep | None = None
    converter: Mapping[str, Any] = field(default_factory=dict)
    quantizer: Mapping[str, Any] = field(default_factory=dict)
    build_files: tuple[FileRecord, ...] = ()
    imatrix_files: tuple[FileRecord, ...] = ()
    evaluate_options: Mapping[str, Any] = field(default_factory=dict)
    export_options: Mapping[str, Any] = field(default_factory=dict)
    made: MadeRecord | None = None
    source: SourceRecord | None = None
    result: ResultRecord | None = None
    edits: tuple[EditRecord, ...] = ()

    @property
    def steps(self) -> tuple[str, ...]:
        """Names of the steps that there are, in order."""
        return tuple(name for name in STEPS if getattr(self, name) is not None)


@runtime_checkable
class Traced(Protocol):
    """A TensorSource may also be one: it tells its provenance itself, for example by what the Hub says of it."""

    def provenance(self) -> SourceRecord: ...


STEPS: dict[str, type] = {
    "get": GetStep,
    "imatrix": ImatrixStep,
    "build": BuildStep,
    "evaluate": EvaluateStep,
    "plan": PlanStep,
    "export": ExportStep,
}
