"""Activations that are not in this machine's memory: a loopback RPC worker is a true device, as a GPU is."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("phitui_quantize")
from phitui_quantize import library
from phitui_quantize.imatrix import read_imatrix

from phitui.testing.bytewise import write_bytewise

if not library.available().ok:
    pytest.skip("llama-cpp-python is not installed", allow_module_level=True)

SERVER = """
import ctypes, pathlib, sys
import llama_cpp.llama_cpp as llama
folder = pathlib.Path(llama._lib._name).parent
ggml, rpc = (ctypes.CDLL(str(folder / f"lib{name}.so.0")) for name in ("ggml", "ggml-rpc"))
ggml.ggml_backend_dev_by_type.restype = ctypes.c_void_p
device = ctypes.c_void_p(ggml.ggml_backend_dev_by_type(0))
rpc.ggml_backend_rpc_start_server.argtypes = [
    ctypes.c_char_p, ctypes.c_char_p, ctypes.c_size_t, ctypes.c_size_t, ctypes.POINTER(ctypes.c_void_p)]
rpc.ggml_backend_rpc_start_server(sys.argv[1].encode(), None, 1, 1, ctypes.byref(device))
"""

COLLECT = """
import ctypes, json, pathlib, sys
from pathlib import Path
import llama_cpp.llama_cpp as llama
from phitui.api import ImatrixSettings
from phitui_quantize.collector import collect
from phitui_quantize.graph import Ggml

model, out, worker = sys.argv[1:]
if worker:
    folder = pathlib.Path(llama._lib._name).parent
    base, ggml = (ctypes.CDLL(str(folder / f"lib{name}.so.0")) for name in ("ggml-base", "ggml"))
    ggml.ggml_backend_reg_by_name.restype = base.ggml_backend_reg_get_proc_address.restype = ctypes.c_void_p
    base.ggml_backend_reg_get_proc_address.argtypes = [ctypes.c_void_p, ctypes.c_char_p]
    ggml.ggml_backend_register.argtypes = [ctypes.c_void_p]
    add = base.ggml_backend_reg_get_proc_address(
        ggml.ggml_backend_reg_by_name(b"RPC"), b"ggml_backend_rpc_add_server")
    ggml.ggml_backend_register(ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_char_p)(add)(worker.encode()))

fetched = 0
prepare = Ggml.__init__
def counted(self):
    prepare(self)
    get = self._get
    def count(*arguments):
        global fetched
        fetched += 1
        get(*arguments)
    self._get = count
Ggml.__init__ = counted

class Job:
    def progress(self, done, total, text=""): pass
    def note(self, text): pass
    def check(self): pass

settings = ImatrixSettings(context=32, threads=1, layers=-1 if worker else 0)
collect(Path(model), "How vexingly quick daft zebras jump! " * 6, Path(out), settings, Job())
print(json.dumps(fetched))
"""


@pytest.fixture
def worker(wait_until: Callable[..., None]) -> Iterator[str]:
    """HOST:PORT of a worker."""
    if not sys.platform.startswith("linux"):
        pytest.skip("the loopback worker is started through Linux library names")
    ask = [sys.executable, "-c", "import llama_cpp.llama_cpp as l; print(l.llama_supports_rpc())"]
    if "True" not in subprocess.run(ask, capture_output=True, text=True, check=True).stdout:
        pytest.skip("this llama-cpp-python was built without RPC")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-c", SERVER, f"127.0.0.1:{port}"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_until(lambda: reached(port), 30)
        yield f"127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


def reached(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True


@pytest.mark.parametrize("experts", [0, 4], ids=["phi3", "phimoe"])
def test_on_a_device_as_on_the_cpu(experts: int, worker: str, tmp_path: Path) -> None:
    model = write_bytewise(tmp_path / "tiny.gguf", experts=experts)
    matrices = {}
    for where in ("", worker):
        out = tmp_path / f"on-{len(where)}.gguf"
        command = [sys.executable, "-c", COLLECT, str(model), str(out), where]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
        assert (json.loads(done.stdout) > 0) is bool(where)
        matrices[where] = read_imatrix(out).weights
    assert matrices[""].keys() == matrices[worker].keys()
    for name, values in matrices[""].items():
        np.testing.assert_allclose(matrices[worker][name], values, rtol=1e-3, err_msg=name)
