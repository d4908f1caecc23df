"""What no machine could carry out: a load's options checked against the model and the devices, before any planning."""

from __future__ import annotations

import math
from collections.abc import Sequence

from phitui.domain.chat import EngineSettings
from phitui.domain.hardware import Device
from phitui.domain.load import ALL, SPLIT_MODES, LoadOptions
from phitui.domain.options import specs
from phitui.domain.placement import ModelMemory, kv_per_layer, kv_type, sequence_context
from phitui.errors import UsageError

DEFAULT_CONTEXT = 4096
LARGEST_CONTEXT = 1 << 24
"""Tokens; more is a slip of the finger. Only models that do not say their own limit come near it."""


def default_context(model: ModelMemory) -> int:
    """The context planned when none is asked for."""
    return min(DEFAULT_CONTEXT, model.context_length) if model.context_length > 0 else DEFAULT_CONTEXT


def longest_context(model: ModelMemory, options: LoadOptions) -> int:
    """The largest n_ctx that means something: what the model was trained for, for each sequence."""
    return min(LARGEST_CONTEXT, model.context_length * _shares(options) or LARGEST_CONTEXT)


def checked(model: ModelMemory, options: LoadOptions, offload: Sequence[Device]) -> EngineSettings:
    """The settings of these options, with 0 for what is still to be solved (layers, experts in RAM, context).

    `offload` are the devices that layers can go to. Raises UsageError for what cannot be.
    """
    _check_context(model, options)
    _check_layers(model, options)
    _check_cache(model, options)
    _check_devices(options, offload)
    layers, experts = options.layers or 0, options.n_cpu_moe or 0
    names = {spec.name for spec in specs(LoadOptions)}
    shared = {name: getattr(options, name) for name in names - {"context", "layers", "n_cpu_moe"}}
    return EngineSettings(
        **shared
        | {
            "kv_type": options.kv_type.lower(),
            "kv_type_v": options.kv_type_v.lower() if options.kv_type_v else None,
            "ubatch": min(options.ubatch, options.batch),
            "context": default_context(model) if options.context in (None, ALL) else options.context,
            "layers": model.layers_total if layers == ALL else layers,
            "n_cpu_moe": len(model.experts) if experts == ALL else min(experts, len(model.experts)),
        }
    )


def _shares(options: LoadOptions) -> int:
    return 1 if options.kv_unified else max(1, options.parallel)


def _check_context(model: ModelMemory, options: LoadOptions) -> None:
    context = default_context(model) if options.context is None else options.context
    if options.parallel < 1 or options.parallel > 256:
        raise UsageError(f"{options.parallel} sequences cannot share a context", "from 1 to 256; 1 is usual")
    if context == ALL:
        return
    if context < 1:
        raise UsageError(f"a context of {context} tokens holds nothing", "give at least 1; 4096 is usual")
    if context > longest_context(model, options):
        each = " for each sequence" if _shares(options) > 1 else ""
        most = longest_context(model, options)
        raise UsageError(
            f"a context of {context} tokens is more than this model has",
            f"it was trained for {model.context_length or LARGEST_CONTEXT}{each}: --ctx {most} or less",
        )
    if sequence_context(context, options.parallel, options.kv_unified) == 0:
        raise UsageError(f"a context of {context} leaves {options.parallel} sequences none", "give a larger --ctx")


def _check_layers(model: ModelMemory, options: LoadOptions) -> None:
    layers = options.layers or 0
    if layers > model.layers_total or layers < ALL:
        raise UsageError(
            f"{layers} layers cannot be offloaded: this model has {model.layers_total} (the output layer included)",
            f"from 0 to {model.layers_total}, -1 for all of them, or auto",
        )
    experts = options.n_cpu_moe or 0
    if experts and not model.experts:
        raise UsageError(
            "this model has no experts to keep in RAM: it is no mixture of experts",
            "leave --n-cpu-moe out; --layers decides what stays in RAM",
        )
    if experts > len(model.experts) or experts < ALL:
        raise UsageError(
            f"the experts of {experts} layers cannot be kept in RAM: this model has {len(model.experts)} such layers",
            f"from 0 to {len(model.experts)}, all, or auto",
        )


def _check_cache(model: ModelMemory, options: LoadOptions) -> None:
    kv_per_layer(model, 1, options.kv_type, options.value_type)
    if options.flash_attention is False and not kv_type(options.value_type).is_float:
        raise UsageError(
            f"a {options.value_type} KV cache needs flash attention",
            "leave flash attention on, or use f16 for the values of the KV cache",
        )
    if options.ubatch < 1 or options.batch < 1:
        raise UsageError("a batch holds at least one token", "512 is usual")


def _check_devices(options: LoadOptions, offload: Sequence[Device]) -> None:
    if options.split_mode not in SPLIT_MODES:
        raise UsageError(f"the split mode cannot be {options.split_mode!r}", f"one of: {', '.join(SPLIT_MODES)}")
    split, count = options.tensor_split, len(offload)
    if any(part < 0 or not math.isfinite(part) for part in split) or (split and not any(split)):
        raise UsageError(
            f"a tensor split of {', '.join(f'{part:g}' for part in split)} says nothing",
            "one part for each device, none below 0, such as 3,1",
        )
    names = ", ".join(device.name for device in offload)
    if split and len(split) != count:
        raise UsageError(
            f"the tensor split has {len(split)} parts for {count} device{'s' * (count != 1)}",
            f"one part each, in this order: {names}" if count else "there is no device to offload to",
        )
    if options.split_mode == "none" and count and not 0 <= options.main_gpu < count:
        raise UsageError(f"there is no device {options.main_gpu} to use alone", f"they are, counted from 0: {names}")
    if options.split_mode == "row":
        unable = [device.name for device in offload if device.kind == "remote" or device.backend not in _ROWS]
        if unable:
            raise UsageError(f"{', '.join(unable)} cannot share a model by rows", "use --split-mode layer")


_ROWS = ("cuda", "rocm", "given")
"""Backends whose devices can hold some rows of every matrix."""
