"""Whole machines as their tools and kernels describe them (data/hardware/README.md), and what the doctor makes of each.

The tools are scripts on PATH and the kernel's files a directory; only the engine's child process is replaced.
"""

from __future__ import annotations

import shlex
import time
import tomllib
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
from phitui_hardware import backends, install, machine, surroundings, tools
from phitui_hardware.surroundings import Installer, Surroundings

from phitui.actions.context import Context
from phitui.actions.doctor import doctor
from phitui.cli.doctor import text
from phitui.domain.hardware import Device
from phitui.errors import EngineError, PhituiError
from phitui.plugins import Registry

MACHINES = Path(__file__).parent / "data" / "hardware" / "machines"
PIP = Installer("pip", ("pip", "install"), ("python", "-m", "pip", "install"))


def forget() -> None:
    machine.forget()
    machine.mac_text.cache_clear()
    machine.processor.cache_clear()


def scripts(folder: Path, wsl: Path, told: dict[str, Any]) -> None:
    """A program for each tool: its cases are the arguments that the recording names, the plain name is for the rest."""
    programs: dict[Path, dict[str, Any]] = {}
    for command, says in told.items():
        name, _, arguments = command.partition(" ")
        file = wsl if name == "wsl" else folder / name
        programs.setdefault(file, {})["" if name == "wsl" else arguments] = says
    for file, cases in programs.items():
        code = cases.pop("!", 0)
        lines = ["#!/bin/sh"]
        lines += [
            f'case "$* " in *{shlex.quote(key)}*) {prints(value)}; exit 0;; esac' for key, value in cases.items() if key
        ]
        lines += [prints(cases.get("", "")), f"exit {code}"]
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("\n".join(lines) + "\n")
        file.chmod(0o755)


def prints(value: str) -> str:
    return (
        "sleep 30"
        if value == "sleep"
        else f"printf %s {shlex.quote(value)}"
        if "\x00" not in value
        else "printf '\\000'"
    )


@pytest.fixture(params=sorted(MACHINES.glob("*.toml")), ids=lambda path: path.stem)
def recording(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """One recorded machine, put in place of this one."""
    told = tomllib.loads(request.param.read_text())
    system = told.get("tools", {}).pop("system", told.get("system", "Linux"))
    arch = told.get("machine", "x86_64")
    for name, content in told.get("files", {}).items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    scripts(tmp_path / "bin", tmp_path / "wsl" / "nvidia-smi", told.get("tools", {}))
    fields = {key: tuple(value) if isinstance(value, list) else value for key, value in told.get("here", {}).items()}
    place = Surroundings(system, arch, PIP, engine_here=True, glibc=(2, 39), **fields)
    engine = told.get("engine", {})
    listed = [
        {"name": name, "registry": registry, "kind": kind, "description": what, "total": 1 << 34, "free": 1 << 33}
        for name, registry, kind, what in engine.get("devices", [])
    ]
    answer = {
        "version": "0.3.36", "path": "/x", "backends": engine.get("backends", ["CPU"]), "system_info": "",
        "gpu_offload": False, "rpc": False, "devices": listed,
    }  # fmt: skip
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    monkeypatch.setattr(machine, "SYS", tmp_path / "sys")
    monkeypatch.setattr(machine, "PROC", tmp_path / "proc")
    monkeypatch.setattr(machine, "WSL_SMI", str(tmp_path / "wsl" / "nvidia-smi"))
    monkeypatch.setattr(machine.platform, "system", lambda: system)
    monkeypatch.setattr(surroundings, "here", lambda: place)
    monkeypatch.setattr(surroundings, "find_nvcc", lambda: place.nvcc and str(tmp_path / "bin" / "nvcc"))
    monkeypatch.setattr(machine.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(tools, "TOOL_SECONDS", 0.4 if "sleep" in str(told.get("tools")) else 5.0)
    monkeypatch.setattr(backends, "ask_engine", lambda: (answer, ""))
    forget()
    yield told
    forget()


def test_the_doctor_on_that_machine(recording: dict[str, Any]) -> None:
    context = Context()
    context.__dict__["registry"] = Registry(backends=backends.backends())
    began = time.monotonic()
    report = doctor(context)
    took = time.monotonic() - began
    expected = recording["expect"]
    rows = {row["name"]: row for row in report["backends"]}
    whats = [finding["what"] for finding in report["problems"]]
    for name, seen in expected.get("seen", {}).items():
        assert rows[name]["seen"] == seen
        assert rows[name]["present"]
    for name, start in expected.get("seen_starts", {}).items():
        assert rows[name]["seen"].startswith(start)
    finding = report["problems"][0] if report["problems"] else None
    if "finding" in expected:
        assert finding is not None
        assert expected["finding"] in finding["what"]
        assert finding["level"] == expected["level"]
        assert expected.get("line", "") in finding["do"]
        assert expected.get("needs", "") in " ".join(finding["needs"])
        check_build(expected, rows[finding["backend"]])
    elif "warning" not in expected:
        assert whats == []
    if "warning" in expected:
        assert any(expected["warning"] in what for what in whats), whats
    if "no_wheel" in expected:
        assert all(way["kind"] != "wheel" for way in rows[expected["no_wheel"]]["ways"])
    assert all(rows[name]["present"] is False for name in expected.get("absent", ()))
    assert all(rows[name]["present"] is None for name in expected.get("unknown", ()))
    assert expected.get("fact", "") in str([row["facts"] for row in rows.values()])
    assert expected.get("processor", "") in rows["cpu"]["seen"]
    assert took < 2.0
    lines = text(report, show_all=True).splitlines()
    assert all(len(line) <= 80 for line in lines if "llama-cpp-python" not in line and "/" not in line), lines


def check_build(expected: dict[str, Any], row: dict[str, Any]) -> None:
    """The line that compiles, whether or not it is the first."""
    (build,) = [way for way in row["ways"] if way["kind"] == "build"]
    assert expected.get("build", "") in build["line"]
    assert expected.get("build_needs", "") in " ".join(build["needs"])


def test_what_nvml_tells_comes_before_nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = """
class NVMLError(Exception): pass
class Memory:
    total, free = 85899345920, 80000000000
def nvmlInit(): pass
def nvmlSystemGetDriverVersion(): return b"550.54.15"
def nvmlSystemGetCudaDriverVersion(): return 12040
def nvmlDeviceGetCount(): return 1
def nvmlDeviceGetHandleByIndex(number): return "card"
def nvmlDeviceGetName(handle): return "NVIDIA A100-SXM4-80GB" + (" MIG 3g.40gb" if handle != "card" else "")
def nvmlDeviceGetMemoryInfo(handle): return Memory
def nvmlDeviceGetCudaComputeCapability(handle): return (8, 0)
def nvmlDeviceGetMigMode(handle): return (1, 1)
def nvmlDeviceGetMaxMigDeviceCount(handle): return 7
def nvmlDeviceGetMigDeviceHandleByIndex(handle, number):
    if number: raise NVMLError("Not Found")
    return "instance"
"""
    (tmp_path / "pynvml.py").write_text(module)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{':'.join(machine.sys.path)}")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(surroundings, "find_nvcc", lambda: "")
    forget()
    sight = machine.nvidia()
    forget()
    (card,) = sight.cards
    assert sight.source == "NVML"
    assert (card.total, card.target, card.driver) == (85899345920, "8.0", "550.54.15")
    assert card.detail == "driver 550.54.15 (CUDA 12.4), compute 8.0, MIG: 3g.40gb"
    (tmp_path / "pynvml.py").write_text("def nvmlInit(): raise OSError('NVML Shared Library Not Found')")
    monkeypatch.setattr(machine, "SYS", tmp_path / "sys")
    monkeypatch.setattr(machine, "PROC", tmp_path / "proc")
    assert machine.nvidia() == machine.Sight(source="PCI bus"), "no card, no trouble"
    forget()
    device = tmp_path / "sys/bus/pci/devices/0000:01:00.0"
    device.mkdir(parents=True)
    (device / "uevent").write_text("PCI_CLASS=30200\nPCI_ID=10DE:20B0\n")
    sight = machine.nvidia()
    forget()
    assert sight.present
    assert "install the NVIDIA driver" in sight.trouble


def test_an_answer_is_kept_until_it_is_forgotten() -> None:
    calls: list[int] = []
    look = machine.remembered(lambda: machine.Sight(source=str(calls.append(1) or len(calls))))
    assert look().source == look().source == "1"
    backends.CpuBackend().release()
    assert look().source == "2"


def test_an_engine_that_fails_is_asked_once_for_all_backends(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def engine() -> Any:
        asked.append(1)
        raise EngineError("it hangs")

    backends.CpuBackend().release()
    monkeypatch.setattr(backends.child, "installed", lru_cache(lambda: True))
    monkeypatch.setattr(backends.child, "engine", engine)
    assert [backends.ask_engine() for _ in range(6)] == [({}, "it hangs")] * 6
    assert len(asked) == 1
    backends.CpuBackend().release()
    backends.ask_engine()
    assert len(asked) == 2
    backends.CpuBackend().release()


def test_a_cpu_that_can_more_than_the_engine_was_built_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    site = tmp_path / "site"
    (site / "llama_cpp").mkdir(parents=True)
    info = site / "llama_cpp_python-0.3.36.dist-info"
    info.mkdir()
    (info / "WHEEL").write_text("Wheel-Version: 1.0\nTag: py3-none-manylinux_2_17_x86_64\n")
    answer = {
        "version": "0.3.36", "path": str(site / "llama_cpp"), "backends": ["CPU"], "gpu_offload": False, "rpc": False,
        "system_info": "CPU : SSE3 = 1 | AVX = 1 | AVX2 = 1 | F16C = 1 | FMA = 1 | BMI2 = 1 | ", "devices": [],
    }  # fmt: skip
    features = ("SSE3", "AVX", "AVX2", "FMA", "F16C", "AVX512", "AVX512_VNNI", "AMX_INT8")
    monkeypatch.setattr(machine, "processor", lambda: ("A Xeon", features, "test"))
    monkeypatch.setattr(backends, "ask_engine", lambda: (answer, ""))
    report = backends.CpuBackend().probe()
    (warning,) = report.warnings
    assert warning == (
        "the engine was built without AVX512, AVX512_VNNI, AMX_INT8, which this CPU has; it is a ready-made wheel"
    )
    (info / "WHEEL").write_text("Wheel-Version: 1.0\nTag: py3-none-linux_x86_64\n")
    assert not backends.ready_made(str(site / "llama_cpp"))
    assert install.FLAGS["cpu"].cmake == ()


def test_an_engine_that_does_not_load_is_no_missing_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    why = "llama-cpp-python does not load: libcudart.so.12: cannot open shared object file"
    monkeypatch.setattr(backends, "ask_engine", lambda: ({}, why))
    context = Context()
    context.__dict__["registry"] = Registry(backends=[backends.CpuBackend()])
    report = doctor(context)
    assert report["engine"]["trouble"] == why
    finding = report["problems"][0]
    assert "is installed, but does not work" in finding["what"]
    assert "libcudart.so.12" in finding["why"]
    assert "pip" in finding["do"]
    assert "does not work" in text(report)


def test_bandwidth_is_measured_in_a_child_and_is_a_speed() -> None:
    from phitui_hardware.bandwidth import read_speed

    assert 1e8 < read_speed(1, 8 << 20, 0.05) < 1e13
    (speed,) = backends.CpuBackend().bandwidth()
    assert 1e8 < speed.bytes_per_second < 1e13
    assert (speed.device, speed.description) == ("CPU", backends.ram(machine.processor()[0]).description)
    assert speed.measured > 1_700_000_000


@pytest.mark.skipif(not backends.child.installed(), reason="llama-cpp-python is not installed")
def test_a_device_is_measured_by_what_decoding_does() -> None:
    from phitui_hardware.bandwidth import measure_device

    speed = measure_device(Device("CPU", "cpu", "cpu", "any", 1, 1))
    assert 1e7 < speed.bytes_per_second < 1e13
    with pytest.raises(PhituiError, match="the engine lists no device CUDA9"):
        measure_device(Device("CUDA9", "cuda", "gpu", "any", 1, 1))
