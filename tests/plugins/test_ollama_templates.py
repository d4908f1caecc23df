"""The prompts of our Modelfiles equal those of the checkpoints' own Jinja templates.

The Jinja templates here are short ones of the same meaning as those that the checkpoints carry.
"""

from __future__ import annotations

import pytest
from phitui_ollama.exporter import load_format
from phitui_ollama.gotemplate import GoTemplate, Json
from phitui_ollama.options import FORMATS
from phitui_ollama.prompts import ollama_prompt, settle

from phitui.api import modelfiles, render_chat
from phitui.errors import InvalidFile


def turns(before: str, after: str, end: str) -> str:
    """A Jinja template that puts every message between `before` role `after` and `end`."""
    loop = f"{{{{ '{before}' + m['role'] + '{after}' + m['content'] + '{end}' }}}}"
    start = f"{{% if add_generation_prompt %}}{{{{ '{before}assistant{after}' }}}}{{% endif %}}"
    return f"{{% for m in messages %}}{loop}{{% endfor %}}{start}"


MINI_FIXED = "Your name is Phi, an AI math expert developed by Microsoft."
JINJA = {
    "phi-3": turns("<|", r"|>\n", r"<|end|>\n"),
    "phi-4": turns("<|im_start|>", "<|im_sep|>", "<|im_end|>"),
    "phi-4-mini": turns("<|", "|>", "<|end|>"),
    "phi-4-mini-reasoning": (
        "{{ '<|system|>" + MINI_FIXED + "' }}{% for m in messages %}{% if m.role == 'system' %} {{ m.content }}"
        "{% endif %}{% endfor %}{{ '<|end|>' }}{% for m in messages %}{% if m.role != 'system' %}"
        "{{ '<|' + m.role + '|>' + m.content + '<|end|>' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
    ),
    "phi-4-reasoning": (
        "<|im_start|>system<|im_sep|>Think in <think> and </think>.<|im_end|>{% for m in messages %}"
        "{% if m.role != 'system' %}{{ '<|im_start|>' + m.role + '<|im_sep|>' + m.content + '<|im_end|>' }}{% endif %}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant<|im_sep|>' }}{% endif %}"
    ),
    "chatml": turns("<|im_start|>", r"\n", r"<|im_end|>\n"),
}
PHI_2 = (
    "{% for m in messages %}{% if m.role == 'system' %}{{ m.content + '\n\n' }}{% elif m.role == 'user' %}"
    "{{ 'Instruct: ' + m.content + '\n' }}{% else %}{{ 'Output: ' + m.content + '\n' }}{% endif %}{% endfor %}Output:"
)
OLD_PHI_3 = (
    "{% for m in messages %}{% if m.role == 'user' %}{{ '<|user|>\n' + m.content + '<|end|>\n<|assistant|>\n' }}"
    "{% elif m.role == 'assistant' %}{{ m.content + '<|end|>\n' }}{% endif %}{% endfor %}"
)
SMOL = (
    "{% if messages[0].role != 'system' %}{{ '<|im_start|>system\nYou are Smol.<|im_end|>\n' }}{% endif %}"
    + JINJA["chatml"]
)

QUESTION, ANSWER, SYSTEM = (
    ("user", "Wie tief\nist das «Meer»? "),
    ("assistant", "سلام"),
    ("system", "Be brief.\nPlease."),
)
CONVERSATIONS = {
    "one turn": [QUESTION],
    "many turns": [QUESTION, ANSWER, ("user", "{{ x }}"), ANSWER, QUESTION],
    "system": [SYSTEM, QUESTION],
    "system and many turns": [SYSTEM, QUESTION, ANSWER, QUESTION],
}


def own(jinja: str, conversation: list[tuple[str, str]]) -> str:
    return render_chat(jinja, [{"role": role, "content": text} for role, text in conversation])


@pytest.mark.parametrize("conversation", CONVERSATIONS.values(), ids=CONVERSATIONS)
@pytest.mark.parametrize("name", ["phi-2", "phi-3", "phi-4", "phi-4-mini", "chatml"])
def test_prompts_equal_the_models_own(name: str, conversation: list[tuple[str, str]]) -> None:
    jinja = JINJA.get(name, PHI_2)
    assert ollama_prompt(GoTemplate(load_format(name).template), conversation) == own(jinja, conversation)


@pytest.mark.parametrize("conversation", CONVERSATIONS.values(), ids=CONVERSATIONS)
@pytest.mark.parametrize("name", ["phi-4-mini-reasoning", "phi-4-reasoning"])
def test_prompts_of_the_reasoning_models_with_the_settled_system(
    name: str, conversation: list[tuple[str, str]]
) -> None:
    shape = load_format(name)
    said = next((text for role, text in conversation if role == "system"), None)
    system = settle(JINJA[name], shape.template, said if name == "phi-4-mini-reasoning" else None, shape.system).system
    rest = [turn for turn in conversation if turn[0] != "system"]
    prompt = ollama_prompt(GoTemplate(shape.template), [("system", system), *rest])
    assert prompt == own(JINJA[name], conversation)


def test_phi_4_mini_lists_tools_and_calls() -> None:
    tools = [{"name": "add", "parameters": {"a": "int"}}, {"name": "now", "parameters": {}}]
    listed = '[{"name":"add","parameters":{"a":"int"}},{"name":"now","parameters":{}}]'
    calls = [{"Function": {"Name": "add", "Arguments": Json(a=1)}}, {"Function": {"Name": "now", "Arguments": Json()}}]
    called = '<|tool_call|>[{"name":"add","arguments":{"a":1}},{"name":"now","arguments":{}}]<|/tool_call|>'
    jinja = (
        "{% for m in messages %}{{ '<|' + m.role + '|>' + m.content }}{% if m.tools %}"
        "{{ '<|tool|>' + m.tools + '<|/tool|>' }}{% endif %}{{ '<|end|>' }}{% endfor %}<|assistant|>"
    )
    messages = [
        {"role": "system", "content": "You are a helpful assistant with some tools.", "tools": listed},
        {"role": "user", "content": "1+1?"},
        {"role": "assistant", "content": called},
        {"role": "tool", "content": "2"},
    ]
    template = GoTemplate(load_format("phi-4-mini").template)
    prompt = template.render(
        {
            "System": "",
            "Tools": [{"Function": tool} for tool in tools],
            "Messages": [
                {"Role": "user", "Content": "1+1?"},
                {"Role": "assistant", "Content": "", "ToolCalls": calls},
                {"Role": "tool", "Content": "2"},
            ],
        }
    )
    assert prompt == render_chat(jinja, messages)


def test_thoughts_go_before_the_answer() -> None:
    template = GoTemplate(load_format("phi-4-reasoning").template)
    said = {"Role": "assistant", "Content": "42", "Thinking": "6*7"}
    assert "<|im_sep|><think>6*7</think>42<|im_end|>" in template.render({"Messages": [said]})


def test_the_models_own_system_text_is_found() -> None:
    found = settle(SMOL, load_format("chatml").template, None, "")
    assert (found.system, found.notes) == ("You are Smol.", ())
    assert settle(SMOL, load_format("chatml").template, "Mine.", "").system == "Mine."


def test_no_system_text_when_asked_for_none() -> None:
    found = settle(SMOL, load_format("chatml").template, "", "")
    assert found.system == ""
    assert "fixed system text" in found.notes[0]


def test_a_template_without_system_texts_is_noted() -> None:
    found = settle(OLD_PHI_3, load_format("phi-3").template, "Mine.", "")
    assert found.system == "Mine."
    assert "leaves system texts out" in found.notes[0]
    assert found.equal


def test_another_prompt_is_noted() -> None:
    found = settle(JINJA["phi-4-mini"], load_format("phi-3").template, None, "")
    assert not found.equal
    assert "another prompt" in found.notes[0]


@pytest.mark.parametrize("jinja", ["{{ raise_exception('no') }}", "{% for %}", "{{ messages[0]['nothing'].x.y }}"])
def test_a_broken_template_is_no_reason_to_fail(jinja: str) -> None:
    found = settle(jinja, load_format("phi-3").template, None, "fixed")
    assert not found.equal
    assert len(found.notes) == 1


def test_every_format_has_a_modelfile_and_every_modelfile_a_format() -> None:
    assert {path.stem for path in modelfiles().glob("*.modelfile")} == set(FORMATS)


@pytest.mark.parametrize("name", FORMATS)
def test_modelfiles_are_whole(name: str) -> None:
    shape = load_format(name)
    assert shape.stops
    assert shape.comment.startswith("# ")
    assert ".Messages" in shape.template


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("a {{- 1 -}} b", "a1b"),
        ("{{/* no */}}x", "x"),
        ("{{ if .a }}1{{ else if .b }}2{{ else }}3{{ end }}", "2"),
        ("{{ range $i, $x := .l }}{{ if $i }},{{ end }}{{ $x }}{{ . }}{{ end }}", "pp,qq"),
        ("{{ range .none }}x{{ else }}empty{{ end }}", "empty"),
        ("{{ if and .b (not .a) }}yes{{ end }}", "yes"),
        ('{{ if ne .s "x" }}{{ .s | json }}{{ end }}', r'"s\u003c"'),
        ("{{ len .l }}{{ $.s }}{{ or .a .s }}", "2s<s<"),
        ("{{ .missing.field }}{{ .b }}", "true"),
    ],
)
def test_go_templates(source: str, expected: str) -> None:
    data = {"a": False, "b": True, "l": ["p", "q"], "s": "s<"}
    assert GoTemplate(source).render(data) == expected


@pytest.mark.parametrize(
    "source", ["{{ if .a }}", "{{ end }}", "{{ range .a }}", "{{ .a ", "{{ slice .a 1 }}", "{{ $x }}"]
)
def test_what_is_no_template_here_is_an_error(source: str) -> None:
    with pytest.raises(InvalidFile):
        GoTemplate(source).render({"a": True})
