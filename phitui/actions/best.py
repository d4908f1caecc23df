"""`--scheme best`: the scheme is chosen by what was measured, and the choice is explained.

Only figures that are comparable count: of this source, with the same importance matrix or none, against the same
reference on the same text. With `measure` the job takes the figures that are lacking (phitui.actions.search).
"""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from phitui.actions import build as builds
from phitui.actions import evaluate
from phitui.actions.build import BuildRequest
from phitui.actions.context import Context
from phitui.actions.evaluate import EvaluateRequest
from phitui.actions.figures import Known, known, lossless_file
from phitui.actions.jobs import jobs
from phitui.actions.schemes import SchemeRow, find_scheme, scheme_table
from phitui.actions.source import open_source, source_name, source_path
from phitui.domain import choice, options
from phitui.domain.choice import Bars, Candidate
from phitui.domain.offers import JobContext
from phitui.domain.text import visible
from phitui.errors import NotMeasured, PhituiError, UsageError
from phitui.jobs import Job

TASK = "phitui.actions.best:run"
NAME = "best"
"""What is given as a scheme to have it chosen."""


@dataclass(frozen=True)
class BestRequest:
    """What to build, its scheme left open. `max_kld` in nats per token, `max_size` in bytes: one or both.

    `among` limits the schemes. `measure` takes the figures that are lacking, on `text` (empty: the evaluator's own)
    and at most `chunks` of it.
    """

    build: BuildRequest
    max_kld: float | None = None
    max_size: int | None = None
    measure: bool = False
    among: tuple[str, ...] = ()
    text: str = ""
    chunks: int | None = None

    @property
    def bars(self) -> Bars:
        return Bars(self.max_kld, self.max_size)


@dataclass(frozen=True)
class Decision:
    """The scheme that was chosen, and why. `lines` are for people, `yardstick` says how all figures were taken."""

    chosen: Candidate
    candidates: tuple[Candidate, ...]
    bars: Bars
    yardstick: str

    @property
    def lines(self) -> tuple[str, ...]:
        how = (f"figures: {self.yardstick}",) if self.yardstick else ()
        return (*choice.explain(self.chosen, self.candidates, self.bars), *how)

    @property
    def document(self) -> dict[str, Any]:
        """JSON-ready: sizes in bytes, divergences in nats per token."""
        return {
            "scheme": self.chosen.scheme,
            "size": self.chosen.size,
            "kld_mean": self.chosen.kld,
            "kld_mean_error": self.chosen.error,
            "max_kld": self.bars.max_kld,
            "max_size": self.bars.max_size,
            "source": self.yardstick,
            "explanation": list(self.lines),
            "candidates": [
                {"scheme": c.scheme, "size": c.size, "kld_mean": c.kld, "kld_mean_error": c.error, "reason": c.reason}
                for c in self.candidates
            ],
        }


def start(ctx: Context, request: BestRequest) -> Job:
    """Choose, or check that there is something to measure, and start the detached build.

    Raises UsageError without a bar or with a wrong one, PhituiError where too little is measured to choose.
    """
    request = checked(ctx, request)
    if request.measure:
        from phitui.actions import search

        return search.start(ctx, request)
    decision = decide(ctx, request)
    build = build_of(ctx, request, decision.chosen.scheme)
    builds.check(builds.preview(ctx, build), build)
    title = f"{source_name(Path(build.source))} as {build.scheme}, the best with {request.bars.text}"
    work = {"build": asdict(build), "best": decision.document}
    return jobs(ctx).start("build", TASK, work, title, key=build.out, argv=command_line(request))


def run(request: dict[str, Any], job: JobContext) -> dict[str, Any]:
    """Build the scheme that was chosen. Returns what a build returns, and the choice under "best"."""
    for line in request["best"]["explanation"]:
        job.note(line)
    return builds.run(request["build"], job) | {"best": request["best"]}


def checked(ctx: Context, request: BestRequest) -> BestRequest:
    """The request with absolute paths and schemes in capitals. Raises UsageError for one that cannot be answered."""
    if request.max_kld is None and request.max_size is None:
        raise UsageError(
            "--scheme best needs to know what is good enough, or how large is too large",
            "give --max-kld 0.02 (divergence from the full-precision model), or --max-size 4GiB, or both",
        )
    if request.max_kld is not None and not 0 <= request.max_kld < float("inf"):
        raise UsageError(f"--max-kld {request.max_kld} is no divergence", "0.01 is very close, 0.05 still good")
    if (request.text or request.chunks) and not request.measure:
        raise UsageError("--text and --chunks say how to measure", "add --measure, or leave them out")
    if request.build.stream:
        raise UsageError("what is streamed cannot be told again, so no figures belong to it", "phitui pull it first")
    path = source_path(ctx, request.build.source)
    among = tuple(dict.fromkeys(find_scheme(ctx, name)[1].name for name in request.among))
    text = Path(request.text).expanduser().absolute() if request.text else None
    if text is not None and not text.is_file():
        raise UsageError(f"there is no text file {visible(str(text))}", "give a plain UTF-8 text file with --text FILE")
    build = replace(request.build, source=str(path))
    if build.out:
        build = replace(build, out=str(Path(build.out).expanduser().absolute()))
    return replace(request, build=build, among=among, text=str(text or ""))


def decide(ctx: Context, request: BestRequest) -> Decision:
    """Choose among the schemes that were measured. Raises PhituiError, with what to type next, where none will do."""
    rows = rows_of(ctx, request)
    candidates = tuple(candidate_of(row) for row in rows if in_question(row, request))
    chosen = choice.choose(candidates, request.bars)
    if chosen is None:
        raise _undecided(ctx, request, rows, candidates)
    figures = [row.figure.quality for row in rows if row.figure and row.figure.comparable and row.figure.quality]
    return Decision(chosen, candidates, request.bars, figures[0].source if figures else "")


def rows_of(ctx: Context, request: BestRequest) -> list[SchemeRow]:
    """The schemes that could be chosen, from large to small: of two that are the same for this model, one.

    Of the lossless ones the smallest is there, whatever was asked for; what is no smaller than it is not.
    """
    build = request.build
    rows: dict[str, SchemeRow] = {}
    for row in scheme_table(ctx, build.source, build.converter, build.quantizer):
        wanted = not request.among or row.scheme.name in request.among or row.resolved in request.among
        if row.error or row.size is None or not (wanted or row.lossless):
            continue
        other = rows.get(row.types)
        if other is None or _preferred(row, request) > _preferred(other, request):
            rows[row.types] = row
    lossless = min((row for row in rows.values() if row.lossless), key=lambda row: row.size or 0, default=None)
    found = [
        row
        for row in rows.values()
        if row is lossless
        or row.scheme.name in request.among
        or not (request.among or row.lossless or (lossless is not None and (row.size or 0) >= (lossless.size or 0)))
    ]
    return sorted(found, key=lambda row: -(row.size or 0))


def _preferred(row: SchemeRow, request: BestRequest) -> tuple[bool, bool, bool, int]:
    """Of two names for the same file: the one asked for, not AUTO, the one that was measured, the short one."""
    name = row.scheme.name
    return name in request.among, name == row.resolved, row.figure is not None, -len(name)


def in_question(row: SchemeRow, request: BestRequest) -> bool:
    """Whether it may be chosen: the lossless one is among the rows even where it was not asked for."""
    return not request.among or row.scheme.name in request.among


def candidate_of(row: SchemeRow) -> Candidate:
    """The scheme with what was measured of it; where that does not count, why."""
    figure, size = row.figure, row.size or 0
    bare = Candidate(row.scheme.name, size)
    if row.needs_imatrix:
        return replace(bare, reason="needs an importance matrix (--imatrix)")
    if figure is None or figure.kld is None:
        return replace(bare, reason="not measured")
    if figure.is_reference:
        return replace(bare, kld=0.0, is_reference=True)
    if not figure.comparable:
        return replace(bare, reason="measured otherwise (another reference, text or part of it)")
    if not figure.wanted:
        return replace(bare, reason="measured only with an importance matrix (--imatrix)")
    return replace(bare, kld=figure.kld, error=figure.kld_error)


def known_of(ctx: Context, request: BestRequest) -> Known:
    """What was measured of builds of the source."""
    return known(ctx, open_source(ctx, request.build.source, request.build.converter))


def build_of(ctx: Context, request: BestRequest, scheme: str, out: str = "") -> BuildRequest:
    """The build of one of the schemes: its quantizer is given the options that it knows."""
    quantizer, found = find_scheme(ctx, scheme)
    known = {spec.name for spec in options.specs(quantizer.options)}
    values = {name: value for name, value in request.build.quantizer.items() if name in known}
    out = out or request.build.out
    return builds.normalized(ctx, replace(request.build, scheme=found.name, out=out, quantizer=values))


def evaluation(ctx: Context, request: BestRequest, model: str = "", reference: str = "") -> EvaluateRequest:
    """What the evaluator is asked. Raises UsageError where it cannot compare two models, or Unavailable."""
    offer = evaluate.evaluator(ctx)
    known = {spec.name for spec in options.specs(offer.options)}
    chosen: dict[str, Any] = {"chunks": request.chunks} if request.chunks is not None else {}
    for name in ("reference", *chosen, *(["text"] if request.text else [])):
        if name not in known:
            raise UsageError(f"{offer.title} takes no {name}", "phitui plugins lists the evaluators")
    chosen = options.plain(options.build(offer.options, chosen))
    return EvaluateRequest(model, reference, request.text, offer.name, chosen)


def command_line(request: BestRequest) -> tuple[str, ...]:
    """The command that does the same."""
    words = [*builds.command_line(replace(request.build, scheme=NAME))]
    for flag, value in (("--max-kld", request.max_kld), ("--max-size", request.max_size)):
        words += [flag, f"{value:g}" if isinstance(value, float) else _exact(value)] if value is not None else []
    words += ["--among", ",".join(request.among)] if request.among else []
    words += ["--measure"] if request.measure else []
    words += ["--text", request.text] if request.text else []
    return (*words, "--chunks", str(request.chunks)) if request.chunks is not None else tuple(words)


def _exact(size: int) -> str:
    """Bytes in the largest unit that needs no fraction: 4GiB."""
    for power, unit in ((3, "GiB"), (2, "MiB"), (1, "KiB")):
        if size % 1024**power == 0:
            return f"{size >> 10 * power}{unit}"
    return str(size)


def digest(request: BestRequest) -> str:
    """What tells one search from another."""
    return hashlib.sha256(json.dumps(asdict(request), sort_keys=True).encode()).hexdigest()[:12]


# too little is known --------------------------------------------------------------------------------------------------
def _undecided(
    ctx: Context, request: BestRequest, rows: Sequence[SchemeRow], candidates: Sequence[Candidate]
) -> PhituiError:
    bars, measured = request.bars, [c for c in candidates if c.kld is not None]
    if candidates and not any(bars.allows(candidate) for candidate in candidates):
        return none_so_small(request, candidates)
    if not measured:
        what = "nothing was measured yet of what is built from this source"
    else:
        finest = min((c for c in measured if bars.allows(c)), key=lambda c: c.bound, default=None)
        known = f"the best of those measured is {finest.scheme}, {choice.kld_text(finest)}" if finest else ""
        what = f"no measured scheme has {bars.text}" + (f": {known}" if known else "")
    return NotMeasured(f"the best scheme cannot be told: {what}", "\n".join(_next(ctx, request, rows, candidates)))


def none_so_small(request: BestRequest, candidates: Sequence[Candidate]) -> PhituiError:
    """What to say where every scheme is larger than allowed."""
    smallest = min(candidates, key=lambda candidate: candidate.size)
    return PhituiError(
        f"no scheme is that small: the smallest here, {smallest.scheme}, has {choice.size_text(smallest.size)}",
        f"raise --max-size (it is {choice.size_text(request.max_size or 0)}), or take a smaller model",
    )


def _next(
    ctx: Context, request: BestRequest, rows: Sequence[SchemeRow], candidates: Sequence[Candidate]
) -> Iterable[str]:
    """Commands that bring the choice nearer: all of it in one job, or one scheme by hand."""
    yield f"{shlex.join(command_line(replace(request, measure=True)))}\nmeasures what is lacking; or, scheme by scheme:"
    source = Path(request.build.source)
    reference, commands = source if source.is_file() else lossless_file(ctx, known_of(ctx, request)), []
    if reference is None:
        name = next((row.scheme.name for row in rows if row.lossless), "")
        if not name:
            return
        reference = ctx.paths.models / f"{source_name(source)}.{name}.gguf"
        commands.append(["phitui", "build", str(source), "--scheme", name])
    bare = {row.scheme.name for row in rows if not row.lossless}
    lacking = [c for c in candidates if c.reason == "not measured" and request.bars.allows(c) and c.scheme in bare]
    if not lacking:
        return
    scheme = lacking[len(lacking) // 2].scheme
    out = ctx.paths.models / f"{source_name(source)}.{scheme}.gguf"
    if not out.exists():
        commands.append(["phitui", "build", str(source), "--scheme", scheme])
    commands.append(["phitui", "eval", str(out), "--reference", str(reference)])
    yield " && ".join(shlex.join(command) for command in commands)
