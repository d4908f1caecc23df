"""Finds, loads and isolates plugins. A broken plugin becomes a Failure; it never takes phitui down.

Every plugin, first-party or not, enters through the entry point group `phitui.plugins`. The entry point's value is a
module (or object) with functions decorated by `phitui.api.hookimpl`.
"""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import EntryPoint, entry_points
from typing import Any, TypeVar

import pluggy

from phitui import hookspecs
from phitui.domain import offers
from phitui.domain.offers import Availability, Offer
from phitui.domain.options import specs
from phitui.errors import Unavailable, UsageError

OfferType = TypeVar("OfferType", bound=Offer)
ENVIRONMENT = "PHITUI_PLUGINS"


@dataclass(frozen=True)
class Failure:
    """Why a plugin, or one of its hooks or offers, is not there. `trace` is the traceback, shown on demand."""

    plugin: str
    stage: str
    error: str
    trace: str = ""


@dataclass(frozen=True)
class PluginInfo:
    """A plugin as listed: `offers` are "hook: name" lines. `first_party` ships with phitui itself."""

    name: str
    module: str
    version: str
    first_party: bool
    offers: tuple[str, ...] = ()


@dataclass
class Registry:
    """What the loaded plugins offer."""

    plugins: list[PluginInfo] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    catalogues: list[offers.Catalogue] = field(default_factory=list)
    finders: list[offers.Finder] = field(default_factory=list)
    converters: list[offers.Converter] = field(default_factory=list)
    quantizers: list[offers.Quantizer] = field(default_factory=list)
    evaluators: list[offers.Evaluator] = field(default_factory=list)
    backends: list[offers.Backend] = field(default_factory=list)
    engines: list[offers.Engine] = field(default_factory=list)
    exporters: list[offers.Exporter] = field(default_factory=list)
    commands: list[offers.Command] = field(default_factory=list)


_HOOKS: dict[str, tuple[str, type]] = {
    "phitui_catalogue": ("catalogues", offers.Catalogue),
    "phitui_finders": ("finders", offers.Finder),
    "phitui_converters": ("converters", offers.Converter),
    "phitui_quantizers": ("quantizers", offers.Quantizer),
    "phitui_evaluators": ("evaluators", offers.Evaluator),
    "phitui_backends": ("backends", offers.Backend),
    "phitui_engines": ("engines", offers.Engine),
    "phitui_exporters": ("exporters", offers.Exporter),
    "phitui_commands": ("commands", offers.Command),
}


def load(points: Iterable[EntryPoint] | None = None, only: str | None = None) -> Registry:
    """Load all plugins. `only` is the value of PHITUI_PLUGINS: None all, "" none, "a,b" those two.

    The duplicate of a name loses to the one that comes first, and phitui's own distribution comes first.
    """
    only = os.environ.get(ENVIRONMENT) if only is None else only
    found = list(entry_points(group=hookspecs.ENTRY_POINT_GROUP) if points is None else points)
    registry = Registry()
    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    wanted = None if only is None else {name.strip() for name in only.split(",") if name.strip()}
    for name in sorted((wanted or set()) - {point.name for point in found}):
        registry.failures.append(Failure(name, "find", f"{ENVIRONMENT} names {name!r}, which is not installed"))
    for point in sorted(found, key=lambda point: (not _first_party(point), point.name)):
        if wanted is None or point.name in wanted:
            _load_one(manager, registry, point)
    return registry


def _first_party(point: EntryPoint) -> bool:
    return point.dist is not None and point.dist.name == "phitui"


def _load_one(manager: pluggy.PluginManager, registry: Registry, point: EntryPoint) -> None:
    if any(info.name == point.name for info in registry.plugins):
        registry.failures.append(Failure(point.name, "register", f"another plugin is already named {point.name!r}"))
        return
    module = _guarded(registry, point.name, "import", point.load)
    if module is None:
        return
    if _guarded(registry, point.name, "register", lambda: _register(manager, module, point.name)) is None:
        if manager.get_plugin(point.name) is module:
            manager.unregister(module)
        return
    names: list[str] = []
    for hook in _HOOKS:
        names += _collect(manager, registry, module, point.name, hook)
    version = point.dist.version if point.dist else ""
    registry.plugins.append(PluginInfo(point.name, point.module, version, _first_party(point), tuple(names)))


def _register(manager: pluggy.PluginManager, module: Any, name: str) -> bool:
    manager.register(module, name)
    manager.check_pending()
    unmarked = [hook for hook in _HOOKS if callable(getattr(module, hook, None)) and not _is_hookimpl(module, hook)]
    if unmarked:
        raise TypeError(f"{unmarked[0]} is not decorated with @phitui.api.hookimpl, so it would never be called")
    return True


def _is_hookimpl(module: Any, hook: str) -> bool:
    return hasattr(getattr(module, hook), f"{hookspecs.PROJECT}_impl")


def _collect(manager: pluggy.PluginManager, registry: Registry, module: Any, plugin: str, hook: str) -> list[str]:
    others = [other for other in manager.get_plugins() if other is not module]
    caller = manager.subset_hook_caller(hook, others)
    results = _guarded(registry, plugin, hook, lambda: [list(result) for result in caller()])
    attribute, protocol = _HOOKS[hook]
    accepted = getattr(registry, attribute)
    names = []
    candidates: list[Any] = [offer for result in results or [] for offer in result]
    for offer in candidates:
        problem = _guarded(registry, plugin, hook, partial(_problem, offer, protocol, accepted))
        if problem:
            registry.failures.append(Failure(plugin, hook, problem))
        elif problem is not None:
            accepted.append(offer)
            names.append(f"{attribute}: {offer.name}")
    return names


def _problem(offer: Any, protocol: Any, accepted: Sequence[Offer]) -> str:
    """Why an offer cannot be taken; empty if it can."""
    if not isinstance(offer, protocol):
        wanted = {name for name in dir(protocol) if not name.startswith("_")} | set(_annotations(protocol))
        missing = sorted(name for name in wanted if not hasattr(offer, name))
        return f"{offer!r} is not a {protocol.__name__}: it lacks {', '.join(missing) or 'its methods'}"
    if any(other.name == offer.name for other in accepted):
        return f"another {protocol.__name__} is already named {offer.name!r}"
    if hasattr(offer, "options"):
        specs(offer.options)
    return ""


def _annotations(protocol: type) -> set[str]:
    names: set[str] = set()
    for base in protocol.__mro__:
        names |= set(getattr(base, "__annotations__", {}))
    return {name for name in names if not name.startswith("_")}


def _guarded(registry: Registry, plugin: str, stage: str, call: Callable[[], Any]) -> Any:
    """`call()`, or None and a recorded failure. Even a plugin that calls sys.exit() is only a failure."""
    try:
        return call()
    except (KeyboardInterrupt, MemoryError):
        raise
    except BaseException as error:
        text = f"{type(error).__name__}: {error}"
        registry.failures.append(Failure(plugin, stage, text, traceback.format_exc()))
        return None


def availability(offer: Offer) -> Availability:
    """`offer.available()`, with an exception turned into the reason why not."""
    try:
        return offer.available()
    except Exception as error:  # a stranger's code: whatever it raises is its answer
        return Availability(False, f"{type(error).__name__}: {error}")


def named(found: Sequence[OfferType], name: str, what: str) -> OfferType:
    """The offer of that name, which must be available. Raises UsageError or Unavailable."""
    for offer in found:
        if offer.name == name:
            require(offer)
            return offer
    raise UsageError(
        f"no {what} is named {name!r}",
        f"known: {', '.join(offer.name for offer in found) or 'none (see phitui plugins)'}",
    )


def first_available(found: Sequence[OfferType], what: str) -> OfferType:
    """The first offer that can be used here. Raises Unavailable with the first one's reason and hint."""
    for offer in found:
        if availability(offer).ok:
            return offer
    if not found:
        raise Unavailable(f"no {what} is installed", "phitui plugins shows what is loaded and what failed")
    require(found[0])
    return found[0]


def require(offer: Offer) -> None:
    """Raise Unavailable if the offer cannot be used here."""
    state = availability(offer)
    if not state.ok:
        raise Unavailable(f"{offer.title}: {state.reason}", state.hint)
