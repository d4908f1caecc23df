"""Other metadata in a GGUF: a few bytes of the header where that is enough, else the file written anew, as a job."""

from __future__ import annotations

import re
import stat
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from phitui.actions.context import Context
from phitui.actions.gguf_files import check_target, room
from phitui.actions.gguf_inplace import announce, check_in_place, has_lineage, make_partial, others, replace_file
from phitui.actions.gguf_show import brief
from phitui.actions.gguf_template import check_template
from phitui.actions.jobs import jobs
from phitui.actions.models import resolve_model
from phitui.domain.offers import JobContext
from phitui.domain.text import visible
from phitui.errors import UsageError
from phitui.gguf.edit import Change, Editor, EditPlan, plan
from phitui.gguf.header import Header, file_size, read_header
from phitui.gguf.shards import COUNT
from phitui.gguf.values import type_name
from phitui.jobs import Job

TASK = "phitui.actions.gguf_edit:run"
TEMPLATE = "tokenizer.chat_template"
_ENTRY = re.compile(r"(.+)\[(\d{1,12})\]", re.DOTALL)


@dataclass(frozen=True)
class EditRequest:
    """What to change in `file`, JSON-ready. Values are texts; KEY[3] is one entry of an array.

    `chat_template` is a path. One of `out` (a new file) and `in_place`. `force` changes what describes the tensors too.
    """

    file: str
    name: str | None = None
    chat_template: str = ""
    values: tuple[tuple[str, str], ...] = ()
    types: dict[str, str] = field(default_factory=dict)
    remove: tuple[str, ...] = ()
    tokens: tuple[tuple[int, str], ...] = ()
    special: tuple[tuple[str, int], ...] = ()
    out: str = ""
    in_place: bool = False
    force: bool = False
    overwrite: bool = False


@dataclass(frozen=True)
class Prepared:
    """An edit that was checked. `how`: "nothing", "header" (written in place), "rewritten" or "copied" (to `out`)."""

    header: Header
    changes: tuple[Change, ...]
    plan: EditPlan
    how: str
    notes: tuple[str, ...]


def prepare(ctx: Context, request: EditRequest) -> Prepared:
    """Check an edit and say what it comes to; writes nothing. Raises UsageError or InvalidFile."""
    path = Path(request.file) if Path(request.file).is_absolute() else resolve_model(ctx, request.file)
    header = read_header(path)
    count = header.get(COUNT, 0)
    if request.out and isinstance(count, int) and count > 1:
        raise UsageError(
            f"{path.name} is the first of {count} parts of a split model",
            "edit it --in-place, or phitui gguf merge first",
        )
    editor = Editor(header, request.force)
    _change(editor, request)
    made = plan(editor)
    notes = list(editor.notes)
    if not editor.changes:
        how = "nothing"
    elif request.out:
        how = "copied"
    else:
        how = "header" if made.fits else "rewritten"
        notes += others(path, how)
    return Prepared(header, tuple(editor.changes), made, how, tuple(notes))


def document(prepared: Prepared, path: Path, written: int, notes: Iterable[str] = ()) -> dict[str, Any]:
    """What was or would be done, JSON-ready. `bytes_written` are bytes of the file."""
    return {
        "path": str(path),
        "how": prepared.how,
        "bytes_written": written,
        "changes": [
            {
                "key": change.key,
                "index": change.index,
                "type": _type(change),
                "before": None if change.before is None else brief(change.before),
                "after": None if change.after is None else brief(change.after),
            }
            for change in prepared.changes
        ],
        "notes": [*prepared.notes, *notes],
    }


def preview(ctx: Context, request: EditRequest) -> dict[str, Any]:
    """What an edit would change, and how many bytes would be written."""
    request = normalized(ctx, request)
    prepared = prepare(ctx, request)
    sizes = {"nothing": 0, "header": len(prepared.plan.new)}
    written = sizes[prepared.how] if prepared.how in sizes else file_size(prepared.plan.rewritten)
    return document(prepared, Path(request.out or request.file), written)


def start(ctx: Context, request: EditRequest) -> dict[str, Any] | Job:
    """Change the header at once, or start the job that writes the file anew. Raises what `prepare` raises.

    Returns the finished edit as a document, or the job.
    """
    if bool(request.out) == request.in_place:
        raise UsageError("where the result goes is not clear", "give one of --in-place and --out FILE")
    request = normalized(ctx, request)
    prepared = prepare(ctx, request)
    file = Path(request.file)
    if prepared.how == "nothing":
        return document(prepared, file, 0)
    if request.in_place:
        check_in_place(ctx, file)
        if prepared.how == "header":
            return _patch(ctx, file, prepared)
        room(file.parent, file_size(prepared.plan.rewritten))
    else:
        check_target(Path(request.out), [file], request.overwrite)
        room(Path(request.out).parent, file_size(prepared.plan.rewritten))
    title = f"edit of {file.name}"
    argv = command_line(request)
    return jobs(ctx).start("edit", TASK, asdict(request), title, key=request.out or request.file, argv=argv)


def run(request: dict[str, Any], job: JobContext) -> dict[str, Any]:
    """The file written anew, in the job's process."""
    from phitui.actions.lineage import record_edit
    from phitui.gguf.writer import write_gguf

    ctx = Context()
    asked = EditRequest(**request)
    file, out = Path(asked.file), Path(asked.out) if asked.out else None
    prepared = prepare(ctx, asked)
    for note in prepared.notes:
        job.note(note)
    if prepared.how == "nothing":  # a former attempt died after the rename
        return document(prepared, file, 0)
    if prepared.how == "header":  # the file was changed since
        return _patch(ctx, file, prepared)
    what = _told(prepared)
    if out is not None:
        size = write_gguf(
            prepared.plan.rewritten, out, None, job, ctx.config.threads, overwrite=asked.overwrite, allow_nan=True
        ).size
        problem = record_edit(ctx, out, what, file)
    else:
        fresh = file.with_name(file.name + ".edited")
        mode = stat.S_IMODE(file.stat().st_mode)
        make_partial(fresh, mode)
        size = write_gguf(
            prepared.plan.rewritten, fresh, None, job, ctx.config.threads, overwrite=True, allow_nan=True
        ).size
        replace_file(fresh, file, mode)
        problem = record_edit(ctx, file, what) if has_lineage(file) else ""
    if problem:
        job.note(problem)
    return document(prepared, out or file, size)


def normalized(ctx: Context, request: EditRequest) -> EditRequest:
    """The request with absolute paths, of a split model the first file: the job's process runs elsewhere."""
    template = str(Path(request.chat_template).expanduser().absolute()) if request.chat_template else ""
    out = str(Path(request.out).expanduser().absolute()) if request.out else ""
    return replace(request, file=str(resolve_model(ctx, request.file)), chat_template=template, out=out)


def command_line(request: EditRequest) -> tuple[str, ...]:
    """The command that does the same."""
    words = ["phitui", "gguf", "edit", request.file]
    words += ["--name", request.name] if request.name is not None else []
    words += ["--chat-template", request.chat_template] if request.chat_template else []
    pairs = {
        "--set": request.values,
        "--set-type": request.types.items(),
        "--token": request.tokens,
        "--special": request.special,
    }
    for flag, given in pairs.items():
        words += [word for left, right in given for word in (flag, f"{left}={right}")]
    words += [word for key in request.remove for word in ("--remove", key)]
    words += ["--out", request.out] if request.out else ["--in-place"]
    words += ["--force"] if request.force else []
    return (*words, "--overwrite") if request.overwrite else tuple(words)


def _change(editor: Editor, request: EditRequest) -> None:
    given = {key for key, _ in request.values}
    for key in request.types:
        if key not in given:
            raise UsageError(f"--set-type {key} has no --set {key}=VALUE", "it says how that value is read")
    if request.name is not None:
        editor.set("general.name", request.name, "str")
        _check_name(editor, request.name)
    for key, text in request.values:
        entry = _ENTRY.fullmatch(key) if key not in editor.metadata else None
        if entry:
            editor.set_item(entry[1], int(entry[2]), text)
        else:
            editor.set(key, text, request.types.get(key, ""))
    for index, text in request.tokens:
        editor.set_token(index, text)
    for name, index in request.special:
        editor.set_special(name, index)
    for key in request.remove:
        editor.remove(key)
    if request.chat_template:
        editor.set(TEMPLATE, _template(editor, Path(request.chat_template)), "str")
    elif any(change.key == TEMPLATE and change.after is not None for change in editor.changes):
        _checked(editor, str(editor.metadata[TEMPLATE].value), f"the text for {TEMPLATE}")


def _check_name(editor: Editor, name: str) -> None:
    """llama.cpp looks for Phi-3's tokens where a name says Phi-3, and gives up on a vocabulary that lacks them."""
    tokens = editor.metadata.get("tokenizer.ggml.tokens")
    looks = "phi-3" in name.lower() or "phi3" in name.lower()
    needed = ("</s>", "<unk>", "<s>", "<|endoftext|>")
    if looks and tokens is not None and not set(needed) <= set(tokens.value) and not editor.force:
        raise UsageError(
            f"a model called {name!r} would not load: llama.cpp takes it for Phi-3 and misses Phi-3's tokens here",
            "choose a name without phi-3 or phi3 in it; --force sets it all the same",
        )


def _template(editor: Editor, path: Path) -> str:
    try:
        text = path.read_bytes().decode("utf-8")
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}", "--chat-template takes a file") from None
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not UTF-8 at byte {error.start}", "a chat template is a text") from None
    return _checked(editor, text, str(path))


def _checked(editor: Editor, template: str, where: str) -> str:
    """The template, once it was rendered."""
    editor.notes += check_template(
        template, where, bos=_special(editor, "bos"), eos=_special(editor, "eos"), force=editor.force
    )
    return template


def _special(editor: Editor, name: str) -> str:
    number, tokens = (
        editor.metadata.get(f"tokenizer.ggml.{name}_token_id"),
        editor.metadata.get("tokenizer.ggml.tokens"),
    )
    if number is None or tokens is None or not 0 <= number.value < len(tokens.value):
        return ""
    token = tokens.value[number.value]
    return token if isinstance(token, str) else token.decode("utf-8", "replace")


def _patch(ctx: Context, file: Path, prepared: Prepared) -> dict[str, Any]:
    from phitui.gguf.patch import replace_start

    problem = announce(ctx, file, _told(prepared))
    written = replace_start(file, prepared.plan.old, prepared.plan.new)
    return document(prepared, file, written, [problem] if problem else [])


def _told(prepared: Prepared) -> str:
    """The changes in a few words, for the lineage."""
    keys = list(dict.fromkeys(change.key for change in prepared.changes))
    more = f" and {len(keys) - 5} more keys" if len(keys) > 5 else ""
    return f"edited {', '.join(visible(key) for key in keys[:5])}{more}"


def _type(change: Change) -> str:
    value = change.after or change.before
    return type_name(value.type, value.is_array) if value else ""
