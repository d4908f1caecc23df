"""Where an Ollama server listens, by the rules of OLLAMA_HOST (Ollama's envconfig/config.go)."""

from __future__ import annotations

import ipaddress
import os
import re
from dataclasses import dataclass

from phitui.api import UsageError

PORT = 11434
_ADDRESS = re.compile(
    r"(?:(?P<scheme>https?)://)?(?P<host>\[[0-9A-Fa-f:.]+\]|[^\s:/?#@\[\]]*)(?::(?P<port>\d{1,5}))?(?P<path>/[^\s?#]*)?",
    re.IGNORECASE,
)
_PORTS = {"": PORT, "http": 80, "https": 443}


@dataclass(frozen=True)
class Address:
    """A server: `url` has no slash at its end."""

    url: str
    host: str
    port: int

    @property
    def local(self) -> bool:
        """Whether it is on this machine: then no proxy is asked."""
        return is_loopback(self.host)


def address(text: str = "") -> Address:
    """The server that a text means; empty: that of OLLAMA_HOST, or the usual one here. Raises UsageError."""
    said = text or os.environ.get("OLLAMA_HOST", "").strip().strip("\"'")
    if "@" in said:
        raise UsageError(
            "the address of the server has a user or a password in it, which a job would write to disk",
            "leave it out, and reach the server through a tunnel: ssh -L 11434:127.0.0.1:11434 HOST",
        )
    match = _ADDRESS.fullmatch(said)
    scheme = (match["scheme"] or "").lower() if match else ""
    port = int(match["port"]) if match and match["port"] else _PORTS[scheme]
    if match is None or not 0 < port < 65536 or (scheme and not match["host"]):
        source = "" if text else " (from OLLAMA_HOST)"
        raise UsageError(f"{said!r}{source} is no address of a server", f"for example: http://127.0.0.1:{PORT}")
    host = match["host"].strip("[]").lower() or "127.0.0.1"
    if host in ("0.0.0.0", "::"):  # noqa: S104  (what a server listens on; a client asks this machine)
        host = "127.0.0.1"
    shown = f"[{host}]" if ":" in host else host
    usual = port == {"http": 80, "https": 443}.get(scheme)
    path = (match["path"] or "").rstrip("/")
    return Address(f"{scheme or 'http'}://{shown}{'' if usual else f':{port}'}{path}", host, port)


def is_loopback(host: str) -> bool:
    """Whether a host is this machine, by its name or number alone."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
