"""The child process that asks llama.cpp which tensor gets which type: `python -m phitui_quantize.dryrun`.

One JSON request on stdin, one JSON reply on stdout:

    {"model": PATH, "probe": PATH, "schemes": ["Q4_K_M"] | null, "options": {...}, "imatrix": {name: count} | null}
    {"schemes": {"Q4_K_M": {"file_type", "tensors": {name: [type, wanted | null]}, "needs_imatrix": [name], "error"}}}

`model` and `probe` are GGUF files of which only the header is written. The types come from the lines that
llama_model_quantize logs in a dry run; whatever the native code prints itself goes to stderr. `schemes` null means all
that the library knows; those without a type of their own are left out.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import sys
from functools import cache
from typing import Any

TENSOR_LINE = re.compile(r"^\[\s*\d+/\s*\d+\] (\S+)\s+- \[[^\]]*\], type =\s*(\S+), size =[^>]*(?:->.*\((\S+)\))?\s*$")
FALLBACK_LINE = re.compile(r"^warning: (\S+)\s.*\(required for type\s+(\S+)\).*-> falling back to\s+(\S+)\s*$")
NEEDS_IMATRIX = "will require an imatrix"
NO_SUCH_SCHEME = "invalid output file type"
NOT_REQUIRED = ("token_embd.weight", "output.weight")
"""Tensors for which llama.cpp never demands an importance matrix."""


class DryRun:
    """llama_model_quantize in dry-run mode, with its log in hand."""

    def __init__(self) -> None:
        import llama_cpp.llama_cpp as native

        self.native: Any = native
        self.lines: list[bytes] = []
        self._callback = native.llama_log_callback(lambda _level, text, _user: self.lines.append(text))
        native.llama_log_set(self._callback, None)

    def file_types(self) -> dict[str, int]:
        """Scheme name -> llama_ftype, from the library's own constants."""
        prefix = re.compile(r"LLAMA_FTYPE_(?:MOSTLY|ALL)_(\w+)")
        found = {
            match[1]: int(getattr(self.native, name)) for name in dir(self.native) if (match := prefix.match(name))
        }
        return dict(sorted(found.items(), key=lambda item: item[1]))

    def run(self, model: str, file_type: int, options: dict[str, Any], imatrix: dict[str, int] | None) -> list[str]:
        """The log lines of one dry run. Raises ValueError with llama.cpp's words if it refuses."""
        native = self.native
        self.lines.clear()
        params = native.llama_model_quantize_default_params()
        params.ftype, params.dry_run, params.nthread = file_type, True, 1
        params.pure = bool(options.get("pure"))
        params.allow_requantize = bool(options.get("allow_requantize"))
        for name in ("output_tensor_type", "token_embedding_type"):
            if options.get(name) is not None:
                setattr(params, name, options[name])
        if overrides := options.get("overrides"):
            items = [native.llama_model_tensor_override(pattern.encode(), type_) for pattern, type_ in overrides]
            params.tt_overrides = (native.llama_model_tensor_override * (len(items) + 1))(*items)
        if imatrix is not None:
            params.imatrix = self._imatrix(imatrix)
        failed = native.llama_model_quantize(model.encode(), b"", ctypes.byref(params))
        lines = b"".join(self.lines).decode("utf-8", "replace").splitlines()
        if failed:
            raise ValueError(next((line for line in reversed(lines) if line.strip()), "no reason given"))
        return lines

    def _imatrix(self, entries: dict[str, int]) -> Any:
        """Stand-in values: a dry run looks at which tensors have entries only, and that all are finite."""
        ones = (ctypes.c_float * max(entries.values(), default=1))(1.0)
        item = self.native.llama_model_imatrix_data
        return (item * (len(entries) + 1))(*(item(name.encode(), ones, 1) for name in entries))

    def plan(self, request: dict[str, Any], file_type: int) -> dict[str, Any]:
        """The reply for one scheme."""
        options, imatrix = request["options"], request.get("imatrix")
        try:
            lines = self.run(request["model"], file_type, options, imatrix)
        except ValueError as error:
            return {"file_type": file_type, "tensors": {}, "needs_imatrix": [], "error": _reason(str(error))}
        wanted = {match[1]: match[2] for line in lines if (match := FALLBACK_LINE.match(line))}
        tensors: dict[str, Any] = {
            match[1]: [match[3] or match[2], wanted.get(match[1])]
            for line in lines
            if (match := TENSOR_LINE.match(line))
        }
        needs = [
            name
            for name, (type_name, _) in tensors.items()
            if name not in (imatrix or {}) and self._needs(request["probe"], file_type, type_name, name)
        ]
        return {"file_type": file_type, "tensors": tensors, "needs_imatrix": needs, "error": ""}

    def _needs(self, probe: str, file_type: int, type_name: str, name: str) -> bool:
        if self._cannot_encode_without(type_name):
            return True
        return name not in NOT_REQUIRED and self._demanded(probe, file_type, type_name)

    @cache  # noqa: B019  (one instance per process)
    def _demanded(self, probe: str, file_type: int, type_name: str) -> bool:
        """Whether llama.cpp demands an imatrix for this tensor type in this scheme: a dry run on a single tensor."""
        options = {"overrides": [[".*", self._types()[type_name]]]}
        try:
            return any(NEEDS_IMATRIX in line for line in self.run(probe, file_type, options, None))
        except ValueError:
            return False

    @cache  # noqa: B019
    def _cannot_encode_without(self, type_name: str) -> bool:
        """Whether ggml aborts when it is given rows of this type without weights."""
        return bool(self._ggml().ggml_quantize_requires_imatrix(self._types()[type_name]))

    @cache  # noqa: B019
    def _types(self) -> dict[str, int]:
        """ggml's name of each tensor type -> its id. The default of an optional type is the count of types."""
        names: dict[str, int] = {}
        for type_ in range(self.native.llama_model_quantize_default_params().output_tensor_type):
            name = self._ggml().ggml_type_name(type_)
            if name:
                names.setdefault(name.decode(), type_)
        return names

    @cache  # noqa: B019
    def _ggml(self) -> Any:
        from phitui_quantize.library import ggml_base

        library = ctypes.CDLL(str(ggml_base()))
        library.ggml_type_name.restype = ctypes.c_char_p
        library.ggml_quantize_requires_imatrix.restype = ctypes.c_bool
        return library


def _reason(line: str) -> str:
    """llama.cpp's words without the name of its function."""
    return line.rpartition("failed to quantize: ")[2].strip()


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """The whole reply."""
    dry_run = DryRun()
    known = dry_run.file_types()
    names = request["schemes"] if request["schemes"] is not None else list(known)
    plans = {name: dry_run.plan(request, known[name]) for name in names if name in known}
    return {"schemes": {name: plan for name, plan in plans.items() if NO_SUCH_SCHEME not in plan["error"]}}


def main() -> None:
    reply = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    request = json.load(sys.stdin)
    json.dump(answer(request), reply)
    reply.flush()


if __name__ == "__main__":
    main()
