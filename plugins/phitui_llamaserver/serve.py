"""`phitui serve`: an OpenAI-compatible server with a model, until Ctrl-C."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from types import FrameType
from typing import Any

from phitui.api import Availability, Cancelled, ExportModel, Phitui, Say, Unavailable, UsageError, option
from phitui_llamaserver import process
from phitui_llamaserver.command_line import alias_of, command, question, template_for, url
from phitui_llamaserver.options import LOOPBACK, Serving, checked, settings


@dataclass(frozen=True)
class ServeOptions(Serving):
    """And what only a running server needs."""

    model: str = option("", positional=True, help="a GGUF, or a name in the library")
    port: int = option(8080, help="port to listen on; 0 takes a free one", minimum=0, maximum=65535)
    i_know: bool = option(False, help="serve on an address that other machines reach, without keys or encryption")


class Serve:
    name = "serve"
    title = "serve a model to other programs (OpenAI API)"
    options: type = ServeOptions

    def available(self) -> Availability:
        """A llama-server elsewhere than on the PATH can be given with --program, so this is always possible."""
        return Availability()

    def run(self, phitui: Phitui, options: ServeOptions, say: Say) -> Mapping[str, Any]:
        """Serve until told to end (Ctrl-C, SIGTERM): then raises Cancelled. Announces the address once it answers."""
        if options.host not in LOOPBACK and options.api_key_file is None and not options.i_know:
            raise UsageError(
                f"on {options.host} everybody who reaches this machine could use the model",
                "--api-key-file asks for a key; --i-know serves without one",
            )
        model = phitui.model(options.model)
        checked(options, model.facts)
        with _ends_on_signals():
            options = replace(options, port=process.free_port(options.host, options.port))
            alias = alias_of(model, options)
            words, health = _command(phitui, model, alias, options, say)
            log = phitui.cache_dir / "serve" / f"{options.port}.log"
            server = process.Server(words, (_near(options.host), options.port), health, log)
            say(f"loading {model.path.name} with {words[0]}")
            try:
                server.start(lambda seconds: say(f"still loading after {seconds:.0f} s"))
                address = url(options.host, options.port)
                for line in _introduction(address, alias, options):
                    say(line)
                document = {"url": f"{address}/v1", "model": alias, "pid": os.getpid(), "server_pid": server.pid}
                phitui.announce({**document, "command": words, "log": str(log)})
                server.wait()
            finally:
                server.end()
        raise AssertionError  # wait() never returns


def _command(phitui: Phitui, model: ExportModel, alias: str, options: ServeOptions, say: Say) -> tuple[list[str], str]:
    """What to start, and the path of its health check. Raises Unavailable where nothing here can serve."""
    values = settings(options, model.facts, template_for(model))
    found = process.llama_server(options.program)
    if found:
        return command(model.path.absolute(), alias, values, replace(options, program=found)), "/health"
    missing = process.missing_of_python_server()
    if missing:
        raise Unavailable(
            f"there is no {options.program} on the PATH, and llama-cpp-python's server lacks {', '.join(missing)}",
            f"install llama.cpp (brew install llama.cpp, or its releases), or: {process.INSTALL}",
        )
    if options.api_key_file is not None:
        raise UsageError("llama-cpp-python's server takes no file of keys", "install llama.cpp, or leave it away")
    return _python_server(phitui, model, alias, options, say), "/v1/models"


def _python_server(phitui: Phitui, model: ExportModel, alias: str, options: ServeOptions, say: Say) -> list[str]:
    """llama-cpp-python's own server. It knows no automatic fit, so the plan decides."""
    say(f"there is no {options.program} here: llama-cpp-python's server, with fewer settings")
    plan = phitui.plan(str(model.path), context=options.context, layers=options.layers)
    words = [sys.executable, "-P", "-m", "llama_cpp.server", "--model", str(model.path.absolute())]
    words += ["--model_alias", alias, "--host", options.host, "--port", str(options.port)]
    words += ["--n_ctx", str(plan["n_ctx"]), "--n_gpu_layers", str(plan["n_gpu_layers"])]
    words += ["--n_threads", str(options.threads)] if options.threads else []
    return words


def _near(host: str) -> str:
    """Where this machine reaches a server that listens on `host`."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104  (what others would type)


def _introduction(address: str, alias: str, options: ServeOptions) -> Iterator[str]:
    yield f"serving {alias} on {address}/v1"
    if options.host not in LOOPBACK and options.api_key_file is None:
        yield f"! everybody who reaches {options.host} can use it, and everybody on the way can read along"
    yield f"  {question(options.host, options.port, alias)}"
    yield "Ctrl-C ends it"


@contextlib.contextmanager
def _ends_on_signals() -> Iterator[None]:
    """SIGINT, SIGTERM and SIGHUP raise Cancelled here; only the main thread can have handlers."""

    def end(_number: int, _frame: FrameType | None) -> None:
        raise Cancelled("ended; nothing is served any more")

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, end) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
