"""A real load teaches the next plan: what it took beyond its buffers, and how fast it answered."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest

from phitui.actions import loads
from phitui.actions.chat import ChatRequest, open_chat
from phitui.actions.context import Context
from phitui.actions.plan import as_document, plan
from phitui.domain.chat import Sampling
from phitui.domain.offload import PlanRequest
from phitui.store.loads import LoadStore
from phitui.testing.scripted import write_scripted

pytestmark = pytest.mark.skipif(find_spec("llama_cpp") is None, reason="llama-cpp-python is not installed")
MIB = 1024 * 1024


def test_a_load_is_what_was_planned_and_teaches_the_next_plan(tmp_path: Path, context: Context) -> None:
    parrot = write_scripted(tmp_path / "parrot.gguf", "A sentence that is long enough to be a measurement of speed.")
    settings = {"context": 512, "kv_type": "q8_0", "kv_type_v": "f16"}
    chat = open_chat(context, ChatRequest(str(parrot), sampling=Sampling(temperature=0), **settings))  # type: ignore[arg-type]
    try:
        list(chat.ask("hello"))
    finally:
        chat.close()
    with LoadStore(loads.store_file(context)) as store:
        (kept,) = store.last()
    (host,) = kept.devices
    assert host.buffers == pytest.approx(host.predicted, rel=0.01, abs=0.05 * MIB)
    assert host.actual >= host.buffers
    made = plan(context, PlanRequest(str(parrot), **settings))  # type: ignore[arg-type]
    assert made.devices[0].loads == 1
    assert made.devices[0].learned == pytest.approx(host.actual - host.predicted, abs=MIB)
    assert made.speed is not None
    assert made.speed.how == "measured"
    assert as_document(made)["speed"]["tokens_per_s"] == made.speed.tokens_per_s
    other = plan(context, PlanRequest(str(parrot), context=512))
    assert other.speed is None
    assert other.devices[0].loads == 1
