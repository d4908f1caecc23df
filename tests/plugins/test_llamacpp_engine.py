"""llama.cpp in its own process, on a tiny model whose answer is known (phitui.testing.scripted)."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import phitui_llamacpp
import pytest

from phitui.actions.chat import Chat
from phitui.domain.chat import ChatStats, EngineSettings, Message, Sampling, TextChunk
from phitui.engine.client import EngineProcess
from phitui.engine.template import TemplateError
from phitui.errors import EngineError, PhituiError, Unavailable, UsageError
from phitui.testing.scripted import PHI3_TEMPLATE, SPECIAL, write_scripted

needs_llama = pytest.mark.skipif(find_spec("llama_cpp") is None, reason="llama-cpp-python is not installed")
TEXT = "Paris. سلام دنیا، Güneş 👩‍👩‍👧‍👦 ✓ done"
Load = Callable[..., Chat]
PIECES = """
import json, sys
from pathlib import Path
from phitui.api import EngineSettings, Message, Sampling, TextChunk
from phitui_llamacpp import LlamaCpp
session = LlamaCpp().open(Path(sys.argv[1]), EngineSettings(context=512, threads=1), lambda part: None)
chunks = session.stream([Message("user", "hello")], Sampling())
print(json.dumps([chunk.text for chunk in chunks if isinstance(chunk, TextChunk)]))
"""


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Load]:
    monkeypatch.setenv("PHITUI_PLUGINS", "llamacpp")
    made: list[EngineProcess] = []

    def factory(model: Path, sampling: Sampling | None = None, **settings: Any) -> Chat:
        values = {"context": 1024, "threads": 1} | settings
        made.append(EngineProcess("llama.cpp", model, EngineSettings(**values), tmp_path / "logs"))
        made[-1].start()
        return Chat(made[-1], sampling=sampling)

    yield factory
    for process in made:
        process.close(0)


@pytest.fixture
def parrot(tmp_path: Path) -> Path:
    return write_scripted(tmp_path / "parrot.gguf", TEXT)


def ask(chat: Chat, text: str = "hello") -> tuple[str, ChatStats]:
    chunks = list(chat.ask(text))
    assert isinstance(chunks[-1], ChatStats)
    return "".join(chunk.text for chunk in chunks if isinstance(chunk, TextChunk)), chunks[-1]


def prompt(*turns: str) -> int:
    """Tokens of the phi-3 prompt for these turns: bytes, and one for each special token."""
    return sum(1 + 1 + len(turn.encode()) + 1 + 1 for turn in turns) + 2


def test_missing_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(phitui_llamacpp, "find_spec", lambda name: None)
    state = phitui_llamacpp.LlamaCpp().available()
    assert not state.ok
    assert state.hint == "pip install 'phitui[llama]'"


@needs_llama
def test_available_without_loading_anything() -> None:
    code = (
        "import sys, phitui_llamacpp as p; assert p.LlamaCpp().available().ok; "
        "assert not {'llama_cpp', 'numpy', 'ctypes', 'jinja2'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@needs_llama
def test_answer(load: Load, parrot: Path) -> None:
    parts: list[float] = []
    chat = load(parrot)
    info = chat.info
    assert (info.model, info.architecture, info.chat_format) == ("parrot.gguf", "phi3", "phi-3")
    assert (info.context, info.layers_total, info.layers_offloaded) == (1024, 3, 0)
    assert info.details["notes"] == []
    text, stats = ask(chat)
    assert text == TEXT
    assert stats.finish_reason == "stop"
    assert stats.prompt_tokens == stats.evaluated_tokens == prompt("hello")
    assert stats.context_used == stats.prompt_tokens + stats.completion_tokens
    assert stats.decode_tokens_per_s > 0 and stats.prompt_tokens_per_s > 0
    chat.process.restart(parts.append)
    assert parts[-1] <= 1


@needs_llama
def test_no_character_is_ever_cut(load: Load, parrot: Path) -> None:
    """Not even between the session's own pieces, one per token, before the host gathers them for some milliseconds."""
    done = subprocess.run(
        [sys.executable, "-c", PIECES, str(parrot)], capture_output=True, text=True, timeout=120, check=True
    )
    pieces = json.loads(done.stdout.splitlines()[-1])
    assert len(pieces) > len(TEXT) // 2  # tokens are bytes
    assert "".join(pieces) == TEXT
    assert all("\ufffd" not in piece for piece in pieces)
    assert ask(load(parrot))[0] == TEXT


@needs_llama
def test_next_turn_evaluates_only_what_is_new(load: Load, parrot: Path) -> None:
    chat = load(parrot)
    ask(chat)
    used = ask(chat, "again")[1]
    # the answer's tokens are not the ones its text would be tokenized to: they are kept all the same
    assert used.evaluated_tokens == len("<|end|> \n") - 7 + prompt("again")
    assert used.prompt_tokens > used.evaluated_tokens
    third = ask(chat, "and again")
    assert third[0] == TEXT
    assert third[1].evaluated_tokens == 2 + prompt("and again")
    chat.reset()
    assert ask(chat, "hello")[1].evaluated_tokens < prompt("hello")  # the beginning is still there


@needs_llama
def test_a_prompt_that_is_all_cached_is_answered_again(load: Load, parrot: Path) -> None:
    chat = load(parrot)
    ask(chat)
    chat.reset()
    text, stats = ask(chat)
    assert text == TEXT
    assert stats.evaluated_tokens == 1


@needs_llama
def test_the_first_space_is_the_tokenizers(load: Load, tmp_path: Path) -> None:
    chat = load(write_scripted(tmp_path / "m.gguf", "  hello there"))
    assert ask(chat)[0] == " hello there"
    assert ask(chat, "again")[1].evaluated_tokens == 2 + prompt("again")


@needs_llama
def test_edited_history(load: Load, parrot: Path) -> None:
    chat = load(parrot)
    ask(chat)
    chat.messages[1] = Message("assistant", "Something else")
    text, stats = ask(chat, "so")
    assert text == TEXT
    assert stats.evaluated_tokens == stats.prompt_tokens - prompt("hello")


@needs_llama
@pytest.mark.parametrize(
    ("stop", "expected"), [("دنیا", "Paris. سلام "), ("s. س", "Pari"), ("Paris", ""), (" ✓", TEXT.partition(" ✓")[0])]
)
def test_stop_texts(load: Load, parrot: Path, stop: str, expected: str) -> None:
    chat = load(parrot, Sampling(stop=("never", stop)))
    for _ in range(2):
        text, stats = ask(chat)
        assert text == expected
        assert stats.finish_reason == "stop"


@needs_llama
def test_a_spelled_out_marker_of_the_format_ends_the_answer(load: Load, tmp_path: Path) -> None:
    chat = load(write_scripted(tmp_path / "m.gguf", "hello there <|user|> and more"))
    assert ask(chat)[0] == "hello there "


@needs_llama
def test_thinking_marks_are_shown(load: Load, tmp_path: Path) -> None:
    model = write_scripted(tmp_path / "m.gguf", "<think>hm</think> yes", special=(*SPECIAL, "<think>", "</think>"))
    assert ask(load(model))[0] == "<think>hm</think> yes"


@needs_llama
def test_lengths(load: Load, tmp_path: Path) -> None:
    model = write_scripted(tmp_path / "endless.gguf", "on and on it goes ", loop=True)
    chat = load(model, Sampling(max_tokens=7), context=256)
    _, stats = ask(chat)
    assert (stats.finish_reason, stats.completion_tokens) == ("length", 7)
    _, stats = ask(chat, "go on")
    assert stats.evaluated_tokens == 2 + prompt("go on")
    chat.sampling = Sampling()
    _, stats = ask(chat)
    assert (stats.finish_reason, stats.context_used, stats.context) == ("length", 256, 256)
    with pytest.raises(PhituiError, match=r"context holds 256") as caught:
        ask(chat)
    assert "4096 at most" in caught.value.hint
    chat.reset()
    chat.sampling = Sampling(max_tokens=1)
    assert ask(chat)[1].completion_tokens == 1


@needs_llama
def test_stop_while_generating(load: Load, tmp_path: Path) -> None:
    chat = load(write_scripted(tmp_path / "endless.gguf", "on and on ", loop=True, context=32768), context=32768)
    answer = chat.ask("hello")
    first = next(answer)
    chat.stop()
    began = time.monotonic()
    rest = list(answer)
    assert time.monotonic() - began < 2
    stats = rest[-1]
    assert isinstance(stats, ChatStats)
    assert stats.finish_reason == "cancelled"
    assert stats.completion_tokens < 10_000
    assert isinstance(first, TextChunk)
    assert chat.messages[-1].content.startswith(first.text)
    chat.sampling = Sampling(max_tokens=4)
    text, stats = ask(chat, "more")
    assert text.startswith("on and on")
    assert stats.finish_reason == "length"


@needs_llama
def test_stop_while_reading_the_prompt(load: Load, tmp_path: Path) -> None:
    """The abort switch reaches into a running graph: no batch has to be finished first."""
    model = write_scripted(tmp_path / "m.gguf", "yes, yes", context=32768, layers=8)
    chat = load(model, context=32768, batch=32768, ubatch=2048)
    threading.Timer(0.6, chat.stop).start()
    began = time.monotonic()
    text, stats = ask(chat, "a" * 30_000)
    assert time.monotonic() - began < 10
    assert (text, stats.finish_reason, stats.completion_tokens) == ("", "cancelled", 0)
    assert stats.evaluated_tokens == stats.context_used < stats.prompt_tokens
    assert chat.messages == []
    assert ask(chat)[0] == "yes, yes"


@needs_llama
def test_models_without_a_template(load: Load, tmp_path: Path) -> None:
    chat = load(write_scripted(tmp_path / "m.gguf", "hello there", template=None))
    text, stats = ask(chat)
    assert text == "hello there"
    assert stats.prompt_tokens == prompt("hello")
    assert "phi-3 format" in chat.info.details["notes"][0]
    plain = write_scripted(
        tmp_path / "phi-2.gguf", "yes\nInstruct: more", template=None, special=("<|endoftext|>",), end="<|endoftext|>"
    )
    chat = load(plain)
    assert chat.info.chat_format == "phi-2"
    # this answer begins after a newline, and phi-2's prompt ends with "Output:": whatever comes, it is an answer
    assert ask(chat)[1].prompt_tokens == len("Instruct: hello\nOutput:")


@needs_llama
def test_template_that_refuses(load: Load, tmp_path: Path) -> None:
    chat = load(write_scripted(tmp_path / "m.gguf", "yes, yes", template="{{ raise_exception('no talking') }}"))
    with pytest.raises(PhituiError, match="no talking"):
        ask(chat)
    assert chat.alive


def test_template_errors_are_phitui_errors() -> None:
    assert issubclass(TemplateError, PhituiError)


@needs_llama
@pytest.mark.parametrize("template", [PHI3_TEMPLATE, "{{ bos_token }}" + PHI3_TEMPLATE])
def test_bos_stands_once(load: Load, tmp_path: Path, template: str) -> None:
    model = write_scripted(tmp_path / "m.gguf", "yes, yes", template=template, bos="<|endoftext|>")
    chat = load(model)
    assert ask(chat)[1].prompt_tokens == 1 + prompt("hello")
    assert ask(chat)[1].evaluated_tokens == 2 + prompt("hello")


@needs_llama
@pytest.mark.parametrize("kv_type", ["q8_0", "q4_0", "bf16", "f32"])
def test_kv_types(load: Load, parrot: Path, kv_type: str) -> None:
    assert ask(load(parrot, kv_type=kv_type))[0] == TEXT


@needs_llama
@pytest.mark.parametrize(
    "settings", [{"flash_attention": True}, {"flash_attention": False}, {"mmap": False}, {"layers": -1}, {"batch": 3}]
)
def test_settings(load: Load, parrot: Path, settings: dict[str, Any]) -> None:
    assert ask(load(parrot, **settings))[0] == TEXT


@needs_llama
@pytest.mark.parametrize("settings", [{"kv_type": "q8_0", "flash_attention": False}, {"kv_type": "q2_k"}])
def test_settings_that_cannot_be(load: Load, parrot: Path, settings: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        load(parrot, **settings)


@needs_llama
def test_more_context_than_the_model_has(load: Load, parrot: Path) -> None:
    info = load(parrot, context=100_000).info
    assert info.context == 4096
    assert "4096" in info.details["notes"][0]


@needs_llama
def test_seeds_and_penalties(load: Load, tmp_path: Path) -> None:
    model = write_scripted(tmp_path / "dice.gguf", "irrelevant", sure=0.0)
    dice = Sampling(temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, max_tokens=40, repeat_penalty=1.1)

    def answer(chat: Chat, **changes: Any) -> str:
        from dataclasses import replace

        chat.reset()
        chat.sampling = replace(dice, **changes)
        return ask(chat)[0]

    chat = load(model)
    first = answer(chat, seed=1)
    assert first == answer(chat, seed=1)
    assert first != answer(chat, seed=2)
    assert answer(chat) != answer(chat)
    assert answer(chat, temperature=0) == answer(chat, temperature=0)


@needs_llama
@pytest.mark.parametrize("damage", ["empty", "text", "cut", "architecture"])
def test_files_that_cannot_be_loaded(load: Load, parrot: Path, damage: str) -> None:
    data = parrot.read_bytes()
    parrot.write_bytes(
        {
            "empty": b"",
            "text": b"not a model at all",
            "cut": data[: len(data) // 2],
            "architecture": data.replace(b"phi3", b"phi9"),
        }[damage]
    )
    with pytest.raises(EngineError, match=r"parrot\.gguf: .{10}") as caught:
        load(parrot)
    assert caught.value.hint
    assert caught.value.log_tail


@needs_llama
def test_rpc_worker_that_is_not_there(load: Load, parrot: Path) -> None:
    with pytest.raises((Unavailable, UsageError)):
        load(parrot, rpc=("127.0.0.1:1",))
    with pytest.raises((Unavailable, UsageError), match=r"HOST:PORT|RPC"):
        load(parrot, rpc=("nonsense",))


SERVER = """
import ctypes, sys
from pathlib import Path
import llama_cpp
folder = Path(llama_cpp.__file__).parent / "lib"
base = ctypes.CDLL(str(folder / "libggml-base.so.0"))
ggml = ctypes.CDLL(str(folder / "libggml.so.0"))
ggml.ggml_backend_reg_by_name.restype = ctypes.c_void_p
registry = ggml.ggml_backend_reg_by_name(b"RPC")
if not registry:
    sys.exit(3)
ggml.ggml_backend_dev_by_type.restype = ctypes.c_void_p
device = (ctypes.c_void_p * 1)(ggml.ggml_backend_dev_by_type(0))
base.ggml_backend_reg_get_proc_address.restype = ctypes.c_void_p
base.ggml_backend_reg_get_proc_address.argtypes = [ctypes.c_void_p, ctypes.c_char_p]
address = base.ggml_backend_reg_get_proc_address(registry, b"ggml_backend_rpc_start_server")
start = ctypes.CFUNCTYPE(None, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_void_p)
print("ready", flush=True)
start(address)(sys.argv[1].encode(), None, 1, 1, ctypes.cast(device, ctypes.c_void_p))
"""


@pytest.fixture
def worker(wait_until: Callable[..., None]) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """An RPC worker on a free port of this machine."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        endpoint = f"127.0.0.1:{free.getsockname()[1]}"
    server = subprocess.Popen(
        [sys.executable, "-c", SERVER, endpoint], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )

    def listening() -> bool:
        if server.poll() == 3:
            pytest.skip("this llama-cpp-python has no RPC")
        with socket.socket() as trial:
            return trial.connect_ex(("127.0.0.1", int(endpoint.split(":")[1]))) == 0

    try:
        wait_until(listening, 60)
        yield endpoint, server
    finally:
        server.kill()
        server.wait()


@needs_llama
@pytest.mark.skipif(sys.platform != "linux", reason="the library's name differs")
def test_rpc_worker_is_a_device(load: Load, parrot: Path, worker: tuple[str, Any]) -> None:
    chat = load(parrot, layers=-1, rpc=(worker[0],))
    assert chat.info.layers_offloaded == 3
    assert ask(chat)[0] == TEXT
    assert chat.process.log
    assert "RPC" in chat.process.log.read_text()


@needs_llama
@pytest.mark.skipif(sys.platform != "linux", reason="the library's name differs")
def test_llama_cpp_really_aborts(load: Load, parrot: Path, worker: tuple[str, Any]) -> None:
    """llama.cpp ends its whole process when an RPC worker dies: here that is the engine's, and the chat goes on."""
    endpoint, server = worker
    chat = load(parrot, layers=-1, rpc=(endpoint,))
    ask(chat)
    server.kill()
    server.wait()
    with pytest.raises(EngineError, match="SIGABRT") as caught:
        ask(chat, "and now?")
    assert "RPC server" in caught.value.log_tail
    assert [message.content for message in chat.messages] == ["hello", TEXT]
    with pytest.raises((Unavailable, UsageError)):
        chat.restart()
    chat.process.settings = EngineSettings(context=1024)
    chat.restart()
    assert ask(chat, "and now?")[0] == TEXT
    assert len(chat.messages) == 4


# settings -------------------------------------------------------------------------------------------------------------
def held(chat: Chat, what: str) -> int:
    """Bytes of that kind in all buffers, as llama.cpp's log said."""
    return sum(row["size"] for row in chat.info.details["memory"]["buffers"] if row["what"] == what)


@needs_llama
def test_the_session_tells_what_it_took(load: Load, parrot: Path) -> None:
    told = load(parrot).info.details["memory"]
    assert {row["what"] for row in told["buffers"]} == {"weights", "kv", "compute", "output"}
    assert all(row["size"] >= 0 and row["name"] for row in told["buffers"])
    assert told["private"] > 10 << 20
    assert load(parrot).info.details["library"].startswith("llama-cpp-python ")


@needs_llama
def test_keys_and_values_of_their_own_types(load: Load, parrot: Path) -> None:
    full = held(load(parrot, kv_type="f32"), "kv")
    halves = held(load(parrot, kv_type="f32", kv_type_v="f16"), "kv")
    assert halves == pytest.approx(full * 3 / 4, abs=0.02 * (1 << 20))


@needs_llama
def test_sequences_share_the_context(load: Load, parrot: Path) -> None:
    chat = load(parrot, context=2048, parallel=4)
    assert chat.info.context == 512
    assert ask(chat)[0] == TEXT
    unified = load(parrot, context=2048, parallel=4, kv_unified=True)
    assert unified.info.context == 2048


@needs_llama
def test_weights_are_mapped_or_not(load: Load, parrot: Path) -> None:
    names = [
        {row["name"] for row in load(parrot, mmap=mapped).info.details["memory"]["buffers"] if row["what"] == "weights"}
        for mapped in (True, False)
    ]
    assert "CPU_Mapped" in names[0]
    assert "CPU_Mapped" not in names[1]
    assert ask(load(parrot, mmap=False, mlock=True))[0] == TEXT


@needs_llama
def test_values_need_flash_attention_where_they_are_quantized(load: Load, parrot: Path) -> None:
    with pytest.raises(UsageError, match="q8_0 KV cache needs flash"):
        load(parrot, kv_type="f16", kv_type_v="q8_0", flash_attention=False)


@needs_llama
def test_experts_and_splits_reach_llama_cpp() -> None:
    """What the parameters point to: read back through the structures that llama.cpp itself reads."""
    code = """
import ctypes, llama_cpp.llama_cpp as lib
from phitui.api import EngineSettings, context_parameters, model_parameters
class Override(ctypes.Structure):
    _fields_ = (("pattern", ctypes.c_char_p), ("buffer_type", ctypes.c_void_p))
settings = EngineSettings(layers=7, n_cpu_moe=2, tensor_split=(3, 1), split_mode="none", main_gpu=1, parallel=2,
                          kv_offload=False, op_offload=False, kv_unified=True, mmap=False, kv_type="q8_0", batch=64)
made, kept = model_parameters(lib, settings)
rows = ctypes.cast(made.tensor_buft_overrides, ctypes.POINTER(Override * 3)).contents
assert [row.pattern for row in rows][2] is None and rows[0].buffer_type
import re
assert re.search(rows[1].pattern.decode(), "blk.1.ffn_down_exps.weight")
assert not re.search(rows[1].pattern.decode(), "blk.11.ffn_down_exps.weight")
assert not re.search(rows[1].pattern.decode(), "blk.1.ffn_down.weight")
assert [made.tensor_split[n] for n in range(3)] == [3, 1, 0]
assert (made.n_gpu_layers, made.split_mode, made.main_gpu, made.load_mode) == (7, 0, 1, 0)
plain, none = model_parameters(lib, EngineSettings())
assert not plain.tensor_buft_overrides and not none and plain.load_mode == lib.LLAMA_LOAD_MODE_MMAP
made = context_parameters(lib, settings, 1000)
assert (made.n_ctx, made.n_batch, made.n_ubatch, made.n_seq_max) == (1000, 64, 64, 2)
assert (made.type_k, made.type_v) == (8, 8)
assert (made.offload_kqv, made.op_offload, made.kv_unified, made.flash_attn_type) == (False, False, True, -1)
"""
    subprocess.run([sys.executable, "-c", code], check=True)
