"""Time that a step spends outside llama_decode: drafting, batches, sampling, cache upkeep.

Runs the default model (or the GGUF given) with a drafter whose trees always have the asked
number of nodes, half of them on side branches, and takes the time of every llama_decode away.

    python benchmarks/host_overhead.py [MODEL.gguf]
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

import llama_cpp

from specgen.core.catalogue import DEFAULT_MODEL, find_entry, model_folder
from specgen.core.config import EngineConfig
from specgen.core.engine import Engine
from specgen.core.protocols import Candidate, Drafter, Logits, Tokens
from specgen.core.pull import pull
from specgen.core.sampling import Sampler, SamplingParams
from specgen.core.tree import DraftTree
from specgen.drafters.prompt_lookup import PromptLookup

STEPS = 200
TEXT = "The harbour was quiet in the morning, and the boats lay side by side. " * 8


class Bushy:
    """Three guesses everywhere, so that the builder always finds as many nodes as it may."""

    name = "bushy"

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


class DecodeClock:
    """Stands before llama_decode and adds up the seconds spent in it."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._decode = llama_cpp.llama_decode

    def __call__(self, context: Any, batch: Any) -> int:
        """Decode."""
        start = perf_counter()
        code: int = self._decode(context, batch)
        self.seconds += perf_counter() - start
        return code


def host_seconds(engine: Engine, params: SamplingParams, clock: DecodeClock) -> list[float]:
    """Seconds outside llama_decode of each of STEPS steps, the first few left out."""
    engine.session.feed(engine.tokenize(TEXT))
    sampler = Sampler(params, engine.vocab.n_vocab)
    sampler.begin(engine.session.tokens)
    host = []
    for _ in range(STEPS + 10):
        decoded, start = clock.seconds, perf_counter()
        engine.session.step(sampler, 100, lambda _: False)
        host.append(perf_counter() - start - (clock.seconds - decoded))
    return host[10:]


def main() -> None:
    """Print a table, and the figures as JSON on the last line."""
    entry = find_entry(DEFAULT_MODEL)
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else pull(entry, model_folder())  # type: ignore[arg-type]
    clock = DecodeClock()
    llama_cpp.llama_decode = clock
    samplers = {"greedy": SamplingParams(temperature=0), "default": SamplingParams(seed=1)}
    records = []
    print(f"{'nodes':>5} {'sampler':>8} {'median ms':>10} {'p90 ms':>8}")
    for nodes in (1, 4, 8, 16):
        config = EngineConfig(n_ctx=2048, max_drafts=nodes - 1)
        for name, params in samplers.items():
            drafters: list[Drafter] = [PromptLookup(), Bushy(49_152)]
            with Engine(path, drafters, config) as engine:
                host = host_seconds(engine, params, clock)
                n_vocab = engine.vocab.n_vocab
            median = 1e3 * statistics.median(host)
            p90 = 1e3 * statistics.quantiles(host, n=10)[-1]
            print(f"{nodes:>5} {name:>8} {median:>10.3f} {p90:>8.3f}")
            records.append({"nodes": nodes, "sampler": name, "median_ms": round(median, 4)})
    print(json.dumps({"n_vocab": n_vocab, "steps": STEPS, "host": records}))


if __name__ == "__main__":
    main()
