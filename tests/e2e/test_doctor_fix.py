"""phitui doctor --fix from end to end: a job runs the installer, and a new process looks at what it changed.

The backend is a plugin of this test whose engine is a file; the installer is a script that writes that file, or fails.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from phitui.__main__ import main
from phitui.actions import repair
from phitui.actions.context import Context
from phitui.errors import PhituiError

PLUGIN = """
import json
from pathlib import Path
from phitui.api import Availability, BackendReport, Device, EngineReport, InstallWay, hookimpl

HERE = Path(__file__).parent

class Backend:
    def __init__(self, name, title):
        self.name, self.title = name, title
    def available(self):
        return Availability()
    def probe(self):
        state = json.loads((HERE / "engine.json").read_text())
        inside = self.name in state["backends"]
        names, trouble = tuple(state["backends"]), state.get("trouble", "")
        features = {"CPU": ("AVX2",)}
        engine = EngineReport("llama-cpp-python", state["version"], "/x", names, features, False, False, trouble)
        ways = tuple(
            InstallWay(
                kind, f"X={x} {kind}-pip install", (f"{kind}-pip", "install"), (("X", x),), tuple(needs), "note"
            )
            for kind, x, needs in state["ways"]
        )
        card = Device("FAKE0", self.name, "gpu", "A card", 8 << 30, 7 << 30)
        cards = (card,) if inside and self.name != "cpu" else ()
        told = engine if self.name == "cpu" else None
        return BackendReport(self.name, cards, inside, True, ways[0].line, (), (), told, ways, "A card, 8 GiB")

@hookimpl
def phitui_backends():
    return [Backend("cpu", "CPU"), Backend("fake", "Fake GPU")]
"""
BEFORE: dict[str, Any] = {
    "version": "1.0",
    "backends": ["cpu"],
    "ways": [["wheel", "1", []], ["build", "2", []]],
}
GOOD = {**BEFORE, "version": "1.1", "backends": ["cpu", "fake"]}


class Machine:
    """A directory with the plugin, the engine's state and installers."""

    def __init__(self, site: Path) -> None:
        self.site = site

    def engine(self, state: dict[str, Any]) -> None:
        (self.site / "engine.json").write_text(json.dumps(state))

    def installer(self, kind: str, script: str, then: dict[str, Any] | None = None) -> None:
        """A program `kind`-pip; with `then` it leaves that engine behind."""
        (self.site / f"{kind}.json").write_text(json.dumps(then))
        after = f"cp {self.site}/{kind}.json {self.site}/engine.json" if then else ""
        file = self.site / f"{kind}-pip"
        file.write_text(f'#!/bin/sh\necho "$0 X=$X $*" >> {self.site}/calls\n{after}\n{script}\n')
        file.chmod(0o755)

    @property
    def calls(self) -> list[str]:
        file = self.site / "calls"
        return [Path(line).name for line in file.read_text().splitlines()] if file.exists() else []


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    site = tmp_path / "site"
    info = site / "phitui_fakehw-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: phitui-fakehw\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[phitui.plugins]\nfakehw = fakehw_plugin\n")
    (site / "fakehw_plugin.py").write_text(PLUGIN)
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.setenv("PYTHONPATH", str(site))
    monkeypatch.setenv("PHITUI_PLUGINS", "fakehw")
    monkeypatch.setenv("PATH", f"{site}:/usr/bin:/bin")
    monkeypatch.delitem(sys.modules, "fakehw_plugin", raising=False)
    found = Machine(site)
    found.engine(BEFORE)
    return found


def fix(capsys: pytest.CaptureFixture[str], *flags: str) -> tuple[int, dict[str, Any], str]:
    code = main(["doctor", "--fix", "--yes", "--json", *flags])
    said = capsys.readouterr()
    return code, json.loads(said.out), said.err


def test_it_installs_and_says_what_changed(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    machine.installer("wheel", "echo installed", GOOD)
    code, result, said = fix(capsys)
    assert code == 0
    assert result["fixed"]
    assert result["changes"] == [
        "llama-cpp-python 1.0 → 1.1",
        "backends gained: fake",
        "devices gained: FAKE0 A card",
    ]
    assert machine.calls == ["wheel-pip X=1 install"]
    assert "X=1 wheel-pip install" in said, "the line is shown before it runs"
    assert "$ X=1 wheel-pip install" in repair.jobs(Context()).log(result["job"])
    assert main(["doctor", "--fix", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"fixed": False, "changes": []}


def test_a_wheel_that_does_not_exist_is_followed_by_a_build(
    machine: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    machine.installer("wheel", "echo 'ERROR: No matching distribution found for llama-cpp-python>=1'; exit 1")
    machine.installer("build", "echo '[1/2] Building'; echo '[2/2] Linking'", GOOD)
    code, _, said = fix(capsys)
    assert code == 0, said
    assert machine.calls == ["wheel-pip X=1 install", "build-pip X=2 install"]
    assert "no ready-made wheel of this version is published for this machine" in said


def test_only_compiling(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    machine.installer("build", "", GOOD)
    assert fix(capsys, "--build")[0] == 0
    assert machine.calls == ["build-pip X=2 install"]


def test_a_failure_shows_the_telling_lines_and_what_is_left(
    machine: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    noise = "for i in $(seq 3000); do echo compiling $i; done"
    machine.installer("build", f"{noise}; echo 'x.cu:3: fatal error: cuda.h: No such file' >&2; echo more; exit 1")
    code, result, _ = fix(capsys, "--build")
    assert code == 1
    assert "compiling failed (exit code 1)" in result["error"]["message"]
    assert "x.cu:3: fatal error: cuda.h: No such file" in result["error"]["message"]
    assert "compiling 3" not in result["error"]["message"]
    assert "llama-cpp-python 1.0 (cpu) is still there and works" in result["error"]["hint"]


def test_a_failure_that_took_the_engine_along(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    machine.installer("build", "exit 3", {**BEFORE, "version": "1.1", "trouble": "libx.so: not found"})
    _, result, _ = fix(capsys, "--build")
    assert "was 1.0 and is now 1.1: libx.so: not found" in result["error"]["hint"]


def test_an_installer_that_says_done_and_changed_nothing(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    machine.installer("wheel", "echo Successfully installed")
    code, result, _ = fix(capsys)
    assert code == 1
    assert "went through, but the engine has no Fake GPU: its backends are cpu" in result["error"]["message"]
    assert len(machine.calls) == 1


def test_an_installer_that_is_not_there(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    code, result, _ = fix(capsys)
    assert code == 1
    assert "No such file" in result["error"]["message"]


def test_what_is_missing_is_named_and_nothing_runs(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    machine.engine({**BEFORE, "ways": [["build", "2", ["a compiler"]]]})
    code, result, _ = fix(capsys)
    assert code == 1
    assert result["error"]["message"] == "Fake GPU needs first: a compiler"
    assert "X=2 build-pip install" in result["error"]["hint"]
    assert not machine.calls


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--backend", "nonsense"], "there is no backend 'nonsense'"),
        (["--backend", ""], ""),
    ],
)
def test_a_backend_by_name(machine: Machine, capsys: pytest.CaptureFixture[str], flags: list[str], words: str) -> None:
    machine.installer("wheel", "", GOOD)
    code, result, _ = fix(capsys, *flags)
    assert code == (2 if words else 0)
    assert words in result.get("error", {}).get("message", "")


def test_nobody_is_asked_in_vain(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--fix"]) == 2
    assert "--yes" in capsys.readouterr().err
    assert main(["doctor", "--yes"]) == 2
    assert not machine.calls


def test_two_at_once_are_one(machine: Machine) -> None:
    machine.installer("wheel", "sleep 5", GOOD)
    found = repair.remedy(Context())
    assert found is not None
    first, second = repair.start(Context(), found), repair.start(Context(), found)
    assert first.id == second.id
    with pytest.raises(PhituiError):
        other = repair.remedy(Context(), "cpu")
        assert other is not None
        repair.start(Context(), other)
    assert repair.jobs(Context()).cancel(first.id).state == "cancelled"


@pytest.mark.parametrize(
    ("said", "meaning"),
    [
        ("ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device", "the disk is full"),
        ("error: externally-managed-environment", "use a venv"),
        ("nvcc fatal   : Unsupported gpu architecture 'compute_120'", "too old or too new for this card"),
        ("c++: fatal error: Killed signal terminated program cc1plus", "memory ran out"),
        ("Failed to establish a new connection: [Errno -3] Temporary failure in name resolution", "cannot be reached"),
        ("CMake Error at x.cmake:1: Could not find nvcc", "Could not find nvcc"),
        (
            "CMake Error at x.cmake:7 (message):\n\n  The C compiler\n\n    cc\n\n  is broken",
            "The C compiler cc is broken",
        ),
        ("\x1b[31merror: red\x1b[0m", "error: red"),
        ("nothing known", "nothing known"),
        ("", "it said nothing"),
    ],
)
def test_telling_lines(said: str, meaning: str) -> None:
    lines = ["Collecting x", *said.splitlines(), "ERROR: Failed building wheel for x"] if said else []
    assert meaning in repair.telling(lines)
    assert "Failed building" not in repair.telling(lines) or said == "nothing known"
    assert "\x1b" not in repair.telling(lines)
