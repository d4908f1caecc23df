"""Phi checkpoints to GGUF: what to write for every Phi that llama.cpp runs, and the float schemes. Reads no data.

The result equals that of llama.cpp's convert_hf_to_gguf.py: the same keys and values, tensor names, shapes, types and
bytes. The one exception is `general.name`, which llama.cpp takes for a switch (see `names.py`).
"""

from __future__ import annotations

from phitui.api import Converter, Quantizer, hookimpl
from phitui_convert.converter import PhiConverter
from phitui_convert.floats import FloatQuantizer


@hookimpl
def phitui_converters() -> list[Converter]:
    return [PhiConverter()]


@hookimpl
def phitui_quantizers() -> list[Quantizer]:
    return [FloatQuantizer()]
