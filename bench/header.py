"""Times reading the header of a GGUF with a 200,000-token vocabulary, beside the gguf package's reader, in one run.

    python bench/header.py [FILE.gguf]

Without a file, makes one of that kind (tokens, merges, types) in a temporary directory. Each reading is the best of
three, in a process that has imported all it needs. Run it by hand on an idle machine; it is no test.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf

from phitui.domain.tensors import FilePlan, InlineExtent, SourceTensor, TensorType, Value, ValueType, place
from phitui.gguf.facts import facts_from_header
from phitui.gguf.header import encode_header, read_header

TOKENS = 200_064


def made(path: Path) -> Path:
    """A file like a Phi-4-mini of 32 layers, its tensors made tiny."""
    tensors = [
        SourceTensor(f"blk.{i // 8}.{i % 8}.weight", (32,), TensorType.F32, (InlineExtent(bytes(128)),))
        for i in range(256)
    ]
    metadata = {
        "general.architecture": Value.string("phi3"),
        "tokenizer.ggml.model": Value.string("gpt2"),
        "tokenizer.ggml.tokens": Value.array(ValueType.STRING, [f"Ġtoken{i}" for i in range(TOKENS)]),
        "tokenizer.ggml.token_type": Value.array(ValueType.INT32, [1] * TOKENS),
        "tokenizer.ggml.merges": Value.array(ValueType.STRING, [f"Ġto ken{i}" for i in range(TOKENS - 300)]),
    }
    plan = FilePlan("F32", metadata, place([(tensor, tensor.stored, None) for tensor in tensors]))
    path.write_bytes(encode_header(plan) + bytes(plan.data_size))
    return path


def best(work: Callable[[], Any], rounds: int = 3) -> float:
    times = []
    for _ in range(rounds):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return min(times)


def main() -> None:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(sys.argv[1]) if len(sys.argv) > 1 else made(Path(directory) / "vocabulary.gguf")
        header = read_header(path)
        rows = {
            "phitui: header": best(lambda: read_header(path)),
            "phitui: header and facts": best(lambda: facts_from_header(read_header(path))),
            "phitui: header and all tokens decoded": best(lambda: read_header(path).get("tokenizer.ggml.tokens")),
            "gguf.GGUFReader": best(lambda: gguf.GGUFReader(path), rounds=1),
        }
        print(f"{header.length('tokenizer.ggml.tokens')} tokens, header of {header.data_start / 1e6:.1f} MB\n")
        print("| work | ms |")
        print("|---|---|")
        for name, seconds in rows.items():
            print(f"| {name} | {seconds * 1000:.1f} |")


if __name__ == "__main__":
    main()
