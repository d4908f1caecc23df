"""What is plugged in."""

from __future__ import annotations

from typing import Any

from phitui.actions.context import Context
from phitui.plugins import Registry, availability


def plugin_report(context: Context) -> dict[str, Any]:
    """Loaded plugins with their offers and availability, and the failures with their cause."""
    registry = context.registry
    return {
        "plugins": [
            {
                "name": info.name,
                "module": info.module,
                "version": info.version,
                "first_party": info.first_party,
                "offers": [_offer(registry, line) for line in info.offers],
            }
            for info in registry.plugins
        ],
        "failures": [
            {"plugin": failure.plugin, "stage": failure.stage, "error": failure.error, "trace": failure.trace}
            for failure in registry.failures
        ],
    }


def _offer(registry: Registry, line: str) -> dict[str, Any]:
    hook, _, name = line.partition(": ")
    offer = next(offer for offer in getattr(registry, hook) if offer.name == name)
    state = availability(offer)
    return {
        "hook": hook,
        "name": name,
        "title": offer.title,
        "ok": state.ok,
        "reason": state.reason,
        "hint": state.hint,
    }
