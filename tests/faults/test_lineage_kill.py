"""A build that is killed around the moment when the model and its recipe get their names: nothing is lost or false."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

from phitui.actions.build import BuildRequest
from phitui.store.hashes import sha256_of
from phitui.store.sidecar import beside, read_beside, read_recipe
from phitui.testing.checkpoints import write_checkpoint

BUILD = """
import json, os, sys
from phitui.actions import build
from phitui.gguf.partial import Partial
from phitui.store.sidecar import Sidecar

class Job:
    def progress(self, done, total, text=""): ...
    def note(self, text): ...
    def check(self): ...

def die(*_):
    os.kill(os.getpid(), 9)

owner, _, name = sys.argv[1].partition(".")
if name:
    setattr({"Sidecar": Sidecar, "Partial": Partial}[owner], name, die)
print(json.dumps(build.run(json.loads(sys.argv[2]), Job())))
"""


def build(request: BuildRequest, die_at: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", BUILD, die_at, json.dumps(asdict(request))]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize("overwrite", [False, True], ids=["new", "overwrite"])
@pytest.mark.parametrize("moment", ["Sidecar.prepare", "Partial.publish", "Sidecar.publish"])
def test_killed_and_built_again(tmp_path: Path, moment: str, overwrite: bool) -> None:
    checkpoint = write_checkpoint(tmp_path / "Phi-tiny")
    folder = tmp_path / "out"
    folder.mkdir()
    out = folder / "m.gguf"
    if overwrite:
        assert build(BuildRequest(str(checkpoint), "F16", str(out))).returncode == 0
    before = out.read_bytes() if overwrite else b""
    request = BuildRequest(str(checkpoint), "BF16", str(out), overwrite=overwrite)
    assert build(request, moment).returncode == -9
    replaced = moment == "Sidecar.publish"
    assert out.exists() == (overwrite or replaced)
    if overwrite and not replaced:
        assert out.read_bytes() == before
    if beside(out).exists():  # then it tells the truth
        recipe = read_beside(out)
        assert recipe is not None
        assert recipe.result is not None
        assert recipe.result.sha256 == sha256_of(out).sha256
    again = build(request)
    assert again.returncode == 0, again.stderr
    made = json.loads(again.stdout)
    result = read_recipe(beside(out)).result
    assert result is not None
    assert result.sha256 == made["sha256"] == sha256_of(out).sha256
    assert sorted(path.name for path in folder.iterdir()) == ["m.gguf", "m.gguf.toml"]
