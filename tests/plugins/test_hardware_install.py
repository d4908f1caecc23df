"""Install lines: exact for system, card, toolkit and environment; wheels only where the project publishes them."""

from __future__ import annotations

import importlib.util
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest
from phitui_hardware import install, surroundings
from phitui_hardware.install import FLAGS, OLD_FLAGS, install_line, old_flags, ways
from phitui_hardware.surroundings import Installer, Surroundings, cuda_runtime, newest
from phitui_hardware.wheels import INDEX, wheel

PIP = Installer("pip", ("pip", "install"), ("/env/bin/python", "-m", "pip", "install"))
LINUX = Surroundings("Linux", "x86_64", PIP, engine_here=True, glibc=(2, 39), nvcc="/usr/local/cuda/bin/nvcc",
                     nvcc_on_path=True, nvcc_version=(12, 4), cuda_runtime=(12, 4), vulkan_loader=True, glslc=True,
                     vulkan_headers=True)  # fmt: skip
MAC = Surroundings("Darwin", "arm64", PIP)
WINDOWS = Surroundings("Windows", "AMD64", PIP)


def folder(backend: str, place: Surroundings, targets: tuple[str, ...] = (), driver: str = "") -> str:
    found = wheel(backend, place, targets, driver)
    return found.folder if found else ""


@pytest.mark.parametrize(
    ("changes", "capability", "driver", "expected"),
    [
        ({}, "8.9", "560.35.03", "cu124"),
        ({"cuda_runtime": (12, 8)}, "8.9", "570.86", "cu125"),
        ({"cuda_runtime": (12, 0)}, "8.9", "570.86", "cu121"),
        ({"cuda_runtime": (13, 1)}, "8.9", "590.1", "cu130"),
        ({"cuda_runtime": (13, 1)}, "6.1", "590.1", "cu125"),
        ({"cuda_runtime": (11, 8)}, "8.6", "535.183", "cu118"),
        ({"cuda_runtime": (11, 8)}, "9.0", "535.183", "cu125"),
        ({"cuda_runtime": (0, 0)}, "8.9", "470.1", "cu118"),
        ({}, "5.2", "560.35.03", ""),
        ({}, "8.9", "", ""),
        ({}, "8.9", "[N/A]", ""),
        ({"machine": "aarch64"}, "8.7", "540.4", ""),
        ({"glibc": (2, 31)}, "8.9", "560.35.03", ""),
        ({"glibc": (0, 0)}, "8.9", "560.35.03", ""),
    ],
)
def test_the_cuda_wheel_for_driver_runtime_and_card(
    changes: dict[str, object], capability: str, driver: str, expected: str
) -> None:
    assert folder("cuda", replace(LINUX, **changes), (capability,), driver) == expected


def test_a_cuda_wheel_without_its_libraries_comes_after_what_works() -> None:
    bare = replace(LINUX, cuda_runtime=(0, 0))
    build, ready = ways("cuda", bare, ("8.9",), "560.35.03")
    assert (build.kind, build.needs) == ("build", ())
    assert "libcudart" in ready.needs[0]
    ready, build = ways("cuda", LINUX, ("8.9",), "560.35.03")
    assert (ready.kind, ready.needs) == ("wheel", ())
    assert ready.line == (
        "pip install --no-cache-dir --force-reinstall --no-deps --only-binary llama-cpp-python"
        f" --extra-index-url {INDEX}/cu124 'llama-cpp-python>=0.3.36'"
    )
    assert ready.argv[:4] == PIP.argv
    assert ready.argv[-1] == "llama-cpp-python>=0.3.36"


def test_the_other_wheels() -> None:
    assert folder("vulkan", LINUX) == folder("vulkan", WINDOWS) == "vulkan"
    assert folder("vulkan", MAC) == folder("vulkan", replace(LINUX, machine="aarch64")) == ""
    assert wheel("vulkan", replace(LINUX, vulkan_loader=False)).needs  # type: ignore[union-attr]
    assert folder("metal", MAC) == "metal"
    assert folder("metal", replace(MAC, machine="x86_64")) == folder("metal", LINUX) == ""
    assert folder("rocm", replace(LINUX, rocm_runtime=7), ("gfx1100",)) == "rocm72"
    assert folder("rocm", replace(LINUX, rocm_runtime=6), ("gfx1100",)) == ""
    assert folder("rocm", replace(LINUX, rocm_runtime=7), ("gfx1103",)) == ""
    assert folder("rocm", LINUX, ()) == ""
    assert folder("rocm", WINDOWS, ("gfx1031",)) == "hip-radeon"
    assert folder("cuda", WINDOWS, ("8.9",), "560.94") == "cu125"
    assert folder("cpu", LINUX) == folder("cpu", MAC) == folder("cpu", WINDOWS) == "cpu"
    assert folder("sycl", LINUX) == ""


def test_a_build_is_for_the_cards_that_are_here() -> None:
    (build,) = [way for way in ways("cuda", LINUX, ("8.6", "8.9", "8.6"), "560") if way.kind == "build"]
    assert build.line.startswith(
        'CMAKE_ARGS="-DGGML_CUDA=ON -DGGML_RPC=ON -DCMAKE_CUDA_ARCHITECTURES=86;89" pip install'
    )
    assert "--no-cache-dir --force-reinstall --no-deps --no-binary llama-cpp-python" in build.line
    assert dict(build.environment)["CMAKE_ARGS"].endswith("86;89")
    (build,) = ways("rocm", replace(LINUX, rocm="/opt/rocm", rocm_runtime=6), ("gfx1100",))
    assert "-DGGML_HIP=ON -DGGML_RPC=ON -DGPU_TARGETS=gfx1100" in build.line
    assert dict(build.environment)["HIPCXX"] == "/opt/rocm/llvm/bin/clang"


def test_a_compiler_off_path_is_named() -> None:
    away = replace(LINUX, nvcc_on_path=False, nvcc="/opt/my cuda/bin/nvcc", cuda_runtime=(0, 0))
    build = ways("cuda", away, ("8.9",), "560")[0]
    (flags,) = [value for name, value in build.environment if name == "CMAKE_ARGS"]
    assert shlex.split(flags)[-1] == "-DCMAKE_CUDA_COMPILER=/opt/my cuda/bin/nvcc"


@pytest.mark.parametrize(
    ("backend", "changes", "targets", "driver", "need"),
    [
        ("cuda", {"nvcc": ""}, ("8.9",), "560", "CUDA toolkit with nvcc"),
        ("cuda", {}, ("12.0",), "580", "CUDA 12.8 or newer for compute capability 12.0: nvcc here is 12.4"),
        ("cuda", {"nvcc_version": (13, 0)}, ("6.1",), "580", "CUDA 12: version 13 no longer compiles"),
        ("cuda", {"nvcc_version": (13, 0)}, ("8.9",), "560", "driver from 580 on for CUDA 13.0: driver here is 560"),
        ("cuda", {"cublas": False}, ("8.9",), "560", "cuBLAS with its headers"),
        ("cuda", {"compiler": False}, ("8.9",), "560", "build-essential"),
        ("rocm", {}, ("gfx1100",), "", "ROCm with hipcc"),
        ("vulkan", {"glslc": False, "vulkan_headers": False}, (), "", "glslc"),
        ("sycl", {}, (), "", "oneAPI"),
    ],
)  # fmt: skip
def test_what_a_build_needs_first(
    backend: str, changes: dict[str, object], targets: tuple[str, ...], driver: str, need: str
) -> None:
    (build,) = [way for way in ways(backend, replace(LINUX, **changes), targets, driver) if way.kind == "build"]
    assert any(need in text for text in build.needs), build.needs
    assert all(way.needs for way in ways(backend, replace(LINUX, **changes), targets, driver)[1:])


def test_sycl_comes_from_a_shell_that_knows_intels_compilers() -> None:
    (way,) = ways("sycl", replace(LINUX, oneapi="/opt/intel/oneapi/setvars.sh"))
    assert way.line.startswith('. /opt/intel/oneapi/setvars.sh && CMAKE_ARGS="-DGGML_SYCL=ON')
    assert "-DCMAKE_C_COMPILER=icx -DCMAKE_CXX_COMPILER=icpx" in way.line
    assert (way.argv[:2], way.needs) == (("bash", "-c"), ())
    (way,) = ways("sycl", replace(LINUX, icpx=True))
    assert way.line.startswith("CMAKE_ARGS=")
    assert not way.needs


def test_where_a_backend_does_not_exist() -> None:
    assert ways("metal", LINUX) == ways("cuda", MAC) == ways("sycl", MAC) == ()
    assert install_line("metal", "Linux") == ""
    assert "-DGGML_RPC=ON" in install_line("cpu", "Linux")


def test_the_cpu_is_built_where_an_engine_is_already_here() -> None:
    assert [way.kind for way in ways("cpu", LINUX)] == ["build"]
    fresh = replace(LINUX, engine_here=False)
    assert [way.kind for way in ways("cpu", fresh)] == ["wheel", "build"]
    assert not any(re.search("--no-deps|--force-reinstall", way.line) for way in ways("cpu", fresh))


def run_line(line: str, tmp_path: Path, program: str) -> list[str]:
    """What a POSIX shell hands to the program of that name: CMAKE_ARGS, then its arguments."""
    fake = tmp_path / program
    fake.write_text('#!/bin/sh\nprintf "%s\\n" "$CMAKE_ARGS" "$@"\n')
    fake.chmod(0o755)
    done = subprocess.run(
        ["sh", "-c", line], env={"PATH": f"{tmp_path}:/usr/bin:/bin"}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.parametrize("backend", list(FLAGS))
def test_a_shell_reads_the_line_as_it_is_meant(backend: str, tmp_path: Path) -> None:
    place = replace(LINUX, system="Darwin" if backend == "metal" else "Linux", icpx=True, rocm="/opt/rocm")
    place = replace(place, nvcc="/opt/my cuda/$nvcc", nvcc_on_path=False)
    for way in ways(backend, place, ("8.6", "8.9") if backend == "cuda" else ()):
        cmake, *arguments = run_line(way.line, tmp_path, "pip")
        assert cmake == dict(way.environment).get("CMAKE_ARGS", "")
        assert ["install", *arguments[1:]] == list(way.argv[3:])


def test_powershell() -> None:
    ready, build = ways("cuda", WINDOWS, ("8.9",), "560.94")[::-1]
    assert build.line.startswith("pip install") or ready.line.startswith("pip install")
    lines = {way.kind: way.line for way in (ready, build)}
    assert lines["build"].startswith(
        "$env:CMAKE_ARGS='-DGGML_CUDA=ON -DGGML_RPC=ON -DCMAKE_CUDA_ARCHITECTURES=89'; pip"
    )
    assert lines["wheel"].endswith("'llama-cpp-python>=0.3.36'")
    spaced = Installer("pip", ("C:\\My Python\\python.exe", "-m", "pip", "install"), ("x",))
    line = ways("vulkan", replace(WINDOWS, installer=spaced))[0].line
    assert line.startswith("& 'C:\\My Python\\python.exe' -m pip install")
    assert install.powershell("it's") == "'it''s'"


def test_uv_has_flags_of_its_own() -> None:
    uv = Installer("uv", ("uv", "pip", "install", "--python", "/e/bin/python"), ("uv", "pip", "install"), "", "again")
    way = ways("vulkan", replace(LINUX, installer=uv))[0]
    assert "--no-cache --reinstall-package llama-cpp-python --no-deps --only-binary" in way.line
    assert "--force-reinstall" not in way.line
    assert way.note.endswith("; again")


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An environment without pip whose Python is in a directory with a space."""
    python = tmp_path / "my env" / "bin" / "python"
    python.parent.mkdir(parents=True)
    monkeypatch.setattr(sys, "executable", str(python))
    monkeypatch.setattr(sys, "prefix", str(python.parent.parent))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    return python


def test_which_installer_serves_this_environment(environment: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "ensurepip" in surroundings.installer().problem
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    assert surroundings.installer().shown == ("uv", "pip", "install", "--python", str(environment))
    (environment.parent.parent / "uv-receipt.toml").write_text("")
    assert "uv tool upgrade" in surroundings.installer().note
    (environment.parent.parent / "pipx_metadata.json").write_text("{}")
    assert surroundings.installer().shown == ("pipx", "runpip", "my env", "install")
    (environment.parent.parent / "pipx_metadata.json").unlink()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    assert surroundings.installer().shown == (str(environment), "-m", "pip", "install")
    line = ways("vulkan", replace(LINUX, installer=surroundings.installer()))[0].line
    assert line.startswith(f"'{environment}' -m pip install")
    monkeypatch.setattr(shutil, "which", lambda name: str(environment.parent / name))
    assert surroundings.installer().shown == ("pip", "install")


def test_a_python_of_the_system_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "EXTERNALLY-MANAGED").write_text("")
    monkeypatch.setattr(surroundings.os, "__file__", str(tmp_path / "os.py"))
    monkeypatch.setattr(sys, "base_prefix", sys.prefix)
    assert "venv" in surroundings.installer().problem
    assert ways("vulkan", replace(LINUX, installer=surroundings.installer()))[0].needs[0].startswith("this Python")


def test_libraries_of_the_loader() -> None:
    toolkit = frozenset({"libcudart.so.12", "libcudart.so.12.4.127", "libcublas.so.12", "libvulkan.so.1"})
    assert cuda_runtime(toolkit) == (12, 4)
    assert cuda_runtime(toolkit - {"libcublas.so.12"}) == (0, 0)
    assert cuda_runtime(toolkit | {"libcudart.so.13.0.96", "libcublas.so.13"}) == (13, 0)
    assert cuda_runtime(frozenset({"libcudart.so", "libcudart.so.x"})) == (0, 0)
    assert newest(frozenset({"libamdhip64.so.6", "libamdhip64.so.7.2.1"}), "libamdhip64") == 7
    assert newest(frozenset(), "libamdhip64") == 0


def test_looking_around_here_starts_nothing_and_finds_a_system() -> None:
    place = surroundings.here()
    assert place.system in ("Linux", "Darwin", "Windows")
    assert place.installer.argv


def test_no_line_uses_a_flag_of_yesterday() -> None:
    for flags in FLAGS.values():
        assert not old_flags(" ".join(flags.cmake))


def test_old_flags_are_explained() -> None:
    (sentence,) = old_flags("-DLLAMA_CUBLAS=on -DCMAKE_BUILD_TYPE=Release")
    assert sentence.endswith("today it is -DGGML_CUDA=on")
    assert old_flags("-DLLAMA_AVX2=off")[0].endswith("-DGGML_AVX2=off")
    assert len(old_flags("-DLLAMA_METAL:BOOL=on -DLLAMA_HIPBLAS=1 -DLLAMA_HIPBLAS=1")) == 2
    assert old_flags("") == old_flags("-DGGML_CUDA=ON") == []
    assert all(new.startswith("GGML_") for new in OLD_FLAGS.values())


def test_the_version_is_the_one_that_phitui_asks_for() -> None:
    project = Path(__file__).parents[2] / "pyproject.toml"
    assert tomllib.loads(project.read_text())["project"]["optional-dependencies"]["llama"] == [install.REQUIREMENT]


def test_lines_name_one_index_and_it_is_the_projects_own() -> None:
    lines = [way.line for backend in FLAGS for way in ways(backend, LINUX, (), "560")]
    hosts = {host for line in lines for host in re.findall(r"https?://([^/\s]+)", line)}
    assert hosts == {"abetlen.github.io"}
