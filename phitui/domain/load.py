"""How a model is loaded: the options that plans, chats and the engine share, declared once."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Literal

from phitui.domain.options import option

KV_TYPES = ("f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl")
"""Types that llama.cpp takes for the KV cache."""

SPLIT_MODES = ("layer", "row", "none")
SplitMode = Literal["layer", "row", "none"]

ALL = -1
"""All layers, all experts, all the context that fits."""

_SWITCH = {"auto": None, "on": True, "off": False}


@dataclass(frozen=True, kw_only=True)
class LoadOptions:
    """What can be chosen for a load. The words `auto`, `all` and `max` of the command line are None and -1 here.

    `context` None: 4096, or the model's if that is less; -1: the most that fits. It is n_ctx, shared by `parallel`
    sequences. `layers` counts the output layer first, as n_gpu_layers does; None: the most that fit. `n_cpu_moe`:
    layers whose experts stay in RAM, counted from the first; None: as few as the layers need. `kv_type` is that of the
    keys, and of the values where `kv_type_v` is None. `flash_attention` None lets the engine decide. `tensor_split`:
    parts of the offloaded layers for each device, in the engine's order (RPC workers first); empty: by free memory.
    """

    context: int | None = option(
        None,
        flag="--ctx",
        words={"max": ALL},
        help="Context in tokens; max: the most that fits.  [default: 4096, or the model's]",
    )
    layers: int | None = option(
        None, words={"auto": None, "all": ALL}, help="Layers to offload; auto: the most that fit."
    )
    kv_type: str = option("f16", choices=KV_TYPES, help="Type of the KV cache.")
    kv_type_v: str | None = option(None, choices=KV_TYPES, help="Type of the values in it, if another.", advanced=True)
    flash_attention: bool | None = option(None, flag="--flash-attn", words=_SWITCH, help="Flash attention.")
    n_cpu_moe: int | None = option(
        None,
        words={"auto": None, "all": ALL},
        help="Keep the experts of the first N layers in RAM; auto: as few as need be.",
    )
    tensor_split: tuple[float, ...] = option(
        (), joined=True, help="Parts of the layers for each device, such as 3,1; by free memory if not given."
    )
    split_mode: str = option("layer", choices=SPLIT_MODES, help="How several devices share a model.", advanced=True)
    main_gpu: int = option(0, help="The device to use with --split-mode none.", minimum=0, advanced=True)
    batch: int = option(512, help="Logical batch, tokens.", minimum=1, advanced=True)
    ubatch: int = option(512, help="Physical batch, tokens.", minimum=1, advanced=True)
    parallel: int = option(1, help="Sequences that share the context.", minimum=1, maximum=256, advanced=True)
    kv_unified: bool = option(False, help="One KV cache for all sequences.", advanced=True)
    kv_offload: bool = option(True, help="KV cache of offloaded layers on their device.", advanced=True)
    op_offload: bool = option(True, help="Let a GPU compute prompts for layers in RAM.", advanced=True)
    mmap: bool = option(True, help="Use the file's pages in place instead of copying them.", advanced=True)
    mlock: bool = option(False, help="Keep the weights from being swapped out.", advanced=True)
    rpc: tuple[str, ...] = option((), help="HOST:PORT of an RPC worker to use, instead of config.toml's. Repeatable.")
    no_rpc: bool = option(False, flag="--no-rpc", help="Use no RPC worker, also none of config.toml.", advanced=True)

    def chosen(self) -> dict[str, Any]:
        """What differs from leaving everything open, by name: what an exporter can take over from a plan.

        Layers and experts in RAM only count where something is offloaded.
        """
        idle = {"layers", "n_cpu_moe", "tensor_split"} if not self.layers else set()
        idle |= set() if self.n_cpu_moe else {"n_cpu_moe"}
        open_ = {field.name: field.default for field in fields(LoadOptions) if field.name not in idle}
        return {name: getattr(self, name) for name, default in open_.items() if getattr(self, name) != default}

    @property
    def value_type(self) -> str:
        """The KV type of the values."""
        return self.kv_type_v or self.kv_type
