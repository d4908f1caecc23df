"""The build of a recipe: its sources are verified before, its result is compared after."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from phitui import __version__
from phitui.actions import build, lineage
from phitui.actions.recipe_sources import compare, find_file, locate, option_rows, recorded_name, refuse, source_rows
from phitui.actions.schemes import find_scheme
from phitui.actions.source import source_path
from phitui.actions.views import name_of
from phitui.domain import options
from phitui.domain.recipe import BuildStep, Recipe
from phitui.domain.text import visible
from phitui.errors import OutputExists, UsageError
from phitui.store.hashes import Hashing
from phitui.store.sidecar import beside, read_beside

if TYPE_CHECKING:
    from phitui.actions.recipe_steps import Steps


class Building:
    """The [build] of one run."""

    def __init__(self, steps: Steps) -> None:
        assert steps.recipe.build is not None
        self.steps, self.ctx, self.recipe = steps, steps.ctx, steps.recipe
        self.step: BuildStep = steps.recipe.build
        self.stream = self.step.stream and not (steps.request.source or steps.fetched)

    def check(self, sure: bool) -> None:
        """Raise for what can be seen beforehand. If not `sure`, the source is still to be downloaded."""
        quantizer, _ = find_scheme(self.ctx, self.step.scheme)
        unknown = set(self.recipe.quantizer) - {spec.name for spec in options.specs(quantizer.options)}
        if unknown:
            raise UsageError(
                f"[build.quantizer] {visible(min(unknown))} is no option of {quantizer.title}",
                "phitui build --help lists them; a plugin that had it may be missing here: phitui plugins",
            )
        options.build(quantizer.options, self.recipe.quantizer)
        for row in option_rows(self.ctx, self.steps.request, self.recipe):
            if not row.path.is_file():
                raise UsageError(
                    f"the {visible(row.role)} of the recipe is not there: {visible(str(row.path))}",
                    "copy it there, or change its path in the recipe; its SHA-256 is known",
                )
        if not sure:
            return
        request = self.request()
        out = Path(request.out)
        if self._same_place(request, out):
            raise UsageError(
                f"{out.name} is the source itself", "the recipe would write over what it reads: choose another out"
            )
        if out.exists() and not self.steps.request.overwrite and not self._ours(out):
            raise OutputExists(
                f"{out} is there already, and is not what this recipe makes",
                "--out FILE, or replace it with --overwrite",
            )
        if self.recipe.imatrix is not None:
            return  # what it gives is among the options, so nothing more is known yet
        if not self._done(out, request):
            build.check(build.preview(self.ctx, request), replace(request, overwrite=request.overwrite or out.exists()))

    def carry_out(self) -> dict[str, Any]:
        """Verify, build, compare. Returns what a build returns, and `same` (None: nothing recorded) and why not."""
        job, force = self.steps.job, self.steps.request.force
        request = self.request()
        out = Path(request.out)
        with lineage.hash_store(self.ctx) as store:
            rows = [] if self.stream else source_rows(self.recipe, Path(request.source))
            rows += option_rows(self.ctx, self.steps.request, self.recipe)
            refuse(compare(rows, store, job=job), job, force)
        former = None if self._unfinished(out, request) else self._done(out, request)
        if former is not None:
            return former
        job.note(f"build: {out.name} of {Path(request.source).name}, {request.scheme}")
        out.parent.mkdir(parents=True, exist_ok=True)
        plan = build.preview(self.ctx, request)
        build.check(plan, replace(request, overwrite=request.overwrite or out.exists()))
        done = build.run(asdict(request), job)
        return done | self._compared(done["sha256"], done["size"])

    def request(self) -> build.BuildRequest:
        """The same request that a person's command line would make."""
        steps, step = self.steps, self.step
        where = locate(self.ctx, steps.request, self.recipe, steps.fetched)
        source = source_path(self.ctx, where, self.stream)
        quantizer, _ = find_scheme(self.ctx, step.scheme)
        asked = self._files(steps.absolute(quantizer.options, self.recipe.quantizer))
        known = {spec.name for spec in options.specs(quantizer.options)}
        if steps.matrix and "imatrix" in known:
            asked.setdefault("imatrix", steps.matrix)
        declared = steps.converter_options(source)
        converter = dict(self.recipe.converter)
        if declared is not None:
            converter = self._files(steps.absolute(declared, converter))
        name = recorded_name(steps.request, self.recipe) if self.recipe.result else step.out or self._name(source)
        out = Path(steps.request.out) if steps.request.out else steps.target(name)
        request = build.BuildRequest(
            where if self.stream else str(source),
            step.scheme,
            str(out.absolute()),
            converter,
            asked,
            steps.request.threads,
            steps.request.overwrite,
            step.allow_nan,
            self._known_as(source),
            stream=self.stream,
        )
        return build.normalized(self.ctx, request)

    def _files(self, values: dict[str, Any]) -> dict[str, Any]:
        """Option values with recorded files where they are now."""
        places = {
            file.option: str(find_file(self.ctx, self.steps.request, file).absolute())
            for file in self.recipe.build_files
        }
        return {name: places.get(name, value) for name, value in values.items()}

    def _name(self, source: Path) -> str:
        from phitui.actions.source import source_name

        return f"{source_name(source)}.{self.step.scheme.upper()}.gguf"

    def _known_as(self, source: Path) -> str:
        record = self.recipe.source
        name = self.step.known_as or (record.name if record and record.kind == "checkpoint" else "")
        return name if source.is_dir() and name and name_of(source) != name else ""

    def _same_place(self, request: build.BuildRequest, out: Path) -> bool:
        source = Path(request.source)
        return out.exists() and source.exists() and out.samefile(source)

    def _ours(self, out: Path) -> bool:
        """Whether the file that is there comes from a recipe: its content is then looked at when it is its turn."""
        result = self.recipe.result
        return read_beside(out) is not None or (result is not None and out.stat().st_size == result.size)

    def _unfinished(self, out: Path, request: build.BuildRequest) -> bool:
        """Whether the file is there without its recipe: a former attempt was killed between the two, and is ended."""
        if self.recipe.result is not None or request.overwrite or not out.is_file() or beside(out).exists():
            return False
        from phitui.gguf.published import is_written

        return is_written(build.preview(self.ctx, request), out)

    def _done(self, out: Path, request: build.BuildRequest) -> dict[str, Any] | None:
        """The result, if the very file is there already; None if it is to be built. Raises OutputExists for another."""
        if not out.is_file():
            return None
        recorded, known = self.recipe.result, read_beside(out)
        with lineage.hash_store(self.ctx) as store:
            sha256 = Hashing(store, [out]).finish()[out].sha256
        same = recorded is not None and sha256 == recorded.sha256
        if not same and recorded is None and known is not None and known.result is not None:
            same = known.result.sha256 == sha256 and self._asked_the_same(known, request)
        if not same:
            if request.overwrite:
                return None
            raise OutputExists(
                f"{out} is there already, and is not what this recipe makes",
                "--out FILE, or replace it with --overwrite",
            )
        done: dict[str, Any] = {
            "path": str(out),
            "size": out.stat().st_size,
            "sha256": sha256,
            "scheme": request.scheme,
        }
        verdict: dict[str, Any] = {"same": True if recorded else None, "differences": []}
        return done | verdict | {"skipped": f"{out.name} is there already, unchanged"}

    def _asked_the_same(self, recipe: Recipe, request: build.BuildRequest) -> bool:
        """Whether the lineage of the file that is there is this build of sources that are still the same."""
        step, base = recipe.build, Path(request.out).parent
        if step is None or recipe.source is None:
            return False
        quantizer, _ = find_scheme(self.ctx, request.scheme)
        mine = lineage.relative_options(quantizer.options, request.quantizer, base)
        scheme = build.preview(self.ctx, request).scheme if request.scheme == "AUTO" else request.scheme
        if (step.scheme, dict(recipe.quantizer), step.allow_nan) != (scheme, mine, request.allow_nan):
            return False
        if dict(recipe.converter) != request.converter:
            return False
        if step.stream or request.stream:
            return step.source == request.source
        here = replace(self.steps.request, recipe=str(base / "recipe.toml"))
        with lineage.hash_store(self.ctx) as store:
            rows = [*source_rows(recipe, Path(request.source)), *option_rows(self.ctx, here, recipe)]
            return all(row.state == "same" for row in compare(rows, store))

    def _compared(self, sha256: str, size: int) -> dict[str, Any]:
        """Whether the file is the recorded one, and if not, what is known to differ."""
        recorded = self.recipe.result
        if recorded is None or not recorded.sha256:
            return {"same": None, "differences": []}
        if recorded.sha256 == sha256:
            return {"same": True, "differences": []}
        return {"same": False, "differences": self._differences(size)}

    def _differences(self, size: int) -> list[str]:
        made, recorded = self.recipe.made, self.recipe.result
        found = []
        if made is not None:
            quantizer, _ = find_scheme(self.ctx, self.step.scheme)
            offers = [quantizer, *self.ctx.registry.converters]
            now = lineage.made_by(self.ctx, offers)
            then = {"phitui": made.phitui, "machine": made.machine, **made.versions}
            here = {"phitui": __version__, "machine": now.machine, **now.versions}
            found = [
                f"{name} was {visible(was)}, here it is {here.get(name, 'not there')}"
                for name, was in then.items()
                if was != here.get(name, "")
            ]
        if recorded is not None and recorded.size != size:
            found.append(f"it had {recorded.size:,} bytes, now it has {size:,}")
        return found or ["neither versions nor sources differ from the recorded ones"]
