"""phitui doctor: problems first, each with the command that solves it."""

from __future__ import annotations

import json

import pytest

from phitui.__main__ import main
from phitui.actions.context import Context
from phitui.actions.doctor import doctor, measure_bandwidth
from phitui.cli.doctor import text
from phitui.domain.hardware import BackendReport, Bandwidth, Device, EngineReport
from phitui.domain.offers import Availability
from phitui.errors import PhituiError
from phitui.plugins import Failure, Registry

GIB = 1024**3
ENGINE = EngineReport("llama-cpp-python", "0.3.36", "/somewhere", ("CPU",), {"CPU": ("AVX2",)}, False, False)
RAM = Device("CPU", "cpu", "cpu", "A processor", 32 * GIB, 30 * GIB, "measured")
CARD = Device("CUDA0", "cuda", "gpu", "NVIDIA GeForce RTX 4090", 24 * GIB, 23 * GIB)


class Fake:
    def __init__(self, report: BackendReport | Exception, name: str = "") -> None:
        self.name = name or (report.backend if isinstance(report, BackendReport) else "broken")
        self.title = self.name.upper()
        self._report = report

    def available(self) -> Availability:
        return Availability()

    def probe(self) -> BackendReport:
        if isinstance(self._report, Exception):
            raise self._report
        return self._report


def examine(*reports: BackendReport | Exception, failures: list[Failure] | None = None) -> dict:  # type: ignore[type-arg]
    context = Context()
    context.__dict__["registry"] = Registry(backends=[Fake(report) for report in reports], failures=failures or [])
    report = doctor(context)
    json.dumps(report)
    return report


CPU = BackendReport("cpu", (RAM,), True, True, "pip install cpu", engine=ENGINE)
CUDA = BackendReport("cuda", (), False, True, "pip install cuda", (("RTX 4090 (nvidia-smi)", "24 GiB"),))


def test_a_card_the_engine_was_not_built_for() -> None:
    report = examine(CPU, CUDA)
    (finding,) = report["problems"]
    assert finding["what"] == "RTX 4090 (nvidia-smi) · llama-cpp-python has no CUDA"
    assert finding["why"] == "every layer runs on the CPU"
    assert (finding["do"], finding["backend"], finding["level"]) == ("pip install cuda", "cuda", "problem")
    assert not report["ok"]
    shown = text(report)
    assert shown.index("RTX 4090") < shown.index("Engine:")
    assert "pip install cuda" in shown


def test_a_card_the_engine_uses() -> None:
    used = BackendReport("cuda", (CARD,), True, True, "pip install cuda")
    other = BackendReport("vulkan", (), False, True, "pip install vulkan")
    report = examine(CPU, used, other)
    assert report["ok"]
    assert [device["name"] for device in report["devices"]] == ["CPU", "CUDA0"]
    assert "No problems found." in text(report)


def test_no_engine() -> None:
    report = examine(BackendReport("cpu", (RAM,), False, True, "pip install cpu"), CUDA)
    assert report["engine"] is None
    assert report["problems"][0]["what"].startswith("no engine is installed")
    assert report["problems"][0]["do"] == "pip install cuda"
    assert "Engine: none" in text(report)


def test_a_backend_that_raises_and_plugins_that_failed() -> None:
    report = examine(CPU, RuntimeError("boom"), failures=[Failure("x", "import", "bad")])
    whats = [problem["what"] for problem in report["problems"]]
    assert any("boom" in what for what in whats)
    assert "the plugin x failed (import)" in whats
    assert report["plugins"]["failed"] == [{"plugin": "x", "stage": "import", "error": "bad"}]


class Meter(Fake):
    def __init__(self, report: BackendReport, answer: list[Bandwidth] | PhituiError) -> None:
        super().__init__(report)
        self._answer = answer

    def bandwidth(self) -> list[Bandwidth]:
        if isinstance(self._answer, PhituiError):
            raise self._answer
        return self._answer


def test_bandwidth_is_kept_and_shown_and_one_failure_stops_no_other() -> None:
    context = Context()
    used = BackendReport("cuda", (CARD,), True, True)
    speed = Bandwidth("CPU", RAM.description, 41.5e9, 8, 1_760_000_000.0, "reading; the machine was busy")
    context.__dict__["registry"] = Registry(backends=[Meter(used, PhituiError("CUDA0 hangs")), Meter(CPU, [speed])])
    assert doctor(context)["bandwidth"] == []
    assert measure_bandwidth(context) == ["CUDA0 hangs"]
    report = doctor(context)
    assert [(row["device"], row["bytes_per_second"]) for row in report["bandwidth"]] == [("CPU", 41.5e9)]
    shown = " ".join(text(report).split())
    assert "memory of CPU: 41.5 GB/s read by 8 threads (measured 2025-10-" in shown
    assert ", the machine was busy)" in shown


def test_without_any_backend() -> None:
    report = examine()
    assert report["devices"] == []
    assert "none" in text(report)


def test_this_machine(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert {"engine", "devices", "backends", "problems", "plugins"} <= set(report)
    assert any(device["kind"] == "cpu" for device in report["devices"])
    assert main(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert all(len(line) <= 80 for line in lines if "CMAKE_ARGS" not in line and "/" not in line)
    assert "config.toml" in report["paths"]["config"]


def test_old_flags_in_the_environment_are_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CMAKE_ARGS", "-DLLAMA_CUBLAS=on")
    report = doctor(Context())
    assert any("GGML_CUDA" in problem["what"] for problem in report["problems"])


def test_a_configuration_that_cannot_be_read_is_a_finding() -> None:
    context = Context()
    context.paths.config.mkdir(parents=True)
    context.paths.config_file.write_text("colour = 1")
    context.__dict__["registry"] = Registry()
    (finding, *_) = [found for found in doctor(context)["problems"] if "config.toml" in found["what"]]
    assert "colour" in finding["what"]
    assert not finding["backend"]


def test_a_place_that_cannot_be_written_to_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    context = Context()
    context.paths.state.parent.mkdir(parents=True)
    context.paths.state.write_text("a file")
    context.__dict__["registry"] = Registry()
    whats = [finding["what"] for finding in doctor(context)["problems"]]
    assert f"phitui cannot write to {context.paths.state}, where it keeps models and jobs" in whats
