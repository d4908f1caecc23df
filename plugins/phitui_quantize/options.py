"""What a person can ask of a quantization. Everything here is passed to llama.cpp, which decides."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from phitui.api import Override, TensorType, UsageError, option


@dataclass(frozen=True)
class QuantizeOptions:
    """Options of every scheme; the names follow llama-quantize."""

    imatrix: Path | None = option(None, help="importance matrix; phitui imatrix makes one")
    imatrix_name: str = option(
        "", help="what the file says of its importance matrix; by default the path as it was given", advanced=True
    )
    override: tuple[str, ...] = option(
        (), help="REGEX=TYPE: type of the tensors whose name matches; the first match wins"
    )
    pure: bool = option(False, help="every tensor gets the scheme's own type: no mixture")
    output_tensor_type: str = option("", help="type of output.weight", advanced=True)
    token_embedding_type: str = option("", help="type of token_embd.weight", advanced=True)
    allow_requantize: bool = option(
        False, help="quantize tensors that are quantized already; costs quality", advanced=True
    )
    substitutions: bool = option(
        True, help="accept llama.cpp's substitute types where a row does not divide into blocks", advanced=True
    )

    def overrides(self) -> tuple[Override, ...]:
        """The parsed overrides, in order. Raises UsageError."""
        return tuple(Override.parse(text) for text in self.override)

    def as_request(self) -> dict[str, object]:
        """What the dry run is told (see phitui_quantize.dryrun). Raises UsageError for a type that does not exist."""
        return {
            "pure": self.pure,
            "allow_requantize": self.allow_requantize,
            "overrides": [[item.pattern, int(item.type)] for item in self.overrides()],
            "output_tensor_type": _type_id("--output-tensor-type", self.output_tensor_type),
            "token_embedding_type": _type_id("--token-embedding-type", self.token_embedding_type),
        }


def _type_id(flag: str, name: str) -> int | None:
    if not name:
        return None
    try:
        return int(TensorType[name.upper()])
    except KeyError:
        raise UsageError(f"{flag}: {name!r} is not a tensor type", "tensor types: Q4_K, Q6_K, Q8_0, F16, ...") from None
