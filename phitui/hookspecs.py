"""All hooks on one page. A hook discovers: it returns offers. What an offer can do is its protocol (domain/offers.py).

Hooks are called once, at start. They must be cheap: no heavy imports, no files, no network, no child processes.
"""

from __future__ import annotations

from collections.abc import Iterable

import pluggy

from phitui.domain.offers import Backend, Catalogue, Command, Converter, Engine, Evaluator, Exporter, Finder, Quantizer

PROJECT = "phitui"
ENTRY_POINT_GROUP = "phitui.plugins"
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec
def phitui_catalogue() -> Iterable[Catalogue]:  # type: ignore[empty-body]
    """Known models with facts and verdicts."""


@hookspec
def phitui_finders() -> Iterable[Finder]:  # type: ignore[empty-body]
    """Finders of models already on this machine."""


@hookspec
def phitui_converters() -> Iterable[Converter]:  # type: ignore[empty-body]
    """Converters from a checkpoint to a tensor source."""


@hookspec
def phitui_quantizers() -> Iterable[Quantizer]:  # type: ignore[empty-body]
    """Quantizers: schemes, file plans and row encoders."""


@hookspec
def phitui_evaluators() -> Iterable[Evaluator]:  # type: ignore[empty-body]
    """Evaluators of quality and speed."""


@hookspec
def phitui_backends() -> Iterable[Backend]:  # type: ignore[empty-body]
    """Hardware backends: devices, memory, what is compiled in, how to install."""


@hookspec
def phitui_engines() -> Iterable[Engine]:  # type: ignore[empty-body]
    """Chat engines."""


@hookspec
def phitui_exporters() -> Iterable[Exporter]:  # type: ignore[empty-body]
    """Exporters to other programs."""


@hookspec
def phitui_commands() -> Iterable[Command]:  # type: ignore[empty-body]
    """Extra commands of the command line."""
