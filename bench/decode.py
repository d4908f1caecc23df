"""Decode speed through phitui's chat engine beside llama-bench: same model, same threads, in turns.

    python bench/decode.py MODEL.gguf --llama-bench PATH [--threads 2] [--tokens 128] [--pairs 5]

llama-bench feeds random tokens and samples nothing; the engine samples greedily, makes text of each token and sends it
to another process. Its first answer warms the model up and is not counted. "best" compares the best run of each, which
other work on the machine disturbed least. The second table shows next turns.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import tempfile
from pathlib import Path

from phitui.domain.chat import ChatStats, EngineSettings, Message, Sampling, TextChunk
from phitui.engine.client import EngineProcess

QUESTION = "Tell me, in as much detail as you can, the story of a ship that sails around the world."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--llama-bench", type=Path, required=True)
    parser.add_argument("--engine", default="llama.cpp")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--pairs", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as logs:
        settings = EngineSettings(context=2048, layers=0, threads=options.threads)
        engine = EngineProcess(options.engine, options.model, settings, Path(logs))
        engine.start()
        try:
            rows = compare(engine, options)
            turns = conversation(engine)
        finally:
            engine.close()
    peers, owns = zip(*rows, strict=True)
    ratio = statistics.median(own / peer for peer, own in rows)
    print(f"| median | {statistics.median(peers):.1f} | {statistics.median(owns):.1f} | {ratio:.3f} |")
    print(f"| best | {max(peers):.1f} | {max(owns):.1f} | {max(owns) / max(peers):.3f} |")
    print("\n| turn | tokens in the prompt | evaluated |\n|---|---|---|")
    for number, stats in enumerate(turns, 1):
        print(f"| {number} | {stats.prompt_tokens} | {stats.evaluated_tokens} |")


def compare(engine: EngineProcess, options: argparse.Namespace) -> list[tuple[float, float]]:
    """(llama-bench, engine) tokens per second of each pair; who goes first alternates."""
    answer(engine, [Message("user", QUESTION)], 16)
    print(f"{options.model.name}, {options.threads} threads, {options.tokens} tokens, tokens per second\n")
    print("| pair | llama-bench tg | phitui chat engine | ratio |\n|---|---|---|---|")
    rows = []
    for number in range(options.pairs):
        speeds = {}
        for which in ("peer", "own") if number % 2 == 0 else ("own", "peer"):
            speeds[which] = peer(options) if which == "peer" else own(engine, options.tokens)
        rows.append((speeds["peer"], speeds["own"]))
        print(
            f"| {number + 1} | {speeds['peer']:.1f} | {speeds['own']:.1f} | {speeds['own'] / speeds['peer']:.3f} |",
            flush=True,
        )
    return rows


def peer(options: argparse.Namespace) -> float:
    command = [str(options.llama_bench), "-m", str(options.model), "-t", str(options.threads), "-p", "0"]
    command += ["-n", str(options.tokens), "-r", "1", "-o", "json"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(json.loads(done.stdout)[0]["avg_ts"])


def own(engine: EngineProcess, tokens: int) -> float:
    _, stats = answer(engine, [Message("user", QUESTION)], tokens)
    if stats.completion_tokens < tokens:
        raise SystemExit(f"the model ended its answer after {stats.completion_tokens} tokens; use fewer --tokens")
    return stats.completion_tokens / stats.decode_seconds  # as many evaluations as tokens, the last one's included


def conversation(engine: EngineProcess) -> list[ChatStats]:
    """The figures of three turns."""
    messages: list[Message] = []
    figures = []
    for question in ("What is the capital of France?", "And of Italy?", "Which of them is larger?"):
        messages.append(Message("user", question))
        text, stats = answer(engine, messages, 64)
        messages.append(Message("assistant", text))
        figures.append(stats)
    return figures


def answer(engine: EngineProcess, messages: list[Message], tokens: int) -> tuple[str, ChatStats]:
    text = ""
    for chunk in engine.stream(messages, Sampling(temperature=0, max_tokens=tokens)):
        if isinstance(chunk, TextChunk):
            text += chunk.text
        else:
            return text, chunk
    raise SystemExit("the engine gave no figures")


if __name__ == "__main__":
    main()
