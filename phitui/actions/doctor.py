"""What this machine has, what the engine can use of it, what is wrong, and the command that mends it."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from phitui import __version__
from phitui.actions.context import Context
from phitui.domain.hardware import BackendReport, EngineReport, InstallWay
from phitui.domain.offers import Backend, BandwidthMeter, MemoryProbe
from phitui.errors import PhituiError
from phitui.plugins import availability
from phitui.store.bandwidth import bandwidth_of, keep_bandwidth

Finding = dict[str, Any]
"""level ("problem", or "hint" for what may be left as it is), what, why, do (a command), note (what one should know of
that command), needs (what must be there first), backend (what `phitui doctor --fix` would install for; "" where a
person has to act)."""


def doctor(ctx: Context, fresh: bool = False) -> dict[str, Any]:
    """The report, JSON-ready; `problems` first, each with what to do. Backends are asked at the same time.

    `fresh` forgets what this process has found out before: the engine may have been installed anew.
    """
    if fresh:
        for backend in ctx.registry.backends:
            if isinstance(backend, MemoryProbe):
                backend.release()
    found = [backend for backend in ctx.registry.backends if availability(backend).ok]
    with ThreadPoolExecutor(max_workers=max(1, len(found))) as pool:
        reports = list(pool.map(_report, found))
    titles = {backend.name: backend.title for backend in found}
    engine = next((report.engine for report in reports if report.engine), None)
    problems = _findings(ctx, reports, titles, engine)
    devices = [device for report in reports for device in report.devices]
    speeds = [speed for device in devices if (speed := bandwidth_of(ctx.paths, device))]
    return {
        "ok": not any(problem["level"] == "problem" for problem in problems),
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
        "engine": _engine(engine),
        "devices": [_device(device) for device in devices],
        "bandwidth": [vars(speed) for speed in speeds],
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


def measure_bandwidth(ctx: Context) -> list[str]:
    """Measure how fast devices read their memory, a second each, and keep it for plans.

    Returns a sentence for each backend whose measurement failed. Raises PhituiError where nothing can be kept.
    """
    failures = []
    for meter in ctx.registry.backends:
        if isinstance(meter, BandwidthMeter) and availability(meter).ok:
            try:
                measured = meter.bandwidth()
            except PhituiError as error:
                failures.append(str(error))
                continue
            for speed in measured:
                keep_bandwidth(ctx.paths, speed)
    return failures


def _report(backend: Backend) -> BackendReport:
    try:
        report = backend.probe()
    except PhituiError as error:
        return BackendReport(backend.name, warnings=(error.message,))
    except Exception as error:  # a plugin's code: what it raises is part of the diagnosis
        return BackendReport(backend.name, warnings=(f"{backend.title}: {type(error).__name__}: {error}",))
    return report if report.backend == backend.name else BackendReport(backend.name, warnings=("reports another name",))


def _findings(
    ctx: Context, reports: Sequence[BackendReport], titles: dict[str, str], engine: EngineReport | None
) -> list[Finding]:
    """What is wrong, the most important first."""
    found: list[Finding] = []
    offloads = any(device.kind in ("gpu", "igpu") for report in reports for device in report.devices)
    ranked = _ranked([report for report in reports if report.present and report.install and not report.compiled_in])
    cards = [report for report in ranked if report.backend != "cpu"]
    if engine is None:
        best = (ranked or [report for report in reports if report.install])[:1]
        found.append(_finding("no engine is installed", "chat and memory probes need llama-cpp-python", best))
    elif engine.trouble:
        what = f"{engine.name} {engine.version} is installed, but does not work".replace("  ", " ")
        found.append(_finding(what, engine.trouble, ranked[:1]))
    elif cards and not offloads:
        best = cards[:1]
        what = f"{_seen(best[0])} · {engine.name} has no {titles[best[0].backend]}"
        level = "hint" if best[0].integrated else "problem"
        found.append(_finding(what, "every layer runs on the CPU", best, level))
    found += _places(ctx)
    for report in reports:
        level = "problem" if report.present is not None else "hint"
        for warning in report.warnings:
            mends = [report] if "built without" in warning else []
            found.append(_finding(warning, "", mends, level))
    for failure in ctx.registry.failures:
        what = f"the plugin {failure.plugin} failed ({failure.stage})"
        found.append(_finding(what, failure.error, [], do="phitui plugins --trace"))
    return list({finding["what"]: finding for finding in reversed(found)}.values())[::-1]


def _places(ctx: Context) -> list[Finding]:
    """A configuration that cannot be read, and directories that cannot be written to."""
    found = []
    try:
        _ = ctx.config
    except PhituiError as error:
        found.append(_finding(error.message, error.hint, []))
    for folder in (ctx.paths.data, ctx.paths.state, ctx.paths.cache):
        there = next(path for path in (folder, *folder.parents) if path.exists())
        if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
            what = f"phitui cannot write to {there}, where it keeps models and jobs"
            found.append(_finding(what, "PHITUI_HOME=DIR names another place", []))
    return found


def _ranked(reports: Sequence[BackendReport]) -> list[BackendReport]:
    """The best first: hardware with memory of its own, then what can be installed as things are, the CPU last."""

    def rank(report: BackendReport) -> tuple[bool, bool, bool]:
        blocked = bool(report.ways) and all(way.needs for way in report.ways)
        return report.backend == "cpu", report.integrated, blocked

    return sorted(reports, key=rank)


def _seen(report: BackendReport) -> str:
    return report.seen or (report.facts[0][0] if report.facts else "such hardware")


def _finding(what: str, why: str, fixed_by: Sequence[BackendReport], level: str = "problem", do: str = "") -> Finding:
    report = fixed_by[0] if fixed_by else None
    best = report.ways[0] if report and report.ways else None
    return {
        "level": level,
        "what": what,
        "why": why,
        "do": report.install if report else do,
        "note": best.note if best else "",
        "needs": list(best.needs) if best else [],
        "backend": report.backend if report else "",
    }


def _engine(engine: EngineReport | None) -> dict[str, Any] | None:
    if engine is None:
        return None
    return {
        "name": engine.name,
        "version": engine.version,
        "path": engine.path,
        "backends": list(engine.backends),
        "features": {name: list(values) for name, values in engine.features.items()},
        "gpu_offload": engine.gpu_offload,
        "rpc": engine.rpc,
        "trouble": engine.trouble,
    }


def _backend(report: BackendReport, title: str) -> dict[str, Any]:
    return {
        "name": report.backend,
        "title": title,
        "compiled_in": report.compiled_in,
        "present": report.present,
        "seen": report.seen,
        "devices": [device.name for device in report.devices],
        "install": report.install,
        "ways": [_way(way) for way in report.ways],
        "facts": [{"what": label, "value": value} for label, value in report.facts],
        "warnings": list(report.warnings),
    }


def _way(way: InstallWay) -> dict[str, Any]:
    return {
        "kind": way.kind,
        "line": way.line,
        "argv": list(way.argv),
        "environment": dict(way.environment),
        "needs": list(way.needs),
        "note": way.note,
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
