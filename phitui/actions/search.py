"""`--scheme best --measure`: measure as few schemes as will do to know the best one, then keep its file.

The reference is the source itself, or a lossless GGUF of it: one that lies around, else one made here. Candidates are
built in a work directory beside the output and compared with the reference, one after the other; the file of the best
so far stays, the others go at once. What was measured is remembered, so a second try measures only what is lacking.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from phitui.actions import best, evaluate
from phitui.actions import build as builds
from phitui.actions.best import BestRequest, Decision
from phitui.actions.build import BuildRequest
from phitui.actions.context import Context
from phitui.actions.figures import Known, build_key, lossless_file
from phitui.actions.jobs import jobs
from phitui.actions.schemes import SchemeRow, find_scheme
from phitui.actions.source import source_name
from phitui.domain import choice
from phitui.domain.choice import Candidate
from phitui.domain.offers import JobContext
from phitui.errors import Cancelled, OutputExists, PhituiError, UsageError
from phitui.jobs import Job

TASK = "phitui.actions.search:run"
MARK = ".best-"
"""In the name of a work directory."""


def start(ctx: Context, request: BestRequest) -> Job:
    """Check what can be checked, then start the detached job. `request` is a checked one.

    Raises UsageError, Unavailable without an evaluator, PhituiError where the disk is too small.
    """
    best.evaluation(ctx, request)
    out = Path(request.build.out) if request.build.out else None
    if out is not None and out.exists() and not request.build.overwrite:
        raise OutputExists(f"{out} exists already", "choose another --out, or replace it with --overwrite")
    search = Search(ctx, request, None)
    search.check_choice()
    search.check_room()
    title = f"{search.name} as the best with {request.bars.text}, measured"
    key = request.build.out or f"best {best.digest(request)}"
    return jobs(ctx).start("build", TASK, asdict(request), title, key=key, argv=best.command_line(request))


def run(request: dict[str, Any], job: JobContext) -> dict[str, Any]:
    """The search and the build. Returns what a build returns, and the choice under "best"."""
    values = dict(request)
    asked = BestRequest(**(values | {"build": BuildRequest(**values["build"]), "among": tuple(values["among"])}))
    search = Search(Context(), asked, job)
    decision = search.decide()
    return search.finish(decision)


class Step:
    """A JobContext for one step of the job: its progress bears the step's name, its notes are left out."""

    def __init__(self, job: JobContext, label: str) -> None:
        self._job, self._label = job, label

    def progress(self, done: int, total: int, text: str = "") -> None:
        self._job.progress(done, total, f"{self._label}: {text}" if text else self._label)

    def note(self, text: str) -> None:
        """What a build says of one candidate would hide what the search says."""

    def check(self) -> None:
        self._job.check()


class Search:
    """One search. `candidates` are from large to small, without the reference and without what cannot be built."""

    def __init__(self, ctx: Context, request: BestRequest, job: JobContext | None) -> None:
        self._ctx, self._request, self._began = ctx, request, time.monotonic()
        self._job: Any = job
        self.name = source_name(Path(request.build.source))
        self.rows = {row.scheme.name: row for row in best.rows_of(ctx, request)}
        self.lossless = next((row for row in reversed(self.rows.values()) if row.lossless), None)
        asked_for = [row for row in self.rows.values() if best.in_question(row, request)]
        bare = [best.candidate_of(replace(row, figure=None)) for row in asked_for]
        self._left_out = [c for c in bare if c.reason != "not measured" or self.rows[c.scheme].lossless]
        self.candidates = [c for c in bare if c not in self._left_out and request.bars.allows(c)]
        self.results: dict[str, Candidate] = {}
        self._failed: dict[str, Candidate] = {}
        self._sources: list[str] = []
        self._facts: Mapping[str, str] | None = None
        self._reference: Path | None = None
        self._work = self._directory()

    # choosing --------------------------------------------------------------------------------------------------------
    def decide(self) -> Decision:
        """Measure, and choose. Raises PhituiError where none of the schemes will do."""
        bars, reference = self._request.bars, self._reference_candidate()
        self._job.note(self._plan())
        if bars.max_kld is not None:
            choice.search_smallest(self.candidates, lambda c: bars.passes(self._measured(c)))
        elif reference is None or not bars.allows(reference):
            choice.search_finest(self.candidates, lambda c: self._measured(c).bound)
        known = self._failed | self.results
        found = [known.get(c.scheme, c) for c in [*self.candidates, *self._left_out]]
        if reference is not None:
            found = [reference if c.scheme == reference.scheme else c for c in found]
        found.sort(key=lambda c: -c.size)
        chosen = choice.choose(found, bars)
        if chosen is None:
            shutil.rmtree(self._work, ignore_errors=True)
            finest = min(self.results.values(), key=lambda c: c.bound, default=None)
            known_text = f": the best is {finest.scheme}, {choice.kld_text(finest)}" if finest else ""
            raise PhituiError(
                f"no scheme has {bars.text}{known_text}",
                "raise --max-kld or --max-size, or give an importance matrix with --imatrix FILE (phitui imatrix)",
            )
        return Decision(chosen, tuple(found), bars, self._sources[-1] if self._sources else "")

    def _plan(self) -> str:
        count = len(self.candidates)
        how = "by halving the list, then downwards until two in a row miss"
        if self._request.bars.max_kld is None:
            how = "from the largest downwards, until two in a row are no better"
        return f"{count} scheme{'s' if count != 1 else ''} to choose from, measured as far as needed {how}"

    def _reference_candidate(self) -> Candidate | None:
        """The full-precision file as one that may be chosen: nothing diverges less."""
        row = self.lossless
        if row is None or not best.in_question(row, self._request):
            return None
        return Candidate(row.scheme.name, row.size or 0, 0.0, is_reference=True)

    def _measured(self, candidate: Candidate) -> Candidate:
        """The candidate with its divergence: as it is remembered, or measured now."""
        made = candidate.scheme
        if made not in self.results:
            try:
                self.results[made] = self._figures(candidate)
            except (Cancelled, UsageError):
                raise
            except PhituiError as error:
                if not self.results and self._failed:  # it is hardly the fault of these schemes
                    raise
                self._failed[made] = replace(candidate, reason="could not be measured")
                self._job.note(f"{made} could not be measured: {error.message}")
                self._file(made).unlink(missing_ok=True)
                return candidate
            self._tidy()
        return self.results[made]

    def _figures(self, candidate: Candidate) -> Candidate:
        remembered = self._remembered(candidate.scheme)
        values, self._facts, source = remembered or self._evaluate(candidate.scheme)
        if "kld_mean" not in values:
            raise UsageError("the evaluator gives no KL divergence", "phitui plugins lists the evaluators")
        self._sources.append(source)
        found = replace(candidate, kld=values["kld_mean"], error=values.get("kld_mean_error", 0.0), reason="")
        self._say(found, bool(remembered))
        return found

    def _say(self, result: Candidate, remembered: bool) -> None:
        bars = self._request.bars
        verdict = ""
        if bars.max_kld is not None:
            verdict = ", good enough" if bars.passes(result) else f", above {bars.max_kld:g}"
        when = " (measured before)" if remembered else ""
        words = f"{result.scheme}: {choice.kld_text(result)}, {choice.size_text(result.size)}{verdict}{when}"
        self._job.note(words)

    @cached_property
    def _measures(self) -> Known:
        """What was known of this source when the search began."""
        return best.known_of(self._ctx, self._request)

    # measuring -------------------------------------------------------------------------------------------------------
    def _remembered(self, scheme: str) -> tuple[Mapping[str, float], Mapping[str, str], str] | None:
        asked = evaluate.asked(best.evaluation(self._ctx, self._request))
        quantizer, _ = find_scheme(self._ctx, scheme)
        key = build_key(quantizer.options, self._request.build.quantizer)
        found = self._measures.answer(self.rows[scheme].resolved, key, asked)
        if found is None or (self._facts is not None and found.facts != self._facts):
            return None
        return found.values, found.facts, found.source

    def _evaluate(self, scheme: str) -> tuple[Mapping[str, float], Mapping[str, str], str]:
        reference = self._make_reference()
        model = self._build(scheme)
        request = best.evaluation(self._ctx, self._request, str(model), str(reference))
        number = len(self.results) + 1
        figures = evaluate.run(asdict(request), Step(self._job, f"{number}: measuring {scheme}"))
        numbers = {name: value for name, value in figures.items() if isinstance(value, int | float)}
        return numbers, figures["facts"], figures["source"]

    def _build(self, scheme: str, label: str = "") -> Path:
        """The file of a scheme in the work directory; one that a former try left is not written again."""
        out = self._file(scheme)
        if not self._work.is_dir():
            self._work.mkdir(parents=True)
            self._job.note(f"work files lie in {self._work} until the end")
        request = replace(best.build_of(self._ctx, self._request, scheme, str(out)), overwrite=False, lineage=False)
        step = Step(self._job, label or f"{len(self.results) + 1}: building {scheme}")
        builds.run(asdict(request), step)
        return out

    def _make_reference(self) -> Path:
        """What the candidates are compared with: the source if it is a GGUF, else a lossless GGUF of it."""
        if self._reference is None:
            source, row = Path(self._request.build.source), self.lossless
            if source.is_file():
                self._reference = source
            elif (found := lossless_file(self._ctx, self._measures)) is not None and self._lasting(found):
                self._job.note(f"the reference is {found}")
                self._reference = found
            elif row is not None:
                self._reference = self._build(row.scheme.name, f"building the reference ({row.scheme.name})")
            else:
                raise PhituiError("this source cannot be written without loss, so there is no reference")
        return self._reference

    def _lasting(self, path: Path) -> bool:
        """Whether a file is not in the work directory of a search, this one or another, which removes it."""
        return not any(part.startswith(".") and MARK in part for part in path.parts[:-1])

    # files -----------------------------------------------------------------------------------------------------------
    def _directory(self) -> Path:
        """Beside the output, so that the chosen file only has to be renamed; hidden from the library."""
        out = Path(self._request.build.out) if self._request.build.out else self._ctx.paths.models / self.name
        return out.absolute().parent / f".{self.name}{MARK}{best.digest(self._request)}"

    def _file(self, scheme: str) -> Path:
        return self._work / f"{self.name}.{scheme}.gguf"

    def _tidy(self) -> None:
        """Remove the files of the candidates that cannot be chosen any more."""
        ahead = choice.choose(list(self.results.values()), self._request.bars)
        for scheme in self.results:
            if ahead is None or scheme != ahead.scheme:
                self._file(scheme).unlink(missing_ok=True)

    def check_choice(self) -> None:
        """Raise PhituiError where there is nothing to choose from, whatever the figures will be."""
        bars = self._request.bars
        everything = [*self.candidates, *self._left_out]
        if any(bars.allows(candidate) for candidate in everything):
            return
        if any(row.size for row in self.rows.values()) and everything:
            raise best.none_so_small(self._request, everything)
        raise UsageError("there is no scheme to choose from", "phitui schemes shows which there are, and their sizes")

    def check_room(self) -> None:
        """Raise PhituiError if the reference and two candidates do not fit on the disk."""
        row: SchemeRow | None = self.lossless
        made = row is not None and row.size and not Path(self._request.build.source).is_file()
        largest = max((candidate.size for candidate in self.candidates), default=0)
        needed = (row.size or 0 if row is not None and made else 0) + 2 * largest
        folder = next(parent for parent in self._work.parents if parent.is_dir())
        there = sum(file.stat().st_blocks * 512 for file in self._work.glob("*") if file.is_file())
        free = shutil.disk_usage(folder).free + there
        if needed > free:
            raise PhituiError(
                f"{folder} has {choice.size_text(free)} free, and measuring needs {choice.size_text(needed)}",
                "make room, limit the schemes with --among or --max-size, or choose an --out on another disk",
            )

    def finish(self, decision: Decision) -> dict[str, Any]:
        """Give the chosen file its name, or build it, remove the others, and say why it is this one."""
        for line in decision.lines:
            self._job.note(line)
        build = best.build_of(self._ctx, self._request, decision.chosen.scheme)
        out, made = Path(build.out), self._file(decision.chosen.scheme)
        if made.exists():
            if out.exists() and not build.overwrite:
                raise OutputExists(
                    f"{out} exists already; what was measured is remembered",
                    "choose another --out, or replace it with --overwrite",
                )
            out.parent.mkdir(parents=True, exist_ok=True)
            made.replace(out)
            build = replace(build, overwrite=False)
        written = builds.run(asdict(build), Step(self._job, f"building {build.scheme}"))
        shutil.rmtree(self._work, ignore_errors=True)
        seconds = round(time.monotonic() - self._began, 3)
        return written | {"seconds": seconds, "best": decision.document}
