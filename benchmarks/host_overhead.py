"""Time that a step spends outside llama_decode: drafting, batches, sampling, cache upkeep.

Runs the default model (or the GGUF given) and takes the time of every llama_decode away. The
column `drafts` says who makes the trees:

    given      two drafters whose trees always have the asked number of nodes, half of them on
               side branches; their own estimates count
    judged     the same, and an acceptance model judges every guess
    auto       all that `specgen generate` has: its drafters, acceptance model, prices; of its
               steps those with so many nodes

The text repeats, so many guesses are right, and the sampler runs once per emitted token: the
column `tokens` says how often. All times are medians over the steps, of the whole (`host`) and
of its parts, so the parts need not add up:

    draft      build the tree
    batch      lay it out, fill the batch, find the logits
    sequences  llama.cpp's cache calls: lend the trunk to branches, drop what was not accepted
    sample     choose the emitted tokens
    rest       walk the tree, observe, commit, and the clocks of this benchmark

    python benchmarks/host_overhead.py [MODEL.gguf]
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from specgen.core.config import EngineConfig
from specgen.core.drafting.acceptance import AcceptanceModel
from specgen.core.drafting.builder import Builder
from specgen.core.drafting.speculator import Speculator
from specgen.core.engine import Engine
from specgen.core.llama.library import library
from specgen.core.models.catalogue import DEFAULT_MODEL, find_entry, model_folder
from specgen.core.models.pull import pull
from specgen.core.protocols import Candidate, Drafter, Logits, Tokens
from specgen.core.sampling import Sampler, SamplingParams
from specgen.core.session import Session
from specgen.core.tree import DraftTree
from specgen.drafters import AUTO
from specgen.drafters.ensemble import ensemble
from specgen.drafters.prompt_lookup import PromptLookup

STEPS = 200
FEWEST = 20  # steps that a figure needs
ROW = "{:5} {:6} {:7} {:6.2f} {:6.3f} {:5.3f}  {:5.3f}    {:5.0f} {:5.0f} {:9.0f} {:6.0f} {:4.0f}"
TEXT = "The harbour was quiet in the morning, and the boats lay side by side. " * 8


class Bushy:
    """Three guesses everywhere, so that the builder always finds as many nodes as it may."""

    name = "bushy"
    effort = None
    reads_logits = False

    def __init__(self, n_vocab: int) -> None:
        self._n_vocab = n_vocab

    def begin(self, context: Tokens) -> None:
        """See Drafter."""

    def root(self) -> int:
        """See Drafter."""
        return 1

    def predict(self, state: int) -> Sequence[Candidate]:
        """Three tokens that depend on the state."""
        return [
            Candidate((state * 7919 + rank * 104_729) % self._n_vocab, ("bushy", rank), prob)
            for rank, prob in enumerate((0.5, 0.25, 0.125))
        ]

    def advance(self, state: int, token: int) -> int:
        """See Drafter."""
        return state * 31 + token

    def observe(self, emitted: Sequence[int], tree: DraftTree, logits: Logits) -> None:
        """See Drafter."""


class Clock:
    """Stands before a function and adds up the seconds spent in it."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.seconds = 0.0
        self._function = function

    def __call__(self, *args: Any) -> Any:
        """Call the function."""
        start = perf_counter()
        result = self._function(*args)
        self.seconds += perf_counter() - start
        return result


class TimedSampler(Sampler):
    """A sampler that adds up the seconds spent in it."""

    seconds = 0.0

    def next(self, logits: NDArray[np.float32]) -> int:
        """See Sampler."""
        start = perf_counter()
        token = super().next(logits)
        self.seconds += perf_counter() - start
        return token


@dataclass(frozen=True)
class Sample:
    """One step: its nodes and tokens, and seconds outside llama_decode, in all and by part."""

    nodes: int
    tokens: int
    host: float
    parts: dict[str, float]


class Bench:
    """Runs steps and says where their time goes."""

    def __init__(self) -> None:
        api = library().api
        self._decode = api.llama_decode = Clock(api.llama_decode)
        self._lend = api.llama_memory_seq_cp = Clock(api.llama_memory_seq_cp)
        self._drop = api.llama_memory_seq_rm = Clock(api.llama_memory_seq_rm)

    def run(self, engine: Engine, params: SamplingParams, nodes: int, drafts: str) -> list[Sample]:
        """Each of STEPS steps that had so many nodes, after a few that are left out."""
        engine.backend.rewind(0)
        session = _session(engine, nodes, drafts)
        text = engine.tokenize(TEXT)
        session.feed(text)
        sampler = TimedSampler(params, engine.vocab.n_vocab)
        sampler.begin(session.tokens)
        samples = []
        for number in range(STEPS + 10):
            if len(session.tokens) > engine.backend.limits.n_ctx // 2:
                session.feed(text)
            sample = self._step(session, sampler)
            if number >= 10 and sample.nodes == nodes:
                samples.append(sample)
        return samples

    def _step(self, session: Session, sampler: TimedSampler) -> Sample:
        clocks: tuple[Clock | TimedSampler, ...] = (self._decode, self._lend, self._drop, sampler)
        before = [clock.seconds for clock in clocks]
        start = perf_counter()
        step = session.step(sampler, 100, lambda _: False)
        total = perf_counter() - start
        decode, lend, drop, sample = (
            clock.seconds - seconds for clock, seconds in zip(clocks, before, strict=True)
        )
        parts = {
            "draft": step.draft_s,
            "batch": step.score_s - decode - lend,
            "sequences": lend + drop,
            "sample": sample,
            "rest": total - step.draft_s - step.score_s - drop - sample,
        }
        return Sample(len(step.tree), len(step.tokens), total - decode, parts)


def _session(engine: Engine, nodes: int, drafts: str) -> Session:
    """One whose trees have at most so many nodes."""
    if drafts == AUTO:
        engine.config = replace(engine.config, max_drafts=nodes - 1)
        engine.renew(ensemble(AUTO))
        return engine.session
    acceptance = AcceptanceModel() if drafts == "judged" else None
    drafters: list[Drafter] = [PromptLookup(), Bushy(engine.vocab.n_vocab)]
    builder = Builder(engine.backend.limits, nodes - 1, acceptance=acceptance)
    return Session(engine.backend, Speculator(builder, drafters))


def summary(samples: Sequence[Sample]) -> dict[str, float]:
    """Tokens per step; milliseconds of host time, at the 9th decile and per token; parts in us."""
    tokens = statistics.mean(sample.tokens for sample in samples)
    host = [1e3 * sample.host for sample in samples]
    median = statistics.median(host)
    return {
        "tokens": round(tokens, 2),
        "median_ms": round(median, 4),
        "p90_ms": round(statistics.quantiles(host, n=10)[-1], 4),
        "ms_per_token": round(median / tokens, 4),
    } | {
        f"{part}_us": round(1e6 * statistics.median(sample.parts[part] for sample in samples), 1)
        for part in samples[0].parts
    }


def main() -> None:
    """Print a table, and the figures as JSON on the last line."""
    entry = find_entry(DEFAULT_MODEL)
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else pull(entry, model_folder())  # type: ignore[arg-type]
    samplers = {"greedy": SamplingParams(temperature=0), "default": SamplingParams(seed=1)}
    bench = Bench()
    records: list[dict[str, Any]] = []
    print("                              host ms        per    parts, us")
    print("nodes drafts sampler tokens median   p90  token    draft batch sequences sample rest")
    with Engine(path, [], EngineConfig(n_ctx=2048)) as engine:
        n_vocab = engine.vocab.n_vocab
        for nodes, drafts, name in product((1, 4, 8, 16), ("given", "judged", AUTO), samplers):
            samples = bench.run(engine, samplers[name], nodes, drafts)
            if len(samples) < FEWEST:
                continue
            figures = summary(samples)
            print(ROW.format(nodes, drafts, name, *figures.values()))
            records.append({"nodes": nodes, "drafts": drafts, "sampler": name, **figures})
    print(json.dumps({"n_vocab": n_vocab, "steps": STEPS, "host": records}))


if __name__ == "__main__":
    main()
