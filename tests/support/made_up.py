"""Benchmarks that never ran: single runs, simulated noise, and one with all figures."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from specgen.core.cost.model import CostModel
from specgen.core.evaluation.card import Card
from specgen.core.evaluation.results import PLAIN, Results, Run

CARD = Card(
    date="2026-03-01T12:34:56+00:00",
    model="SmolLM2-135M-Instruct-Q4_0.gguf",
    architecture="llama",
    quantization="Q4_0",
    n_params=134_515_008,
    weight_bytes=91_726_848,
    read_bytes=77_345_792,
    kv_bytes_per_token=23_040,
    bandwidth=21.3e9,
    threads=2,
    flash_attention=True,
    n_ctx=4096,
    devices=("CPU",),
    build="specgen 0.1.0, llama-cpp-python 0.3.36 (CPU: SSE3 = 1 | SSSE3 = 1 | AVX = 1 | AVX2 = 1"
    " | F16C = 1 | FMA = 1 | AVX512 = 1 | AVX512_VNNI = 1 | LLAMAFILE = 1 | REPACK = 1 |)",
)
CURVE = CostModel(
    (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64),
    (128, 1024, 3072),
    tuple(
        tuple(
            scale * ms / 1e3 for ms in (6.8, 10.3, 13, 15.3, 23, 23.5, 32.4, 40, 54, 68, 101, 119)
        )
        for scale in (1.0, 1.25, 1.7)
    ),
)
TASKS = (
    *("chat", "code", "edit", "summarize", "question", "translate"),
    *("maths", "extract", "story", "revise", "noise"),
)
DRAFTERS = (PLAIN, "auto", "prompt-lookup", "suffix warm")


_USUAL = Run(
    task="code",
    prompt=0,
    turn=1,
    repetition=0,
    drafter=PLAIN,
    tokens=100,
    seconds=5.0,
    first_token_s=0.25,
    steps=100,
    nodes=100,
    drafted=0,
    accepted=0,
    host_s=0.01,
    context=200,
    peak_bytes=300_000_000,
    accepted_by={},
    sizes={1: 100},
    reached={0: 100},
    offered={0: 100},
)


def run(
    task: str = "code",
    prompt: int = 0,
    repetition: int = 0,
    drafter: str = PLAIN,
    seconds: float = 5.0,
    **others: Any,
) -> Run:
    """A run of plain decoding in which nothing remarkable happened, but for what is given."""
    return replace(
        _USUAL,
        task=task,
        prompt=prompt,
        repetition=repetition,
        drafter=drafter,
        seconds=seconds,
        **others,
    )


def results(*runs: Run, card: Card = CARD, curve: CostModel | None = None) -> Results:
    """A benchmark of these runs."""
    return Results(card, curve, runs)


def timed(
    rng: random.Random,
    *,
    prompts: int = 33,
    repetitions: int = 3,
    noise: float = 0.03,
    bursts: float = 0.0,
    drift: float = 0.0,
    speedup: Callable[[int], float] = lambda prompt: 1.0,
) -> tuple[Results, float]:
    """A benchmark of one drafter, "x", in eleven tasks, and how fast it truly is.

    Args:
        noise: standard deviation of the log of a run's time.
        bursts: part of the runs that take 1.5 to 2 times as long.
        drift: by what part all slowly gets slower and faster again.
        speedup: of each prompt, by its number.
    """
    seconds = [rng.uniform(2, 8) for _ in range(prompts)]
    phase, walk, runs = rng.uniform(0, math.tau), 0.0, []
    for k in range(repetitions * prompts):
        repetition, prompt = divmod(k, prompts)
        for drafter, speed in ((PLAIN, 1.0), ("x", speedup(prompt))):
            walk += rng.gauss(0, drift / 20)
            slower = rng.gauss(0, noise) + walk
            slower += drift * math.sin(phase + 8 * k / (repetitions * prompts))
            if rng.random() < bursts:
                slower += math.log(rng.uniform(1.5, 2))
            took = seconds[prompt] / speed * math.exp(slower)
            runs.append(run(TASKS[prompt % 11], prompt, repetition, drafter, took))
    truth = sum(seconds) / sum(s / speedup(prompt) for prompt, s in enumerate(seconds))
    return results(*runs), truth


def benchmark(
    seed: int = 1,
    drafters: Sequence[str] = DRAFTERS,
    tasks: Sequence[str] = TASKS,
    prompts: int = 3,
    repetitions: int = 3,
) -> Results:
    """Results with all figures, such as a small model on two cores gives them."""
    rng = random.Random(seed)
    runs = []
    for repetition in range(repetitions):
        for prompt in range(prompts * len(tasks)):
            at = prompt % len(tasks)
            task, ease = tasks[at], 0.03 + 0.85 * ((at * 7) % len(tasks)) / len(tasks)
            for drafter in drafters:
                chance = ease * (1 - 0.15 * drafters.index(drafter))
                runs.append(_answered(rng, task, prompt, repetition, drafter, chance))
    return results(*runs, curve=CURVE)


def _answered(
    rng: random.Random, task: str, prompt: int, repetition: int, drafter: str, chance: float
) -> Run:
    """A hundred tokens; each guess is right with the chance."""
    tokens, nodes, accepted, seconds, context = 0, 0, 0, 0.0, 150 + 20 * prompt
    sizes, reached, offered = Counter[int](), Counter[int](), Counter[int]()
    while tokens < 100:
        depth = 0
        if drafter != PLAIN and rng.random() < 0.3 + 0.7 * chance:
            depth = min(1 + int(rng.expovariate(1 - 0.8 * chance)), 15)
        right = 0
        while right < depth and rng.random() < 0.4 + 0.6 * chance:
            right += 1
        size = 1 + depth + (rng.randrange(3) if depth and drafter == "auto" else 0)
        sizes[size] += 1
        reached[right] += 1
        offered[depth] += 1
        tokens, nodes, accepted = tokens + right + 1, nodes + size, accepted + right
        seconds += CURVE.seconds(size, context)
    names = ["suffix", "recycle", "trigram"] if drafter == "auto" else [drafter.split()[0]]
    return Run(
        task=task,
        prompt=prompt,
        turn=1,
        repetition=repetition,
        drafter=drafter,
        tokens=tokens,
        seconds=seconds * math.exp(rng.gauss(0, 0.03)),
        first_token_s=0.3 * math.exp(rng.gauss(0, 0.05)),
        steps=sum(sizes.values()),
        nodes=nodes,
        drafted=nodes - sum(sizes.values()),
        accepted=accepted,
        host_s=0.0002 * sum(sizes.values()),
        context=context,
        peak_bytes=310_000_000 + 1_000_000 * prompt,
        accepted_by={name: accepted // (i + 1) for i, name in enumerate(names) if accepted},
        sizes=dict(sizes),
        reached=dict(reached),
        offered=dict(offered),
    )
