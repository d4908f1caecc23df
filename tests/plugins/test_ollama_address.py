"""Addresses, as OLLAMA_HOST means them."""

from __future__ import annotations

import pytest
from phitui_ollama.address import address, is_loopback

from phitui.errors import UsageError


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("", "http://127.0.0.1:11434"),
        ("gpu", "http://gpu:11434"),
        ("gpu:1234", "http://gpu:1234"),
        (":1234", "http://127.0.0.1:1234"),
        ("http://gpu", "http://gpu"),
        ("http://gpu:11434/", "http://gpu:11434"),
        ("https://gpu", "https://gpu"),
        ("HTTPS://Gpu:443/ollama/", "https://gpu/ollama"),
        ("https://gpu:80", "https://gpu:80"),
        ("0.0.0.0", "http://127.0.0.1:11434"),
        ("0.0.0.0:99", "http://127.0.0.1:99"),
        ("[::1]:99", "http://[::1]:99"),
        ("http://[::]:99", "http://127.0.0.1:99"),
    ],
)
def test_addresses(text: str, url: str) -> None:
    assert address(text).url == url


@pytest.mark.parametrize(
    "text", ["ftp://x", "http://", "a b", "x:0", "x:65536", "x:y", "::1", "http://x?y", "http://u:p@x", "u@x", "x\ny"]
)
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(UsageError):
        address(text)


def test_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OLLAMA_HOST", ' "gpu:99" ')
    assert address().url == "http://gpu:99"
    assert address("other").url == "http://other:11434"
    monkeypatch.setenv("OLLAMA_HOST", "what is this")
    with pytest.raises(UsageError, match="from OLLAMA_HOST"):
        address()


def test_loopback() -> None:
    assert all(map(is_loopback, ("127.0.0.1", "127.9.9.9", "::1", "localhost", "a.localhost")))
    assert not any(map(is_loopback, ("10.0.0.1", "gpu", "notlocalhost", "")))
