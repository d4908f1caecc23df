"""phitui plan: described machines, a bare core, the document and the command."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from phitui.__main__ import main
from phitui.actions.context import Context
from phitui.actions.plan import as_document, described, devices, plan
from phitui.actions.standin import stand_in, write_stand_in
from phitui.cli.plan import bar, text
from phitui.domain.hardware import Device
from phitui.domain.offload import PlanRequest
from phitui.domain.sizes import parse_size
from phitui.domain.tensors import FilePlan, SourceTensor, TensorType, Value, place
from phitui.errors import UsageError
from phitui.gguf.header import read_header

GIB = 1024**3
RAM = Device("CPU", "cpu", "cpu", "RAM", 8 * GIB, 4 * GIB, "measured")


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PHITUI_PLUGINS", "")
    rows = [("token_embd.weight", (256, 1000)), ("output_norm.weight", (256,))]
    for layer in range(2):
        rows += [(f"blk.{layer}.attn_qkv.weight", (256, 768)), (f"blk.{layer}.ffn_up.weight", (256, 1024))]
    numbers = {
        "context_length": 8192,
        "embedding_length": 256,
        "feed_forward_length": 512,
        "block_count": 2,
        "attention.head_count": 4,
        "attention.head_count_kv": 4,
        "rope.dimension_count": 64,
    }
    metadata = {f"phi3.{key}": Value.u32(value) for key, value in numbers.items()} | {
        "general.architecture": Value.string("phi3"),
        "tokenizer.ggml.model": Value.string("gpt2"),
    }
    planned = FilePlan(
        "", metadata, place([(SourceTensor(n, s, TensorType.F16, ()), TensorType.F16, None) for n, s in rows])
    )
    return write_stand_in(planned, tmp_path.name).rename(tmp_path / "tiny.gguf")


@pytest.mark.parametrize(
    ("given", "size"),
    [
        ("24GiB", 24 * GIB),
        ("24G", 24 * GIB),
        ("24 gb", 24 * GIB),
        ("512MiB", GIB // 2),
        ("1.5GiB", 3 * GIB // 2),
        ("4096", 4096),
    ],
)
def test_sizes(given: str, size: int) -> None:
    assert parse_size(given) == size


@pytest.mark.parametrize("given", ["", "GiB", "-4GiB", "0GiB", "12 parsecs", "1e9"])
def test_texts_that_are_no_size(given: str) -> None:
    assert parse_size(given) is None


def test_a_described_machine() -> None:
    machine, note = described(["RTX 4070=12GiB", "RAM=32GiB"], [RAM])
    assert [(device.name, device.kind, device.free) for device in machine] == [
        ("RTX 4070", "gpu", 12 * GIB),
        ("RAM", "cpu", 32 * GIB),
    ]
    assert note == ""
    machine, note = described(["A=1GiB"], [RAM])
    assert machine[-1] == RAM
    assert "this machine's" in note


@pytest.mark.parametrize("specs", [["RTX"], ["=12GiB"], ["RTX=big"], ["A=1GiB", "A=2GiB"]])
def test_descriptions_that_say_nothing(specs: list[str]) -> None:
    with pytest.raises(UsageError):
        described(specs, [RAM])


def test_without_any_plugin_the_ram_is_the_machine(model: Path) -> None:
    context = Context()
    (ram,) = devices(context)
    assert (ram.kind, ram.source) == ("cpu", "measured")
    made = plan(context, PlanRequest(str(model)))
    assert made.fits
    assert made.how["compute"] == "estimated"
    with pytest.raises(Exception, match="RPC"):
        plan(context, PlanRequest(str(model), rpc=("127.0.0.1:1",)))


def test_the_document_is_the_contract(model: Path) -> None:
    made = plan(Context(), PlanRequest(str(model), devices=("GPU=2GiB", "RAM=4GiB")))
    document = as_document(made)
    assert {"n_gpu_layers", "n_ctx", "rope", "fits", "devices", "how"} <= set(document)
    assert document["n_gpu_layers"] == 3
    device = document["devices"][0]
    assert {"name", "backend", "kind", "total", "free", "weights", "kv", "compute", "sum", "fits"} <= set(device)
    assert {"allocated", "mapped", "learned", "learned_from_loads", "read_per_token"} <= set(device)
    json.dumps(document)


def test_the_command(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(model), "--layers", "all", "--device", "GPU=2GiB", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["n_gpu_layers"] == 3
    assert main(["plan", str(model), "--device", "GPU=2GiB", "--device", "RAM=4GiB"]) == 0
    shown = capsys.readouterr().out
    assert "3 of 3 offloaded" in shown
    assert "It fits." in shown
    assert all(len(line) <= 80 for line in shown.splitlines())
    assert main(["plan", str(model), "--layers", "7", "--json"]) == 2
    assert "7 layers" in json.loads(capsys.readouterr().out)["error"]["message"]
    assert main(["plan", str(model), "--ctx", "0"]) == 2
    assert main(["plan", str(model), "--kv-type", "q9"]) == 2


def test_the_text_without_unicode(model: Path) -> None:
    document = as_document(plan(Context(), PlanRequest(str(model), layers=1, devices=("GPU=1MiB", "RAM=4GiB"))))
    shown = text(document, fancy=False)
    shown.encode("ascii")
    assert "It does not fit." in shown
    assert "NO" in shown


def test_a_bar_never_leaves_its_place() -> None:
    for size in (0, 1, 50, 100, 900):
        drawn = bar({"free": 100, "sum": size, "weights": size, "kv": 0, "compute": 0}, "#=-.")
        assert drawn.index("  ") == 24


def test_words_on_the_command_line(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words, key, value in (
        (["--layers", "ALL"], "n_gpu_layers", 3),
        (["--layers", "auto"], "n_gpu_layers", 3),
        (["--layers", "1"], "n_gpu_layers", 1),
        (["--layers", "-1"], "n_gpu_layers", 3),
        (["--ctx", "max"], "n_ctx", 8192),
        (["--flash-attn", "off"], "flash_attention", False),
        (["--kv-type", "Q8_0"], "kv_type_v", "q8_0"),
        (["--kv-type-v", "q4_0"], "kv_type_v", "q4_0"),
        (["--no-mmap"], "mmap", False),
    ):
        assert main(["plan", str(model), "--device", "GPU=2GiB", "--device", "RAM=4GiB", "--json", *words]) == 0
        assert json.loads(capsys.readouterr().out)[key] == value
    for words in (["--layers", "many"], ["--ctx", "1.5"], ["--flash-attn", "perhaps"], ["--tensor-split", "a,b"]):
        assert main(["plan", str(model), *words]) == 2
        assert "is none of" in capsys.readouterr().err


def test_a_stand_in_has_the_header_and_the_size_but_takes_no_room(model: Path) -> None:
    stat = model.stat()
    made = stand_in(model, stat.st_size, stat.st_mtime_ns)
    header, original = read_header(made), read_header(model)
    assert [tensor.name for tensor in header.tensors] == [tensor.name for tensor in original.tensors]
    assert header.get("tokenizer.ggml.model") == "none"
    assert header.get("phi3.vocab_size") == 1000
    assert made.stat().st_size >= header.tensors[-1].offset + header.tensors[-1].size
    assert made.stat().st_blocks * 512 < 64 * 1024
