"""A tiny GGUF that llama.cpp really runs and that says what it is told: real tokens, real cache, known answer.

    from phitui.testing.scripted import write_scripted
    write_scripted(tmp_path / "parrot.gguf", "Paris. سلام")         # whatever is asked: "Paris. سلام", then <|end|>
    write_scripted(tmp_path / "endless.gguf", "on and on ", loop=True)

How: every token is a unit vector, all attention and feed-forward weights are zero, and the output matrix maps each
token to its successor. The tokens of the answer are pieces of its UTF-8 bytes, cut without regard for characters.
A layer is there in full, so the KV cache, offloading and context limits behave as in any Phi-3. Needs numpy and gguf.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

PHI3_TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>\n' + message['content'] + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
SPECIAL = ("<|endoftext|>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>")
NEWLINE = 10
"""The token after which the answer begins: the prompt's last one, a newline. Byte tokens have their byte as id."""
_CONTROL, _NORMAL = 3, 1  # llama_token_type


def write_scripted(
    path: Path,
    answer: str,
    *,
    loop: bool = False,
    template: str | None = PHI3_TEMPLATE,
    special: tuple[str, ...] = SPECIAL,
    end: str = "<|end|>",
    context: int = 4096,
    layers: int = 2,
    name: str = "Scripted",
    bos: str = "",
    sure: float = 40.0,
) -> Path:
    """Write the model. `loop` begins the answer anew instead of ending it; `template` None leaves the template out.

    `special` are the control tokens, `end` the one that ends the answer, unless `loop`. `bos` is the one of them that
    llama.cpp is to put before every prompt. `sure` is the weight of the right successor: 0 makes all tokens equal.
    """
    import numpy as np
    from gguf import GGUFWriter

    pieces = _pieces(answer.encode())
    tokens = [_shown(bytes([byte])) for byte in range(256)] + list(special) + [_shown(piece) for piece in pieces]
    first = 256 + len(special)
    after = {NEWLINE: first} | {first + at: first + at + 1 for at in range(len(pieces) - 1)}
    after[len(tokens) - 1] = first if loop else tokens.index(end)
    width = -(-len(tokens) // 64) * 64
    writer = GGUFWriter(path, "phi3")
    _keys(writer, name, width, context, layers)
    _tokenizer(writer, tokens, special, end, bos)
    if template is not None:
        writer.add_chat_template(template)
    writer.add_tensor("token_embd.weight", np.eye(len(tokens), width, dtype=np.float32))
    writer.add_tensor("output_norm.weight", np.ones(width, np.float32))
    output = np.zeros((len(tokens), width), np.float32)
    for token, follower in after.items():
        output[follower, token] = sure
    writer.add_tensor("output.weight", output)
    for layer in range(layers):
        _layer(writer, f"blk.{layer}.", width)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _pieces(data: bytes) -> list[bytes]:
    """Cut bytes into pieces of three or a few more, all different from each other and longer than a byte."""
    pieces: list[bytes] = []
    while data:
        length = 3
        while data[:length] in pieces and length < len(data):
            length += 1
        pieces.append(data[:length])
        data = data[length:]
    if len(set(pieces)) < len(pieces) or len(pieces[-1]) < 2:  # the end repeats an earlier piece: join the last two
        pieces[-2:] = [b"".join(pieces[-2:])]
    return pieces


def _shown(data: bytes) -> str:
    """Bytes as a byte-level BPE vocabulary writes them (GPT-2's table)."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    table = {byte: chr(byte) for byte in plain} | {byte: chr(256 + at) for at, byte in enumerate(others)}
    return "".join(table[byte] for byte in data)


def _keys(writer: Any, name: str, width: int, context: int, layers: int) -> None:
    writer.add_name(name)
    writer.add_context_length(context)
    writer.add_rope_scaling_orig_ctx_len(context)
    writer.add_embedding_length(width)
    writer.add_feed_forward_length(32)
    writer.add_block_count(layers)
    writer.add_head_count(2)
    writer.add_head_count_kv(1)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(width // 2)
    writer.add_rope_freq_base(10000.0)
    writer.add_file_type(0)
    writer.add_sliding_window(0)


def _tokenizer(writer: Any, tokens: list[str], special: tuple[str, ...], end: str, bos: str) -> None:
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([_CONTROL if token in special else _NORMAL for token in tokens])
    writer.add_token_merges(["Ā Ā"])  # of bytes that no text here has
    writer.add_eos_token_id(tokens.index(end))
    writer.add_add_bos_token(bool(bos))
    if bos:
        writer.add_bos_token_id(tokens.index(bos))


def _layer(writer: Any, prefix: str, width: int) -> None:
    import numpy as np

    def zeros(*shape: int) -> Any:
        return np.zeros(shape, np.float32)

    writer.add_tensor(prefix + "attn_norm.weight", np.ones(width, np.float32))
    writer.add_tensor(prefix + "attn_qkv.weight", zeros(2 * width, width))
    writer.add_tensor(prefix + "attn_output.weight", zeros(width, width))
    writer.add_tensor(prefix + "ffn_norm.weight", np.ones(width, np.float32))
    writer.add_tensor(prefix + "ffn_up.weight", zeros(64, width))
    writer.add_tensor(prefix + "ffn_down.weight", zeros(width, 32))
