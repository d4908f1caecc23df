"""The one module that plugins import: the hook marker, protocols, domain types, errors and the GGUF writer.

Names are resolved lazily, so `from phitui.api import hookimpl` loads neither numpy nor Textual.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from phitui.domain.bundle import Bundle, BundleFile, BundleLink, ExportModel
from phitui.domain.chat import (
    CHAT_FORMATS,
    ChatFormat,
    ChatStats,
    Chunk,
    EngineSettings,
    FinishReason,
    Message,
    Sampling,
    SessionInfo,
    TextChunk,
    chat_format,
    format_named,
)
from phitui.domain.hardware import BackendReport, Bandwidth, Device, EngineReport, InstallWay, MemoryBuffer
from phitui.domain.model import Artifact, KnownModel, ModelFacts, Rope, Verdict
from phitui.domain.offers import (
    Availability,
    Backend,
    BandwidthMeter,
    Catalogue,
    Command,
    Converter,
    Delivery,
    Encoder,
    Engine,
    Evaluator,
    Exporter,
    Finder,
    ImatrixCollector,
    ImatrixSettings,
    JobContext,
    Measures,
    MemoryProbe,
    Phitui,
    Publisher,
    Quantizer,
    Say,
    Session,
    Versioned,
)
from phitui.domain.options import NoOptions, option
from phitui.domain.quant import Override, Scheme
from phitui.domain.sizes import parse_size
from phitui.domain.tensors import (
    FileExtent,
    FilePlan,
    HubFile,
    InlineExtent,
    Metadata,
    PlannedTensor,
    RemoteExtent,
    Source,
    SourceTensor,
    TensorSource,
    TensorType,
    Value,
    ValueType,
    place,
)
from phitui.errors import (
    Cancelled,
    ContextFull,
    DoesNotFit,
    EngineError,
    InvalidFile,
    OutputExists,
    PhituiError,
    Unavailable,
    UnsupportedModel,
    UsageError,
)
from phitui.hookspecs import hookimpl

if TYPE_CHECKING:
    from phitui.config import configured_workers, modelfiles, plugin_folders
    from phitui.engine.complaints import NativeLog
    from phitui.engine.libraries import library_folder, native_library
    from phitui.engine.llama_parameters import context_parameters, model_parameters
    from phitui.engine.template import render_chat
    from phitui.engine.workers import Worker, ask_workers
    from phitui.gguf.header import Header, encode_header, read_header
    from phitui.gguf.reading import tensor_bytes
    from phitui.gguf.safetensors import Checkpoint, open_checkpoint
    from phitui.gguf.safetensors_writer import write_safetensors
    from phitui.gguf.shards import read_model
    from phitui.gguf.writer import write_gguf

_LAZY = {
    "NativeLog": "phitui.engine.complaints",
    "context_parameters": "phitui.engine.llama_parameters",
    "model_parameters": "phitui.engine.llama_parameters",
    "library_folder": "phitui.engine.libraries",
    "native_library": "phitui.engine.libraries",
    "Header": "phitui.gguf.header",
    "encode_header": "phitui.gguf.header",
    "read_header": "phitui.gguf.header",
    "read_model": "phitui.gguf.shards",
    "tensor_bytes": "phitui.gguf.reading",
    "Checkpoint": "phitui.gguf.safetensors",
    "open_checkpoint": "phitui.gguf.safetensors",
    "write_gguf": "phitui.gguf.writer",
    "write_safetensors": "phitui.gguf.safetensors_writer",
    "render_chat": "phitui.engine.template",
    "Worker": "phitui.engine.workers",
    "ask_workers": "phitui.engine.workers",
    "configured_workers": "phitui.config",
    "modelfiles": "phitui.config",
    "plugin_folders": "phitui.config",
}

__all__ = [
    "CHAT_FORMATS",
    "Artifact",
    "Availability",
    "Backend",
    "BackendReport",
    "Bandwidth",
    "BandwidthMeter",
    "Bundle",
    "BundleFile",
    "BundleLink",
    "Cancelled",
    "Catalogue",
    "ChatFormat",
    "ChatStats",
    "Checkpoint",
    "Chunk",
    "Command",
    "ContextFull",
    "Converter",
    "Delivery",
    "Device",
    "DoesNotFit",
    "Encoder",
    "Engine",
    "EngineError",
    "EngineReport",
    "EngineSettings",
    "Evaluator",
    "ExportModel",
    "Exporter",
    "FileExtent",
    "FilePlan",
    "Finder",
    "FinishReason",
    "Header",
    "HubFile",
    "ImatrixCollector",
    "ImatrixSettings",
    "InlineExtent",
    "InstallWay",
    "InvalidFile",
    "JobContext",
    "KnownModel",
    "Measures",
    "MemoryBuffer",
    "MemoryProbe",
    "Message",
    "Metadata",
    "ModelFacts",
    "NativeLog",
    "NoOptions",
    "OutputExists",
    "Override",
    "Phitui",
    "PhituiError",
    "PlannedTensor",
    "Publisher",
    "Quantizer",
    "RemoteExtent",
    "Rope",
    "Sampling",
    "Say",
    "Scheme",
    "Session",
    "SessionInfo",
    "Source",
    "SourceTensor",
    "TensorSource",
    "TensorType",
    "TextChunk",
    "Unavailable",
    "UnsupportedModel",
    "UsageError",
    "Value",
    "ValueType",
    "Verdict",
    "Versioned",
    "Worker",
    "ask_workers",
    "chat_format",
    "configured_workers",
    "context_parameters",
    "encode_header",
    "format_named",
    "hookimpl",
    "library_folder",
    "model_parameters",
    "modelfiles",
    "native_library",
    "open_checkpoint",
    "option",
    "parse_size",
    "place",
    "plugin_folders",
    "read_header",
    "read_model",
    "render_chat",
    "tensor_bytes",
    "write_gguf",
    "write_safetensors",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        from importlib import import_module

        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
