"""Asks llama.cpp, in a child process, which type each tensor gets. No tensor data is read or written."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from phitui.api import (
    FilePlan,
    InvalidFile,
    Metadata,
    PhituiError,
    PlannedTensor,
    SourceTensor,
    TensorSource,
    TensorType,
    encode_header,
    place,
)

TIMEOUT = 300
"""Seconds for the child. All schemes of a 14B model take well under one."""


@dataclass(frozen=True)
class Answer:
    """What llama.cpp would do under one scheme. `error` is its refusal for this model, empty if there is none."""

    file_type: int
    tensors: Mapping[str, tuple[TensorType, TensorType | None]]
    needs_imatrix: tuple[str, ...]
    error: str


def start_type(tensor: SourceTensor) -> TensorType:
    """The type a tensor has before quantization: the one it must have, or the one it is stored in."""
    return tensor.pinned if tensor.pinned is not None else tensor.stored


def ask(
    source: TensorSource,
    schemes: Sequence[str] | None,
    options: Mapping[str, object],
    imatrix: Mapping[str, int] | None = None,
) -> dict[str, Answer]:
    """llama.cpp's answers for the schemes (None: for all it knows). Unknown schemes are absent.

    `imatrix` are the names of tensors with importance data and their counts of values.
    """
    try:
        with tempfile.TemporaryDirectory(prefix="phitui-plan-") as folder:
            model, probe = Path(folder, "model.gguf"), Path(folder, "probe.gguf")
            _write_header(model, source.metadata, place([(t, start_type(t), None) for t in source.tensors]))
            _write_header(probe, source.metadata, place([(_probe_tensor(), TensorType.F32, None)]))
            files = {"model": str(model), "probe": str(probe)}
            reply = _child(files | {"schemes": schemes, "options": dict(options), "imatrix": imatrix})
    except OSError as error:
        raise PhituiError(
            f"cannot ask llama.cpp for tensor types: {error}",
            f"planning writes a header of a few KiB below {tempfile.gettempdir()}; TMPDIR=DIR names another place",
        ) from None
    names = {tensor.name for tensor in source.tensors}
    return {name: _answer(name, answer, names) for name, answer in reply["schemes"].items()}


def _write_header(path: Path, metadata: Metadata, tensors: tuple[PlannedTensor, ...]) -> None:
    """A GGUF of full size of which only the header takes disk space. llama.cpp needs no vocabulary to plan."""
    slim = {key: value for key, value in metadata.items() if not key.startswith("tokenizer.")}
    plan = FilePlan("", slim, tensors)
    header = encode_header(plan)
    with path.open("wb") as file:
        file.write(header)
        file.truncate(len(header) + plan.data_size)


def _probe_tensor() -> SourceTensor:
    """A small tensor that every type can hold and every scheme quantizes."""
    return SourceTensor("blk.0.ffn_up.weight", (256, 2), TensorType.F32, ())


def _child(request: Mapping[str, Any]) -> dict[str, Any]:
    """Run the child and return its reply. Raises PhituiError with its last words if it fails."""
    environment = os.environ | {"GGML_NO_BACKTRACE": "1"}
    command = [sys.executable, "-P", "-m", "phitui_quantize.dryrun"]
    try:
        done = subprocess.run(
            command,
            input=json.dumps(request).encode(),
            capture_output=True,
            env=environment,
            timeout=TIMEOUT,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise PhituiError(f"llama.cpp did not answer within {TIMEOUT} s when asked for tensor types") from None
    if done.returncode == 0:
        try:
            reply: dict[str, Any] = json.loads(done.stdout)
            return reply
        except ValueError:
            pass
    words = done.stderr.decode("utf-8", "replace").strip().splitlines()[-5:]
    cause = f"signal {-done.returncode}" if done.returncode < 0 else f"exit code {done.returncode}"
    raise PhituiError(
        f"llama.cpp failed when asked for tensor types ({cause}): " + (" | ".join(words) or "it said nothing"),
        "this is usually a broken llama-cpp-python build: phitui doctor shows what it was compiled with",
    )


def _answer(scheme: str, reply: Mapping[str, Any], names: set[str]) -> Answer:
    if reply["error"]:
        return Answer(reply["file_type"], {}, (), reply["error"])
    try:
        tensors = {
            name: (TensorType[type_.upper()], TensorType[wanted.upper()] if wanted else None)
            for name, (type_, wanted) in reply["tensors"].items()
        }
    except KeyError as error:
        raise InvalidFile(f"{scheme}: llama.cpp chose tensor type {error}, which phitui does not know") from None
    if set(tensors) != names:
        missing = sorted(names ^ set(tensors))
        raise PhituiError(
            f"{scheme}: llama.cpp's dry run did not answer for {missing[0]!r} ({len(missing)} tensors in all)",
            "this llama-cpp-python may be newer than this phitui knows; try the version that phitui[llama] asks for",
        )
    return Answer(reply["file_type"], tensors, tuple(reply["needs_imatrix"]), "")
