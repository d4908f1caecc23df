"""Times conversions of a checkpoint beside `cat` and, if given, llama.cpp's convert_hf_to_gguf.py, in one run.

    python bench/convert.py CHECKPOINT --work DIR [--reference-python PYTHON --reference-script convert_hf_to_gguf.py]

DIR needs room for one output at a time. Every output is removed before the next is made. Peak RSS is that of the
largest process of each command (Linux: VmHWM). Run it by hand on an idle machine; it is no test.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import psutil

FIRST = "phitui build of a source never seen"
"""The SHA-256 of the source's files is not known yet: the recipe beside the result wants it."""


@dataclass
class Row:
    """One line of the table: the seconds of every round, and the largest process of any (bytes)."""

    name: str
    seconds: list[float] = field(default_factory=list)
    peak: int = 0


def peak_of(root: psutil.Process, seen: dict[int, int], marker: str) -> None:
    """Note the peak RSS of the process, its children, and detached jobs that have `marker` in their command line."""
    family = [root, *root.children(recursive=True)]
    family += [p for p in psutil.process_iter(["cmdline"]) if marker in " ".join(p.info["cmdline"] or [])]
    for process in family:
        try:
            status = Path(f"/proc/{process.pid}/status").read_text()
            kilobytes = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))
            seen[process.pid] = max(seen.get(process.pid, 0), kilobytes * 1024)
        except (OSError, StopIteration, psutil.Error):
            continue


def measure(row: Row, command: list[str], environ: dict[str, str], marker: str, log: Path) -> None:
    """Run the command once."""
    seen: dict[int, int] = {}
    started = time.monotonic()
    with log.open("ab") as output:
        child = subprocess.Popen(command, stdout=output, stderr=output, env=environ)
        process = psutil.Process(child.pid)
        while child.poll() is None:
            with contextlib.suppress(psutil.Error):
                peak_of(process, seen, marker)
            time.sleep(0.1)
    row.seconds.append(time.monotonic() - started)
    row.peak = max(row.peak, max(seen.values(), default=0))
    if child.returncode:
        raise SystemExit(f"{' '.join(command)} failed with {child.returncode}; see {log}")


def cat_and_sync(shards: list[Path], out: Path) -> float:
    """Seconds for `cat SHARDS > OUT` and `sync` of it."""
    started = time.monotonic()
    with out.open("wb") as file:
        subprocess.run(["cat", *map(str, shards)], stdout=file, check=True)
        os.fsync(file.fileno())
    return time.monotonic() - started


def commands(arguments: argparse.Namespace, out: Path) -> dict[str, list[str]]:
    """Name -> command, in the order of the table."""
    found: dict[str, list[str]] = {}
    source = str(arguments.checkpoint)
    for scheme in arguments.schemes:
        build = [sys.executable, "-m", "phitui", "build", source, "--scheme", scheme, "--out", str(out), "--json"]
        found[f"phitui build, {scheme}"] = build
        found[f"{FIRST}, {scheme}"] = build
        found[f"phitui build --no-lineage, {scheme}"] = [*build, "--no-lineage"]
        if arguments.reference_script and scheme.lower() in ("bf16", "f16", "f32", "q8_0"):
            python = str(arguments.reference_python or sys.executable)
            reference = [
                python,
                str(arguments.reference_script),
                source,
                "--outtype",
                scheme.lower(),
                "--outfile",
                str(out),
            ]
            found[f"convert_hf_to_gguf.py, {scheme}"] = reference
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--work", type=Path, required=True, help="an existing directory for outputs")
    parser.add_argument("--reference-script", type=Path, help="llama.cpp's convert_hf_to_gguf.py")
    parser.add_argument("--reference-python", type=Path, help="a Python that can run it (torch, transformers)")
    parser.add_argument("--schemes", nargs="+", default=["BF16", "F16"])
    parser.add_argument("--rounds", type=int, default=1)
    arguments = parser.parse_args()
    shards = sorted(arguments.checkpoint.glob("*.safetensors"))
    if not shards:
        parser.error(f"{arguments.checkpoint} has no safetensors files")
    home = arguments.work / "phitui-bench-home"
    out = arguments.work / "phitui-bench.gguf"
    environ = {**os.environ, "PHITUI_HOME": str(home)}
    rows = {name: Row(name) for name in ("cat and sync", *commands(arguments, out))}

    def clean() -> None:
        out.unlink(missing_ok=True)
        out.with_name(out.name + ".toml").unlink(missing_ok=True)
        os.sync()

    def do(name: str) -> None:
        if name.startswith(FIRST):
            shutil.rmtree(home, ignore_errors=True)
        measure(rows[name], commands(arguments, out)[name], environ, str(home), arguments.work / "phitui-bench.log")

    run(arguments.rounds, rows, shards, out, clean, do)
    shutil.rmtree(home, ignore_errors=True)
    show(rows, sum(path.stat().st_size for path in shards))


def run(
    rounds: int,
    rows: dict[str, Row],
    shards: list[Path],
    out: Path,
    clean: Callable[[], None],
    do: Callable[[str], None],
) -> None:
    """All rows in turn, round by round, each on a clean disk with the source in the page cache."""
    cat_and_sync(shards, out)  # brings the source into the page cache; not counted
    for number in range(rounds + 1):  # the first, in which phitui gets to know the source, does not count
        for name, row in rows.items():
            if not number and not name.startswith(FIRST):
                continue
            clean()
            if name == "cat and sync":
                row.seconds.append(cat_and_sync(shards, out))
            else:
                do(name)
            print(f"{name}: {row.seconds[-1]:.1f} s", file=sys.stderr)
            if not number:
                row.seconds.clear()
    clean()


def show(rows: dict[str, Row], size: int) -> None:
    base = statistics.median(rows["cat and sync"].seconds)
    print(f"\n{size / 1e9:.2f} GB of safetensors, median of {len(rows['cat and sync'].seconds)}\n")
    print("| work | seconds | times `cat` | peak RSS |")
    print("|---|---|---|---|")
    for row in rows.values():
        seconds = statistics.median(row.seconds)
        peak = f"{row.peak / (1 << 20):.0f} MiB" if row.peak else "-"
        print(f"| {row.name} | {seconds:.1f} | {seconds / base:.2f} | {peak} |")


if __name__ == "__main__":
    main()
