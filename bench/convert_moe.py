"""Peak memory of building from a mixture of experts with the dimensions of Phi-3.5-MoE: the bar is 1 GiB.

    python bench/convert_moe.py --work DIR [--experts 4] [--layers 1] [--schemes BF16,Q4_K_M]

Writes a checkpoint of random weights into DIR (hidden 4096, feed forward 6400, 32 heads, 8 key/value heads; 4 experts
in one layer are 0.7 GB), unless it is there, and builds from it by `phitui build`. Peak RSS is that of the largest
process (Linux: VmHWM). Run it by hand; it is no test.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from pathlib import Path

from convert import Row, measure

from phitui.testing.checkpoints import TinyPhi, tensor_shapes, write_checkpoint

BAR = 1 << 30
"""Bytes."""


def write_model(directory: Path, layers: int, experts: int) -> Path:
    """A checkpoint with a tiny vocabulary and layers of full size."""
    if (directory / "model.safetensors").exists():
        return directory
    write_checkpoint(directory, family="phimoe", layers=1, experts=1, hidden=64, intermediate=64)
    sizes = {"hidden_size": 4096, "intermediate_size": 6400, "num_attention_heads": 32, "num_key_value_heads": 8}
    counts = {"num_hidden_layers": layers, "num_local_experts": experts, "num_experts_per_tok": min(2, experts)}
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | sizes | counts))
    phi = TinyPhi(family="phimoe", layers=layers, experts=experts, hidden=4096, intermediate=6400, heads=32, kv_heads=8)
    write_tensors(directory / "model.safetensors", tensor_shapes(phi))
    return directory


def write_tensors(path: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    """Random BF16 weights, one tensor in memory at a time."""
    import numpy as np

    header, offset = {}, 0
    for name, shape in shapes.items():
        end = offset + 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    random = np.random.default_rng(0)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for shape in shapes.values():
            values = random.standard_normal(math.prod(shape), dtype=np.float32) * np.float32(0.02)
            file.write((values.view(np.uint32) >> 16).astype(np.uint16).tobytes())


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--experts", type=int, default=4)
    parser.add_argument("--layers", type=int, default=1)
    parser.add_argument("--schemes", default="BF16,Q4_K_M")
    arguments = parser.parse_args()
    work: Path = arguments.work.absolute()
    work.mkdir(parents=True, exist_ok=True)
    name = f"Phi-3.5-MoE-{arguments.layers}x{arguments.experts}"
    model = write_model(work / name, arguments.layers, arguments.experts)
    stored = (model / "model.safetensors").stat().st_size
    print(f"{name}: {stored / 1e9:.2f} GB, {os.cpu_count()} cores")
    environ = os.environ | {"PHITUI_HOME": str(work / "home")}
    for scheme in arguments.schemes.split(","):
        out = work / f"{name}-{scheme}.gguf"
        out.unlink(missing_ok=True)
        row = Row(scheme)
        command = [sys.executable, "-m", "phitui", "build", str(model), "--scheme", scheme, "--out", str(out), "--json"]
        measure(row, command, environ, str(work / "home"), work / "log.txt")
        made = out.stat().st_size if out.exists() else 0
        verdict = "within" if made and row.peak <= BAR else "ABOVE" if made else "FAILED, see log.txt;"
        print(
            f"{scheme:8} {row.seconds[0]:6.1f} s  {made / 1e9:6.2f} GB  "
            f"largest process {row.peak / 2**20:6.0f} MiB  ({verdict} 1 GiB)"
        )
        out.unlink(missing_ok=True)


if __name__ == "__main__":
    main()
