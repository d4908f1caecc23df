"""llama.cpp's quantization schemes: type plans asked from llama.cpp, rows encoded by its own ggml."""

from __future__ import annotations

from collections.abc import Iterable

from phitui.api import Quantizer, hookimpl


@hookimpl
def phitui_quantizers() -> Iterable[Quantizer]:
    from phitui_quantize.quantizer import LlamaQuantizer

    return [LlamaQuantizer()]
