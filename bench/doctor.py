"""How long `phitui doctor` takes: as the machine is, and with every tool that it asks hanging for ever.

    python bench/doctor.py [--runs 5]

The bar is two seconds in both cases. Each run is a new process, so start-up and the engine's child process count.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

TOOLS = ("nvidia-smi", "nvcc", "rocm-smi", "rocminfo", "vulkaninfo", "sycl-ls")


def seconds(path: str, home: str, runs: int) -> list[float]:
    """Wall time of each run with that PATH."""
    environment = {**os.environ, "PATH": path, "PHITUI_HOME": home}
    taken = []
    for _ in range(runs):
        began = time.perf_counter()
        subprocess.run(
            [sys.executable, "-P", "-m", "phitui", "doctor", "--json"],
            env=environment,
            stdout=subprocess.DEVNULL,
            check=True,
        )
        taken.append(time.perf_counter() - began)
    return taken


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=5)
    runs = parser.parse_args().runs
    path = os.environ.get("PATH", "")
    with tempfile.TemporaryDirectory() as folder:
        for name in TOOLS:
            file = Path(folder) / name
            file.write_text("#!/bin/sh\nsleep 60 &\nsleep 60\n")
            file.chmod(0o755)
        for what, where in (("as it is", path), ("all tools hang", f"{folder}{os.pathsep}{path}")):
            taken = seconds(where, folder, runs)
            print(f"{what:<16} median {statistics.median(taken):.2f} s, worst {max(taken):.2f} s  ({runs} runs)")


if __name__ == "__main__":
    main()
