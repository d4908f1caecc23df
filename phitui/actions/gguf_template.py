"""Whether a text is a chat template: a short conversation is rendered with it, as engines do."""

from __future__ import annotations

from collections.abc import Sequence

from phitui.engine.template import TemplateError, render_chat
from phitui.errors import InvalidFile

_QUESTION, _ANSWER, _SYSTEM = "phitui asks", "a model answers", "phitui says"
_FIRST = ({"role": "user", "content": _QUESTION},)
_MORE = (*_FIRST, {"role": "assistant", "content": _ANSWER}, {"role": "user", "content": "and again"})


def check_template(template: str, where: str, *, bos: str, eos: str, force: bool = False) -> list[str]:
    """Raise InvalidFile, naming `where` it comes from and the line, for what cannot be rendered.

    A template that leaves out what is said is refused too, unless `force`. Returns remarks.
    """

    def render(messages: Sequence[dict[str, str]]) -> str:
        return render_chat(template, messages, bos=bos, eos=eos)

    try:
        question, more = render(_FIRST), render(_MORE)
    except TemplateError as error:
        raise InvalidFile(f"{where}: {error.message}", "mend the template; nothing was changed") from None
    lost = "the question" if _QUESTION not in question else "the answer" if _ANSWER not in more else ""
    if lost and not force:
        raise InvalidFile(
            f"{where}: {lost} of a chat is lost in what it makes of it, so it is no chat template",
            "--force sets it all the same",
        )
    try:
        system = render(({"role": "system", "content": _SYSTEM}, *_FIRST))
    except TemplateError:
        system = ""
    return [] if _SYSTEM in system else ["the template has no place for a system prompt"]
