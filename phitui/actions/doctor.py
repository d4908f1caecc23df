"""What this machine has, what the engine can use of it, and the command for the rest."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from phitui import __version__
from phitui.actions.context import Context
from phitui.domain.hardware import BackendReport
from phitui.domain.offers import Backend
from phitui.plugins import availability


def doctor(ctx: Context) -> dict[str, Any]:
    """The report, JSON-ready; `problems` first, each with what to do. Backends are asked at the same time."""
    found = [backend for backend in ctx.registry.backends if availability(backend).ok]
    with ThreadPoolExecutor(max_workers=max(1, len(found))) as pool:
        reports = list(pool.map(_report, found))
    titles = {backend.name: backend.title for backend in found}
    engine = next((report.engine for report in reports if report.engine), None)
    return {
        "ok": not (problems := _problems(ctx, reports, titles)),
        "problems": problems,
        "phitui": {
            "version": __version__,
            "python": platform.python_version(),
            "system": platform.system(),
            "machine": platform.machine(),
        },
        "paths": {
            "config": str(ctx.paths.config_file),
            "models": str(ctx.paths.models),
            "jobs": str(ctx.paths.jobs),
            "cache": str(ctx.paths.cache),
        },
        "engine": None
        if engine is None
        else {
            "name": engine.name,
            "version": engine.version,
            "path": engine.path,
            "backends": list(engine.backends),
            "features": {name: list(values) for name, values in engine.features.items()},
            "gpu_offload": engine.gpu_offload,
            "rpc": engine.rpc,
        },
        "devices": [_device(device) for report in reports for device in report.devices],
        "backends": [_backend(report, titles[report.backend]) for report in reports],
        "engines": [_offer(offer) for offer in ctx.registry.engines],
        "plugins": {
            "loaded": len(ctx.registry.plugins),
            "failed": [
                {"plugin": failure.plugin, "stage": failure.stage, "error": failure.error}
                for failure in ctx.registry.failures
            ],
        },
    }


def _report(backend: Backend) -> BackendReport:
    try:
        report = backend.probe()
    except Exception as error:  # a plugin's code: what it raises is part of the diagnosis
        return BackendReport(backend.name, warnings=(f"{backend.title}: {type(error).__name__}: {error}",))
    return report if report.backend == backend.name else BackendReport(backend.name, warnings=("reports another name",))


def _problems(ctx: Context, reports: Sequence[BackendReport], titles: dict[str, str]) -> list[dict[str, str]]:
    problems = []
    engine = next((report.engine for report in reports if report.engine), None)
    offloads = any(device.kind in ("gpu", "igpu") for report in reports for device in report.devices)
    usable = [report for report in reports if report.backend != "cpu" and report.present and report.install]
    missing = [report for report in usable if not report.compiled_in]
    if engine is None:
        best = (missing or [report for report in reports if report.install])[:1]
        problems.append(_problem("no engine is installed: chat and memory probes need llama-cpp-python", best))
    elif missing and not offloads:
        has = missing[0].facts[0][0] if missing[0].facts else "such hardware"
        text = f"{has} is here, but the engine was built without {titles[missing[0].backend]}: it runs on the CPU"
        problems.append(_problem(text, missing[:1]))
    for report in reports:
        problems += [_problem(warning, [report] if "built without" in warning else []) for warning in report.warnings]
    if ctx.registry.failures:
        count = len(ctx.registry.failures)
        problems.append({"what": f"{count} plugin failure{'s' if count > 1 else ''}", "do": "phitui plugins --trace"})
    unique = {problem["what"]: problem for problem in reversed(problems)}
    return list(reversed(unique.values()))


def _problem(what: str, fixed_by: Sequence[BackendReport]) -> dict[str, str]:
    return {"what": what, "do": fixed_by[0].install if fixed_by else ""}


def _backend(report: BackendReport, title: str) -> dict[str, Any]:
    return {
        "name": report.backend,
        "title": title,
        "compiled_in": report.compiled_in,
        "present": report.present,
        "devices": [device.name for device in report.devices],
        "install": report.install,
        "facts": [{"what": label, "value": value} for label, value in report.facts],
        "warnings": list(report.warnings),
    }


def _device(device: Any) -> dict[str, Any]:
    return {
        "name": device.name,
        "backend": device.backend,
        "kind": device.kind,
        "description": device.description,
        "total": device.total,
        "free": device.free,
        "source": device.source,
    }


def _offer(offer: Any) -> dict[str, Any]:
    state = availability(offer)
    return {"name": offer.name, "title": offer.title, "ok": state.ok, "reason": state.reason, "hint": state.hint}
