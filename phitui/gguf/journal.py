"""The journal beside a file that is being written: which chunks are done, so that a killed writer can go on.

JSON lines. The first is the head: what the partial file is made from and how it is cut. Then numbers of chunks, each
appended after its bytes were written, and `{"synced": n}` once the first n of them are known to be on the disk.
A process that is killed loses nothing that it wrote, so every entry counts while the machine stays up; after a
reboot (another boot id) only the synced ones do.
"""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path
from typing import Any

VERSION = 1


def boot_id() -> str:
    """What tells one boot of this machine from the next."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        import psutil

        return f"{psutil.boot_time():.0f}"


def recover(path: Path, head: dict[str, Any], boot: str) -> tuple[list[int], int]:
    """The chunks that a former writer finished, and how many of them are surely on the disk.

    Nothing if there is no journal, or one of another head. A last line that was cut off is ignored.
    """
    try:
        lines = path.read_bytes().split(b"\n")[:-1]
        found = json.loads(lines[0])
        if not isinstance(found, dict) or {k: v for k, v in found.items() if k != "boot"} != head:
            return [], 0
        done, synced = [], 0
        for line in lines[1:]:
            entry = json.loads(line)
            if isinstance(entry, dict):
                synced = int(entry["synced"])
            else:
                done.append(int(entry))
    except (OSError, ValueError, IndexError, KeyError, TypeError):
        return [], 0
    if found.get("boot") != boot:
        done = done[:synced]
    return (done, synced) if all(0 <= number < head["chunks"] for number in done) else ([], 0)


class Journal:
    """An open journal. Safe for several threads."""

    def __init__(self, path: Path, head: dict[str, Any], boot: str, done: list[int], synced: int) -> None:
        """Write a new journal that starts with what is done already, and open it. Raises OSError."""
        self.path = path
        self.count = len(done)
        self._lock = threading.Lock()
        fresh = path.with_name(path.name + ".new")
        lines = [json.dumps({**head, "boot": boot}), *map(str, done), json.dumps({"synced": synced}), ""]
        fresh.write_text("\n".join(lines))
        self._descriptor = os.open(fresh, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
        fresh.replace(path)

    def done(self, number: int) -> None:
        """Note that the bytes of a chunk were written."""
        with self._lock:
            os.write(self._descriptor, b"%d\n" % number)
            self.count += 1

    def synced(self, count: int) -> None:
        """Note that the bytes of the first `count` entries are on the disk."""
        with self._lock:
            os.write(self._descriptor, b'{"synced": %d}\n' % count)

    def close(self) -> None:
        with self._lock:
            os.close(self._descriptor)
            self._descriptor = -1
