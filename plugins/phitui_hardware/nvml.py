"""`python -m phitui_hardware.nvml`: what NVIDIA's management library says, as one JSON object on stdout.

A process of its own, since the library is native and may hang with its driver. Needs nvidia-ml-py (module pynvml).
{"driver": "560.35.03", "cuda": "12.6", "cards": [{"name", "total", "free", "compute", "mig"}]} or {"error": "..."};
sizes in bytes; what the library refuses to tell of a card is left out.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any


def main() -> int:
    """Print the report; exit code 0 whatever the library says, since that is in the report."""
    try:
        import pynvml
    except ImportError as error:
        print(json.dumps({"error": f"nvidia-ml-py: {error}"}))  # noqa: T201
        return 0
    try:
        pynvml.nvmlInit()
        report = look(pynvml)
    except Exception as error:  # the library's own classes; any other is a garbled installation
        report = {"error": str(error) or type(error).__name__}
    print(json.dumps(report))  # noqa: T201
    return 0


def look(nvml: Any) -> dict[str, Any]:
    """The report of an initialized library."""
    cuda = _told(nvml.nvmlSystemGetCudaDriverVersion)
    return {
        "driver": _text(_told(nvml.nvmlSystemGetDriverVersion)),
        "cuda": f"{cuda // 1000}.{cuda % 1000 // 10}" if isinstance(cuda, int) else "",
        "cards": [_card(nvml, nvml.nvmlDeviceGetHandleByIndex(number)) for number in range(nvml.nvmlDeviceGetCount())],
    }


def _card(nvml: Any, handle: Any) -> dict[str, Any]:
    card: dict[str, Any] = {"name": _text(_told(nvml.nvmlDeviceGetName, handle))}
    memory = _told(nvml.nvmlDeviceGetMemoryInfo, handle)
    if memory is not None:
        card |= {"total": int(memory.total), "free": int(memory.free)}
    capability = _told(nvml.nvmlDeviceGetCudaComputeCapability, handle)
    if capability:
        card["compute"] = "{}.{}".format(*capability)
    mode = _told(nvml.nvmlDeviceGetMigMode, handle)
    if mode and mode[0]:
        card["mig"] = _instances(nvml, handle)
    return card


def _instances(nvml: Any, handle: Any) -> list[str]:
    names = []
    for number in range(_told(nvml.nvmlDeviceGetMaxMigDeviceCount, handle) or 0):
        instance = _told(nvml.nvmlDeviceGetMigDeviceHandleByIndex, handle, number)
        name = _text(_told(nvml.nvmlDeviceGetName, instance)) if instance is not None else ""
        if name:
            names.append(name.rpartition(" MIG ")[2] or name)
    return names


def _told(question: Callable[..., Any], *arguments: Any) -> Any:
    try:
        return question(*arguments)
    except Exception:  # not supported, no permission, not found: the library raises a class for each
        return None


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value or "")


if __name__ == "__main__":
    sys.exit(main())
