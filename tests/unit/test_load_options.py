"""What a plan leaves open and what it decides."""

from __future__ import annotations

from typing import Any

import pytest

from phitui.domain.chat import EngineSettings
from phitui.domain.load import LoadOptions
from phitui.domain.options import option, specs


@pytest.mark.parametrize(
    ("settings", "chosen"),
    [
        ({}, {"context": 4096}),
        ({"layers": 0, "tensor_split": (1.0, 2.0), "n_cpu_moe": 3}, {"context": 4096}),
        ({"layers": 7, "n_cpu_moe": 0}, {"context": 4096, "layers": 7}),
        (
            {"context": 8192, "layers": 33, "n_cpu_moe": 5, "kv_type": "q8_0", "rpc": ("a:1",), "mmap": False},
            {"context": 8192, "layers": 33, "n_cpu_moe": 5, "kv_type": "q8_0", "rpc": ("a:1",), "mmap": False},
        ),
        ({"flash_attention": False, "threads": 3}, {"context": 4096, "flash_attention": False}),
    ],
)
def test_what_was_chosen(settings: dict[str, Any], chosen: dict[str, Any]) -> None:
    assert EngineSettings(**settings).chosen() == chosen


def test_nothing_is_chosen_at_first() -> None:
    assert LoadOptions().chosen() == {}


def test_an_option_may_name_the_load_option_that_fills_it_in() -> None:
    import dataclasses

    made = dataclasses.make_dataclass("Made", [("num_ctx", int, option(1, help="x", planned="context"))])
    assert [spec.planned for spec in specs(made)] == ["context"]
