"""What a processor can do, and what the engine was built to use of it. Pure functions, as in parsers.py."""

from __future__ import annotations

import re
from collections.abc import Collection

from phitui_hardware.parsers import number, sane

CPU_FLAGS = (
    ("sse3", "SSE3"),
    ("pni", "SSE3"),
    ("ssse3", "SSSE3"),
    ("avx", "AVX"),
    ("f16c", "F16C"),
    ("fma", "FMA"),
    ("bmi2", "BMI2"),
    ("avx2", "AVX2"),
    ("avx_vnni", "AVX_VNNI"),
    ("avx512f", "AVX512"),
    ("avx512vbmi", "AVX512_VBMI"),
    ("avx512_vnni", "AVX512_VNNI"),
    ("avx512_bf16", "AVX512_BF16"),
    ("amx_int8", "AMX_INT8"),
    ("asimd", "NEON"),
    ("neon", "NEON"),
    ("asimdhp", "FP16_VA"),
    ("asimddp", "DOTPROD"),
    ("i8mm", "MATMUL_INT8"),
    ("sve", "SVE"),
    ("sme", "SME"),
)
"""(flag of /proc/cpuinfo, llama.cpp's name of the feature)."""

MAC_FLAGS = (
    ("hw.optional.AdvSIMD", "NEON"),
    ("hw.optional.neon", "NEON"),
    ("hw.optional.arm.FEAT_DotProd", "DOTPROD"),
    ("hw.optional.arm.FEAT_FP16", "FP16_VA"),
    ("hw.optional.arm.FEAT_I8MM", "MATMUL_INT8"),
    ("hw.optional.arm.FEAT_SME", "SME"),
    ("hw.optional.avx2_0", "AVX2"),
    ("hw.optional.avx512f", "AVX512"),
)

SPEED_UP = ("AVX", "AVX2", "FMA", "F16C", "AVX_VNNI", "AVX512", "AVX512_VNNI", "AVX512_BF16", "AMX_INT8")
SPEED_UP_ARM = ("DOTPROD", "FP16_VA", "MATMUL_INT8", "SVE")
"""Instruction sets that llama.cpp has kernels for; a build without them computes the same, slower. The others either
come with these, or are in every build (SSE3, NEON), or need a switch of their own (SME is KleidiAI's)."""

ARM_PARTS = {
    ("0x41", "0xd03"): "ARM Cortex-A53",
    ("0x41", "0xd08"): "ARM Cortex-A72",
    ("0x41", "0xd0b"): "ARM Cortex-A76",
    ("0x41", "0xd0c"): "ARM Neoverse N1",
    ("0x41", "0xd40"): "ARM Neoverse V1",
    ("0x41", "0xd42"): "ARM Cortex-A78AE",
    ("0x41", "0xd49"): "ARM Neoverse N2",
    ("0x41", "0xd4f"): "ARM Neoverse V2",
    ("0xc0", "0xac3"): "Ampere Altra (Neoverse N1)",
}
"""(implementer, part) of /proc/cpuinfo, which on ARM has no name. Where more than one core type is built in, the
first is named."""


def cpuinfo(text: str) -> tuple[str, tuple[str, ...]]:
    """(model name, instruction sets that llama.cpp can use) of /proc/cpuinfo, x86 or ARM."""
    fields: dict[str, str] = {}
    for line in text.splitlines():
        key, found, value = line.partition(":")
        if found:
            fields.setdefault(key.strip().lower(), value.strip())
    flags = set((fields.get("flags") or fields.get("features") or "").split())
    implementer, part = fields.get("cpu implementer", ""), fields.get("cpu part", "")
    arm = ARM_PARTS.get((implementer.lower(), part.lower())) or (f"ARM {implementer} {part}" if implementer else "")
    name = fields.get("model name") or fields.get("hardware") or arm
    return name, tuple(dict.fromkeys(title for flag, title in CPU_FLAGS if flag in flags))


def mac_features(text: str) -> tuple[str, tuple[str, ...], int]:
    """(chip, instruction sets, RAM bytes) of `sysctl machdep.cpu.brand_string hw.memsize hw.optional`."""
    fields = dict(re.findall(r"^([\w.]+):\s*(.*)$", text, re.MULTILINE))
    known = [title for key, title in MAC_FLAGS if fields.get(key) == "1"]
    return (
        fields.get("machdep.cpu.brand_string", ""),
        tuple(dict.fromkeys(known)),
        sane(number(fields.get("hw.memsize", ""))),
    )


def translated(text: str) -> bool:
    """Whether sysctl says that this program is an Intel one that Rosetta runs on an Apple chip."""
    return bool(re.search(r"^sysctl\.proc_translated:\s*1$", text, re.MULTILINE))


def compiled_features(system_info: str) -> dict[str, tuple[str, ...]]:
    """Features per backend of llama_print_system_info: {"CPU": ("SSE3", "AVX", ...)}."""
    found: dict[str, list[str]] = {}
    backend = ""
    for part in system_info.split("|"):
        name, _, rest = part.rpartition(" : ")
        if name:
            backend = name.strip()
        key, equals, value = rest.partition("=")
        if backend and equals and value.strip() not in ("", "0"):
            found.setdefault(backend, []).append(key.strip())
    return {name: tuple(keys) for name, keys in found.items()}


def unused(has: Collection[str], compiled: Collection[str]) -> list[str]:
    """What this CPU has and the engine was built without, of what would make it faster; nothing if that is unknown."""
    return [name for name in (*SPEED_UP, *SPEED_UP_ARM) if name in has and name not in compiled] if compiled else []
