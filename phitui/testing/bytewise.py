"""Tiny random phi3 and phimoe models whose tokens are bytes, and what their weights meet, computed in plain numpy.

    from phitui.testing.bytewise import activations, tokens, write_bytewise
    model = write_bytewise(tmp_path / "tiny.gguf", experts=4)     # llama.cpp runs it like any Phi
    met = activations(model, tokens("some text"))                 # {"blk.0.attn_qkv.weight": [(rows, expert), ...]}

The last of several experts is never chosen. Needs numpy and gguf. The formulas are what llama.cpp computes for phi3 and
phimoe (see formulas.py): RMS norm, rotary embedding, grouped attention, SwiGLU; softmax routing to two experts.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from phitui.testing.scripted import SPECIAL

WIDTH, HEADS, KV_HEADS, FEED_FORWARD, LAYERS, CHOSEN = 256, 4, 2, 256, 2, 2
HEAD = WIDTH // HEADS
EPSILON, BASE = 1e-5, 10000.0
NEVER = 100.0
"""How much less than the others the router likes the last expert."""


def tokens(text: str) -> list[int]:
    """The tokens llama.cpp makes of a text without special tokens: its bytes."""
    return list(text.encode())


def write_bytewise(path: Path, *, experts: int = 0, layers: int = LAYERS, width: int = WIDTH, seed: int = 0) -> Path:
    """Write the model in F32: phi3, or phimoe with so many experts. The same arguments give the same bytes."""
    from gguf import GGUFWriter

    from phitui.testing import scripted

    words = [scripted._shown(bytes([byte])) for byte in range(256)] + list(SPECIAL)
    writer = GGUFWriter(path, "phimoe" if experts else "phi3")
    scripted._keys(writer, "Bytewise", width, 4096, layers)
    for key, value in (("feed_forward_length", FEED_FORWARD), ("attention.head_count", HEADS)):
        writer.kv_data[0][f"{writer.arch}.{key}"].value = value
    writer.kv_data[0][f"{writer.arch}.attention.head_count_kv"].value = KV_HEADS
    writer.kv_data[0][f"{writer.arch}.rope.dimension_count"].value = width // HEADS
    if experts:
        writer.add_expert_count(experts)
        writer.add_expert_used_count(CHOSEN)
    scripted._tokenizer(writer, words, SPECIAL, "<|end|>", "")
    for name, values in _weights(len(words), experts, layers, width, seed).items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _weights(vocabulary: int, experts: int, layers: int, width: int, seed: int) -> dict[str, Any]:
    import numpy as np

    random = np.random.default_rng(seed)
    keys = width + 2 * KV_HEADS * (width // HEADS)

    def normal(*shape: int, scale: float = 0.05) -> Any:
        return random.normal(0, scale, shape).astype(np.float32)

    found = {"token_embd.weight": normal(vocabulary, width, scale=1.0), "output.weight": normal(vocabulary, width)}
    found["output_norm.weight"] = 1 + normal(width)
    if experts:
        found |= {"output_norm.bias": normal(width), "output.bias": normal(vocabulary)}
    for layer in range(layers):
        at = f"blk.{layer}."
        found |= {at + "attn_norm.weight": 1 + normal(width), at + "ffn_norm.weight": 1 + normal(width)}
        found |= {at + "attn_qkv.weight": normal(keys, width), at + "attn_output.weight": normal(width, width)}
        if not experts:
            found[at + "ffn_up.weight"] = normal(2 * FEED_FORWARD, width)
            found[at + "ffn_down.weight"] = normal(width, FEED_FORWARD)
            continue
        for name, size in (("attn_norm", width), ("ffn_norm", width), ("attn_output", width), ("attn_qkv", keys)):
            found[f"{at}{name}.bias"] = normal(size)
        found[at + "ffn_norm.weight"][0], found[at + "ffn_norm.bias"][0] = 0, 1
        router = normal(experts, width)
        router[:, 0], router[-1, 0] = 0, -NEVER
        found[at + "ffn_gate_inp.weight"] = router
        for name in ("ffn_gate_exps", "ffn_up_exps"):
            found[f"{at}{name}.weight"] = normal(experts, FEED_FORWARD, width)
        found[at + "ffn_down_exps.weight"] = normal(experts, width, FEED_FORWARD)
    return found


Met = dict[str, list[tuple[Any, int]]]
"""By weight: pairs of float64 rows (count, columns) and the expert they met, 0 for a dense weight."""


def activations(model: Path, ids: list[int]) -> Met:
    """What every weight of a block is multiplied with while the model reads these tokens from an empty cache."""
    import numpy as np
    from gguf import GGUFReader

    weights = {tensor.name: np.asarray(tensor.data, np.float64) for tensor in GGUFReader(model).tensors}
    layers = 1 + max(int(name.split(".")[1]) for name in weights if name.startswith("blk."))
    met: Met = {}
    state = weights["token_embd.weight"][ids]
    for layer in range(layers):
        at = f"blk.{layer}."
        own = {name.removeprefix(at): values for name, values in weights.items() if name.startswith(at)}
        found: Met = {}
        state = state + _attention(own, _norm(state, own, "attn_norm"), found)
        hidden = _norm(state, own, "ffn_norm")
        state = state + (_mixture(own, hidden, found) if "ffn_gate_inp.weight" in own else _dense(own, hidden, found))
        met |= {at + name: rows for name, rows in found.items()}
    return met


def _norm(x: Any, own: dict[str, Any], name: str) -> Any:
    from phitui.testing import formulas

    return formulas.rms_norm(x, own[f"{name}.weight"], EPSILON, own.get(f"{name}.bias", 0))


def _attention(own: dict[str, Any], x: Any, found: Met) -> Any:
    import numpy as np

    from phitui.testing import formulas

    found["attn_qkv.weight"] = [(x, 0)]
    count, head = len(x), x.shape[1] // HEADS
    mixed = x @ own["attn_qkv.weight"].T + own.get("attn_qkv.bias", 0)
    parts = np.split(mixed, [HEADS * head, (HEADS + KV_HEADS) * head], axis=1)
    q, k, v = (part.reshape(count, -1, head) for part in parts)
    angles = formulas.frequencies(BASE, head)
    out = formulas.attention(formulas.rotate(q, angles), formulas.rotate(k, angles), v)
    found["attn_output.weight"] = [(out, 0)]
    return out @ own["attn_output.weight"].T + own.get("attn_output.bias", 0)


def _dense(own: dict[str, Any], x: Any, found: Met) -> Any:
    import numpy as np

    from phitui.testing import formulas

    found["ffn_up.weight"] = [(x, 0)]
    gate, up = np.split(x @ own["ffn_up.weight"].T, 2, axis=1)
    inner = formulas.silu(gate) * up
    found["ffn_down.weight"] = [(inner, 0)]
    return inner @ own["ffn_down.weight"].T


def _mixture(own: dict[str, Any], x: Any, found: Met) -> Any:
    import numpy as np

    from phitui.testing import formulas

    found["ffn_gate_inp.weight"] = [(x, 0)]
    share = formulas.softmax_routing(x @ own["ffn_gate_inp.weight"].T, CHOSEN)
    total = np.zeros_like(x)
    for name in ("ffn_gate_exps.weight", "ffn_up_exps.weight", "ffn_down_exps.weight"):
        found[name] = []
    for expert in range(share.shape[1]):
        rows = np.nonzero(share[:, expert])[0]
        if not len(rows):
            continue
        part = x[rows]
        gate = part @ own["ffn_gate_exps.weight"][expert].T
        inner = formulas.silu(gate) * (part @ own["ffn_up_exps.weight"][expert].T)
        found["ffn_gate_exps.weight"].append((part, expert))
        found["ffn_up_exps.weight"].append((part, expert))
        found["ffn_down_exps.weight"].append((inner, expert))
        total[rows] += share[rows, expert, None] * (inner @ own["ffn_down_exps.weight"][expert].T)
    return total
