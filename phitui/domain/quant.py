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


FILE_TYPES: dict[int, str] = {
    0: "F32",
    1: "F16",
    2: "Q4_0",
    3: "Q4_1",
    7: "Q8_0",
    8: "Q5_0",
    9: "Q5_1",
    10: "Q2_K",
    11: "Q3_K_S",
    12: "Q3_K_M",
    13: "Q3_K_L",
    14: "Q4_K_S",
    15: "Q4_K_M",
    16: "Q5_K_S",
    17: "Q5_K_M",
    18: "Q6_K",
    19: "IQ2_XXS",
    20: "IQ2_XS",
    21: "Q2_K_S",
    22: "IQ3_XS",
    23: "IQ3_XXS",
    24: "IQ1_S",
    25: "IQ4_NL",
    26: "IQ3_S",
    27: "IQ3_M",
    28: "IQ2_S",
    29: "IQ2_M",
    30: "IQ4_XS",
    31: "IQ1_M",
    32: "BF16",
    36: "TQ1_0",
    37: "TQ2_0",
    38: "MXFP4_MOE",
    39: "NVFP4",
    40: "Q1_0",
    41: "Q2_0",
}
"""llama.cpp's file types (llama.h, enum llama_ftype): the scheme under the id that general.file_type holds."""
