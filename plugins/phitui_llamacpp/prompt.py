"""Prompts for models that carry no chat template of their own: plain Jinja per chat format."""

from __future__ import annotations

TEMPLATES = {
    "phi-2": (
        "{% for m in messages %}"
        "{% if m.role == 'user' %}Instruct: {{ m.content }}\n"
        "{% elif m.role == 'assistant' %}Output: {{ m.content }}\n"
        "{% else %}{{ m.content }}\n{% endif %}"
        "{% endfor %}{% if add_generation_prompt %}Output:{% endif %}"
    ),
    "phi-3": (
        "{% for m in messages %}{{ '<|' ~ m.role ~ '|>\n' ~ m.content ~ '<|end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
    ),
    "phi-4": (
        "{% for m in messages %}{{ '<|im_start|>' ~ m.role ~ '<|im_sep|>' ~ m.content ~ '<|im_end|>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant<|im_sep|>' }}{% endif %}"
    ),
    "phi-4-mini": (
        "{% for m in messages %}{{ '<|' ~ m.role ~ '|>' ~ m.content ~ '<|end|>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
    ),
    "chatml": (
        "{% for m in messages %}{{ '<|im_start|>' ~ m.role ~ '\n' ~ m.content ~ '<|im_end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    ),
}


def fallback_template(chat_format: str) -> str:
    """The template of a chat format; phi-2's "Instruct: ... Output:" for an unknown one."""
    return TEMPLATES.get(chat_format, TEMPLATES["phi-2"])
