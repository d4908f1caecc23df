"""What was measured of this machine's memory is found again, and damage costs nothing but the figure."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from phitui.config import Paths
from phitui.domain.hardware import Bandwidth, Device
from phitui.errors import PhituiError
from phitui.store.bandwidth import FILE, bandwidth_of, keep_bandwidth

RAM = Device("CPU", "cpu", "cpu", "A processor", 32 << 30, 30 << 30, "measured")
SPEED = Bandwidth("CPU", "A processor", 41.5e9, 2, 1_700_000_000.0, "reading 512 MiB")


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    return Paths(tmp_path / "c", tmp_path / "d", tmp_path / "s", tmp_path / "x")


def test_a_figure_is_found_again_and_a_newer_one_replaces_it(paths: Paths) -> None:
    assert bandwidth_of(paths, RAM) is None
    keep_bandwidth(paths, SPEED)
    keep_bandwidth(paths, Bandwidth("CUDA0", "RTX 4090", 1e12, 1, 5.0))
    assert bandwidth_of(paths, RAM) == SPEED
    keep_bandwidth(paths, replace(SPEED, bytes_per_second=50e9))
    found = bandwidth_of(paths, RAM)
    assert found is not None
    assert found.bytes_per_second == 50e9
    assert [path.name for path in paths.state.iterdir()] == [FILE]


def test_another_processor_has_no_figure(paths: Paths) -> None:
    keep_bandwidth(paths, SPEED)
    assert bandwidth_of(paths, replace(RAM, description="Another processor")) is None


def test_the_date_is_noted(paths: Paths) -> None:
    keep_bandwidth(paths, replace(SPEED, measured=0.0))
    found = bandwidth_of(paths, RAM)
    assert found is not None
    assert found.measured > 1_700_000_000


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        '{"CPU · A processor": 3}',
        '{"CPU · A processor": {"bytes_per_second": -1}}',
        '{"CPU · A processor": {"bytes_per_second": "x"}}',
        '{"CPU · A processor": {"bytes_per_second": 1e9, "colour": 1}}',
    ],
)
def test_a_damaged_file_counts_as_none_and_is_replaced(paths: Paths, text: str) -> None:
    paths.state.mkdir(parents=True)
    (paths.state / FILE).write_text(text)
    assert bandwidth_of(paths, RAM) is None
    keep_bandwidth(paths, SPEED)
    assert bandwidth_of(paths, RAM) == SPEED


def test_a_disk_that_refuses(paths: Paths) -> None:
    paths.state.parent.mkdir(parents=True, exist_ok=True)
    paths.state.write_text("a file where the directory should be")
    with pytest.raises(PhituiError, match="cannot keep the measurement"):
        keep_bandwidth(paths, SPEED)
    assert not list(paths.state.parent.glob(".*"))
