"""More than one machine: RPC workers as devices, and the command that lends this machine's devices."""

from __future__ import annotations

from collections.abc import Iterable

from phitui.api import Backend, Command, hookimpl


@hookimpl
def phitui_backends() -> Iterable[Backend]:
    from phitui_rpc.backend import RpcBackend

    return [RpcBackend()]


@hookimpl
def phitui_commands() -> Iterable[Command]:
    from phitui_rpc.command import WorkerCommand

    return [WorkerCommand()]
