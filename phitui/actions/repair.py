"""Mending the engine: run an install line as a job, then look with new eyes at what it changed.

The line is the one that the doctor shows. What was there before is written down first, and compared with what a new
process finds afterwards: pip saying "done" proves nothing about a GPU.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

from phitui.actions.context import Context
from phitui.actions.doctor import doctor
from phitui.actions.jobs import jobs
from phitui.domain.offers import JobContext
from phitui.domain.text import visible
from phitui.errors import PhituiError, Unavailable, UsageError
from phitui.jobs import Job

TASK = "phitui.actions.repair:run"
CHECK_SECONDS = 60.0
"""A GPU driver that wakes up for the first time may take long."""
_STEP = re.compile(r"^\s*\[(\d{1,6})/(\d{1,6})\]")
"""How Ninja counts its compiler calls."""


@dataclass(frozen=True)
class Remedy:
    """What would be run: `ways` in the order of trying, each as the doctor's report has it."""

    backend: str
    title: str
    what: str
    ways: tuple[Mapping[str, Any], ...]
    before: Mapping[str, Any]


def remedy(ctx: Context, backend: str = "", build: bool = False) -> Remedy | None:
    """What `--fix` would do: for the named backend, else for the first finding that an install line solves.

    None if there is nothing to mend. With `build` ready-made wheels are left aside. Raises UsageError for a backend
    that is not there, Unavailable where something is missing that phitui does not install.
    """
    report = doctor(ctx)
    rows = {row["name"]: row for row in report["backends"]}
    if backend and backend not in rows:
        raise UsageError(f"there is no backend {backend!r}", f"one of: {', '.join(rows)}")
    finding = next((found for found in report["problems"] if found["backend"] and found["do"]), None)
    if not backend and finding is None:
        return None
    name = backend or (finding or {})["backend"]
    row = rows[name]
    if backend and row["compiled_in"] and name != "cpu":
        return None
    ways = [way for way in row["ways"] if way["kind"] == "build" or not build]
    if not ways:
        raise Unavailable(f"llama-cpp-python cannot be installed for {row['title']} on this system", "phitui doctor")
    ready = [way for way in ways if not way["needs"]]
    if not ready:
        raise Unavailable(
            f"{row['title']} needs first: {'; '.join(ways[0]['needs'])}",
            f"install that, then: {ways[0]['line']}{_instead(rows, name)}",
        )
    asked = f"{row['title']} for llama-cpp-python" + (
        " (no such hardware was found here)" if row["present"] is False else ""
    )
    what = finding["what"] if finding and not backend else asked
    return Remedy(name, row["title"], what, tuple(ready), state_of(report))


def _instead(rows: Mapping[str, Mapping[str, Any]], name: str) -> str:
    """Another backend for hardware that is here, which needs nothing more."""
    for other in rows.values():
        usable = any(not way["needs"] for way in other["ways"])
        if other["name"] not in (name, "cpu") and other["present"] and not other["compiled_in"] and usable:
            return f"\n  or at once: phitui doctor --fix --backend {other['name']}"
    return ""


def start(ctx: Context, what: Remedy) -> Job:
    """Start the installation as a detached job; one at a time for this Python environment."""
    request = {"backend": what.backend, "title": what.title, "ways": list(what.ways), "before": dict(what.before)}
    argv = ["phitui", "doctor", "--fix", "--backend", what.backend, "--yes"]
    title = f"install llama-cpp-python for {what.title}"
    return jobs(ctx).start("fix", TASK, request, title, key=f"engine of {sys.prefix}", argv=argv)


def run(request: dict[str, Any], job: JobContext) -> dict[str, Any]:
    """The installation, in the job's process. Returns what is there now, what changed, and seconds."""
    began = time.monotonic()
    failure: PhituiError | None = None
    for way in request["ways"]:
        job.note(f"$ {way['line']}")
        lines, code = _install(way, job)
        if code == 0:
            failure = None
            break
        what = "compiling" if way["kind"] == "build" else "installing the ready-made wheel"
        failure = PhituiError(f"{what} failed (exit code {code}): {telling(lines)}")
        for line in failure.message.splitlines() if way is not request["ways"][-1] else ():
            job.note(line)
    job.progress(0, 0, "looking at the new engine")
    after = look()
    if failure is not None:
        raise PhituiError(failure.message, f"{former(request['before'], after)}; the whole output is in the job's log")
    if request["backend"] not in after["compiled"]:
        why = after["trouble"] or f"its backends are {', '.join(after['backends']) or 'none'}"
        raise PhituiError(
            f"the installation went through, but the engine has no {request['title']}: {why}",
            "phitui doctor says more; phitui doctor --fix --build compiles it here",
        )
    changed = changes(request["before"], after)
    for line in changed:
        job.note(line)
    return {
        "backend": request["backend"],
        "engine": after,
        "changes": changed,
        "seconds": round(time.monotonic() - began, 1),
    }


def _install(way: Mapping[str, Any], job: JobContext) -> tuple[list[str], int]:
    """Run one way, its output into the job's log; (last lines, exit code)."""
    quiet = {"PIP_NO_INPUT": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_PROGRESS_BAR": "off"}
    environment = {**os.environ, **quiet, "PIP_VERBOSE": "1", "NO_COLOR": "1", **way["environment"]}
    lines: deque[str] = deque(maxlen=4000)
    try:
        process = subprocess.Popen(
            way["argv"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=environment,
            text=True,
            encoding="utf-8",
            errors="replace",
        )
    except OSError as error:
        return [f"{way['argv'][0]}: {error.strerror}"], 127
    try:
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line)
            sys.stderr.write(line)
            step = _STEP.match(line)
            job.progress(*((int(step[1]), int(step[2])) if step else (0, 0)), "compiling" if step else _short(line))
        return list(lines), process.wait()
    finally:
        if process.poll() is None:
            process.terminate()
        assert process.stdout is not None
        process.stdout.close()


def _short(line: str) -> str:
    return visible(line.strip())[:60]


def state_of(report: Mapping[str, Any]) -> dict[str, Any]:
    """What of a doctor's report matters for a comparison."""
    engine = report["engine"] or {}
    return {
        "version": engine.get("version", ""),
        "trouble": engine.get("trouble", "") or ("" if engine else "no engine is installed"),
        "backends": list(engine.get("backends", ())),
        "compiled": [row["name"] for row in report["backends"] if row["compiled_in"]],
        "features": list(engine.get("features", {}).get("CPU", ())),
        "devices": [f"{device['name']} {device['description']}" for device in report["devices"]],
    }


def look() -> dict[str, Any]:
    """The engine as a new process finds it."""
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-m", "phitui", "doctor", "--json"],
            capture_output=True,
            timeout=CHECK_SECONDS,
            stdin=subprocess.DEVNULL,
            check=False,
        )
        return state_of(json.loads(done.stdout))
    except subprocess.TimeoutExpired:
        trouble = f"phitui doctor gave no answer within {CHECK_SECONDS:g} s"
    except (OSError, ValueError, KeyError) as error:
        trouble = f"phitui doctor failed: {error}"
    return {"version": "", "trouble": trouble, "backends": [], "compiled": [], "features": [], "devices": []}


def changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """What is different, a sentence each."""
    found = []
    if before["version"] != after["version"]:
        found.append(f"llama-cpp-python {before['version'] or 'not installed'} → {after['version']}")
    for key, what in (("backends", "backends"), ("devices", "devices"), ("features", "CPU features")):
        for verb, new, old in (("gained", after[key], before[key]), ("lost", before[key], after[key])):
            names = [name for name in new if name not in old]
            found += [f"{what} {verb}: {', '.join(names)}"] if names else []
    return found or ["the same engine as before was installed again"]


def former(before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    """What became of the engine that was there before a failed installation."""
    if not before["version"]:
        return "there is still no working engine"
    if after["version"] == before["version"] and not after["trouble"]:
        return f"llama-cpp-python {before['version']} ({', '.join(before['backends'])}) is still there and works"
    return f"llama-cpp-python was {before['version']} and is now {after['version'] or 'gone'}: {after['trouble']}"


MEANINGS = (
    (
        r"no matching distribution found for llama-cpp-python",
        "no ready-made wheel of this version is published for this machine",
    ),
    (r"no space left on device", "the disk is full"),
    (r"externally-managed-environment", "this Python belongs to the system, which forbids pip: use a venv"),
    (r"nvcc fatal\s*: unsupported gpu architecture", "the CUDA toolkit is too old or too new for this card"),
    (r"unsupported gnu version", "the CUDA toolkit does not take this gcc: install an older one"),
    (r"killed signal terminated program|internal compiler error: killed", "the memory ran out while compiling"),
    (r"name resolution|connection refused|network is unreachable|max retries exceeded|connecttimeout|proxyerror"
     r"|newconnectionerror", "the package index cannot be reached"),
)  # fmt: skip
"""(what pip or a compiler says, what it means)."""
_TELLING = re.compile(
    r"cmake error|fatal( error)?\s*:|\berror:|nvcc fatal|could not find|no such file|undefined reference", re.I
)
_EMPTY = re.compile(
    r"subprocess-exited-with-error|failed building wheel|failed to build|could not build|exited with [1-9]|exit code: ",
    re.I,
)
"""Lines that say that something failed, and not what."""
_ANNOUNCED = re.compile(r"CMake Error.*:$")


def _tells(line: str) -> bool:
    return bool(_TELLING.search(line)) and not _EMPTY.search(line)


def _joined(lines: Sequence[str]) -> list[str]:
    """The lines; where CMake only announces an error ("CMake Error at x:70 (message):"), with what it says below."""
    said = [line for line in lines if line]
    return [
        " ".join([line, *takewhile(_plain, said[number + 1 : number + 5])]) if _ANNOUNCED.match(line) else line
        for number, line in enumerate(said)
    ]


def _plain(line: str) -> bool:
    return not (_TELLING.search(line) or _EMPTY.search(line))


def telling(lines: Sequence[str], most: int = 4) -> str:
    """The lines of an installer's output that say what went wrong, with their meaning where it is known."""
    clean = _joined([re.sub(r"\x1b\[[0-9;]*m", "", line).strip() for line in lines])
    known = {line: said for line in clean for pattern, said in MEANINGS if re.search(pattern, line, re.IGNORECASE)}
    meaning = next(iter(known.values()), "")
    alike = {re.sub(r"0x[0-9a-f]+|\d+", "#", line): line for line in reversed(clean) if line in known or _tells(line)}
    found = list(alike.values())[::-1]
    found = found[:most] or [line for line in clean if line][-most:]
    shown = "\n".join(f"    {visible(line)[:160]}" for line in found)
    return f"{meaning}\n{shown}" if meaning else f"its output says\n{shown}" if shown else "it said nothing"
