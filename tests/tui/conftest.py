"""A phitui app over a Door of its own: fixed data, no clock, no paths of this machine, no processes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from textual.pilot import Pilot

from phitui.actions.context import Context
from phitui.actions.export import ExportResult
from phitui.actions.figures import Figure
from phitui.actions.fit import Fit
from phitui.actions.schemes import SchemeRow
from phitui.actions.tidy import Removal
from phitui.domain.bundle import Bundle, BundleFile
from phitui.domain.chat import ChatStats, EngineSettings, Message, TextChunk
from phitui.domain.hardware import Device
from phitui.domain.model import Artifact, KnownModel, ModelFacts, Rope, Verdict
from phitui.domain.offers import Availability
from phitui.domain.offload import DevicePlan, OffloadPlan, Speed, Tradeoff
from phitui.domain.options import option
from phitui.domain.quant import Scheme
from phitui.domain.tensors import FileExtent, SourceTensor, TensorType, place
from phitui.domain.tensors import FilePlan as Plan
from phitui.errors import EngineError, PhituiError, UsageError
from phitui.jobs.model import Job, Progress
from phitui.store.measures import Measured
from phitui.tui.app import PhituiApp
from phitui.tui.door import Door
from phitui.tui.state import Hand

PARTLY, WHOLE = Fit(True, 17, 33, 4096, True), Fit(True, 33, 33, 4096, True)
NOT = Fit(False, 0, 33, 4096, False)
GIB = 1024**3
NOON = 1767268800.0
"""2026-01-01 12:00 UTC: never today, and the same day in every time zone that people live in."""

GGUF = Artifact(
    Path("/models/Phi-4-mini.Q4_K_M.gguf"), "gguf", "Phi-4-mini.Q4_K_M.gguf", "phi3", "Q4_K_M", 2491874272, "folders"
)
CHECKPOINT = Artifact(
    Path("/models/Phi-4-mini"), "checkpoint", "Phi-4-mini", "Phi3ForCausalLM", "BF16", 7672160256, "folders"
)
FACTS = ModelFacts(
    name="Phi 4 mini", architecture="phi3", parameters=3836021760, layers=32, context_length=131072,
    embedding_length=3072, feed_forward_length=8192, heads=24, heads_kv=8, key_length=128, value_length=128,
    vocabulary=200064, rope=Rope(96, 10000.0, "longrope", 4096), tokenizer="gpt2/gpt-4o", chat_format="phi-4-mini",
    scheme="Q4_K_M", size=2491874272, tied_embeddings=True, license="MIT",
)  # fmt: skip
KNOWN = (
    KnownModel(
        id="microsoft/Phi-4-mini-instruct",
        title="Phi-4-mini-instruct",
        architecture="Phi3ForCausalLM",
        parameters="3.8B",
        context_length=131072,
        chat_format="phi-4-mini",
        license="MIT",
        verdict=Verdict(True, "converts"),
    ),
    KnownModel(
        id="microsoft/Phi-3-small-8k-instruct",
        title="Phi-3-small-8k-instruct",
        architecture="Phi3SmallForCausalLM",
        parameters="7B",
        context_length=8192,
        chat_format="phi-3",
        license="MIT",
        verdict=Verdict(False, "blocksparse attention is not in llama.cpp", "microsoft/Phi-3-mini-4k-instruct"),
    ),
)
DEVICES = (
    Device("CUDA0", "cuda", "gpu", "NVIDIA GeForce RTX 4070", 12 * GIB, 11 * GIB),
    Device("CPU", "cpu", "cpu", "AMD Ryzen 7 7700", 32 * GIB, 21 * GIB, "measured"),
)


def job(id: str, state: str, **changes: Any) -> Job:
    values = {
        "kind": "build",
        "title": f"Phi-4-mini as Q4_K_M ({id})",
        "directory": Path("/jobs") / id,
        "created": NOON,
        "started": NOON,
    }
    if state not in ("running", "queued"):
        values["finished"] = NOON + 125
    return Job(id, state=state, **(values | changes))


RUNNING = job(
    "a1", "running", pid=4242, progress=Progress(3 * GIB // 4, 5 * GIB // 2, "blk.9.ffn_up.weight", 90e6, 21.0)
)
DONE = job(
    "b2", "done", result={"path": "/models/Phi-4-mini.Q8_0.gguf", "size": 4079853120, "seconds": 125, "scheme": "Q8_0"}
)
FAILED = job(
    "c3", "failed", error={"message": "the disk is full", "hint": "make room and resume: phitui jobs resume c3"}
)


def figure(scheme: str, kld: float, error: float, speed: float) -> Figure:
    values = {"kld_mean": kld, "kld_mean_error": error, "top1_agreement": 0.93, "decode_tokens_per_s": speed}
    source = "measured with llama.cpp on 16 chunks of 512 tokens (phitui's own), compared with Phi-4-mini.F16.gguf"
    measured = Measured(f"Phi-4-mini.{scheme}.gguf", "quality", NOON, source, values, {}, "Phi-4-mini.F16.gguf")
    return Figure(None, measured, measured)


class Exporter:
    name, title = "ollama", "Ollama (Modelfile)"

    from dataclasses import dataclass

    @dataclass(frozen=True)
    class Options:
        name: str = option("", help="name of the model in Ollama")
        num_ctx: int | None = option(None, help="context length in tokens", minimum=1, planned="context")
        quiet: bool = option(False, help="say less")
        format: str = option("auto", help="chat format", choices=("auto", "phi-3", "phi-4"))
        stop: tuple[str, ...] = option((), help="a further stop", advanced=True)

    options = Options

    def available(self) -> Availability:
        return Availability()


class StubChat:
    """Says `script` piece by piece; an exception in the script is raised."""

    def __init__(self, script: Sequence[Any], slow: bool = False) -> None:
        self.script, self.slow = script, slow
        self.messages: list[Message] = []
        self.asked: list[str] = []
        self.alive, self.restarted, self.closed, self.stopped = True, 0, False, False
        self.lost: tuple[str, ...] = ()
        self.without: tuple[str, ...] = ()
        self.plan: Any = None

    def ask(self, text: str) -> Iterator[Any]:
        self.asked.append(text)
        self.stopped = False
        answer = ""
        for piece in self.script:
            if isinstance(piece, Exception):
                self.alive = False
                raise piece
            if self.stopped:
                break
            answer += piece
            yield TextChunk(piece)
            if self.slow:
                time.sleep(0.02)
        self.messages += [Message("user", text), Message("assistant", answer)]
        yield ChatStats("cancelled" if self.stopped else "stop", 24, 24, 12, 0.1, 0.5, 4096, 36 + 24 * len(self.asked))

    def stop(self) -> None:
        self.stopped = True

    def make_room(self) -> int:
        del self.messages[:2]
        return 1

    def instruct(self, system: str) -> None:
        self.system = system

    def rewind(self, question: int) -> None:
        del self.messages[2 * question :]

    def reset(self) -> None:
        self.messages.clear()

    def restart(self, progress: Any = None, without: Sequence[str] = ()) -> None:
        self.alive, self.without = True, tuple(without)
        self.restarted += 1

    def close(self) -> None:
        self.closed = True


WHEEL = {
    "kind": "wheel",
    "line": "pip install llama-cpp-python --extra-index-url https://here/cu124",
    "note": "a wheel",
}
FINDINGS = [
    {
        "level": "problem",
        "what": "NVIDIA GeForce RTX 4070, 12.0 GiB, driver 560.35 · llama-cpp-python has no CUDA: a GPU is here, but "
        "the engine runs on the CPU",
        "why": "every layer runs on the CPU",
        "note": "ready-made: seconds instead of minutes",
        "do": "pip install llama-cpp-python --extra-index-url https://here/cu124",
        "needs": ["CUDA 12's libraries"],
        "backend": "cuda",
    },
    {
        "level": "hint",
        "what": "vulkaninfo gave no answer within 1.3 s",
        "why": "",
        "do": "",
        "needs": [],
        "backend": "",
    },
]


class StubDoor(Door):
    """Every action answers at once from what stands here; tests change it."""

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self.artifacts: list[Artifact] = [CHECKPOINT, GGUF]
        self.known: Sequence[KnownModel] = KNOWN
        self.found_jobs: list[Job] = [RUNNING, DONE, FAILED]
        self.chat = StubChat(["The capital of France ", "is **Paris**.\n\n", "- one\n- two\n"])
        self.calls: list[tuple[Any, ...]] = []
        self.refuse: PhituiError | None = None
        self.plan_seconds = 0.0
        self.expert_layers = 0
        self.findings: list[dict[str, Any]] = list(FINDINGS)
        self.found_remedy: Any = SimpleNamespace(what="no CUDA", ways=(WHEEL,))

    def _said(self, *call: Any) -> None:
        self.calls.append(call)
        if self.refuse is not None:
            error, self.refuse = self.refuse, None
            raise error

    def library(self) -> Sequence[Artifact]:
        return self.artifacts

    def catalogue(self) -> Sequence[KnownModel]:
        return self.known

    def inspect(self, source: str) -> ModelFacts:
        self._said("inspect", source)
        return FACTS

    def removal(self, model: str) -> Removal:
        return Removal(Path(model), (Path(model), Path(f"{model}.toml")), GIB)

    def remove_model(self, model: str) -> Removal:
        self._said("remove_model", model)
        self.artifacts = [artifact for artifact in self.artifacts if str(artifact.path) != model]
        return self.removal(model)

    def rename_model(self, model: str, name: str) -> Path:
        self._said("rename_model", model, name)
        return Path(model).with_name(name)

    def pull(self, repo: str) -> Any:
        self._said("pull", repo)
        return job("d4", "running", title=f"download {repo}")

    def models_dir(self) -> Path:
        return Path("/models")

    def exports_dir(self) -> Path:
        return Path("/exports")

    def schemes(self, source: str | None) -> Sequence[SchemeRow]:
        self._said("schemes", source)
        return [
            SchemeRow(
                Scheme("F16", 16.0, 1, description="half precision"),
                "floats",
                7680000000,
                16.0,
                fit=Fit(True, 17, 33, 4096, True),
                figure=Figure(None, None, None, is_reference=True),
            ),
            SchemeRow(
                Scheme("Q8_0", 8.5, 7, description="almost lossless"),
                "llama",
                4080000000,
                8.5,
                fit=Fit(True, 33, 33, 4096, True),
                figure=figure("Q8_0", 0.0008, 0.00004, 24.1),
            ),
            SchemeRow(
                Scheme("Q4_K_M", 4.9, 15, description="a good balance"),
                "llama",
                2490000000,
                5.2,
                3,
                fit=Fit(True, 33, 33, 4096, True),
                figure=figure("Q4_K_M", 0.041, 0.002, 31.4),
            ),
            SchemeRow(
                Scheme("IQ1_S", 1.6, 24, True, "very small"),
                "llama",
                980000000,
                2.0,
                0,
                True,
                fit=Fit(False, 0, 33, 4096, False),
            ),
        ]

    def preview_build(self, source: str, scheme: str, out: str) -> Plan:
        tensor = SourceTensor("blk.0.ffn_up.weight", (96, 64), TensorType.BF16, (FileExtent(Path("/w"), 0, 12288),))
        return Plan(scheme, {}, place([(tensor, TensorType.Q5_0, TensorType.Q4_K)]), notes=("vision left out",))

    def start_build(self, source: str, scheme: str, out: str, *, overwrite: bool = False) -> Job:
        self._said("build", source, scheme, out, overwrite)
        return RUNNING

    def start_best(self, source: str, bars: str, *, measure: bool) -> Job:
        self._said("best", source, bars, measure)
        return RUNNING

    def plan(self, model: str, settings: Mapping[str, Any], *, probe: bool) -> OffloadPlan:
        self._said("plan", model, dict(settings), probe)
        time.sleep(self.plan_seconds)
        layers, context = settings.get("layers"), settings.get("context") or 4096
        on = 25 if layers is None else layers
        context = 20480 if context == -1 else context
        gpu = DevicePlan("CUDA0", "cuda", 12 * GIB, 11 * GIB, on * 300_000_000, on * context * 2048, 400_000_000)
        ram = DevicePlan(
            "CPU", "cpu", 32 * GIB, 21 * GIB, (33 - on) * 90_000_000, (33 - on) * context * 2048, 60_000_000, "cpu"
        )
        fits = gpu.fits and ram.fits
        warnings = () if fits else ("CUDA0 is short of memory",)
        how = {"weights": "exact", "kv": "exact", "compute": "measured" if probe else "estimated"}
        rope = "long" if context > 4096 else "short"
        experts = settings.get("n_cpu_moe")
        loaded = EngineSettings(
            context=context, layers=on, n_cpu_moe=self.expert_layers if experts is None else experts
        )
        return OffloadPlan(
            model, on, 33, context, rope, fits, (gpu, ram), how, warnings, context_length=131072, original_context=4096,
            kv_type=settings.get("kv_type", "f16"), settings=loaded, expert_layers=self.expert_layers,
            speed=Speed(31.0, "measured", "12 min ago"),
        )  # fmt: skip

    def tradeoffs(self, model: str, settings: Mapping[str, Any], made: OffloadPlan) -> Sequence[Tradeoff]:
        kinds = (("f16", 16384), ("q8_0", 32768), ("q4_0", 65536))
        return [Tradeoff(layers, kind, context // (layers // 25)) for layers in (33, 25) for kind, context in kinds]

    def devices(self) -> Sequence[Device]:
        return DEVICES

    def open_chat(self, model: str, settings: Mapping[str, Any], progress: Callable[[float], None]) -> Any:
        self._said("open_chat", model, dict(settings))
        progress(1.0)
        return self.chat

    def targets(self) -> Sequence[Any]:
        return [Exporter()]

    def preview_export(self, model: str, to: str, out: Path, options: Mapping[str, Any]) -> Bundle:
        self._said("preview", model, to, str(out), dict(options))
        lines = ["# one line", f"FROM {model}", *[f"PARAMETER {name} {value}" for name, value in options.items()]]
        return Bundle(
            (BundleFile("Modelfile", "\n".join(lines) + "\n"),),
            (f"ollama create phi -f {out}/Modelfile",),
            ("num_ctx is 4096",),
        )

    def export(self, model: str, to: str, out: Path, options: Mapping[str, Any], *, overwrite: bool = False) -> Any:
        self._said("export", model, to, str(out), dict(options), overwrite)
        return ExportResult((out / "Modelfile",), ("ollama create phi -f Modelfile",))

    def jobs(self) -> Sequence[Job]:
        return list(self.found_jobs)

    def job_log(self, job: str, last_bytes: int) -> str:
        return f"log of {job}\nwrote blk.8.ffn_up.weight\n"

    def cancel_job(self, job: str) -> Any:
        self._said("cancel", job)

    def resume_job(self, job: str) -> Any:
        self._said("resume", job)

    def remove_job(self, job: str) -> Any:
        self._said("remove", job)

    def doctor(self, fresh: bool = False) -> Mapping[str, Any]:
        self._said("doctor", fresh)
        gpu, ram = (vars(device) for device in DEVICES)
        cores = [{"what": "cores", "value": "8"}]
        cuda = "CMAKE_ARGS=-DGGML_CUDA=on pip install ..."
        backends = [
            {"name": name, "title": title, "compiled_in": inside, "present": here, "install": how, "facts": facts}
            for name, title, inside, here, how, facts in (
                ("cpu", "CPU", True, True, "", cores),
                ("cuda", "CUDA", False, True, cuda, []),
                ("metal", "Metal", False, False, "", []),
            )
        ]
        return {
            "problems": self.findings,
            "bandwidth": [{"device": "CPU", "bytes_per_second": 41.5e9, "threads": 8, "measured": 0.0, "how": ""}],
            "phitui": {"version": "0", "python": "3", "system": "Linux", "machine": "x86_64"},
            "engine": {"name": "llama-cpp-python", "version": "1", "backends": ["CPU"], "features": {"CPU": ["AVX2"]}},
            "devices": [gpu, ram],
            "backends": backends,
            "engines": [],
        }

    def measure_bandwidth(self) -> Sequence[str]:
        self._said("bandwidth")
        return ["the memory of CUDA0 could not be measured"]

    def remedy(self) -> Any:
        self._said("remedy")
        return self.found_remedy

    def start_remedy(self, remedy: Any) -> Job:
        self._said("start_remedy", remedy)
        return job("fix0000001", "running", kind="fix", title="install llama-cpp-python for CUDA")

    def plugins(self) -> Mapping[str, Any]:
        offer = {"hook": "exporters", "name": "ollama", "title": "Ollama", "ok": True, "reason": "", "hint": ""}
        return {
            "plugins": [{"name": "ollama", "module": "m", "version": "0", "first_party": True, "offers": [offer]}],
            "failures": [
                {"plugin": "broken", "stage": "import", "error": "SyntaxError: bad", "trace": "Traceback: here"}
            ],
        }


@pytest.fixture
def door(context: Context) -> StubDoor:
    return StubDoor(context)


@pytest.fixture
def app(context: Context, door: StubDoor) -> PhituiApp:
    """The app; with `held` the GGUF is in hand."""
    return PhituiApp(context, door)


@pytest.fixture
def held(app: PhituiApp) -> PhituiApp:
    app.set_reactive(PhituiApp.hand, Hand.of(GGUF))
    return app


@pytest.fixture
def data() -> SimpleNamespace:
    """What stands in this file, for tests (files here are no package)."""
    return SimpleNamespace(
        gguf=GGUF,
        checkpoint=CHECKPOINT,
        facts=FACTS,
        running=RUNNING,
        done=DONE,
        failed=FAILED,
        job=job,
        chat=StubChat,
        engine_error=lambda: EngineError("the engine died (signal 9)", "phitui doctor", "ggml: abort\nlast line"),
        usage_error=UsageError,
        wait=wait,
        shown=shown,
    )


async def wait(pilot: Pilot[Any], condition: Callable[[], Any], seconds: float = 8.0) -> None:
    """Let the app work until `condition` holds."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise AssertionError(f"not so after {seconds} s; the screen:\n{shown(pilot.app)}")
        await pilot.pause()
        await asyncio.sleep(0.005)


def shown(app: Any) -> str:
    """The screen as text."""
    return "\n".join(strip.text for strip in app.screen._compositor.render_strips())


@pytest.fixture
def checkpoint(app: Any, data: Any) -> Any:
    """The app with the checkpoint in hand."""
    app.set_reactive(type(app).hand, Hand.of(data.checkpoint))
    return app
