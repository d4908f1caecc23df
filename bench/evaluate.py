"""Evaluation beside llama-perplexity: same models, text, chunks and threads; figures and times.

    python bench/evaluate.py MODEL.gguf REFERENCE.gguf TEXT --llama-perplexity PATH [--chunks 16] [--pairs 3]

The peer needs two runs: one of the reference, which writes its logits to a file, and one of the model, which reads
them. phitui runs both models at once and writes nothing. CPU seconds are given too: they say what is needed on a
machine that does other things as well.
"""

from __future__ import annotations

import argparse
import re
import resource
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from phitui import plugins
from phitui.domain import options as declared

NUMBER = r"(-?[\d.]+)"
PEER = {
    "perplexity": rf"Mean PPL\(Q\)\s+:\s+{NUMBER} ±",
    "perplexity_error": rf"Mean PPL\(Q\)\s+:\s+{NUMBER} ±\s+{NUMBER}",
    "reference_perplexity": rf"Mean PPL\(base\)\s+:\s+{NUMBER}",
    "ln_perplexity_ratio": rf"Mean ln\(PPL\(Q\)/PPL\(base\)\)\s+:\s+{NUMBER}",
    "ln_perplexity_ratio_error": rf"Mean ln\(PPL\(Q\)/PPL\(base\)\)\s+:\s+{NUMBER} ±\s+{NUMBER}",
    "kld_mean": rf"Mean\s+KLD:\s+{NUMBER}",
    "kld_mean_error": rf"Mean\s+KLD:\s+{NUMBER} ±\s+{NUMBER}",
    "kld_median": rf"Median\s+KLD:\s+{NUMBER}",
    "kld_p90": rf"90.0%\s+KLD:\s+{NUMBER}",
    "kld_p99": rf"99.0%\s+KLD:\s+{NUMBER}",
    "kld_p999": rf"99.9%\s+KLD:\s+{NUMBER}",
    "kld_max": rf"Maximum KLD:\s+{NUMBER}",
    "top1_agreement": rf"Same top p:\s+{NUMBER}",
    "top1_agreement_error": rf"Same top p:\s+{NUMBER} ±\s+{NUMBER}",
}


class Quiet:
    """A job that nobody watches."""

    def progress(self, done: int, total: int, text: str = "") -> None: ...
    def note(self, text: str) -> None: ...
    def check(self) -> None: ...


@dataclass(frozen=True)
class Cost:
    wall: float
    cpu: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("reference", type=Path)
    parser.add_argument("text", type=Path)
    parser.add_argument("--llama-perplexity", type=Path, required=True)
    parser.add_argument("--chunks", type=int, default=16)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--pairs", type=int, default=3)
    options = parser.parse_args()
    theirs: list[Cost] = []
    ours: list[Cost] = []
    for number in range(options.pairs):
        for who in ("peer", "own") if number % 2 == 0 else ("own", "peer"):
            if who == "peer":
                logs, cost = timed(lambda: peer(options))
                theirs.append(cost)
            else:
                values, cost = timed(lambda: own(options))
                ours.append(cost)
    print(f"\n{options.model.name} against {options.reference.name}, {options.chunks} chunks of 512\n")
    print("| figure | llama-perplexity | phitui | difference |\n|---|---|---|---|")
    for name, pattern in PEER.items():
        found = re.search(pattern, logs)
        if found:
            value = float(found[found.lastindex or 1]) * (0.01 if name.startswith("top1") else 1)
            print(f"| {name} | {value:.6f} | {values[name]:.6f} | {100 * (values[name] / value - 1):+.3f} % |")
    print(
        "\n| pair | peer's wall s | phitui's | ratio | peer's CPU s | phitui's | ratio |\n|---|---|---|---|---|---|---|"
    )
    for number, (a, b) in enumerate(zip(theirs, ours, strict=True), 1):
        print(
            f"| {number} | {a.wall:.1f} | {b.wall:.1f} | {b.wall / a.wall:.3f} "
            f"| {a.cpu:.1f} | {b.cpu:.1f} | {b.cpu / a.cpu:.3f} |"
        )
    pairs = list(zip(theirs, ours, strict=True))
    wall = statistics.median(b.wall / a.wall for a, b in pairs)
    cpu = statistics.median(b.cpu / a.cpu for a, b in pairs)
    print(f"| median | | | {wall:.3f} | | | {cpu:.3f} |")


def peer(options: argparse.Namespace) -> str:
    """What llama-perplexity's second run says."""
    with tempfile.TemporaryDirectory() as folder:
        logits = str(Path(folder, "logits"))
        common = [str(options.llama_perplexity), "-t", str(options.threads), "--kl-divergence-base", logits]
        first = ["-m", str(options.reference), "-f", str(options.text), "--chunks", str(options.chunks)]
        subprocess.run([*common, *first], check=True, capture_output=True)
        second = ["-m", str(options.model), "--kl-divergence"]
        done = subprocess.run([*common, *second], check=True, capture_output=True, text=True)
    return done.stdout + done.stderr


def own(options: argparse.Namespace) -> dict[str, float]:
    judge = plugins.first_available(plugins.load().evaluators, "evaluator")
    chosen = {"text": options.text, "reference": options.reference, "chunks": options.chunks, "speed": False}
    built = declared.build(judge.options, chosen | {"threads": options.threads})
    return dict(judge.evaluate(options.model, built, Quiet()).values)


def timed(call: Callable[[], Any]) -> tuple[Any, Cost]:
    before, began = cpu_seconds(), time.monotonic()
    result = call()
    return result, Cost(time.monotonic() - began, cpu_seconds() - before)


def cpu_seconds() -> float:
    """Of this process and all children that have ended."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


if __name__ == "__main__":
    main()
