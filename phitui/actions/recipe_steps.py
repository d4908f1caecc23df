"""The steps of a recipe, each by the action that a person would use; what is done and unchanged is skipped."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from phitui import hub
from phitui.actions import build, evaluate, export, imatrix, lineage, plan, provenance, pull
from phitui.actions.context import Context
from phitui.actions.models import resolve_model
from phitui.actions.placing import in_place
from phitui.actions.recipe import RunRequest
from phitui.actions.recipe_build import Building
from phitui.actions.recipe_sources import compare, locate, option_rows, recorded_name, refuse, source_rows
from phitui.actions.source import converter_for, source_name
from phitui.domain import options
from phitui.domain.offers import JobContext
from phitui.domain.offload import PlanRequest
from phitui.domain.recipe import STEPS, Recipe
from phitui.domain.text import visible
from phitui.errors import DoesNotFit, OutputExists, UsageError
from phitui.plugins import named, require
from phitui.store.hashes import sha256_of

Document = dict[str, Any]


class Steps:
    """One run of a recipe. `check` finds what is wrong before work; `carry_out` does a step and returns its result."""

    def __init__(self, ctx: Context, request: RunRequest, recipe: Recipe, job: JobContext | None = None) -> None:
        self.ctx, self.request, self.recipe, self._job = ctx, request, recipe, job
        self.base = request.base
        self.fetched = self.matrix = self.model = ""

    @property
    def job(self) -> JobContext:
        assert self._job is not None, "only looked at, not carried out"
        return self._job

    def check(self) -> None:
        """Raise UsageError, OutputExists, Unavailable or PhituiError for what can be seen to go wrong beforehand."""
        recipe = self.recipe
        if not recipe.steps:
            what = visible(", ".join(edit.what for edit in recipe.edits))
            why = f": its file was changed by hand ({what})" if what else ""
            raise UsageError(f"there is no step in this recipe that makes anything{why}", f"steps: {', '.join(STEPS)}")
        for step, key in (("get", "to"), ("imatrix", "out"), ("build", "out"), ("export", "out")):
            given = getattr(getattr(recipe, step), key, "") if getattr(recipe, step) else ""
            if not (step == "build" and self.request.out):
                self.target(given)
        for name in ("evaluate", "plan", "export"):
            step = getattr(recipe, name)
            if step is not None and not step.model and recipe.build is None:
                raise UsageError(f"[{name}] needs a model", "model = ..., or a [build] section that makes one")
            if step is not None and step.model:
                resolve_model(self.ctx, self.found(step.model))
        if recipe.export is not None:
            exporter = named(self.ctx.registry.exporters, recipe.export.to, "export target")
            options.build(exporter.options, recipe.export_options)
        if recipe.evaluate is not None:
            require(evaluate.evaluator(self.ctx, recipe.evaluate.evaluator))
        if recipe.build is not None:
            Building(self).check(sure=recipe.get is None)

    def carry_out(self, name: str) -> Document:
        """Do one step, or skip it. Raises what the action raises."""
        work: Callable[[], Document] = getattr(self, name)
        self.job.check()
        done = work()
        if done.get("skipped"):
            self.job.note(f"{name}: {done['skipped']}")
        return done

    def target(self, text: str, default: Path | None = None) -> Path:
        """A path to write to. Raises UsageError for one outside of the recipe's directory, unless that is allowed."""
        if not text and default is not None:
            return default
        path = self.base / Path(text).expanduser()
        inside = path.resolve().is_relative_to(self.base.resolve())
        if not inside and not self.request.outside:
            raise UsageError(
                f"the recipe would write to {visible(text)}, outside of its own directory", "--outside allows it"
            )
        return path

    def found(self, text: str) -> str:
        """A path or name to read: relative to the recipe if such a file is there, else as a name in the library."""
        path = self.base / Path(text).expanduser()
        return str(path.absolute()) if path.exists() or "/" in text else text

    # ---- the steps, in order

    def get(self) -> Document:
        step = self.recipe.get
        assert step is not None
        name, repo = step.repo.rpartition("/")[2], step.repo
        to = self.target(step.to, self.ctx.paths.models / name).absolute()
        known, revision, files = provenance.downloaded(to)
        wanted = (step.revision in ("", revision)) and known == repo and provenance.is_whole(to)
        if wanted and all(any(Path(f).match(p) for f in files) for p in step.include):
            self.fetched = _fetched(to, tuple(files) if step.include else ())
            done: Document = {"repo": repo, "revision": revision, "path": str(to)}
            return done | {"skipped": f"{repo}@{revision[:12]} is in {to} already"}
        self.job.note(f"get: {repo}{f'@{step.revision}' if step.revision else ''} to {to}")
        source = hub.repository(f"{repo}@{step.revision}" if step.revision else repo)
        if not step.include:
            pull.require_convertible(self.ctx, source)
        asked = pull.PullRequest(f"{source.id}@{source.revision}", str(to), step.include)
        done = pull.run(asdict(asked), self.job)
        self.fetched = _fetched(to, tuple(done["files"]) if step.include else ())
        return done

    def imatrix(self) -> Document:
        step = self.recipe.imatrix
        assert step is not None
        model = Path(self.found(step.model)) if step.model else self._imatrix_model()
        recorded = self.recipe.result if self.recipe.build is None else None
        name = recorded_name(self.request, self.recipe) if recorded else step.out
        out = self.target(name, imatrix.default_out(self.ctx, model)).absolute()
        asked = imatrix.normalized(
            self.ctx,
            imatrix.ImatrixRequest(
                str(model),
                self.found(step.text) if step.text else "",
                str(out),
                step.context,
                step.chunks,
                self.request.threads,
                step.layers,
                step.parse_special,
                step.process_output,
                self.request.overwrite,
            ),
        )
        self.matrix = asked.out
        key = self._key("imatrix", replace(asked, threads=None, overwrite=False), (asked.model, asked.text))
        if out.is_file() and (former := self._former("imatrix", key, out)):
            return former | {"skipped": f"{out.name} is done"}
        if self.recipe.build is None and self._is_recorded_matrix(Path(asked.model), out):
            return {"path": str(out), "same": True, "skipped": f"{out.name} is there already, unchanged"}
        imatrix.check(asked)
        self.job.note(f"imatrix: {out.name} with {Path(asked.model).name}")
        done = self._remember("imatrix", key, imatrix.run(asdict(asked), self.job), out)
        if recorded is not None:
            if sha256_of(out).sha256 == recorded.sha256:
                return done | {"same": True}
            self.job.note("the bytes differ from the recorded matrix, as sums do between machines and versions")
        return done

    def _is_recorded_matrix(self, model: Path, out: Path) -> bool:
        """The recipe beside a matrix says what it was made from, which is verified here, and what came out."""
        rows = [*source_rows(self.recipe, model), *option_rows(self.ctx, self.request, self.recipe)]
        with lineage.hash_store(self.ctx) as store:
            refuse(compare(rows, store, job=self.job), self.job, self.request.force)
        recorded = self.recipe.result
        return recorded is not None and out.is_file() and sha256_of(out).sha256 == recorded.sha256

    def _imatrix_model(self) -> Path:
        """The GGUF for an importance matrix: the source of the build, or one made of it in its own precision."""
        source = Path(locate(self.ctx, self.request, self.recipe, self.fetched))
        if source.is_file():
            return source
        out = self.ctx.paths.models / f"{source_name(source)}.AUTO.gguf"
        if not out.exists():
            asked = build.normalized(self.ctx, build.BuildRequest(str(source), "AUTO", str(out)))
            out.parent.mkdir(parents=True, exist_ok=True)
            self.job.note(f"imatrix: needs a GGUF, {out.name}")
            build.run(asdict(asked), self.job)
        return out

    def build(self) -> Document:
        done = Building(self).carry_out()
        self.model = str(done["path"])
        return done

    def evaluate(self) -> Document:
        step = self.recipe.evaluate
        assert step is not None
        given = dict(self.recipe.evaluate_options)
        given |= {"chunks": step.chunks} if step.chunks is not None else {}
        asked = evaluate.normalized(
            self.ctx,
            evaluate.EvaluateRequest(
                self._model(step.model),
                self.found(step.reference) if step.reference else "",
                self.found(step.text) if step.text else "",
                step.evaluator,
                given,
            ),
        )
        key = self._key("evaluate", asked, (asked.model, asked.reference, asked.text))
        if former := self._former("evaluate", key):
            return former | {"skipped": "measured already"}
        self.job.note(f"evaluate: {Path(asked.model).name}")
        return self._remember("evaluate", key, evaluate.run(asdict(asked), self.job))

    def plan(self) -> Document:
        step = self.recipe.plan
        assert step is not None
        layers = {"auto": None, "all": -1}.get(step.layers.lower(), step.layers)
        if isinstance(layers, str):
            if not layers.lstrip("-").isdecimal():
                raise UsageError(f"[plan] layers = {visible(step.layers)!r} is no number", 'a number, "all" or "auto"')
            layers = int(layers)
        asked = PlanRequest(
            model=self._model(step.model),
            context=step.context,
            layers=layers,
            kv_type=step.kv_type,
            flash_attention=step.flash_attention,
            devices=step.devices,
        )
        made = plan.plan(self.ctx, asked)
        if step.must_fit and not made.fits:
            row = next(row for row in made.devices if not row.fits)
            raise DoesNotFit(
                f"{Path(asked.model).name} does not fit: {row.name} would hold {row.sum / 2**30:.2f} GiB of "
                f"{row.free / 2**30:.2f} GiB free",
                "fewer layers, a shorter context, or must_fit = false in [plan]",
            )
        fits = "fits" if made.fits else "does not fit"
        self.job.note(f"plan: {made.n_gpu_layers} of {made.layers_total} layers, {made.n_ctx} tokens: {fits}")
        return plan.as_document(made)

    def export(self) -> Document:
        step = self.recipe.export
        assert step is not None
        exporter = named(self.ctx.registry.exporters, step.to, "export target")
        values = self.absolute(exporter.options, self.recipe.export_options)
        out = self.target(step.out, self.base).absolute()
        asked = export.ExportRequest(self._model(step.model), step.to, out, values)
        bundle = export.preview(self.ctx, asked)
        files = [*(out / file.path for file in bundle.files), *(out / link.path for link in bundle.links)]
        document: Document = {"files": [str(p) for p in files], "run": list(bundle.run), "notes": list(bundle.notes)}
        placed = all(in_place(link.source, out / link.path) for link in bundle.links)
        if placed and all(_holds(out / file.path, file.text) for file in bundle.files):
            return document | {"skipped": f"{out}: written already"}
        self.job.note(f"export: to {step.to}")
        try:
            export.export(self.ctx, asked, self.request.overwrite)
        except OutputExists as error:
            raise OutputExists(f"{error.message} and holds something else", "--overwrite replaces it") from None
        return document

    # ---- what steps share

    def absolute(self, declared: type, values: Mapping[str, Any]) -> dict[str, Any]:
        """Option values with the paths among them made absolute, from the recipe's directory."""
        paths = {file.option: self.base / file.path.expanduser() for file in lineage.option_files(declared, values)}
        return {name: str(paths[name].absolute()) if name in paths else value for name, value in values.items()}

    def converter_options(self, source: Path) -> type | None:
        return converter_for(self.ctx, source).options if source.is_dir() else None

    def _model(self, given: str) -> str:
        return self.found(given) if given else self.model

    def _key(self, step: str, request: Any, files: tuple[str, ...]) -> str:
        """What tells one piece of work from another: the request and the state of the files it reads."""
        states = []
        for name in files:
            stat = Path(name).stat() if name else None
            states.append([stat.st_size, stat.st_mtime_ns, stat.st_ino] if stat else [])
        text = json.dumps([step, asdict(request), states], sort_keys=True, default=str)
        return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()

    def _memory(self) -> Path:
        name = hashlib.sha256(self.request.recipe.encode("utf-8", "surrogateescape")).hexdigest()[:32]
        return self.ctx.paths.state / "recipes" / f"{name}.json"

    def _former(self, step: str, key: str, out: Path | None = None) -> Document | None:
        """The result of a step that was done with the same key, if what it wrote is unchanged."""
        try:
            entry = json.loads(self._memory().read_bytes())[step]
            same = entry["key"] == key and entry["out"] == _state(out)
            return dict(entry["result"]) if same else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def _remember(self, step: str, key: str, result: Document, out: Path | None = None) -> Document:
        """Keep the result for the next run. A disk that refuses costs the next run time, nothing else."""
        file = self._memory()
        try:
            known = json.loads(file.read_bytes())
        except (OSError, ValueError):
            known = {}
        known = known if isinstance(known, dict) else {}
        known[step] = {"key": key, "out": _state(out), "result": result}
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            partial = file.with_suffix(".partial")
            partial.write_text(json.dumps(known))
            partial.replace(file)
        except OSError as error:
            self.job.note(f"{step}: that it is done is not remembered: {error.strerror}")
        return result


def _state(path: Path | None) -> list[int]:
    if path is None:
        return []
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns, stat.st_ino]


def _fetched(to: Path, files: tuple[str, ...]) -> str:
    """What a build reads of a download: the directory, or the one GGUF that was taken."""
    ggufs = [name for name in files if name.endswith(".gguf")]
    return str(to / ggufs[0]) if len(ggufs) == 1 else str(to)


def _holds(path: Path, text: str) -> bool:
    try:
        return path.read_text(encoding="utf-8") == text
    except (OSError, UnicodeDecodeError):
        return False
