"""The actions as command plugins see them (the protocol `offers.Phitui`): plain values in, plain values out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from phitui.actions.context import Context
from phitui.domain.bundle import ExportModel
from phitui.domain.chat import ChatStats, Sampling, TextChunk
from phitui.domain.model import Artifact
from phitui.errors import PhituiError


class Facade:
    """Builds, plans, asks and exports on behalf of a plugin."""

    def __init__(self, context: Context, announce: Callable[[Mapping[str, Any]], None] | None = None) -> None:
        self._context = context
        self._announce = announce

    def announce(self, document: Mapping[str, Any]) -> None:
        """Show a command's document now, for one that goes on working; what its run() returns is then not shown."""
        if self._announce is not None:
            self._announce(document)

    @property
    def data_dir(self) -> Path:
        return self._context.paths.data

    @property
    def cache_dir(self) -> Path:
        return self._context.paths.cache

    def models(self) -> Sequence[Artifact]:
        """What `phitui models` lists of this machine."""
        from phitui.actions.models import library

        return library(self._context)

    def model(self, name: str) -> ExportModel:
        """A GGUF by its path or its name in the library, as exporters see it."""
        from phitui.actions.export import export_model
        from phitui.actions.models import resolve_model

        return export_model(resolve_model(self._context, name))

    def build(self, source: str, scheme: str, out: Path, **settings: Any) -> Mapping[str, Any]:
        """Run a build job to its end and return its result. Raises PhituiError with the job's own error."""
        from phitui.actions import build, jobs

        job = build.start(self._context, build.BuildRequest(source, scheme, str(out), **settings))
        job = jobs.wait_job(self._context, job.id)
        if job.state != "done":
            error = job.error or {"message": f"the build ended as {job.state}", "hint": f"phitui jobs show {job.id}"}
            raise PhituiError(error["message"], error["hint"])
        return {"job": job.id, **(job.result or {})}

    def plan(self, model: str, **settings: Any) -> Mapping[str, Any]:
        """The memory plan, as `phitui plan --json` prints it."""
        from phitui.actions import plan
        from phitui.domain.offload import PlanRequest

        return plan.as_document(plan.plan(self._context, PlanRequest(model, **settings)))

    def ask(self, model: str, prompt: str, **settings: Any) -> Mapping[str, Any]:
        """One question to a model, as `phitui chat -p --json` prints it. Sampling fields may be among the settings."""
        from phitui.actions import chat

        names = {field.name for field in fields(Sampling)}
        sampling = replace(Sampling(), **{name: settings.pop(name) for name in names & set(settings)})
        session = chat.open_chat(self._context, chat.ChatRequest(model, sampling=sampling, **settings))
        try:
            text = ""
            for chunk in session.ask(prompt):
                if isinstance(chunk, TextChunk):
                    text += chunk.text
                elif isinstance(chunk, ChatStats):
                    return {"text": text, **chat.as_document(chunk)}
            raise PhituiError("the engine ended its answer without a result")
        finally:
            session.close()

    def export(self, model: str, to: str, out: Path, **options: Any) -> Mapping[str, Any]:
        """Write an export. Returns files, run and notes."""
        from phitui.actions import export

        overwrite = bool(options.pop("overwrite", False))
        request = export.ExportRequest(model, to, out, options)
        result = export.export(self._context, request, overwrite=overwrite)
        return {"files": [str(file) for file in result.files], "run": list(result.run), "notes": list(result.notes)}
