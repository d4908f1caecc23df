"""The laws of the house (see CONTRIBUTING in the README): who may import whom, and what starting costs."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from phitui import hookspecs

ROOT = Path(__file__).parent.parent
CORE = ROOT / "phitui"
PLUGINS = sorted(path for path in (ROOT / "plugins").glob("phitui_*") if path.is_dir())

LAYERS = [
    {"errors"},
    {"domain"},
    {"gguf", "hookspecs", "config", "crash"},
    {"plugins", "store", "hub"},
    {"jobs", "engine"},
    {"api"},
    {"actions"},
    {"cli", "tui", "testing"},
]
"""From the ground up: a room imports from its own layer's room or from lower layers, never from above or beside.

`api` gathers names of lower rooms for plugins; no room of the core imports it.
"""
ENTRANCES = {"__init__", "__main__"}
HEAVY = ("textual", "numpy", "llama_cpp", "huggingface_hub", "gguf", "tokenizers", "sentencepiece", "httpx", "jinja2")


def imports(file: Path, package: str) -> Iterator[tuple[str, int]]:
    """Every module a file imports, anywhere in it, with the line."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")
                base = ".".join(filter(None, [*parents[: len(parents) - node.level + 1], base]))
            yield base, node.lineno
            yield from ((f"{base}.{alias.name}", node.lineno) for alias in node.names)


def package_of(file: Path, root: Path) -> str:
    return ".".join(file.relative_to(root).parent.parts)


def room(module: str) -> str | None:
    parts = module.split(".")
    return parts[1] if parts[0] == "phitui" and len(parts) > 1 else None


def core_files() -> list[Path]:
    return sorted(CORE.rglob("*.py"))


def test_core_layers() -> None:
    level = {name: index for index, names in enumerate(LAYERS) for name in names}
    breaches = []
    for file in core_files():
        own = file.relative_to(CORE).parts[0].removesuffix(".py")
        if own in ENTRANCES:
            continue
        assert own in level, f"phitui/{own} is a room without a place in LAYERS"
        for module, line in imports(file, package_of(file, ROOT)):
            other = room(module)
            if other in level and other != own and level[other] >= level[own]:
                breaches.append(f"{file.relative_to(ROOT)}:{line} imports {module}")
    assert not breaches, "\n".join(sorted(set(breaches)))


def test_domain_is_standard_library_only() -> None:
    breaches = [
        f"{file.name}:{line} imports {module}"
        for file in (CORE / "domain").glob("*.py")
        for module, line in imports(file, "phitui.domain")
        if module.split(".")[0] not in sys.stdlib_module_names | {"phitui"}
    ]
    assert not breaches, "\n".join(breaches)


def test_only_the_terminal_app_knows_textual() -> None:
    breaches = [
        f"{file.relative_to(ROOT)}:{line}"
        for file in core_files()
        if file.relative_to(CORE).parts[0] != "tui"
        for module, line in imports(file, package_of(file, ROOT))
        if module.split(".")[0] == "textual"
    ]
    assert not breaches, "\n".join(breaches)


def test_core_names_no_plugin() -> None:
    names = {path.name for path in PLUGINS} - set(dir(hookspecs))  # a few plugins are called like the hook they serve
    breaches = [
        f"{file.relative_to(ROOT)} names {name}"
        for file in core_files()
        for name in names
        if re.search(rf"\b{name}\b", file.read_text())
    ]
    assert not breaches, "\n".join(breaches)


@pytest.mark.parametrize("plugin", PLUGINS, ids=lambda path: path.name)
def test_plugins_enter_by_the_strangers_door(plugin: Path) -> None:
    breaches = []
    for file in plugin.rglob("*.py"):
        for module, line in imports(file, package_of(file, ROOT / "plugins")):
            top = module.split(".")[0]
            if top == "phitui" and module != "phitui.api" and not module.startswith("phitui.api."):
                if module == "phitui" or (module.startswith("phitui.testing") and "tests" in file.parts):
                    continue
                breaches.append(f"{file.relative_to(ROOT)}:{line} imports {module}")
            elif top.startswith("phitui_") and top != plugin.name:
                breaches.append(f"{file.relative_to(ROOT)}:{line} imports {module}")
    assert not breaches, "\n".join(breaches)


def test_folders_and_entry_points_match() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = set(project["entry-points"]["phitui.plugins"].values())
    assert declared == {path.name for path in PLUGINS}


@pytest.mark.parametrize("code", ["import phitui", "from phitui.__main__ import main; main(['--version'])"])
def test_start_is_light(code: str) -> None:
    check = f"{code}\nimport sys\nprint([m for m in {HEAVY!r} if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "[]"


def test_loading_plugins_is_light() -> None:
    """Hooks are cheap: finding out what is there loads no native or heavy library."""
    check = (
        "from phitui import plugins; r = plugins.load()\n"
        f"import sys\nprint(r.failures)\nprint([m for m in {HEAVY!r} if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-2:] == ["[]", "[]"]


def test_no_file_outgrows_a_sitting() -> None:
    files = [*core_files(), *(file for plugin in PLUGINS for file in plugin.rglob("*.py"))]
    long = [
        f"{file.relative_to(ROOT)}: {count}" for file in files if (count := len(file.read_text().splitlines())) > 450
    ]
    assert not long, "\n".join(long)
