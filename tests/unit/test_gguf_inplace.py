"""Who is not to be disturbed by an edit in place, and what is checked of a chat template."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from phitui.actions import gguf_edit, gguf_inplace
from phitui.actions.context import Context
from phitui.actions.gguf_edit import EditRequest
from phitui.actions.gguf_template import check_template
from phitui.domain.tensors import FilePlan, Value
from phitui.errors import InvalidFile, PhituiError
from phitui.gguf.header import encode_header, read_header


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "m.gguf"
    metadata = {"general.architecture": Value.string("phi3"), "general.name": Value.string("tiny")}
    path.write_bytes(encode_header(FilePlan("", metadata, ())))
    return path


def edit(file: Path, name: str = "four") -> EditRequest:
    return EditRequest(str(file), name=name, in_place=True)


def test_a_file_that_a_job_works_with_stays(context: Context, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = SimpleNamespace(id="abc", title="a build", live=True, request={"x": ["y", {"source": str(file)}]})
    monkeypatch.setattr(gguf_inplace, "list_jobs", lambda context: [job])
    before = file.read_bytes()
    with pytest.raises(PhituiError, match=r"job abc \(a build\) is working with m.gguf"):
        gguf_edit.start(context, edit(file))
    assert file.read_bytes() == before
    job.live = False
    assert gguf_edit.start(context, edit(file))["how"] == "header"  # type: ignore[index]


MAPS = """
import mmap, sys, time
with open(sys.argv[1], "rb") as file:
    held = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
print("mapped", flush=True)
sys.stdin.read()
"""


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="only Linux tells who has a file mapped")
def test_whoever_has_it_loaded_is_named(context: Context, file: Path) -> None:
    os.link(file, file.with_name("second.gguf"))
    with subprocess.Popen(
        [sys.executable, "-c", MAPS, str(file)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        child.stdout.readline()
        assert gguf_inplace.mapped_by(file) == [child.pid]
        notes = gguf_edit.preview(context, edit(file))["notes"]
        assert any(f"process {child.pid} has it loaded" in note for note in notes)
        assert any("2 names on this disk; they all change" in note for note in notes)
        child.communicate()
    assert gguf_inplace.mapped_by(file) == []


def test_a_read_only_directory(context: Context, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gguf_inplace.os, "access", lambda path, mode: Path(path) != file.parent)
    with pytest.raises(PhituiError, match="permission denied"):
        gguf_edit.start(context, edit(file))


def test_the_way_is_chosen_again_when_the_job_starts(context: Context, file: Path) -> None:
    """The file was edited between the request and the job: what would have been a rewrite is a change in place."""
    request = replace(edit(file), name="five5")
    notes: list[str] = []
    job = SimpleNamespace(note=notes.append, progress=lambda *_: None, check=lambda: None)
    assert gguf_edit.run({**request.__dict__}, job)["how"] == "header"  # type: ignore[arg-type]
    assert read_header(file).get("general.name") == "five5"
    assert gguf_edit.run({**request.__dict__}, job)["how"] == "nothing"  # type: ignore[arg-type]


def test_the_command_line_does_the_same(file: Path) -> None:
    request = EditRequest(
        str(file),
        name="n",
        chat_template="/t",
        values=(("a", "1"),),
        types={"a": "u8"},
        remove=("b",),
        tokens=((3, "x"),),
        special=(("eos", 2),),
        in_place=True,
        force=True,
    )
    line = " ".join(gguf_edit.command_line(request)[4:])
    assert line == (
        "--name n --chat-template /t --set a=1 --set-type a=u8 --token 3=x --special eos=2 --remove b "
        "--in-place --force"
    )


GOOD = "{% for m in messages %}{{ m.role }}: {{ m.content }}{{ eos_token }}{% endfor %}"


def test_templates() -> None:
    assert check_template(GOOD, "t", bos="<s>", eos="</s>") == []
    alternating = "{% if messages[0].role == 'system' %}{{ raise_exception('no') }}{% endif %}" + GOOD
    assert check_template(alternating, "t", bos="", eos="") == ["the template has no place for a system prompt"]
    for template, expected in [
        ("{% for m in messages %}\n\n{% oops %}", "t.jinja: .*line 3"),
        ("{{ messages[0].content | nosuchfilter }}", "t.jinja: "),
        ("{{ missing.attribute }}", "t.jinja: "),
        ("{% for m in messages %}{% for n in range(10**9) %}x{% endfor %}{% endfor %}", "t.jinja: "),
        ("constant", "the question of a chat is lost"),
        ("{{ messages[0].content }}", "the answer of a chat is lost"),
        ("", "the question of a chat is lost"),
        ("{{ messages.__class__.__mro__ }}" + GOOD, "unsafe"),
        ("x" * 2_000_000, "characters"),
    ]:
        with pytest.raises(InvalidFile, match=expected):
            check_template(template, "t.jinja", bos="", eos="")
    assert check_template("constant", "t", bos="", eos="", force=True)
