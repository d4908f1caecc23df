"""`phitui gguf`: split, merge, edit and show GGUF files."""

from __future__ import annotations

from typing import Any

import click

from phitui.actions import gguf_edit, gguf_files, gguf_show
from phitui.actions.context import Context
from phitui.actions.jobs import outcome
from phitui.cli import output
from phitui.cli.follow import duration, follow_job
from phitui.domain.sizes import parse_size
from phitui.domain.text import visible
from phitui.errors import UsageError
from phitui.gguf.edit import SPECIAL
from phitui.gguf.header import Header
from phitui.gguf.values import NAMES
from phitui.jobs import Job


def command(context: Context) -> click.Command:
    @click.group("gguf")
    def gguf() -> None:
        """Split, merge, edit and show GGUF files; tensors stay as they are.

        FILE is a path or a name in the library. Any file of a split model means the whole of it.
        """

    for made in (_show(context), _split(context), _merge(context), _edit(context)):
        gguf.add_command(made)
    return gguf


_detach = click.option("--detach", is_flag=True, help="Return at once; phitui jobs shows how it goes.")
_overwrite = click.option("--overwrite", is_flag=True, help="Replace existing files.")


def _show(context: Context) -> click.Command:
    @click.command("show")
    @click.argument("file")
    @click.option("--tensors", is_flag=True, help="List the tensors too: shape, type, offset in the file.")
    @click.option("--key", default="", help="Print the whole value of this key, however long.")
    @click.option("--this-file", is_flag=True, help="Of a split model, look at this file alone.")
    @output.json_flag
    def show(file: str, tensors: bool, key: str, this_file: bool, as_json: bool) -> None:
        """Show keys with their types, and tensors with their places."""
        header = gguf_show.show(context, file, this_file)
        document = gguf_show.as_document(header, key)
        if as_json:
            output.emit(document, True)
        elif key:
            output.emit(None, False, visible(gguf_show.text_of(header.value(key), whole=True), keep="\n\t"))
        else:
            output.emit(None, False, _shown(header, document, tensors))

    return show


def _shown(header: Header, document: dict[str, Any], tensors: bool) -> str:
    rows = [
        (visible(entry["key"]), entry["type"] + _count(entry), _line(header, entry["key"]))
        for entry in document["keys"]
    ]
    lines = [output.table(("key", "type", "value"), rows)]
    if tensors:
        places = [
            (
                visible(tensor.name),
                "x".join(map(str, tensor.shape)),
                tensor.type.name,
                f"{tensor.offset:,}",
                f"{tensor.size:,}",
                *([visible(tensor.path.name)] if len(header.files) > 1 else []),
            )
            for tensor in header.tensors
        ]
        columns = ("tensor", "shape", "type", "offset", "bytes", *(["file"] if len(header.files) > 1 else []))
        lines += ["", output.table(columns, places, right=(3, 4))]
    if len(header.files) > 1:
        parts = [
            (visible(file["path"].rpartition("/")[2]), str(file["tensors"]), output.size(file["size"]))
            for file in document["files"]
        ]
        lines += ["", output.table(("file", "tensors", "size"), parts, right=(1, 2))]
    lines += [
        "",
        f"{len(rows)} keys, {len(header.tensors)} tensors, {output.size(header.file_size)}; GGUF {header.version}, "
        f"aligned to {header.alignment} bytes, header of {header.data_start:,} bytes",
    ]
    return "\n".join(lines)


def _count(entry: dict[str, Any]) -> str:
    return f" {entry['count']:,}" if "count" in entry else ""


def _line(header: Header, key: str) -> str:
    text = visible(gguf_show.text_of(header.value(key), whole=False))
    return text if len(text) <= 100 else text[:99] + "…"


def _split(context: Context) -> click.Command:
    @click.command("split")
    @click.argument("file")
    @click.option(
        "--max-size", default="", help="Most bytes of tensors in one file, such as 2GiB; headers come on top."
    )
    @click.option("--max-tensors", type=click.IntRange(min=1), help="Most tensors in one file.")
    @click.option(
        "--out",
        default="",
        help="Directory, or what the names begin with: NAME-00001-of-00005.gguf.  [default: beside FILE]",
    )
    @click.option(
        "--no-tensor-first-split", "bare_first", is_flag=True, help="The first file has keys only, no tensors."
    )
    @click.option("--dry-run", is_flag=True, help="Show the files with their exact sizes; write nothing.")
    @_overwrite
    @_detach
    @output.json_flag
    def split(file: str, max_size: str, dry_run: bool, detach: bool, as_json: bool, **values: Any) -> None:
        """Split a GGUF into several files, as llama.cpp reads and llama-gguf-split writes them.

        The first file comes last, so a set that has it is complete. Give it to any program that loads the model.
        """
        size = parse_size(max_size) if max_size else None
        if max_size and not size:
            raise UsageError(f"{max_size!r} is no size", "for example: --max-size 2GiB")
        request = gguf_files.SplitRequest(file, max_size=size, **values)
        files = gguf_files.files_of(gguf_files.plan_split(context, request))
        if dry_run:
            output.emit({"files": files, "size": sum(file["size"] for file in files)}, as_json, _files(files))
            return
        job = gguf_files.start_split(context, request)
        _follow(context, job, detach, as_json, lambda result: _files(files), files=files)

    return split


def _files(files: list[dict[str, Any]]) -> str:
    rows = [(visible(file["path"]), str(file["tensors"]), output.size(file["size"])) for file in files]
    return output.table(("file", "tensors", "size"), rows, right=(1, 2))


def _merge(context: Context) -> click.Command:
    @click.command("merge")
    @click.argument("file")
    @click.option("--out", required=True, help="The GGUF to write.")
    @_overwrite
    @_detach
    @output.json_flag
    def merge(file: str, out: str, overwrite: bool, detach: bool, as_json: bool) -> None:
        """Merge the files of a split model into one: the bytes that were split."""

        def done(result: dict[str, Any]) -> str:
            figures = f"{output.size(result['size'])}, {result['tensors']} tensors from {result['parts']} files"
            return f"{visible(result['path'])}  {figures}, in {duration(result['seconds'])}"

        job = gguf_files.start_merge(context, gguf_files.MergeRequest(file, out, overwrite))
        _follow(context, job, detach, as_json, done)

    return merge


def _edit(context: Context) -> click.Command:
    types, names = ", ".join(NAMES.values()), "|".join(SPECIAL)

    @click.command("edit")
    @click.argument("file")
    @click.option("--name", help="The model's name (general.name).")
    @click.option(
        "--chat-template", default="", type=click.Path(), help="File with a Jinja chat template; it is tried."
    )
    @click.option(
        "--set", "values", multiple=True, metavar="KEY=VALUE", help="Set a key; KEY[3]=VALUE one entry of an array."
    )
    @click.option(
        "--set-type", "types", multiple=True, metavar="KEY=TYPE", help=f"Type of a new key: {types}; u32[]: list."
    )
    @click.option("--remove", multiple=True, metavar="KEY", help="Remove a key.")
    @click.option("--token", "tokens", multiple=True, metavar="ID=TEXT", help="Give a token another text.")
    @click.option("--special", multiple=True, metavar="NAME=ID", help=f"Say which token is special as {names}.")
    @click.option("--out", default="", help="Write a new file and leave FILE as it is.")
    @click.option("--in-place", is_flag=True, help="Change FILE: only its header, where the new one has the same size.")
    @click.option("--force", is_flag=True, help="Change even what describes the tensors or cannot be right.")
    @click.option("--dry-run", is_flag=True, help="Show what would change; write nothing.")
    @_overwrite
    @_detach
    @output.json_flag
    def edit(dry_run: bool, detach: bool, as_json: bool, **given: Any) -> None:
        """Change metadata: name, chat template, tokens, any key. Tensors stay as they are.

        A value keeps the type its key has. With --in-place only the header is written if the new one ends where the old
        one did (a kill at any moment leaves the file whole); else the file is written anew and takes its place.
        """
        request = _request(**given)
        if dry_run:
            document = gguf_edit.preview(context, request)
            output.emit(document, as_json, _edited(document, would=True))
            return
        made = gguf_edit.start(context, request)
        if isinstance(made, Job):
            _follow(context, made, detach, as_json, _edited)
        else:
            output.emit(made, as_json, _edited(made))

    return edit


def _request(**given: Any) -> gguf_edit.EditRequest:
    def number(text: str, flag: str) -> int:
        if not text.isdecimal() or len(text) > 12:
            raise UsageError(f"{flag}: {text!r} is no token id", "ids are whole numbers from 0")
        return int(text)

    types = dict(_pair(text, "--set-type", "general.year=u32") for text in given.pop("types"))
    values = tuple(_pair(text, "--set", "general.author=Microsoft") for text in given.pop("values"))
    tokens = [_pair(text, "--token", "32000=<|end|>") for text in given.pop("tokens")]
    special = [_pair(text, "--special", "eos=32000") for text in given.pop("special")]
    return gguf_edit.EditRequest(
        **given,
        types=types,
        values=values,
        tokens=tuple((number(index, "--token"), text) for index, text in tokens),
        special=tuple((name, number(index, "--special")) for name, index in special),
    )


def _pair(text: str, flag: str, example: str) -> tuple[str, str]:
    left, found, right = text.partition("=")
    if not found or not left:
        raise UsageError(f"{flag} {text!r} has no = in it", f"for example: {flag} {example!r}")
    return left, right


def _edited(document: dict[str, Any], would: bool = False) -> str:
    import json

    def shown(value: Any) -> str:
        return "-" if value is None else visible(json.dumps(value, ensure_ascii=False))

    lines = []
    for change in document["changes"]:
        key = visible(change["key"]) + ("" if change["index"] is None else f"[{change['index']}]")
        lines.append(f"{key} ({change['type']}): {shown(change['before'])} -> {shown(change['after'])}")
    lines += [f"note: {visible(note)}" for note in document["notes"]]
    path, written = visible(document["path"]), output.size(document["bytes_written"])
    verb = "would be" if would else "was"
    ways = {
        "nothing": "nothing to change",
        "header": f"only the header {verb} written, {'at most ' if would else ''}{written} of it",
        "rewritten": f"{verb} written anew, {written}: the header has another size",
        "copied": f"{verb} written, {written}",
    }
    return "\n".join([*lines, f"{path}: {ways[document['how']]}"])


def _follow(context: Context, job: Job, detach: bool, as_json: bool, text: Any, **more: Any) -> None:
    """Wait for a job and print its result and `more`, or only its id."""
    if detach:
        output.emit({"job": job.id}, as_json, f"job {job.id}: {job.title}")
        return
    result = outcome(follow_job(context, job.id, as_json))
    output.emit({"job": job.id, **result, **more}, as_json, text(result))
