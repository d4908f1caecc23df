"""Broken plugins, found the way real ones are: distributions on sys.path with an entry point each."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

GOOD = """
from phitui.api import hookimpl, Availability, Bundle, BundleFile, NoOptions
class Exporter:
    name = "{name}"
    title = "Exporter {name}"
    options = NoOptions
    def available(self): return Availability()
    def preview(self, model, options, out): return Bundle((BundleFile("a.txt", "hello"),))
@hookimpl
def phitui_exporters(): return [Exporter()]
"""


def install(site: Path, plugin: str, code: str, dist: str = "") -> None:
    """A distribution with one module and one entry point, as pip would leave it."""
    dist = dist or f"phitui-{plugin}"
    module = f"{plugin}_module_of_{dist.replace('-', '_')}"
    (site / f"{module}.py").write_text(code)
    info = site / f"{dist.replace('-', '_')}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {dist}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[phitui.plugins]\n{plugin} = {module}\n")


def load(site: Path, only: str | None = None) -> dict[str, Any]:
    """What a fresh phitui process finds."""
    environment = os.environ | {"PYTHONPATH": str(site)}
    if only is not None:
        environment["PHITUI_PLUGINS"] = only
    result = subprocess.run(
        [sys.executable, "-m", "phitui", "plugins", "--json"],
        capture_output=True,
        text=True,
        env=environment,
        timeout=60,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    document: dict[str, Any] = json.loads(result.stdout)
    return document


@pytest.fixture
def site(tmp_path: Path) -> Path:
    directory = tmp_path / "site"
    directory.mkdir()
    install(directory, "good", GOOD.format(name="good"))
    return directory


BROKEN = {
    "bad import": ("import no_such_module_at_all", "import", "no_such_module_at_all"),
    "syntax error": ("def (:", "import", "SyntaxError"),
    "sys.exit": ("import sys; sys.exit(3)", "import", "SystemExit"),
    "unknown hook": (
        "from phitui.api import hookimpl\n@hookimpl\ndef phitui_converterz(): return []",
        "register",
        "phitui_converterz",
    ),
    "wrong arguments": (
        "from phitui.api import hookimpl\n@hookimpl\ndef phitui_engines(color): return []",
        "register",
        "color",
    ),
    "hook that raises": (
        "from phitui.api import hookimpl\n@hookimpl\ndef phitui_engines(): raise RuntimeError('no luck')",
        "phitui_engines",
        "no luck",
    ),
    "hook that exits": (
        "from phitui.api import hookimpl\n@hookimpl\ndef phitui_engines(): raise SystemExit(4)",
        "phitui_engines",
        "SystemExit",
    ),
    "hook without the marker": ("def phitui_engines(): return []", "register", "hookimpl"),
    "offer that lacks a method": (
        "from phitui.api import hookimpl\nclass E:\n  name='e'; title='E'\n"
        "@hookimpl\ndef phitui_engines(): return [E()]",
        "phitui_engines",
        "available",
    ),
    "options that cannot be rendered": (
        GOOD.format(name="odd").replace(
            "options = NoOptions", "import dataclasses\n    options = dataclasses.make_dataclass('O', [('a', dict)])"
        ),
        "phitui_exporters",
        "cannot be rendered",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_plugin_is_a_failure_and_the_rest_works(site: Path, case: str) -> None:
    code, stage, text = BROKEN[case]
    install(site, "broken", code)
    document = load(site, only="good,broken")
    failures = document["failures"]
    assert [failure["plugin"] for failure in failures] == ["broken"]
    assert failures[0]["stage"] == stage
    assert text in failures[0]["error"]
    good = next(plugin for plugin in document["plugins"] if plugin["name"] == "good")
    assert good["offers"][0]["name"] == "good"


def test_deleted_folder(site: Path) -> None:
    install(site, "gone", GOOD.format(name="gone"))
    next(site.glob("gone_module*.py")).unlink()
    document = load(site, only="good,gone")
    assert document["failures"][0]["plugin"] == "gone"
    assert document["failures"][0]["stage"] == "import"


def test_duplicate_plugin_name_does_not_evict_the_first(site: Path) -> None:
    install(site, "good", GOOD.format(name="usurper"), dist="phitui-zz-usurper")
    document = load(site, only="good")
    assert [plugin["offers"][0]["name"] for plugin in document["plugins"]] == ["good"]
    assert "already named" in document["failures"][0]["error"]


def test_stranger_cannot_replace_a_first_party_plugin(site: Path) -> None:
    install(site, "ollama", GOOD.format(name="fake"), dist="aaa-stranger")
    document = load(site)
    ollama = next(plugin for plugin in document["plugins"] if plugin["name"] == "ollama")
    assert ollama["first_party"]
    assert any(failure["plugin"] == "ollama" for failure in document["failures"])


def test_duplicate_offer_name(site: Path) -> None:
    install(site, "zother", GOOD.format(name="good"))
    document = load(site, only="good,zother")
    assert "already named 'good'" in document["failures"][0]["error"]


def test_available_that_raises_is_a_reason(site: Path) -> None:
    code = GOOD.format(name="moody").replace("return Availability()", "raise OSError('no driver')")
    install(site, "moody", code)
    document = load(site, only="moody")
    assert not document["failures"]
    offer = document["plugins"][0]["offers"][0]
    assert not offer["ok"]
    assert "no driver" in offer["reason"]


def test_bare_core(site: Path) -> None:
    document = load(site, only="")
    assert document == {"plugins": [], "failures": []}


def test_named_plugin_that_is_not_installed(site: Path) -> None:
    document = load(site, only="good,ghost")
    assert document["failures"][0]["plugin"] == "ghost"
    assert "not installed" in document["failures"][0]["error"]


def test_all_first_party_plugins_load() -> None:
    from phitui import plugins

    registry = plugins.load()
    assert not registry.failures
    assert all(info.offers for info in registry.plugins if info.first_party)
