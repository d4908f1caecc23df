"""The probe's child process: its answers, and what its crash, silence or refusal costs."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from phitui_hardware import backends, child
from phitui_hardware.child import Child
from phitui_hardware.measure import _COMPUTE as COMPUTE
from phitui_hardware.measure import agree, logged_buffers, pipeline_copies, why

from phitui.api import EngineError, EngineSettings, MemoryProbe, PhituiError, Unavailable, UsageError
from phitui.domain.offers import Backend

LOG = """llama_context: constructing llama_context
sched_reserve: RPC0[127.0.0.1:50052] compute buffer size =    99.38 MiB
sched_reserve:        CPU compute buffer size =    16.39 MiB
sched_reserve: reserve took 1.93 ms, sched copies = 4
"""


def speaking(*lines: str) -> list[str]:
    """A command that answers each question with the next line of Python."""
    body = "import sys, os, time\n" + "".join(f"sys.stdin.readline()\n{line}\nsys.stdout.flush()\n" for line in lines)
    return [sys.executable, "-c", body]


def test_offers_are_backends_and_one_is_the_memory_probe() -> None:
    offers = backends.backends()
    assert [offer.name for offer in offers] == ["cpu", "cuda", "rocm", "metal", "vulkan", "sycl"]
    assert all(isinstance(offer, Backend) for offer in offers)
    assert [offer.name for offer in offers if isinstance(offer, MemoryProbe)] == ["cpu"]


def test_the_engine_says_what_it_is() -> None:
    pytest.importorskip("llama_cpp")
    found = child.engine()
    assert found["version"]
    assert "CPU" in found["backends"]
    assert found["devices"][-1]["kind"] in ("cpu", "gpu", "igpu", "accel")
    assert child.engine() is found, "within seconds it is not asked again"
    report = backends.CpuBackend().probe()
    assert report.engine is not None
    assert report.engine.features["CPU"]


def test_native_code_is_not_loaded_into_this_process() -> None:
    code = """
import sys
from phitui.actions.context import Context
from phitui.actions.doctor import doctor
doctor(Context())
print([name for name in sys.modules if name.startswith("llama_cpp") or name == "phitui_hardware.native"])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"


def test_a_crash_is_an_error_with_the_last_words_and_the_next_question_works() -> None:
    crashing = Child(command=speaking("print('GGML_ASSERT(ctx) failed', file=sys.stderr); os.abort()"))
    with pytest.raises(EngineError, match="killed by signal 6") as caught:
        crashing.ask({"op": "engine"})
    assert "GGML_ASSERT" in caught.value.log_tail
    with pytest.raises(EngineError):
        crashing.ask({"op": "engine"})
    crashing.close()


def test_silence_is_an_error_after_its_time() -> None:
    silent = Child(command=speaking("time.sleep(60)"))
    started = time.monotonic()
    with pytest.raises(EngineError, match="did not answer"):
        silent.ask({"op": "engine"}, seconds=0.3)
    assert time.monotonic() - started < 5
    silent.close()


def test_a_refusal_keeps_its_words() -> None:
    refusing = Child(command=speaking("""print('{"error": "no such model", "hint": "look again"}')"""))
    with pytest.raises(Unavailable) as caught:
        refusing.ask({"op": "measure"})
    assert (caught.value.message, caught.value.hint) == ("no such model", "look again")
    refusing.close()


def test_a_closed_child_leaves_no_process() -> None:
    made = Child(command=speaking("print('{}')", "print('{}')"))
    made.ask({})
    process = made._process
    assert process is not None
    made.close()
    assert process.poll() is not None


def test_the_child_ends_with_its_input() -> None:
    made = Child()
    process = made._running()
    assert process.stdin is not None
    process.stdin.close()
    assert process.wait(10) == 0
    made.close()


@pytest.mark.parametrize("endpoint", ["nonsense", "host:", ":1", "host:99999", "host:port"])
def test_texts_that_name_no_worker(endpoint: str) -> None:
    made = Child((endpoint,))
    with pytest.raises(UsageError, match="is not HOST:PORT"):
        made.ask({"op": "engine"})
    made.close()


def test_a_worker_that_is_not_there_costs_little() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        endpoint = f"127.0.0.1:{free.getsockname()[1]}"
    started = time.monotonic()
    with pytest.raises(PhituiError, match="does not answer"):
        backends.CpuBackend().workers((endpoint,))
    assert time.monotonic() - started < 5


def test_a_worker_that_speaks_something_else_is_an_error() -> None:
    pytest.importorskip("llama_cpp")
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            for _ in range(4):
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n" * 100)
                connection.close()

        threading.Thread(target=serve, daemon=True).start()
        with pytest.raises(PhituiError):
            backends.CpuBackend().workers((f"127.0.0.1:{server.getsockname()[1]}",))


def test_a_file_that_is_no_model_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp")
    path = tmp_path / "broken.gguf"
    path.write_bytes(b"GGUF" + bytes(100))
    with pytest.raises(PhituiError, match="cannot plan this load"):
        backends.CpuBackend().measure(path, EngineSettings())


def test_without_llama_cpp_python_the_ram_is_still_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child, "installed", lambda: False)
    report = backends.CpuBackend().probe()
    assert not report.compiled_in
    assert report.engine is None
    assert report.devices[0].total > 0
    with pytest.raises(Unavailable, match="not installed") as caught:
        backends.CpuBackend().measure(Path("x"), EngineSettings())
    assert "pip install" in caught.value.hint


def test_log_lines() -> None:
    lines = LOG.splitlines()
    rows = logged_buffers(lines, COMPUTE)
    assert [(row["name"], row["compute"]) for row in rows] == [
        ("RPC0[127.0.0.1:50052]", round(99.38 * 1024 * 1024)),
        ("CPU", round(16.39 * 1024 * 1024)),
    ]
    assert pipeline_copies(lines) == 4
    assert pipeline_copies([]) == 1
    assert agree(rows, rows)
    assert not agree([], rows)
    assert not agree([row | {"compute": row["compute"] * 2} for row in rows], rows)


def test_the_telling_line_of_a_log() -> None:
    assert why(["a: b", "llama_model_load: error loading model: unknown model architecture: 'x'", "end"]) == (
        "error loading model: unknown model architecture: 'x'"
    )
    assert why([]) == "it gave no reason"
