"""No test reaches the network, the developer's home, or a plugin that happens to be installed beside phitui."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from phitui.actions.context import Context

settings.register_profile("same", derandomize=True, deadline=None)
settings.register_profile("search", deadline=None, max_examples=2000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "same"))
"""Every run tries the same examples; HYPOTHESIS_PROFILE=search looks for others."""

LOOPBACK = ("127.0.0.1", "::1", "localhost", "")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """PHITUI_HOME (and HOME) in a directory of this test alone; nothing of the Hub."""
    directory = tmp_path / "home"
    directory.mkdir()
    monkeypatch.setenv("HOME", str(directory))
    monkeypatch.setenv("PHITUI_HOME", str(directory / "phitui"))
    monkeypatch.setenv("HF_HOME", str(directory / "huggingface"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("OLLAMA_MODELS", str(directory / "ollama"))
    for name in ("OLLAMA_HOST", "LLAMA_CACHE"):
        monkeypatch.delenv(name, raising=False)
    for name in ("PHITUI_PLUGINS", "HF_TOKEN", "HF_ENDPOINT", "HF_HUB_CACHE", "CMAKE_ARGS", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    return directory


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Connecting anywhere but to this machine fails the test."""
    connect = socket.socket.connect

    def guarded(self: socket.socket, address: Any) -> None:
        host = address[0] if isinstance(address, tuple) else ""
        if host not in LOOPBACK:
            raise AssertionError(f"a test tried to reach {host}")
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", guarded)


@pytest.fixture
def context(home: Path) -> Context:
    """A phitui of this test alone."""
    return Context()


@pytest.fixture
def wait_until() -> Callable[..., None]:
    """Wait for a condition instead of sleeping."""
    import time

    def wait(condition: Callable[[], bool], seconds: float = 10.0) -> None:
        end = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > end:
                raise AssertionError(f"not so after {seconds} s")
            time.sleep(0.02)

    return wait
