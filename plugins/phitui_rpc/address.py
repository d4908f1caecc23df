"""Where a worker listens: only on this machine, unless a person insists."""

from __future__ import annotations

import errno
import ipaddress
import os
import socket

from phitui.api import Unavailable, UsageError

DANGER = (
    "llama.cpp's RPC has no password and no encryption: whoever reaches the port can read and change what is computed "
    "there. Its server is not hardened either, so a program on the other side may take over this account."
)


def resolve(host: str, port: int, insisted: bool) -> tuple[str, int]:
    """The IPv4 address and port to serve on; port 0 becomes a free one.

    Raises UsageError for an address that is not this machine's, or not loopback and not insisted on; Unavailable for a
    port that is in use.
    """
    address = _address(host)
    if not ipaddress.ip_address(address).is_loopback and not insisted:
        raise UsageError(f"{host} can be reached from other machines. {DANGER}", f"{tunnel(port)}; or --i-know")
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as trial:
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            trial.bind((address, port))
            trial.listen(1)
        except OSError as error:
            raise _refused(error, host, port) from None
        return address, int(trial.getsockname()[1])


def _address(host: str) -> str:
    try:
        return str(ipaddress.IPv4Address(host))
    except ValueError:
        pass
    try:
        return str(socket.getaddrinfo(host, None, socket.AF_INET, socket.SOCK_STREAM)[0][4][0])
    except (OSError, UnicodeError):
        hint = "llama.cpp's RPC speaks IPv4 only" if ":" in host else "127.0.0.1 is the usual one"
        raise UsageError(f"{host!r} is not an IPv4 address or a name of this machine", hint) from None


def _refused(error: OSError, host: str, port: int) -> UsageError | Unavailable:
    if error.errno == errno.EADDRINUSE:
        return Unavailable(f"port {port} of {host} is in use", f"is a worker running already? or --port {port + 1}")
    if error.errno == errno.EADDRNOTAVAIL:
        return UsageError(f"{host} is not an address of this machine", "127.0.0.1 is the usual one")
    if error.errno == errno.EACCES:
        return UsageError(f"port {port} is reserved for the system", "use one above 1023: --port 50052")
    return Unavailable(f"cannot listen on {host}:{port}: {os.strerror(error.errno or 0).lower()}")


def tunnel(port: int) -> str:
    """How another machine uses a worker that listens on loopback."""
    there = f"ssh -N -L {port}:127.0.0.1:{port} user@this-host"
    return f"leave --host away and open a tunnel on the other machine: {there}, then --rpc 127.0.0.1:{port}"
