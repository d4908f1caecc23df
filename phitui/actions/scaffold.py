"""Make the package of a new plugin: a working, tested offer of each chosen kind, from the templates in phitui/scaffold.

The package is made whole under a temporary name beside its place and renamed: there is all of it, or nothing.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import tempfile
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from phitui import __version__, hookspecs
from phitui.actions.context import Context
from phitui.domain.text import visible
from phitui.errors import OutputExists, PhituiError, UsageError
from phitui.plugins import Registry

TEMPLATES = Path(__file__).parent.parent / "scaffold"
LONGEST = 24
"""Characters of a plugin's name: with it the lines of all files stay below 120."""
_NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")


@dataclass(frozen=True)
class Kind:
    """A kind of offer: what the scaffold's one does, and a command to try it ($NAME, $UPPER: the plugin's name)."""

    summary: str
    example: str


KINDS = {
    "converter": Kind("passes on the tensors of a made-up architecture", "phitui inspect CHECKPOINT"),
    "quantizer": Kind("a scheme: F16, with chosen tensors in F32", "phitui build MODEL --scheme $UPPER_F16"),
    "backend": Kind("describes the compute accelerators of a machine", "phitui doctor"),
    "engine": Kind("repeats what it is told", "phitui chat MODEL --engine $NAME -p 'Say it again'"),
    "exporter": Kind("a shell script that starts a server", "phitui export MODEL --to $NAME --preview"),
    "finder": Kind("lists the GGUF files of a folder", "$UPPER_MODELS=DIR phitui models"),
    "evaluator": Kind("bytes per parameter", "phitui eval MODEL --evaluator $NAME"),
    "command": Kind("a greeting, and the number of models", "phitui $NAME"),
    "catalogue": Kind("one known model, as data", "phitui models"),
}
"""All kinds; the hook of one is `hook_of(kind)`."""
DEFAULT_KINDS = ("exporter",)


@dataclass(frozen=True)
class Scaffold:
    """What was written. `files` are relative to `directory`; `next` are the commands to type, `plugin` the name."""

    plugin: str
    package: str
    module: str
    directory: Path
    kinds: tuple[str, ...]
    files: tuple[str, ...]
    next: tuple[str, ...]


def hook_of(kind: str) -> str:
    """The hook through which offers of this kind come."""
    plural = f"{hookspecs.PROJECT}_{kind}s"
    return plural if hasattr(hookspecs, plural) else plural[:-1]


def new_plugin(
    context: Context, name: str, kinds: Sequence[str] = (), directory: Path | None = None, taken: Collection[str] = ()
) -> Scaffold:
    """Write the package; `directory` is phitui-NAME in the current one by default. `taken` are names of commands.

    Raises UsageError for a name or kind that cannot be, OutputExists for a directory that is not empty, PhituiError
    where it cannot be written.
    """
    name = _name(name)
    chosen = tuple(kind for kind in KINDS if kind in (kinds or DEFAULT_KINDS))
    unknown = [kind for kind in kinds if kind not in KINDS]
    if unknown:
        raise UsageError(f"there is no kind {unknown[0]!r}", f"kinds: {', '.join(KINDS)}")
    _refuse_taken(context.registry, name, chosen, taken)
    out = _place(name, directory)
    _refuse_occupied(out)
    texts = render(name, chosen)
    _write(out, texts)
    steps = (f"cd {shown(out)}", 'pip install -e ".[dev]"', "pytest", "phitui plugins")
    return Scaffold(name, f"phitui-{name}", module_of(name), out, chosen, tuple(texts), steps)


def module_of(name: str) -> str:
    """The package that Python imports."""
    return f"phitui_{name.replace('-', '_')}"


def shown(path: Path) -> str:
    """A path as a word of a shell, short where it lies below the current directory."""
    import shlex

    with contextlib.suppress(ValueError, OSError):
        path = path.relative_to(Path.cwd())
    return shlex.quote(str(path))


def render(name: str, kinds: Sequence[str]) -> dict[str, str]:
    """The files of the package, by their path in it."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    loader = FileSystemLoader(TEMPLATES)
    jinja = Environment(loader=loader, undefined=StrictUndefined, keep_trailing_newline=True, autoescape=False)  # noqa: S701  (code and prose, no HTML)
    values = _values(name, kinds)
    return {path: jinja.get_template(template).render(values) for path, template in _files(name, kinds)}


def _values(name: str, kinds: Sequence[str]) -> dict[str, Any]:
    words, upper = name.split("-"), name.upper().replace("-", "_")
    return {
        "name": name,
        "dist": f"phitui-{name}",
        "module": module_of(name),
        "klass": "".join(word.capitalize() for word in words),
        "title": " ".join(words).capitalize(),
        "upper": upper,
        "kinds": kinds,
        "hooks": {kind: hook_of(kind) for kind in kinds},
        "imports": [*sorted(kind.capitalize() for kind in kinds), "hookimpl"],
        "summaries": {kind: KINDS[kind].summary for kind in kinds},
        "examples": {kind: KINDS[kind].example.replace("$NAME", name).replace("$UPPER", upper) for kind in kinds},
        "version": ".".join(__version__.split(".")[:2]),
    }


def _files(name: str, kinds: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Path in the package, and template."""
    yield "pyproject.toml", "pyproject.toml.jinja"
    yield "README.md", "README.md.jinja"
    yield ".gitignore", "gitignore.jinja"
    yield f"{module_of(name)}/__init__.py", "package.py.jinja"
    for kind in kinds:
        yield f"{module_of(name)}/{kind}.py", f"{kind}.py.jinja"
    yield "tests/test_package.py", "test_package.py.jinja"
    for kind in kinds:
        yield f"tests/test_{kind}.py", f"test_{kind}.py.jinja"


def _name(given: str) -> str:
    """The name of the plugin, without the phitui- that its package has anyway."""
    name = re.sub(r"^phitui[-_]", "", given).replace("_", "-")
    if _NAME.fullmatch(name) and len(name) <= LONGEST:
        return name
    near = re.sub(r"[^a-z0-9]+", "-", re.sub(r"^[^a-z]+", "", name.lower()))[:LONGEST].strip("-")
    rule = f"lower case letters, digits and single hyphens, beginning with a letter, {LONGEST} characters at most"
    hint = f"for example: phitui plugins new {near}" if near else "for example: phitui plugins new my-tool"
    raise UsageError(f"{visible(repr(given))} cannot be the name of a plugin: {rule}", hint)


def _refuse_taken(registry: Registry, name: str, kinds: Sequence[str], commands: Collection[str]) -> None:
    """Names that phitui would not load beside what is installed: of plugins, of modules and of offers."""
    another = "take another name"
    for point in entry_points(group=hookspecs.ENTRY_POINT_GROUP):
        if point.name == name:
            own = point.dist is not None and point.dist.name == hookspecs.PROJECT
            whose = "one of phitui's own plugins is" if own else "an installed plugin is already"
            raise UsageError(f"{whose} named {name!r}", another)
    spec = find_spec(module_of(name))
    if spec is not None and spec.origin is not None:
        raise UsageError(f"{module_of(name)} is installed already, at {spec.origin}", another)
    for kind in kinds:
        there = getattr(registry, _attribute(kind))
        if any(offer.name == name for offer in there):
            raise UsageError(f"another {kind} is already named {name!r}", f"{another}; phitui plugins lists them")
    if "command" in kinds and name in commands:
        raise UsageError(f"phitui has a command {name} already", f"{another}, or leave --kind command out")


def _attribute(kind: str) -> str:
    """Where the registry keeps offers of this kind."""
    return f"{kind}s"


def _refuse_occupied(out: Path) -> None:
    elsewhere = "choose another place with --dir DIR"
    try:
        if out.is_symlink() or (out.exists() and not out.is_dir()):
            raise OutputExists(f"{visible(str(out))} exists and is not a directory", elsewhere)
        if out.is_dir() and any(out.iterdir()):
            raise OutputExists(f"{visible(str(out))} exists and is not empty", elsewhere)
        if out.is_dir() and out.samefile(Path.cwd()):
            raise UsageError(f"{out} is the current directory, which would be replaced", elsewhere)
    except OSError as error:
        raise PhituiError(f"cannot look at {visible(str(out))}: {error.strerror}", elsewhere) from None


def _place(name: str, directory: Path | None) -> Path:
    """The absolute path of the package."""
    try:
        return (directory or Path(f"phitui-{name}")).expanduser().absolute()
    except (OSError, RuntimeError) as error:  # the current directory is gone, or ~nobody has no home
        raise UsageError(f"there is no such place: {error}", "give an absolute path with --dir DIR") from None


def _write(out: Path, texts: dict[str, str]) -> None:
    """All files or none: they are written into a directory beside `out`, which is then renamed."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as scratch:
            made = Path(scratch) / out.name
            for path, text in texts.items():
                file = made / path
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(text, encoding="utf-8")
            if out.is_dir():
                shutil.copymode(out, made)
            made.replace(out)  # only an empty directory can be replaced
    except OSError as error:
        raise PhituiError(
            f"cannot write {out}: {error.strerror or error}", "nothing was written; choose another place with --dir DIR"
        ) from None
