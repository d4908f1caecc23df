"""The one way from the terminal to phitui.actions. Each call imports its module on first use, so that starting costs
nothing; all of them may take long and are called from worker threads."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from phitui.actions.chat import Chat
    from phitui.actions.context import Context
    from phitui.actions.history import Recorder
    from phitui.actions.tidy import Removal
    from phitui.domain.bundle import Bundle
    from phitui.domain.hardware import Device
    from phitui.domain.model import Artifact, KnownModel, ModelFacts
    from phitui.domain.offload import OffloadPlan, Tradeoff
    from phitui.store.chats import SavedChat, Turn


class Door:
    """Every action that the places use. Tests give the app a Door of their own."""

    def __init__(self, context: Context) -> None:
        self.context = context

    # models ----------------------------------------------------------------------------------------------------------
    def library(self) -> Sequence[Artifact]:
        from phitui.actions import models

        return models.library(self.context)

    def catalogue(self) -> Sequence[KnownModel]:
        from phitui.actions import models

        return models.catalogue(self.context)

    def removal(self, model: str) -> Removal:
        from phitui.actions import tidy

        return tidy.removal(self.context, model)

    def remove_model(self, model: str) -> Removal:
        from phitui.actions import tidy

        return tidy.remove(self.context, model)

    def rename_model(self, model: str, name: str) -> Path:
        from phitui.actions import tidy

        return tidy.rename(self.context, model, name)

    def inspect(self, source: str) -> ModelFacts:
        from phitui.actions import models

        return models.inspect(self.context, source)

    def pull(self, repo: str) -> Any:
        from phitui.actions import pull

        return pull.start(self.context, pull.PullRequest(repo))

    def models_dir(self) -> Path:
        """Where builds land by default."""
        return self.context.paths.models

    # build -----------------------------------------------------------------------------------------------------------
    def schemes(self, source: str | None) -> Sequence[Any]:
        from phitui.actions import build

        return build.scheme_table(self.context, source)

    def preview_build(self, source: str, scheme: str, out: str) -> Any:
        from phitui.actions import build

        return build.preview(self.context, build.BuildRequest(source, scheme, out))

    def start_build(self, source: str, scheme: str, out: str, *, overwrite: bool = False) -> Any:
        from phitui.actions import build

        return build.start(self.context, build.BuildRequest(source, scheme, out, overwrite=overwrite))

    def start_best(self, source: str, bars: str, *, measure: bool) -> Any:
        """`bars`: what is good enough or small enough, as a person writes it."""
        from phitui.actions import best, build
        from phitui.domain.choice import parse_bars

        wanted = parse_bars(bars)
        request = best.BestRequest(build.BuildRequest(source, best.NAME), wanted.max_kld, wanted.max_size, measure)
        return best.start(self.context, request)

    # plan ------------------------------------------------------------------------------------------------------------
    def plan(self, model: str, settings: Mapping[str, Any], *, probe: bool) -> OffloadPlan:
        """`probe` asks the engine for its buffers; without, formulas answer at once."""
        from phitui.actions import plan
        from phitui.domain.offload import PlanRequest

        return plan.plan(self.context, PlanRequest(model, **settings), probe)

    def tradeoffs(self, model: str, settings: Mapping[str, Any], made: OffloadPlan) -> Sequence[Tradeoff]:
        """How far the context could reach, by formulas."""
        from phitui.actions import plan
        from phitui.domain.offload import PlanRequest

        return plan.tradeoffs(self.context, PlanRequest(model, **settings), made)

    def devices(self) -> Sequence[Device]:
        from phitui.actions import plan

        return plan.devices(self.context)

    # chat ------------------------------------------------------------------------------------------------------------
    def open_chat(self, model: str, settings: Mapping[str, Any], progress: Callable[[float], None]) -> Chat:
        from phitui.actions import chat

        return chat.open_chat(self.context, chat.ChatRequest(model, **settings), progress)

    def recorder(self, model: str, settings: Mapping[str, Any], chat: str) -> Recorder:
        """Saves a conversation while it streams; `chat` is the saved one that goes on, or ""."""
        from phitui.actions import history

        return history.Recorder(self.context, model, settings, chat)

    def saved_chats(self, search: str) -> Sequence[SavedChat]:
        from phitui.actions import history

        return history.list_chats(self.context, search)

    def saved_chat(self, chat: str) -> tuple[SavedChat, Sequence[Turn]]:
        from phitui.actions import history

        return history.get_chat(self.context, chat)

    def rename_chat(self, chat: str, title: str) -> SavedChat:
        from phitui.actions import history

        return history.rename_chat(self.context, chat, title)

    def delete_chat(self, chat: str) -> SavedChat:
        from phitui.actions import history

        return history.delete_chat(self.context, chat)

    def export_chat(self, chat: str, out: Path, *, overwrite: bool = False) -> Path:
        from phitui.actions import history

        return history.export_chat(self.context, chat, out, overwrite=overwrite)

    def exports_dir(self) -> Path:
        """Where exports land by default."""
        return self.context.paths.data / "exports"

    # export ----------------------------------------------------------------------------------------------------------
    def targets(self) -> Sequence[Any]:
        from phitui.actions import export

        return export.targets(self.context)

    def preview_export(self, model: str, to: str, out: Path, options: Mapping[str, Any]) -> Bundle:
        from phitui.actions import export

        return export.preview(self.context, export.ExportRequest(model, to, out, dict(options)))

    def export(self, model: str, to: str, out: Path, options: Mapping[str, Any], *, overwrite: bool = False) -> Any:
        from phitui.actions import export

        return export.export(self.context, export.ExportRequest(model, to, out, dict(options)), overwrite=overwrite)

    # jobs ------------------------------------------------------------------------------------------------------------
    def jobs(self) -> Sequence[Any]:
        from phitui.actions import jobs

        return jobs.list_jobs(self.context)

    def job_log(self, job: str, last_bytes: int) -> str:
        from phitui.actions import jobs

        return jobs.log_of_job(self.context, job, last_bytes)

    def cancel_job(self, job: str) -> Any:
        from phitui.actions import jobs

        return jobs.cancel_job(self.context, job)

    def resume_job(self, job: str) -> Any:
        from phitui.actions import jobs

        return jobs.resume_job(self.context, job)

    def remove_job(self, job: str) -> Any:
        from phitui.actions import jobs

        return jobs.remove_job(self.context, job)

    # machine ---------------------------------------------------------------------------------------------------------
    def doctor(self, fresh: bool = False) -> Mapping[str, Any]:
        from phitui.actions import doctor

        return doctor.doctor(self.context, fresh)

    def measure_bandwidth(self) -> Sequence[str]:
        from phitui.actions import doctor

        return doctor.measure_bandwidth(self.context)

    def remedy(self) -> Any:
        from phitui.actions import repair

        return repair.remedy(self.context)

    def start_remedy(self, remedy: Any) -> Any:
        from phitui.actions import repair

        return repair.start(self.context, remedy)

    def plugins(self) -> Mapping[str, Any]:
        from phitui.actions import plugins

        return plugins.plugin_report(self.context)
