"""Wrong parameters and names are refused before Ollama sees them."""

from __future__ import annotations

import pytest
from phitui_ollama.names import checked, made
from phitui_ollama.options import NUMBERS, OllamaOptions, messages, parameters
from phitui_ollama.parameters import PARAMETERS, parse_all, validated

from phitui.domain import options
from phitui.errors import UsageError


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_ctx", "4096"),
        ("num_gpu", "-1"),
        ("seed", "+7"),
        ("temperature", "0"),
        ("temperature", "1e-1"),
        ("top_p", ".5"),
        ("stop", " <|end|> "),
    ],
)
def test_good_values(name: str, value: str) -> None:
    assert validated(name, value) == value


def test_booleans_are_those_of_go() -> None:
    assert [validated("use_mmap", text) for text in ("1", "T", "True", "f", "0")] == ["true"] * 3 + ["false"] * 2
    with pytest.raises(UsageError):
        validated("use_mmap", "yes")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_ctx", "4096.0"),
        ("num_ctx", "0"),
        ("num_ctx", "4k"),
        ("num_ctx", "٤"),
        ("num_ctx", "99999999999"),
        ("num_gpu", "-2"),
        ("temperature", "nan"),
        ("temperature", "inf"),
        ("temperature", "1e999"),
        ("temperature", "-1"),
        ("top_p", "1.5"),
        ("stop", ""),
    ],
)
def test_bad_values(name: str, value: str) -> None:
    with pytest.raises(UsageError):
        validated(name, value)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("Temperature", "temperature"),
        ("num_ctxt", "num_ctx"),
        ("mirostat", "leave it out"),
        ("kv_cache_type", "OLLAMA_KV_CACHE_TYPE"),
        ("tfs_z", "known: "),
    ],
)
def test_unknown_names_say_what_to_do(name: str, hint: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_all([f"{name}=1"])
    assert hint in caught.value.hint


def test_parameter_needs_a_value() -> None:
    with pytest.raises(UsageError, match="NAME=VALUE"):
        parse_all(["top_k"])


def test_every_numeric_option_is_a_parameter() -> None:
    assert set(NUMBERS) <= set(PARAMETERS)


def test_parameters_are_sorted_and_stops_kept_once() -> None:
    chosen = OllamaOptions(temperature=0.5, num_ctx=8192, stop=("END", "<|end|>"), parameter=("num_ctx=1024", "stop=X"))
    commands = [(command.key, command.value) for command in parameters(chosen, ("<|end|>",))]
    assert commands == [
        ("num_ctx", "1024"),
        ("temperature", "0.5"),
        ("stop", "<|end|>"),
        ("stop", "END"),
        ("stop", "X"),
    ]


def test_messages() -> None:
    (command,) = messages(OllamaOptions(message=("user: what: now?",)))
    assert (command.key, command.value) == ("user", "what: now?")
    for wrong in ("tool: x", "hello"):
        with pytest.raises(UsageError, match="ROLE: TEXT"):
            messages(OllamaOptions(message=(wrong,)))


def test_options_can_be_rendered() -> None:
    assert {"name", "system", "num_ctx", "num_gpu", "parameter"} <= {spec.name for spec in options.specs(OllamaOptions)}


@pytest.mark.parametrize(
    "name", ["phi", "phi-4:q4_k_m", "me/phi.4", "host.example:5000/me/phi:1.0", "_x", "a" * 80 + ":" + "b" * 80]
)
def test_names_that_ollama_takes(name: str) -> None:
    assert checked(name) == name


@pytest.mark.parametrize(
    "name", ["", "-phi", "phi 4", "a@b", "a+b", "a.b/phi", "a/b/c/d", "phi:", "phi:a:b", "a" * 81, "phi\n", "é"]
)
def test_names_that_ollama_refuses(name: str) -> None:
    with pytest.raises(UsageError, match="no name"):
        checked(name)


@pytest.mark.parametrize("text", ["Phi 4 (mini)", "---", "", "a/b/Ünicode", "x" * 300, "microsoft/Phi-4"])
def test_made_names_are_valid(text: str) -> None:
    assert checked(made(text, "Q4_K_M")).endswith(":q4_k_m")
