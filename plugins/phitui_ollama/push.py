"""Handing a model to an Ollama server: its files by digest, then everything that a Modelfile would say, as JSON.

What the server has is not sent again. Ollama keeps no half of a file, so an interrupted push goes on with the file that
was being sent, from that file's beginning.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from phitui.api import Delivery, ExportModel, JobContext, OutputExists, PhituiError, Unavailable
from phitui_ollama.address import PORT, address
from phitui_ollama.exporter import Filled, parts
from phitui_ollama.modelfile import Command
from phitui_ollama.parameters import PARAMETERS
from phitui_ollama.server import DONE, Interrupted, Server

OLDEST = (0, 5, 5)
"""The first version whose /api/create takes files."""
OLDEST_FOR_PARTS = (0, 30, 0)
DELAYS = (0.5, 1.0, 2.0, 4.0, 8.0)
"""Seconds before each further try."""
QUESTION = "Say hello."
TOKENS = 8
_VERSION = re.compile(r"v?(\d+)\.(\d+)\.(\d+)")
Result = TypeVar("Result")


def destination(filled: Filled, model: ExportModel, url: str, overwrite: bool) -> str:
    """The server's address, after asking it for its version and for a model of that name."""
    parts(model)
    where = address(url)
    with Server(where) as server:
        _check_version(server.version(), len(model.files), where.url)
        if not overwrite and server.has_model(filled.name):
            raise OutputExists(
                f"{where.url} has a model {filled.name} already", "--overwrite replaces it, --name gives another name"
            )
    return where.url


def push(filled: Filled, model: ExportModel, delivery: Delivery, job: JobContext) -> dict[str, Any]:
    """Upload, create, and ask the model one thing."""
    where = address(delivery.url)
    with Server(where) as server:
        version = _patiently(job, server.version)
        _check_version(version, len(model.files), where.url)
        files, sent, present = _upload(server, parts(model), delivery, job)
        document = create_document(filled, files)
        _patiently(job, lambda: _create(server, document, job))
        told = _test(server, filled.name, job) if delivery.test else {"answer": ""}
    job.progress(sent + present, sent + present, "done")
    usual = where.url == f"http://127.0.0.1:{PORT}"
    return {
        "name": filled.name,
        "url": where.url,
        "version": version,
        "sent": sent,
        "present": present,
        "files": files,
        **told,
        "notes": list(filled.notes),
        "run": [f"ollama run {filled.name}" if usual else f"OLLAMA_HOST={where.url} ollama run {filled.name}"],
    }


def create_document(filled: Filled, files: Mapping[str, str]) -> dict[str, Any]:
    """The body of /api/create. `files` are digests ("sha256:...") by name."""
    values: dict[str, Any] = {"model": filled.name, "files": dict(files), "stream": True}
    parameters: dict[str, Any] = {}
    for command in filled.commands:
        if command.name == "message":
            values.setdefault("messages", []).append({"role": command.key, "content": command.value})
        elif command.key == "stop":
            parameters.setdefault("stop", []).append(command.value)
        elif command.name == "parameter":
            parameters[command.key] = _typed(command)
        else:
            values[command.name] = command.value
    return {**values, "parameters": parameters}


def _typed(command: Command) -> Any:
    """A parameter's value as JSON: Ollama refuses a number in quotes when it loads the model."""
    kind = PARAMETERS[command.key].kind
    if kind == "bool":
        return command.value == "true"
    return {"int": int, "float": float, "text": str}[kind](command.value)


def _check_version(version: str, files: int, url: str) -> None:
    """Raise Unavailable for a version that cannot take the model. One without a number was built from source."""
    match = _VERSION.match(version)
    number = tuple(map(int, match.groups())) if match else (0, 0, 0)
    if number == (0, 0, 0):
        return
    if number < OLDEST:
        raise Unavailable(f"the Ollama at {url} is version {version}: too old to be sent models", "update it")
    if files > 1 and number < OLDEST_FOR_PARTS:
        raise Unavailable(
            f"the Ollama at {url} is version {version}, which takes no split models",
            "phitui gguf merge makes one file of it; or update Ollama to 0.30 or newer",
        )


def _upload(server: Server, paths: list[Path], delivery: Delivery, job: JobContext) -> tuple[dict[str, str], int, int]:
    """(digest by name, bytes sent, bytes that were there). Names end in .gguf: so Ollama tells what a file is."""
    total = sum(path.stat().st_size for path in paths)
    files: dict[str, str] = {}
    sent = present = 0
    for path in paths:
        sha256, size = delivery.sha256(path), path.stat().st_size
        name = path.name if path.name.lower().endswith(".gguf") else "model.gguf"
        files[name] = f"sha256:{sha256}"
        begun = sent + present

        def count(done: int, begun: int = begun, name: str = name) -> None:
            job.progress(begun + done, total, f"sending {name}")

        def send(path: Path = path, sha256: str = sha256, count: Callable[[int], None] = count) -> bool:
            if server.has_blob(sha256):
                return False
            count(0)
            server.upload(path, sha256, count)
            return True

        if _patiently(job, send):
            sent += size
        else:
            present += size
            job.note(f"{name} is there already")
        job.progress(sent + present, total, name)
    return files, sent, present


def _create(server: Server, document: Mapping[str, Any], job: JobContext) -> None:
    shown: set[str] = set()
    for event in server.create(document):
        status = str(event.get("status", ""))
        done, total = event.get("completed"), event.get("total")
        if isinstance(done, int) and isinstance(total, int) and total > 0:
            job.progress(min(done, total), total, status)
        else:
            job.progress(0, 0, status)
        if status not in shown and status not in ("", DONE) and "layer sha256:" not in status:
            job.note(status)
        shown.add(status)


def _test(server: Server, name: str, job: JobContext) -> dict[str, Any]:
    job.progress(0, 0, f"asking {name}: {QUESTION}")
    try:
        told = server.ask(name, QUESTION, TOKENS)
    except PhituiError as error:
        raise PhituiError(
            f"{name} was created, but does not answer: {error.message}",
            f"ollama run {name} shows what happens; --no-test leaves the question out",
        ) from None
    message = told.get("message")
    message = message if isinstance(message, dict) else {}
    answer = str(message.get("content") or message.get("thinking") or "")
    tokens, spent = told.get("eval_count"), told.get("eval_duration")
    numbers = isinstance(tokens, int) and isinstance(spent, int) and spent > 0
    return {
        "question": QUESTION,
        "answer": answer,
        "tokens": tokens if isinstance(tokens, int) else None,
        "tokens_per_second": round(tokens / spent * 1e9, 2) if numbers else None,  # type: ignore[operator]
    }


def _patiently(job: JobContext, work: Callable[[], Result]) -> Result:
    """The result of some work, tried again while the line or the server fails for a moment."""
    for delay in DELAYS:
        try:
            return work()
        except Interrupted as error:
            job.note(f"{error.message}; trying again in {delay:g} s")
            end = time.monotonic() + delay
            while time.monotonic() < end:
                job.check()
                time.sleep(0.05)
    return work()
