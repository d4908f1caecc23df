"""phitui imatrix beside llama-imatrix: same model, same text, same threads, in turns; then the sums are compared.

    python bench/imatrix.py MODEL.gguf TEXT --llama-imatrix PATH [--threads 2] [--chunks 8] [--pairs 3] [--no-ppl]

phitui's side is the process of its job, started and ended here, so that time, CPU time and peak memory are whole.
llama-imatrix also computes the perplexity unless --no-ppl is given.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import numpy as np
from gguf import GGUFReader

from phitui.actions.imatrix import ImatrixRequest

JOB = """
import json, sys
from phitui.actions.imatrix import run

class Job:
    def progress(self, done, total, text=""): pass
    def note(self, text): pass
    def check(self): pass

run(json.loads(sys.argv[1]), Job())
"""


class Cost(NamedTuple):
    """Seconds on the clock, seconds of CPU, peak memory in bytes."""

    wall: float
    cpu: float
    memory: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("text", type=Path)
    parser.add_argument("--llama-imatrix", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--chunks", type=int, default=8)
    parser.add_argument("--ctx", type=int, default=512)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--no-ppl", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        theirs, ours = Path(folder, "theirs.gguf"), Path(folder, "ours.gguf")
        sides = {"peer": peer(options, theirs), "own": own(options, ours)}
        rows = []
        for number in range(options.pairs):
            order = ("peer", "own") if number % 2 == 0 else ("own", "peer")
            cost = {which: measure(sides[which]) for which in order}
            rows.append((cost["peer"], cost["own"]))
        report(options, rows)
        print(f"\nlargest relative difference of a sum: {difference(theirs, ours):.1e}; counts are equal")


def peer(options: argparse.Namespace, out: Path) -> list[str]:
    command = [str(options.llama_imatrix), "-m", str(options.model), "-f", str(options.text), "-o", str(out)]
    command += ["-t", str(options.threads), "-c", str(options.ctx), "--chunks", str(options.chunks)]
    return [*command, "--no-ppl"] if options.no_ppl else command


def own(options: argparse.Namespace, out: Path) -> list[str]:
    request = ImatrixRequest(
        str(options.model.absolute()),
        str(options.text.absolute()),
        str(out),
        context=options.ctx,
        chunks=options.chunks,
        threads=options.threads,
        layers=0,
    )
    return [sys.executable, "-c", JOB, json.dumps(asdict(request))]


def measure(command: list[str]) -> Cost:
    """Run to the end. Raises SystemExit with the last words if it fails."""
    with tempfile.TemporaryFile() as log:
        began = time.perf_counter()
        process = subprocess.Popen(command, stdout=log, stderr=log)
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - began
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            log.seek(0)
            raise SystemExit(log.read()[-2000:].decode("utf-8", "replace"))
    scale = 1 if sys.platform == "darwin" else 1024
    return Cost(wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * scale)


def report(options: argparse.Namespace, rows: list[tuple[Cost, Cost]]) -> None:
    what = f"{options.chunks} chunks of {options.ctx} tokens, {options.threads} threads"
    print(f"\n{options.model.name}, {what}{', without perplexity' if options.no_ppl else ''}\n")
    print("| pair | llama-imatrix s | phitui s | ratio | llama-imatrix CPU s | phitui CPU s | ratio |")
    print("|---|---|---|---|---|---|---|")
    for number, (their, our) in enumerate(rows, 1):
        cells = [f"{their.wall:.1f}", f"{our.wall:.1f}", f"{our.wall / their.wall:.2f}"]
        cells += [f"{their.cpu:.1f}", f"{our.cpu:.1f}", f"{our.cpu / their.cpu:.2f}"]
        print(f"| {number} | {' | '.join(cells)} |")
    wall = statistics.median(our.wall / their.wall for their, our in rows)
    cpu = statistics.median(our.cpu / their.cpu for their, our in rows)
    print(f"| median | | | {wall:.2f} | | | {cpu:.2f} |")
    memory = [max(cost[which].memory for cost in rows) / 2**20 for which in range(2)]
    print(f"\npeak memory: llama-imatrix {memory[0]:.0f} MiB, phitui {memory[1]:.0f} MiB")


def difference(theirs: Path, ours: Path) -> float:
    """The largest relative difference of a sum. Raises SystemExit where names, shapes or counts differ."""
    one, other = ({t.name: t for t in GGUFReader(path).tensors} for path in (theirs, ours))
    if one.keys() != other.keys():
        raise SystemExit(f"different tensors: {sorted(one.keys() ^ other.keys())[:4]}")
    worst = 0.0
    for name, tensor in one.items():
        expected, got = tensor.data.astype(np.float64), other[name].data.astype(np.float64)
        if expected.shape != got.shape or (name.endswith(".counts") and (expected != got).any()):
            raise SystemExit(f"{name} differs")
        worst = max(worst, float((np.abs(expected - got) / np.maximum(np.abs(expected), 1e-30)).max()))
    return worst


if __name__ == "__main__":
    main()
