"""Chat templates (Jinja, from a GGUF or a checkpoint) rendered as Hugging Face's apply_chat_template renders them.

A template comes from a file of unknown origin: it runs in Jinja's immutable sandbox (range() is bounded there), with
bounds on its size, its output and the memory it takes. Engines render inside their child process, so a template that
never ends can be killed.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from phitui.errors import PhituiError

if TYPE_CHECKING:
    from jinja2 import Template

MAX_TEMPLATE = 1_000_000
"""Characters of a template. The longest known one (with tools) has about 20,000."""
MAX_OUTPUT = 64_000_000
"""Characters of a rendered prompt: far more than any context holds."""
MAX_MEMORY = 1 << 30
"""Bytes that rendering may take beyond what the process has (on Linux): strings can be doubled fast."""


class TemplateError(PhituiError):
    """The model's chat template cannot be used."""


def render_chat(
    template: str,
    messages: Sequence[Mapping[str, Any]],
    *,
    bos: str = "",
    eos: str = "",
    add_generation_prompt: bool = True,
    **extra: Any,
) -> str:
    """The prompt for a conversation. `extra` are more variables for the template (tools, documents, ...).

    Raises TemplateError if the template is broken, too large, forbids these messages or does something unsafe.
    """
    from jinja2 import TemplateError as JinjaError
    from jinja2.exceptions import SecurityError

    variables = {
        "messages": [dict(message) for message in messages],
        "add_generation_prompt": add_generation_prompt,
        "bos_token": bos,
        "eos_token": eos,
        "tools": None,
        "documents": None,
    }
    try:
        with _bounded_memory():
            return _joined(_compiled(template).generate(**variables | extra))
    except SecurityError as error:
        raise TemplateError(f"the chat template does something unsafe: {error}", "do not trust this file") from None
    except JinjaError as error:
        raise TemplateError(f"the model's chat template refuses this conversation: {error}") from None
    except (TypeError, ValueError, KeyError, ArithmeticError, OverflowError, RecursionError, MemoryError) as error:
        raise TemplateError(f"the model's chat template failed: {type(error).__name__}: {error}") from None


def _joined(stream: Iterator[str]) -> str:
    pieces: list[str] = []
    size = 0
    for piece in stream:
        pieces.append(piece)
        size += len(piece)
        if size > MAX_OUTPUT:
            raise TemplateError(f"the chat template wrote more than {MAX_OUTPUT:,} characters")
    return "".join(pieces)


@contextlib.contextmanager
def _bounded_memory() -> Iterator[None]:
    """Let this process map at most MAX_MEMORY more bytes meanwhile: a greedy template gets a MemoryError."""
    try:
        import resource

        used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        soft, hard = resource.getrlimit(resource.RLIMIT_AS)
        wanted = used + MAX_MEMORY
        if soft != resource.RLIM_INFINITY:
            wanted = min(wanted, soft)
        resource.setrlimit(resource.RLIMIT_AS, (wanted, hard))
    except (ImportError, OSError, ValueError):
        yield
        return
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@functools.lru_cache(maxsize=16)
def _compiled(template: str) -> Template:
    from jinja2 import TemplateSyntaxError, nodes
    from jinja2.exceptions import TemplateError as JinjaError
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    if len(template) > MAX_TEMPLATE:
        raise TemplateError(f"the chat template has {len(template):,} characters; the limit is {MAX_TEMPLATE:,}")

    class Generation(Extension):
        """`{% generation %}...{% endgeneration %}` marks assistant text for training; the text is just text."""

        tags = {"generation"}  # noqa: RUF012  (jinja2 declares it so)

        def parse(self, parser: Any) -> nodes.Node:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.Scope(body, lineno=line)

    def refuse(message: str) -> None:
        raise JinjaError(message)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = refuse
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    try:
        return environment.from_string(template)
    except TemplateSyntaxError as error:
        raise TemplateError(f"the model's chat template has an error in line {error.lineno}: {error.message}") from None
    except (RecursionError, MemoryError, OverflowError) as error:
        raise TemplateError(f"the model's chat template cannot be compiled: {type(error).__name__}") from None


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """As Hugging Face's: plain JSON, not escaped for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
