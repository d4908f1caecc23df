"""The float schemes: F32, F16, BF16, and AUTO, which keeps what the checkpoint is stored as. Needs no llama.cpp."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from phitui.api import (
    Availability,
    Encoder,
    FilePlan,
    NoOptions,
    PlannedTensor,
    Scheme,
    SourceTensor,
    TensorSource,
    TensorType,
    UsageError,
    Value,
    place,
)

_QUANTIZATION_VERSION = 2
"""GGML_QNT_VERSION of ggml.h."""
_TYPES = {"F32": TensorType.F32, "BF16": TensorType.BF16, "F16": TensorType.F16}
_SCHEMES = (
    Scheme("F32", 32.0, 0, description="32-bit floats, twice the size of the checkpoint"),
    Scheme("BF16", 16.0, 32, description="16-bit floats with the range of F32, as Phi is trained"),
    Scheme("F16", 16.0, 1, description="16-bit floats; fastest on older GPUs"),
    Scheme("AUTO", 16.0, 1024, description="BF16 or F16, whichever the checkpoint has"),
)
_PATCHES = "v.patch_embd.weight"
"""The kernel of a convolution, for which llama.cpp has F32 and F16 (convert_hf_to_gguf.py, MmprojModel)."""
_FILE_TYPES = {scheme.name: scheme.file_type for scheme in _SCHEMES}


class FloatQuantizer:
    """Writes weights as plain floats; norms and other one-dimensional tensors are always F32."""

    name = "floats"
    title = "Floats (F32, BF16, F16)"
    options: type = NoOptions

    def available(self) -> Availability:
        return Availability()

    def schemes(self) -> Sequence[Scheme]:
        return _SCHEMES

    def plan(self, source: TensorSource, schemes: Sequence[str], options: Any) -> Mapping[str, FilePlan]:
        """The exact file of each scheme. Raises UsageError for an unknown scheme or an already quantized source."""
        for tensor in source.tensors:
            if not tensor.stored.is_float:
                raise UsageError(
                    f"{source.origin}: {tensor.name} is already {tensor.stored.name}; floats cannot bring back "
                    "what quantizing took away",
                    "build from the checkpoint, or from a BF16, F16 or F32 file",
                )
        return {scheme: self._plan(source, scheme.upper()) for scheme in schemes}

    def encoder(self, plan: FilePlan, options: Any) -> Encoder:
        """Never used: the writer converts floats by itself."""
        return _encode

    def _plan(self, source: TensorSource, scheme: str) -> FilePlan:
        if scheme not in _FILE_TYPES:
            raise UsageError(f"{scheme!r} is not a float scheme", f"schemes: {', '.join(_FILE_TYPES)}")
        notes: tuple[str, ...] = ()
        if scheme == "AUTO":
            scheme = _resolve(source)
            notes = (f"AUTO is {scheme} here",)
        type_ = _TYPES[scheme]
        metadata = {
            **source.metadata,
            "general.file_type": Value.u32(_FILE_TYPES[scheme]),
            "general.quantization_version": Value.u32(_QUANTIZATION_VERSION),
        }
        tensors = place([(tensor, _type(tensor, type_), None) for tensor in source.tensors])
        return FilePlan(scheme, metadata, tensors, notes=(*source.notes, *notes))


def _type(tensor: SourceTensor, wanted: TensorType) -> TensorType:
    if tensor.name == _PATCHES and wanted is TensorType.F16:
        return wanted
    return wanted if tensor.pinned is None else tensor.pinned


def _resolve(source: TensorSource) -> str:
    """BF16 or F16, as the first matrix that is either; F16 if all are F32 (as convert_hf_to_gguf.py --outtype auto)."""
    for tensor in source.tensors:
        if len(tensor.shape) > 1 and tensor.stored in (TensorType.BF16, TensorType.F16):
            return tensor.stored.name
    return "F16"


def _encode(tensor: PlannedTensor, first_row: int, rows: Any) -> Any:
    raise UsageError(f"{tensor.name}: the float schemes cannot encode {tensor.type.name}")
