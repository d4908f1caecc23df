"""Chat templates: Phi's own, what Hugging Face's environment offers, and templates that mean harm."""

from __future__ import annotations

import datetime

import pytest

from phitui.engine import template
from phitui.engine.template import TemplateError, render_chat

PHI3 = (
    "{% for message in messages %}{% if message['role'] == 'system' and message['content'] %}{{'<|system|>\n' + "
    "message['content'] + '<|end|>\n'}}{% elif message['role'] == 'user' %}{{'<|user|>\n' + message['content'] + "
    "'<|end|>\n'}}{% elif message['role'] == 'assistant' %}{{'<|assistant|>\n' + message['content'] + '<|end|>\n'}}"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
)
HELLO = [{"role": "user", "content": "Hello"}]


def test_phi3() -> None:
    messages = [{"role": "system", "content": "Be kind."}, *HELLO, {"role": "assistant", "content": "Hi"}, *HELLO]
    assert render_chat(PHI3, messages) == (
        "<|system|>\nBe kind.<|end|>\n<|user|>\nHello<|end|>\n<|assistant|>\nHi<|end|>\n"
        "<|user|>\nHello<|end|>\n<|assistant|>\n"
    )
    assert render_chat(PHI3, HELLO, eos="<|endoftext|>", add_generation_prompt=False).endswith("<|end|>\n<|endoftext|>")


def test_whitespace_as_hugging_face_trims_it() -> None:
    text = "  {% if true %}\n  a\n  {% endif %}\nb\n"
    assert render_chat(text, HELLO) == "  a\nb"


def test_generation_blocks_are_transparent() -> None:
    text = "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}|{% endfor %}"
    assert render_chat(text, HELLO) == "Hello|"


def test_loop_controls_and_namespace() -> None:
    text = "{% set n = namespace(i=0) %}{% for m in messages %}{% set n.i = n.i + 1 %}{% break %}{% endfor %}{{ n.i }}"
    assert render_chat(text, HELLO * 3) == "1"


def test_tojson_is_plain() -> None:
    assert render_chat("{{ tools | tojson }}", [], tools=[{"a": "<é>"}]) == '[{"a": "<é>"}]'
    assert render_chat("{{ tools | tojson(indent=2) }}", [], tools={"a": 1}) == '{\n  "a": 1\n}'


def test_dates() -> None:
    assert render_chat("{{ strftime_now('%Y') }}", []) == str(datetime.datetime.now().year)


def test_missing_variables() -> None:
    assert render_chat("{% if tools %}t{% endif %}{% if nothing is defined %}n{% endif %}{{ nothing }}x", []) == "x"


def test_raise_exception_is_a_clear_error() -> None:
    with pytest.raises(TemplateError, match="roles must alternate"):
        render_chat("{{ raise_exception('roles must alternate') }}", HELLO)


@pytest.mark.parametrize("text", ["{% if %}", "{{", "{% for x in y %}", "{% unknown %}"])
def test_broken_template(text: str) -> None:
    with pytest.raises(TemplateError, match="line 1"):
        render_chat(text, HELLO)


@pytest.mark.parametrize(
    "text",
    [
        "{{ messages.__class__.__mro__ }}",
        "{{ ''.__class__ }}",
        "{{ messages.append(1) }}",
        "{{ raise_exception.__globals__ }}",
        "{{ strftime_now.__globals__['os'].system('true') }}",
        "{{ '{0.__class__}'.format(messages) }}",
        "{{ range(10000000) | list }}",
    ],
)
def test_unsafe_templates(text: str) -> None:
    try:
        shown = render_chat(text, HELLO)
    except TemplateError:
        return
    assert "class" not in shown and "function" not in shown


@pytest.mark.parametrize(
    "text",
    [
        "{{ 'a' * 10**12 }}",
        "{{ ('a' * 10**9) * 100 }}",
        "{% set ns = namespace(x='aaaaaaaa') %}{% for i in range(64) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
        "{{ '%0999999999999d' | format(1) }}",
    ],
)
def test_greedy_templates_get_an_error(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template, "MAX_MEMORY", 200 << 20)
    with pytest.raises(TemplateError):
        render_chat(text, HELLO)


def test_endless_output_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template, "MAX_OUTPUT", 1000)
    with pytest.raises(TemplateError, match="1,000 characters"):
        render_chat("{% for a in range(9999) %}xxxxxxxx{% endfor %}", HELLO)


def test_huge_template_is_refused() -> None:
    with pytest.raises(TemplateError, match="limit"):
        render_chat("x" * (template.MAX_TEMPLATE + 1), HELLO)


def test_types_that_do_not_fit() -> None:
    with pytest.raises(TemplateError, match="TypeError"):
        render_chat("{{ messages + 1 }}", HELLO)
