"""Judges a GGUF: perplexity, KL divergence and top-1 agreement against a reference, prompt and decode speed."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path

from phitui.api import Availability, Evaluator, JobContext, Measures, hookimpl
from phitui_evaluate.options import JudgeOptions


class Judge:
    """Runs the model, and beside it the reference, with llama.cpp in processes of their own."""

    name = "quality"
    title = "Quality and speed, measured with llama.cpp"
    options = JudgeOptions

    def available(self) -> Availability:
        if find_spec("llama_cpp") is None:
            return Availability(False, "llama-cpp-python is not installed", "pip install 'phitui[llama]'")
        return Availability()

    def evaluate(self, model: Path, options: JudgeOptions, job: JobContext) -> Measures:
        from phitui_evaluate.judge import judge

        return judge(model, options, job)


@hookimpl
def phitui_evaluators() -> Iterable[Evaluator]:
    return [Judge()]
