"""Quantization schemes (file types) and what a quantizer says about them."""

from __future__ import annotations

import re
from dataclasses import dataclass

from phitui.domain.tensors import TensorType
from phitui.errors import UsageError


@dataclass(frozen=True)
class Scheme:
    """A scheme such as Q4_K_M. `bits` per weight are nominal; `file_type` is llama.cpp's id (general.file_type)."""

    name: str
    bits: float
    file_type: int
    needs_imatrix: bool = False
    description: str = ""


@dataclass(frozen=True)
class Override:
    """`pattern=TYPE`: tensors whose name matches the regular expression get this type."""

    pattern: str
    type: TensorType

    @staticmethod
    def parse(text: str) -> Override:
        """Parse `REGEX=TYPE`. Raises UsageError with what is wrong."""
        pattern, found, name = text.rpartition("=")
        if not found or not pattern:
            raise UsageError(f"--override {text!r} is not REGEX=TYPE", "for example: --override 'ffn_down=Q6_K'")
        try:
            re.compile(pattern)
        except re.error as error:
            raise UsageError(f"--override {text!r}: {error}") from None
        try:
            return Override(pattern, TensorType[name.upper()])
        except KeyError:
            raise UsageError(
                f"--override {text!r}: {name!r} is not a tensor type", "tensor types: Q4_K, Q6_K, Q8_0, F16, BF16, ..."
            ) from None
