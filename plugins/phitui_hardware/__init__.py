"""CPU, CUDA, ROCm, Metal, Vulkan and SYCL, as the engine's device registry and the machine's tools see them."""

from __future__ import annotations

from collections.abc import Iterable

from phitui.api import Backend, hookimpl


@hookimpl
def phitui_backends() -> Iterable[Backend]:
    from phitui_hardware.backends import backends

    return backends()
