"""Times builds that read a checkpoint from a Hub on this machine beside builds from the disk, in one run.

    python bench/stream.py CHECKPOINT --work DIR [--schemes BF16 Q4_K_M] [--latency 0 0.05]

The Hub (phitui.testing.hub_server) is a process of its own and shares the cores; it redirects to a second server, as
the real one does. LATENCY is in seconds and before every answer. DIR needs room for two outputs: they are compared.
Peak RSS is that of the largest process of each command (Linux: VmHWM). Run it by hand on an idle machine.
"""

from __future__ import annotations

import argparse
import filecmp
import os
import shutil
import subprocess
import sys
from pathlib import Path

from convert import Row, measure


def build(source: str, scheme: str, out: Path) -> list[str]:
    return [
        sys.executable,
        *("-m", "phitui", "build", source, "--scheme", scheme, "--out", str(out)),
        *("--stream", "--no-lineage", "--json"),
    ]


def served(checkpoint: Path, latency: float) -> tuple[subprocess.Popen[str], str, str]:
    """A running Hub: its process, its address and the id of the repository."""
    command = [sys.executable, "-m", "phitui.testing.hub_server", str(checkpoint), str(latency)]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    url, repo = child.stdout.readline().split()
    return child, url, repo


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--work", type=Path, required=True, help="an existing directory for outputs")
    parser.add_argument("--schemes", nargs="+", default=["BF16"])
    parser.add_argument("--latency", nargs="+", type=float, default=[0.0, 0.05])
    arguments = parser.parse_args()
    home, log = arguments.work / "phitui-bench-home", arguments.work / "phitui-bench.log"
    local, streamed = arguments.work / "local.gguf", arguments.work / "streamed.gguf"
    environ = {**os.environ, "PHITUI_HOME": str(home), "HF_HUB_OFFLINE": "0"}
    rows = []
    for scheme in arguments.schemes:
        row = Row(f"from the disk, {scheme}")
        measure(row, build(str(arguments.checkpoint), scheme, local), environ, str(home), log)
        rows.append(row)
        for latency in arguments.latency:
            hub, url, repo = served(arguments.checkpoint, latency)
            try:
                known = {**environ, "HF_ENDPOINT": url}
                subprocess.run([sys.executable, "-m", "phitui", "inspect", repo], env=known, check=True)
                row = Row(f"from a Hub {latency * 1000:.0f} ms away, {scheme}")
                measure(row, build(repo, scheme, streamed), known, str(home), log)
            finally:
                hub.kill()
            row.name += "" if filecmp.cmp(local, streamed, shallow=False) else " (DIFFERS)"
            rows.append(row)
            streamed.unlink()
        local.unlink()
    shutil.rmtree(home, ignore_errors=True)
    print("| build | seconds | peak RSS |\n|---|---|---|")
    for row in rows:
        print(f"| {row.name} | {row.seconds[0]:.1f} | {row.peak / (1 << 20):.0f} MiB |")


if __name__ == "__main__":
    main()
