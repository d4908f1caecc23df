"""The evaluation: chunk by chunk through the model and the reference, one after the other, compared as logits come.

Only one of the two computes at a time, with all threads; while it does, the other one waits with its logits in its
pipe. So two models cost what two runs cost, no logits are ever stored, and this process holds a few rows of them.
"""

from __future__ import annotations

import base64
import contextlib
import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from phitui.api import EngineError, JobContext, Measures, UsageError, read_header
from phitui_evaluate import statistics, text
from phitui_evaluate.journal import Journal
from phitui_evaluate.options import JudgeOptions
from phitui_evaluate.process import Worker

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

BATCH = 512
"""Tokens for one command, the most a worker takes."""
BLOCK = 1 << 22
"""Bytes of logits that are read at once."""
MIN_CHUNKS = 4
"""An evaluation with a tolerance does not end before that: the error of a few hundred tokens is itself a guess."""
PROMPT, DECODE = 512, 64
DECODE_SECONDS = 10.0


def judge(model: Path, options: JudgeOptions, job: JobContext) -> Measures:
    """Evaluate `model`. Raises UsageError for texts too short and models that cannot be compared, EngineError."""
    began = time.monotonic()
    reading = text.read(options.text)
    if options.reference is not None:
        require_same_vocabulary(model, options.reference)
    threads = options.threads or default_threads()
    setup = {
        "context": max(options.ctx, PROMPT) if options.speed else options.ctx,
        "outputs": min(BATCH, scored(options.ctx)),
        "threads": threads,
        "layers": options.layers,
    }
    with contextlib.ExitStack() as stack:
        paths = [model] if options.reference is None else [model, options.reference]
        workers = [stack.enter_context(Worker(path, setup, job.check)) for path in paths]
        for worker in workers:
            worker.wait_loaded(lambda _: job.progress(0, 0, "loading"))
        tokens = make_tokens(workers, reading, job)
        chunks = split(tokens, options, reading.name)
        if options.ctx > workers[0].trained > 0:
            job.note(f"{model.name} was trained for {workers[0].trained} tokens, not for {options.ctx}")
        run = Run(workers, chunks, options, job, identity(model, reading, options))
        scores = run.scores()
        values = statistics.figures(scores)
        values |= {"chunks": float(run.done), "tokens": float(len(scores)), "context": float(options.ctx)}
        if options.speed:
            job.progress(run.done, run.done, "measuring speed")
            values |= speed(workers[0], tokens)
        run.journal.forget()
    values["seconds"] = round(time.monotonic() - began, 3)
    facts = {"text_sha256": reading.digest, "context": str(options.ctx), "chunks": str(run.done)}
    return Measures(values, source(run.done, options, reading), facts, conditions(reading, options, threads))


class Run:
    """The chunks of one evaluation."""

    def __init__(
        self,
        workers: Sequence[Worker],
        chunks: Sequence[Sequence[int]],
        options: JudgeOptions,
        job: JobContext,
        identity: dict[str, Any],
    ) -> None:
        self._workers, self._chunks, self._options, self._job = workers, chunks, options, job
        self._first = options.ctx // 2
        self._columns = 1 if len(workers) == 1 else 4
        self._rows = scored(options.ctx)
        self.journal = Journal(options.journal, identity, self._rows, self._columns)
        self.done = 0

    def scores(self) -> Array:
        """The scores of all scored tokens. Stops early when they are tight enough, if a tolerance is given."""
        import numpy as np

        done = self.journal.begin()[: len(self._chunks)]
        if done:
            self._job.note(f"{len(done)} of {len(self._chunks)} chunks were done before")
        with Comparer(self._workers[0].vocabulary, self._columns) as comparer:
            while len(done) < len(self._chunks) and not self._enough(done):
                self._report(done)
                scores = np.empty((self._rows, self._columns))
                self._chunk(self._chunks[len(done)], comparer, scores)
                if not np.isfinite(scores).all():
                    raise EngineError(
                        f"the logits in chunk {len(done) + 1} are not numbers: a model is damaged, or it overflows",
                        "phitui build writes it anew; --layers 0 tells whether the GPU is at fault",
                    )
                self.journal.add(scores)
                done.append(scores)
        self.journal.close()
        self._report(done)
        self.done = len(done)
        return np.concatenate(done)

    def _enough(self, done: Sequence[Array]) -> bool:
        import numpy as np

        tolerance = self._options.tolerance
        if tolerance is None or len(done) < MIN_CHUNKS:
            return False
        return statistics.tight(np.concatenate(done), tolerance)

    def _report(self, done: Sequence[Array]) -> None:
        import numpy as np

        words = ""
        if done:
            scores = np.concatenate(done)
            own = statistics.perplexity(scores[:, 0])
            words = f"perplexity {own.value:.4f} ± {own.error:.4f}"
            if self._columns > 1:
                kld = statistics.estimate(scores[:, 2])
                words += f", KL divergence {kld.value:.5f} ± {kld.error:.5f}"
        self._job.progress(len(done), len(self._chunks), words)

    def _chunk(self, tokens: Sequence[int], comparer: Comparer, scores: Array) -> None:
        """Score the positions from the middle of the chunk to the last but one, each by the token that follows."""
        for start in range(0, len(tokens), BATCH):
            outputs = range(max(start, self._first), min(start + BATCH, len(tokens) - 1))
            for worker in reversed(self._workers):  # the reference first
                part = list(tokens[start : start + BATCH])
                if start == 0 and worker.bos is not None:
                    part[0] = worker.bos
                worker.send(
                    {"op": "decode", "tokens": part, "position": start, "outputs": [outputs.start, outputs.stop]}
                )
                worker.reply()
            if outputs:
                targets = tokens[outputs.start + 1 : outputs.stop + 1]
                out = scores[outputs.start - self._first : outputs.stop - self._first]
                comparer.score(self._workers, targets, out)


class Comparer:
    """Reads logits from the workers and scores them, in several threads: the workers are idle meanwhile."""

    def __init__(self, vocabulary: int, columns: int) -> None:
        import numpy as np

        self._threads = min(4, default_threads())
        self._pool = ThreadPoolExecutor(self._threads)
        self._rows = [statistics.Rows(vocabulary) for _ in range(self._threads)]
        count = max(1, BLOCK // (vocabulary * 4))
        sides = 1 if columns == 1 else 2
        self._buffers = [np.empty((sides, count, vocabulary), np.float32) for _ in range(self._threads)]

    def __enter__(self) -> Comparer:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown()

    def score(self, workers: Sequence[Worker], targets: Sequence[int], out: Array) -> None:
        """Fill `out` (tokens, columns) from the logits that wait in the workers' pipes."""
        running: list[Future[None] | None] = [None] * self._threads
        for number, (start, stop) in enumerate(self._blocks(len(targets))):
            slot = number % self._threads
            if (before := running[slot]) is not None:
                before.result()
            buffers = [buffer[: stop - start] for buffer in self._buffers[slot]]
            for worker, buffer in zip(workers, buffers, strict=True):
                worker.read_into(buffer.data.cast("B"))
            running[slot] = self._pool.submit(self._block, slot, buffers, targets[start:stop], out[start:stop])
        for future in running:
            if future is not None:
                future.result()

    def _blocks(self, count: int) -> Iterator[tuple[int, int]]:
        size = self._buffers[0].shape[1]
        for start in range(0, count, size):
            yield start, min(count, start + size)

    def _block(self, slot: int, buffers: Sequence[Array], targets: Sequence[int], out: Array) -> None:
        if len(buffers) == 1:
            self._rows[slot].plain(buffers[0], targets, out)
        else:
            self._rows[slot].compared(buffers[0], buffers[1], targets, out)


def make_tokens(workers: Sequence[Worker], reading: text.Text, job: JobContext) -> list[int]:
    """The text's tokens. Where the two models disagree, the reference's, as llama-perplexity does."""
    found: list[list[int]] = []
    for worker in workers:
        worker.send({"op": "tokens", "text": base64.b64encode(reading.data).decode()})
        found.append(worker.reply()["tokens"])
    if len(found) > 1 and found[0] != found[1]:
        job.note("the two models split the text into different tokens; the reference's are used")
    return found[-1]


def scored(context: int) -> int:
    """How many tokens of a chunk are scored: all of the second half but the last, which nothing follows."""
    return context - 1 - context // 2


def split(tokens: Sequence[int], options: JudgeOptions, name: str) -> list[Sequence[int]]:
    """The chunks to evaluate; what is left at the end of the text is dropped."""
    if len(tokens) < 2 * options.ctx:
        smaller = max((2**power for power in range(4, 20) if 2 * 2**power <= len(tokens)), default=0)
        raise UsageError(
            f"the text ({name}) has {len(tokens)} tokens, and at least {2 * options.ctx} are needed: two chunks",
            f"give a longer text, or --ctx {smaller}" if smaller else "give a longer text with --text FILE",
        )
    count = len(tokens) // options.ctx
    count = min(count, options.chunks or count)
    return [tokens[number * options.ctx : (number + 1) * options.ctx] for number in range(count)]


def speed(worker: Worker, tokens: Sequence[int]) -> dict[str, float]:
    """Prompt and decode speed of the model, its reference being idle."""
    some = (list(tokens) * (PROMPT // len(tokens) + 1))[:PROMPT]
    worker.send({"op": "speed", "tokens": some, "prompt": PROMPT, "decode": DECODE, "patience": DECODE_SECONDS})
    return {name: round(value, 3) for name, value in worker.reply().items()}


def require_same_vocabulary(model: Path, reference: Path) -> None:
    """Raise UsageError if the two have different tokens: their probabilities could not be compared."""
    lists = [read_header(path).get("tokenizer.ggml.tokens", []) for path in (model, reference)]
    if lists[0] == lists[1]:
        return
    counts = [len(tokens) for tokens in lists]
    if counts[0] != counts[1]:
        what = f"{counts[0]} tokens in {model.name}, {counts[1]} in {reference.name}"
    else:
        differing = sum(a != b for a, b in zip(*lists, strict=True))
        what = f"{differing} of {counts[0]} tokens differ"
    raise UsageError(
        f"{model.name} and {reference.name} have different vocabularies ({what}), so they cannot be compared",
        "the reference must be a larger file of the same model, such as its BF16 one",
    )


def identity(model: Path, reading: text.Text, options: JudgeOptions) -> dict[str, Any]:
    """What a journal belongs to."""
    files = {"model": model, **({"reference": options.reference} if options.reference else {})}
    stats = {name: (str(path), path.stat().st_size, path.stat().st_mtime_ns) for name, path in files.items()}
    return {"version": 1, **stats, "text": reading.digest, "ctx": options.ctx}


def source(chunks: int, options: JudgeOptions, reading: text.Text) -> str:
    """One sentence on how the figures came."""
    compared = f", compared with {options.reference.name}" if options.reference else ""
    return f"measured with llama.cpp on {chunks} chunks of {options.ctx} tokens ({reading.name}){compared}"


def conditions(reading: text.Text, options: JudgeOptions, threads: int) -> dict[str, str]:
    """What explains a speed, and what the text was called."""
    from importlib.metadata import version

    engine = f"llama-cpp-python {version('llama-cpp-python')}"
    return {"text": reading.name, "engine": engine, "threads": str(threads), "layers": str(options.layers)}


def default_threads() -> int:
    """Physical cores that this process may use."""
    import psutil

    logical = os.cpu_count() or 1
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else logical
    return max(1, min(usable, psutil.cpu_count(logical=False) or logical, quota()))


def quota() -> int:
    """CPUs that the control group grants (cpu.max is "QUOTA PERIOD" or "max PERIOD")."""
    try:
        granted, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return max(1, -(-int(granted) // int(period)))
    except (OSError, ValueError):
        return 1 << 16
