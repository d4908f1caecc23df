"""Install lines and old flags."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from pathlib import Path

import pytest
from phitui_hardware import install
from phitui_hardware.install import FLAGS, OLD_FLAGS, install_line, old_flags

REAL_INSTALLER = install.installer


@pytest.fixture(autouse=True)
def own_pip(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(install, "installer", lambda: install.PIP)


def test_the_command_installs_into_this_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installer = REAL_INSTALLER.__wrapped__
    python = tmp_path / "my env" / "python"
    monkeypatch.setattr(sys, "executable", str(python))
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    assert installer() == f"'{python}' -m pip install --no-cache-dir --force-reinstall"
    monkeypatch.setattr(shutil, "which", lambda name: str(python.parent / name))
    assert installer() == install.PIP
    monkeypatch.setattr(shutil, "which", lambda name: "/usr/bin/uv" if name == "uv" else None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert installer().startswith("uv pip install --python")
    assert "--no-cache " in installer()


@pytest.mark.parametrize(
    ("backend", "flag"),
    [("cuda", "GGML_CUDA"), ("rocm", "GGML_HIP"), ("vulkan", "GGML_VULKAN"), ("sycl", "GGML_SYCL")],
)
def test_linux_lines_bypass_the_wheel_cache(backend: str, flag: str) -> None:
    line = install_line(backend, "Linux")
    assert f"-D{flag}=ON" in line
    assert "--no-cache-dir --force-reinstall" in line
    assert line.startswith('CMAKE_ARGS="')


def test_metal_is_for_macs_and_cuda_is_not() -> None:
    assert "-DGGML_METAL=ON" in install_line("metal", "Darwin")
    assert install_line("metal", "Linux") == ""
    assert install_line("cuda", "Darwin") == ""


def test_sycl_needs_intels_compilers() -> None:
    assert "-DCMAKE_C_COMPILER=icx -DCMAKE_CXX_COMPILER=icpx" in install_line("sycl", "Linux")


def test_rocm_targets_and_powershell() -> None:
    assert "-DGPU_TARGETS=gfx1100" in install_line("rocm", "Linux", "gfx1100")
    assert install_line("cuda", "Windows").startswith('$env:CMAKE_ARGS="')


def test_no_line_uses_a_flag_of_yesterday() -> None:
    for flags in FLAGS.values():
        assert not old_flags(flags.cmake)


def test_old_flags_are_explained() -> None:
    (sentence,) = old_flags("-DLLAMA_CUBLAS=on -DCMAKE_BUILD_TYPE=Release")
    assert "-DGGML_CUDA=ON" in sentence
    assert len(old_flags("-DLLAMA_METAL:BOOL=on -DLLAMA_HIPBLAS=1")) == 2
    assert old_flags("") == old_flags("-DGGML_CUDA=ON") == []
    assert all(new.startswith("GGML_") for new in OLD_FLAGS.values())
