"""What tools print on machines of many kinds, and what is made of it."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st
from phitui_hardware import parsers, processors

DATA = Path(__file__).parent / "data" / "hardware"
GIB = 1024**3


def text(name: str) -> str:
    return (DATA / name).read_text()


def test_one_nvidia_card() -> None:
    (card,) = parsers.nvidia(text("nvidia-rtx4090.csv"))
    assert card.name == "NVIDIA GeForce RTX 4090"
    assert (card.total, card.free) == (24564 * parsers.MIB, 23028 * parsers.MIB)
    assert card.detail == "driver 560.35.03, compute 8.9"


def test_two_nvidia_cards_and_a_partitioned_one() -> None:
    assert [card.free // parsers.MIB for card in parsers.nvidia(text("nvidia-two-a6000.csv"))] == [48513, 1201]
    assert len(parsers.nvidia(text("nvidia-a100-mig.csv"))) == 1


def test_sizes_that_cannot_be_are_unknown() -> None:
    (orin,) = parsers.nvidia(text("nvidia-orin-unsupported.csv"))
    assert (orin.name, orin.total, orin.free, orin.target) == ("Orin (nvgpu)", 0, 0, "8.7")
    (odd,) = parsers.nvidia(text("nvidia-garbled.csv"))
    assert (odd.name, odd.total, odd.free, odd.target) == ("NVIDIA GeForce RTX 3060", 0, 0, "")


def test_why_nvidia_smi_failed() -> None:
    assert "restart the machine" in parsers.nvidia_trouble(text("nvidia-mismatch.txt"))
    assert "driver is not running" in parsers.nvidia_trouble(text("nvidia-no-driver.txt"))
    assert parsers.nvidia_trouble("No devices were found") == "the NVIDIA driver runs and finds no card"
    assert parsers.nvidia_trouble("something else") == ""


def test_rocm_smi_with_a_warning_before_its_json() -> None:
    (card,) = parsers.rocm_smi(text("rocm-7900xtx.json"))
    assert (card.name, card.detail) == ("Radeon RX 7900 XTX", "gfx1100")
    assert card.total - card.free == 1098903552
    assert len(parsers.rocm_smi(text("rocm-mi300x-two.json"))) == 2
    assert parsers.rocm_smi("[1, 2]") == parsers.rocm_smi("{broken") == parsers.rocm_smi("") == []


def test_amdgpu_files_of_a_card_and_of_an_apu() -> None:
    card = parsers.amdgpu_sysfs(
        {
            "vendor": "0x1002\n",
            "device": "0x744c\n",
            "mem_info_vram_total": "25753026560\n",
            "mem_info_vram_used": "9\n",
        }
    )
    assert card is not None
    assert (card.name, card.free, card.shared) == ("AMD GPU 0x744c", 25753026551, False)
    apu = parsers.amdgpu_sysfs(
        {
            "vendor": "0x1002",
            "product_name": "Radeon 780M",
            "mem_info_vram_total": str(512 * parsers.MIB),
            "mem_info_gtt_total": str(15 * GIB),
        }
    )
    assert apu is not None
    assert apu.shared
    assert apu.detail == "shares 15360 MiB of RAM (GTT)"
    assert parsers.amdgpu_sysfs({"vendor": "0x8086", "mem_info_vram_total": "1"}) is None
    assert parsers.amdgpu_sysfs({}) is None


def test_vulkan_without_the_software_renderer() -> None:
    laptop, card = parsers.vulkan(text("vulkaninfo-laptop.txt"))
    assert (laptop.name, laptop.shared) == ("Intel(R) Graphics (ADL GT2)", True)
    assert (card.name, card.shared, card.detail) == ("NVIDIA GeForce RTX 4060 Laptop GPU", False, "NVIDIA 550.90.07")
    assert parsers.vulkan(text("vulkaninfo-none.txt")) == []


def test_one_intel_card_listed_by_two_drivers() -> None:
    (card,) = parsers.sycl(text("sycl-ls-arc.txt"))
    assert (card.name, card.detail) == ("Intel(R) Arc(TM) A770 Graphics", "Level Zero")
    assert parsers.sycl(text("sycl-ls-cpu-only.txt")) == []


def test_processors() -> None:
    name, features = processors.cpuinfo(text("cpuinfo-xeon-amx.txt"))
    assert name == "Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz"
    assert {"AVX2", "AVX512", "AVX512_BF16", "AVX_VNNI", "AMX_INT8"} <= set(features)
    assert len(features) == len(set(features))
    assert set(processors.cpuinfo(text("cpuinfo-graviton3.txt"))[1]) == {
        "NEON",
        "FP16_VA",
        "DOTPROD",
        "MATMUL_INT8",
        "SVE",
    }
    assert processors.cpuinfo(text("cpuinfo-atom.txt"))[1] == ("SSE3", "SSSE3")
    assert processors.cpuinfo("") == ("", ())


def test_macs() -> None:
    features = ("NEON", "DOTPROD", "FP16_VA", "MATMUL_INT8")
    assert processors.mac_features(text("sysctl-m2-max.txt")) == ("Apple M2 Max", features, 64 * GIB)
    assert processors.mac_features(text("sysctl-intel-mac.txt"))[1] == ("AVX2",)


def test_what_the_engine_was_compiled_with() -> None:
    found = processors.compiled_features(text("system-info-cuda.txt"))
    assert found["CUDA"] == ("ARCHS", "USE_GRAPHS", "PEER_MAX_BATCH_SIZE")
    assert found["CPU"][:3] == ("SSE3", "SSSE3", "AVX")


@given(st.text(max_size=300))
def test_no_output_makes_a_parser_fail(garbage: str) -> None:
    parsers.nvidia(garbage)
    parsers.rocm_smi(garbage)
    parsers.vulkan("GPU0:\n" + garbage)
    parsers.sycl("[opencl:gpu][x] " + garbage)
    processors.cpuinfo(garbage)
    processors.mac_features(garbage)
    processors.compiled_features(garbage)
    parsers.amdgpu_sysfs({"vendor": "0x1002", "mem_info_vram_total": garbage, "mem_info_vram_used": garbage})
