"""Lineage and recipes as a person meets them: build, look beside the file, run what lies there, get the same bytes."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from phitui.jobs import Jobs
from phitui.plugins import load
from phitui.testing.bytewise import write_bytewise
from phitui.testing.checkpoints import write_checkpoint

LLAMA = any(offer.name == "llama.cpp" and offer.available().ok for offer in load().quantizers)
needs_llama = pytest.mark.skipif(not LLAMA, reason="llama-cpp-python is not installed")
PHITUI = [sys.executable, "-m", "phitui"]


def run(*arguments: object, code: int = 0, cwd: Path | None = None, **environment: str) -> Any:
    """phitui with --json: its document, the exit code checked."""
    done = subprocess.run(
        [*PHITUI, *map(str, arguments), "--json"],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=cwd,
        env=os.environ | environment,
        check=False,
    )
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return json.loads(done.stdout)


def recipe(path: Path) -> dict[str, Any]:
    return tomllib.loads(path.with_name(path.name + ".toml").read_text())


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "models" / "Phi-tiny-instruct", shards=2)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "out"
    made.mkdir()
    return made


def test_what_lies_beside_a_build(checkpoint: Path, folder: Path) -> None:
    out = folder / "m.gguf"
    made = run("build", checkpoint, "--scheme", "auto", "--out", out, "--name", "Mine")
    found = recipe(out)
    assert made["lineage"] == f"{out}.toml"
    assert found["build"] == {
        "source": "../models/Phi-tiny-instruct",
        "scheme": "BF16",
        "out": "m.gguf",
        "converter": {"name": "Mine"},
    }
    assert found["source"]["kind"] == "checkpoint"
    assert found["source"]["name"] == "Phi-tiny-instruct"
    read = {file["path"]: (file["size"], file["sha256"]) for file in found["source"]["files"]}
    assert {"config.json", "tokenizer_config.json", "model-00001-of-00002.safetensors"} <= set(read)
    assert read == {name: ((checkpoint / name).stat().st_size, sha256(checkpoint / name)) for name in read}
    assert found["result"]["sha256"] == sha256(out) == made["sha256"]
    assert found["result"]["size"] == out.stat().st_size
    assert "gguf" in found["made"]["versions"]
    assert str(folder) not in (folder / "m.gguf.toml").read_text()
    assert run("inspect", out)["lineage"] == "Phi-tiny-instruct, BF16"


def test_no_lineage(checkpoint: Path, folder: Path) -> None:
    made = run("build", checkpoint, "--scheme", "F16", "--out", folder / "m.gguf", "--no-lineage")
    assert made["lineage"] == ""
    assert [path.name for path in folder.iterdir()] == ["m.gguf"]


@pytest.mark.parametrize("moved", ["same name", "another name", "the Hub's cache"])
def test_the_same_bytes_elsewhere(checkpoint: Path, folder: Path, tmp_path: Path, moved: str) -> None:
    """The directory's name goes into metadata; the recipe makes it come out the same under any name."""
    if moved == "the Hub's cache":
        source = tmp_path / "hub" / "models--acme--Phi-tiny" / "snapshots" / "0123abc"
        source.parent.mkdir(parents=True)
        checkpoint.rename(source)
    else:
        source = checkpoint
    first = folder / "m.gguf"
    run("build", source, "--scheme", "BF16", "--out", first)
    other = tmp_path / "there"
    other.mkdir()
    shutil.copy(folder / "m.gguf.toml", other)
    place = tmp_path / "elsewhere" / ("Phi-tiny-instruct" if moved == "same name" else "something else")
    shutil.copytree(source, place)
    shutil.rmtree(source)
    done = run("run", other / "m.gguf.toml", "--source", place, PHITUI_HOME=str(tmp_path / "home2"))
    assert done["same"] is True
    assert (other / "m.gguf").read_bytes() == first.read_bytes()
    if moved == "the Hub's cache":
        assert recipe(first)["source"] | {"files": []} == {
            "kind": "checkpoint",
            "name": "models--acme--Phi-tiny/snapshots/0123abc",
            "repo": "acme/Phi-tiny",
            "revision": "0123abc",
            "files": [],
        }


@needs_llama
def test_the_same_bytes_with_a_matrix_and_options(folder: Path, tmp_path: Path) -> None:
    """From a GGUF; the path of the matrix, which the file tells, comes out the same although it is another here."""
    write_bytewise(folder / "src.gguf")
    (folder / "text.txt").write_text("Some words to read, over and over again. " * 20)
    made = run("imatrix", "src.gguf", "--text", "text.txt", "--out", "i.gguf", "--ctx", "128", cwd=folder)
    found = recipe(folder / "i.gguf")
    assert made["lineage"] == str(folder / "i.gguf.toml")
    assert (found["imatrix"]["model"], found["imatrix"]["text"], found["imatrix"]["context"]) == (
        "src.gguf",
        "text.txt",
        128,
    )
    assert found["result"]["sha256"] == sha256(folder / "i.gguf")
    assert found["imatrix"]["files"][0]["sha256"] == sha256(folder / "text.txt")
    matrix = (folder / "i.gguf").read_bytes()
    (folder / "i.gguf").unlink()
    assert run("run", folder / "i.gguf.toml")["same"] is True
    assert (folder / "i.gguf").read_bytes() == matrix
    words = ["build", "src.gguf", "--scheme", "IQ2_XS", "--imatrix", folder / "i.gguf", "--override", "ffn_down=Q4_K"]
    run(*words, "--out", "m.gguf", cwd=folder)
    option = recipe(folder / "m.gguf")["build"]["quantizer"]
    assert option == {
        "imatrix": "i.gguf",
        "imatrix_name": str(folder / "i.gguf"),
        "override": ["ffn_down=Q4_K"],
    }
    first = (folder / "m.gguf").read_bytes()
    there = folder.rename(tmp_path / "a longer name than before")  # the folder moves as a whole
    (there / "m.gguf").unlink()
    assert run("run", there / "m.gguf.toml", PHITUI_HOME=str(tmp_path / "home2"))["same"] is True
    assert (there / "m.gguf").read_bytes() == first
    assert run("run", there / "m.gguf", "--check")["same"] is True
    (there / "i.gguf").unlink()
    error = run("run", there / "m.gguf.toml", "--out", there / "n.gguf", code=2)["error"]
    assert "imatrix of the recipe is not there" in error["message"]


def test_running_again_skips_what_is_there(checkpoint: Path, folder: Path) -> None:
    out = folder / "m.gguf"
    run("build", checkpoint, "--scheme", "BF16", "--out", out)
    stamp = out.stat().st_mtime_ns
    done = run("run", f"{out}.toml")
    assert done["same"] is True
    assert done["steps"]["build"]["skipped"]
    assert out.stat().st_mtime_ns == stamp


def test_a_source_that_changed_is_refused_by_name(checkpoint: Path, folder: Path) -> None:
    out = folder / "m.gguf"
    run("build", checkpoint, "--scheme", "BF16", "--out", out)
    config = json.loads((checkpoint / "generation_config.json").read_text())
    (checkpoint / "generation_config.json").write_text(json.dumps(config | {"temperature": 0.25}))
    (checkpoint / "chat_template.jinja").write_text("new")
    again = folder / "again.gguf"
    error = run("run", f"{out}.toml", "--out", again, code=1)["error"]
    assert "chat_template.jinja (source) is new" in error["message"]
    assert "generation_config.json" in error["message"]
    assert "--force" in error["hint"]
    assert not again.exists()
    checked = run("run", out, "--check", code=1)
    assert {row["state"] for row in checked["files"]} >= {"same", "new"}
    forced = run("run", f"{out}.toml", "--out", again, "--force", code=1)
    assert forced["same"] is False
    assert forced["differences"]
    assert again.exists()


def test_check_finds_one_flipped_bit(checkpoint: Path, folder: Path) -> None:
    out = folder / "m.gguf"
    run("build", checkpoint, "--scheme", "BF16", "--out", out)
    stat = out.stat()
    with out.open("r+b") as file:
        file.seek(-5, 2)
        byte = file.read(1)[0]
        file.seek(-5, 2)
        file.write(bytes([byte ^ 1]))
    os.utime(out, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # nothing but reading it all can tell
    checked = run("run", out, "--check", code=1)
    assert (checked["files"][0]["role"], checked["files"][0]["state"]) == ("result", "changed")
    error = run("run", f"{out}.toml", "--overwrite")
    assert error["same"] is True


def test_other_versions_are_told(checkpoint: Path, folder: Path) -> None:
    out = folder / "m.gguf"
    run("build", checkpoint, "--scheme", "BF16", "--out", out)
    path = folder / "m.gguf.toml"
    text = path.read_text()
    text = text.replace('phitui = "', 'phitui = "9.').replace(sha256(out), "0" * 64)
    path.write_text(text)
    out.unlink()
    done = run("run", path, code=1)
    assert done["same"] is False
    assert any(line.startswith("phitui was 9.") for line in done["differences"])
    assert out.exists()


def test_a_file_that_is_something_else_stays(checkpoint: Path, folder: Path) -> None:
    out = folder / "m.gguf"
    run("build", checkpoint, "--scheme", "BF16", "--out", out)
    other = folder / "other.gguf"
    other.write_text("mine")
    error = run("run", f"{out}.toml", "--out", other, code=2)["error"]
    assert "--overwrite" in error["hint"]
    assert other.read_text() == "mine"
    assert run("run", f"{out}.toml", "--out", other, "--overwrite")["same"] is True


def test_a_renamed_file_and_its_recipe(checkpoint: Path, folder: Path) -> None:
    run("build", checkpoint, "--scheme", "BF16", "--out", folder / "m.gguf")
    (folder / "m.gguf").rename(folder / "n.gguf")
    (folder / "m.gguf.toml").rename(folder / "n.gguf.toml")
    assert run("run", folder / "n.gguf", "--check")["same"] is True
    first = (folder / "n.gguf").read_bytes()
    (folder / "n.gguf").unlink()
    assert run("run", folder / "n.gguf.toml")["same"] is True
    assert (folder / "n.gguf").read_bytes() == first


def test_overwriting_replaces_the_recipe_of_the_former_file(checkpoint: Path, folder: Path) -> None:
    out = folder / "m.gguf"
    run("build", checkpoint, "--scheme", "BF16", "--out", out)
    run("build", checkpoint, "--scheme", "F16", "--out", out, "--overwrite")
    assert recipe(out)["build"]["scheme"] == "F16"
    assert recipe(out)["result"]["sha256"] == sha256(out)


def test_a_recipe_of_a_person_beside_the_file_is_kept(checkpoint: Path, folder: Path) -> None:
    path = folder / "m.gguf.toml"
    path.write_text(f'# mine\n[build]\nsource = "{checkpoint}"\nscheme = "BF16"\nout = "m.gguf"\n')
    done = run("run", path)
    assert done["steps"]["build"]["lineage"] == ""
    assert path.read_text().startswith("# mine")
    assert (folder / "m.gguf").exists()


def test_a_missing_plugin_is_named(checkpoint: Path, folder: Path) -> None:
    out = folder / "m.gguf"
    run("build", checkpoint, "--scheme", "BF16", "--out", out)
    error = run("run", f"{out}.toml", "--out", folder / "n.gguf", code=2, PHITUI_PLUGINS="")["error"]
    assert "BF16" in error["message"]


def test_a_recipe_may_be_allowed_to_write_elsewhere(checkpoint: Path, folder: Path) -> None:
    path = folder / "r.toml"
    path.write_text(f'[build]\nsource = "{checkpoint}"\nscheme = "BF16"\nout = "../x.gguf"\n')
    made = run("run", path, "--outside")
    assert Path(made["path"]).resolve() == folder.parent / "x.gguf"


def test_example_and_usage(folder: Path) -> None:
    text = run("run", "--example")["recipe"]
    assert set(tomllib.loads(text)) == {"format", "get", "imatrix", "build", "evaluate", "plan", "export"}
    assert "no recipe" in run("run", code=2)["error"]["message"]
    assert "cannot read" in run("run", folder / "gone.toml", code=1)["error"]["message"]
    (folder / "m.gguf").write_text("x")
    assert "no recipe beside it" in run("run", folder / "m.gguf", code=2)["error"]["message"]
    (folder / "r.toml").write_text("[plan]\nmodel = 'x'")
    assert "records no file" in run("run", folder / "r.toml", "--check", code=2)["error"]["message"]


@needs_llama
def test_a_recipe_by_hand(folder: Path) -> None:
    """Matrix, build, evaluation, plan and export as one job; running it again does none of them twice."""
    write_bytewise(folder / "src.gguf")
    (folder / "text.txt").write_text("Some words to read, over and over again. " * 40)
    path = folder / "mine.toml"
    path.write_text(
        "[imatrix]\nmodel = 'src.gguf'\ntext = 'text.txt'\nout = 'i.gguf'\ncontext = 128\nchunks = 2\n"
        "[build]\nsource = 'src.gguf'\nscheme = 'IQ3_XXS'\nout = 'm.gguf'\nquantizer.override = ['ffn_down=Q6_K']\n"
        "[evaluate]\nreference = 'src.gguf'\ntext = 'text.txt'\nchunks = 2\noptions.ctx = 128\noptions.speed = false\n"
        "[plan]\ncontext = 256\nlayers = 0\n"
        "[export]\nto = 'ollama'\nout = 'ollama'\noptions.name = 'mine'\n"
    )
    done = run("run", path)
    assert list(done["steps"]) == ["imatrix", "build", "evaluate", "plan", "export"]
    assert done["same"] is None
    assert recipe(folder / "m.gguf")["build"]["quantizer"]["imatrix"] == "i.gguf"
    assert done["steps"]["evaluate"]["kld_mean"] >= 0
    assert done["steps"]["plan"]["fits"] is True
    assert (folder / "ollama" / "Modelfile").exists()
    again = run("run", path)["steps"]
    assert {name for name, step in again.items() if step.get("skipped")} == {"imatrix", "build", "evaluate", "export"}
    assert again["evaluate"]["kld_mean"] == done["steps"]["evaluate"]["kld_mean"]
    path.write_text(path.read_text().replace("ffn_down=Q6_K", "ffn_down=Q5_K"))
    error = run("run", path, code=2)["error"]
    assert "is not what this recipe makes" in error["message"]
    done = run("run", path, "--overwrite")["steps"]
    assert done["imatrix"].get("skipped")
    assert not done["build"].get("skipped")
    assert not done["evaluate"].get("skipped")


@needs_llama
def test_kill_9_in_a_recipe_and_the_same_command_again(
    tmp_path: Path, folder: Path, wait_until: Callable[..., None], home: Path
) -> None:
    slow = write_checkpoint(tmp_path / "slow", hidden=768, intermediate=1024, layers=2)
    path = folder / "r.toml"
    path.write_text(f'[build]\nsource = "{slow}"\nscheme = "IQ4_XS"\nout = "m.gguf"\n')
    job = run("run", path, "--threads", "1", "--detach")["job"]
    jobs = Jobs(home / "phitui" / "state" / "jobs")
    wait_until(lambda: jobs.get(job).progress.done > 0 and not jobs.get(job).progress.text, 30)
    os.kill(jobs.get(job).pid or 0, signal.SIGKILL)
    wait_until(lambda: jobs.get(job).state == "interrupted", 10)
    done = run("run", path, "--threads", "1")
    assert done["job"] == job
    assert done["steps"]["build"]["resumed_bytes"] > 0
    assert recipe(folder / "m.gguf")["result"]["sha256"] == sha256(folder / "m.gguf")
