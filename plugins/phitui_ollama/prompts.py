"""Compares the prompts that Ollama will make with those of the model's own Jinja template; finds its system text."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from phitui.api import PhituiError, render_chat
from phitui_ollama.gotemplate import GoTemplate

Turn = tuple[str, str]
"""(role, text)."""

_PROBE = "\ue000probe\ue000"
_QUESTION: Turn = ("user", "How deep\nis the sea?")
_ANSWER: Turn = ("assistant", "Four kilometres.")


@dataclass(frozen=True)
class Settled:
    """The SYSTEM to write, and what a person should know about it. `equal`: no prompt was found that differs."""

    system: str
    notes: tuple[str, ...] = ()
    equal: bool = True


def ollama_prompt(template: GoTemplate, turns: list[Turn]) -> str:
    """The prompt that Ollama makes of some turns: system texts are joined in .System and stay among .Messages."""
    system = "\n\n".join(text for role, text in turns if role == "system")
    messages = [{"Role": role, "Content": text} for role, text in turns]
    return template.render({"System": system, "Messages": messages})


def jinja_prompt(jinja: str, turns: list[Turn]) -> str:
    """The prompt of the model's own template, without the beginning-of-text token that llama.cpp puts in front."""
    return render_chat(jinja, [{"role": role, "content": text} for role, text in turns])


def settle(jinja: str, go: str, wanted: str | None, fixed: str) -> Settled:
    """The system text with which Ollama's prompts equal the model's own, and notes where they cannot.

    `wanted` is what the person asked for (None: nothing), `fixed` what the Modelfile of the format says.
    """
    template = GoTemplate(go)
    if not jinja:
        return Settled(fixed if wanted is None else wanted)
    try:
        return _settle(lambda turns: jinja_prompt(jinja, turns), template, wanted)
    except PhituiError as error:
        note = f"the model's own chat template could not be compared with this TEMPLATE: {error.message}"
        return Settled(fixed if wanted is None else wanted, (note,), equal=False)


def _settle(own: Callable[[list[Turn]], str], template: GoTemplate, wanted: str | None) -> Settled:
    asked = [("system", wanted)] if wanted else []
    found = _system_in(own([*asked, _QUESTION]), ollama_prompt(template, [_QUESTION]), template)
    text = found or ""
    notes: list[str] = []
    heard = bool(wanted) and str(wanted) in text
    system = text if heard or wanted is None else wanted
    if heard and text != wanted:
        notes.append("the model's own system text stands before yours, as in its chat template")
    elif not heard and found is not None and wanted is not None and text != wanted:
        why = "has a fixed system text, which yours replaces" if text else "leaves system texts out"
        notes.append(f"the model's own chat template {why}: it was not trained with that")
    turns = [_QUESTION, _ANSWER, _QUESTION]
    ours = [("system", text), *turns] if text else turns
    equal = found is not None and own([*asked, *turns] if heard else turns) == ollama_prompt(template, ours)
    if not equal:
        notes.append("the model's own chat template makes another prompt than this TEMPLATE: compare their answers")
    return Settled(system, tuple(notes), equal)


def _system_in(prompt: str, bare: str, template: GoTemplate) -> str | None:
    """The system text of a prompt that ends like `bare`; "" if it has none, None if it is another format."""
    if prompt == bare:
        return ""
    probed = ollama_prompt(template, [("system", _PROBE), _QUESTION])
    before, found, after = probed.removesuffix(bare).partition(_PROBE)
    head = prompt.removesuffix(bare)
    if head == prompt or not found or not head.startswith(before) or not head.endswith(after):
        return None
    return head[len(before) : len(head) - len(after)]
