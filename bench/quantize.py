"""Times checkpoint -> quantized GGUF in one pass beside llama-quantize alone on the ready BF16 GGUF, in one run.

    python bench/quantize.py CHECKPOINT BF16.gguf --llama-quantize PATH --work DIR [--scheme Q4_K_M] [--threads 2]

BF16.gguf is the same model, converted before (phitui build CHECKPOINT --scheme BF16 --out BF16.gguf). phitui's time is
that of the whole command: start, plan, the detached job, fsync. llama-quantize does not sync. The rounds alternate, and
the two files are compared tensor by tensor. Run it by hand on an idle machine; it is no test.
"""

from __future__ import annotations

import argparse
import mmap
import os
import statistics
import sys
from pathlib import Path

from convert import Row, measure

from phitui.gguf.header import read_header


def same(one: Path, other: Path) -> bool:
    """Whether two GGUF files hold the same keys and tensors, wherever those stand in the file."""
    headers = [read_header(one), read_header(other)]
    keys = [{k: v.value for k, v in header.metadata().items()} for header in headers]
    tensors = [{t.name: t for t in header.tensors} for header in headers]
    if keys[0] != keys[1] or tensors[0].keys() != tensors[1].keys():
        return False
    with one.open("rb") as first, other.open("rb") as second:
        data = [mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) for file in (first, second)]
        for name, a in tensors[0].items():
            b = tensors[1][name]
            views = [memoryview(d)[t.offset : t.offset + t.size] for d, t in zip(data, (a, b), strict=True)]
            equal = (a.shape, a.type) == (b.shape, b.type) and views[0] == views[1]
            for view in views:
                view.release()
            if not equal:
                return False
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("bf16", type=Path)
    parser.add_argument("--llama-quantize", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--scheme", default="Q4_K_M")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--rounds", type=int, default=1)
    arguments = parser.parse_args()
    work, threads, scheme = arguments.work.absolute(), str(arguments.threads), arguments.scheme
    work.mkdir(parents=True, exist_ok=True)
    ours, theirs = work / "phitui.gguf", work / "llama-quantize.gguf"
    build = [sys.executable, "-m", "phitui", "build", str(arguments.checkpoint.absolute()), "--scheme", scheme]
    build += ["--out", str(ours), "--threads", threads, "--json"]
    peer = [str(arguments.llama_quantize), str(arguments.bf16), str(theirs), scheme, threads]
    environ = os.environ | {"PHITUI_HOME": str(work / "home")}
    rows = Row(f"phitui build, checkpoint -> {scheme}"), Row(f"llama-quantize, BF16 GGUF -> {scheme}")
    for _ in range(arguments.rounds):
        for row, command, out in zip(rows, (build, peer), (ours, theirs), strict=True):
            out.unlink(missing_ok=True)
            measure(row, command, environ, str(work / "home"), work / "log.txt")
    print(f"{threads} threads, {arguments.rounds} round(s), medians\n")
    print("| work | time | against the peer | peak RSS |\n|---|---|---|---|")
    base = statistics.median(rows[1].seconds)
    for row in rows:
        seconds = statistics.median(row.seconds)
        print(f"| {row.name} | {seconds:.1f} s | {seconds / base:.2f}x | {row.peak / 2**20:.0f} MiB |")
    print(f"\nidentical keys and tensors: {'yes' if same(ours, theirs) else 'NO'}")


if __name__ == "__main__":
    main()
