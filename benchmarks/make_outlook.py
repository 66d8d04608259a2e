"""Write core/drafting/outlook.json: how texts go on, counted in recorded conversations.

    python benchmarks/make_outlook.py RECORDING.jsonl [MODEL.gguf]

Each line of RECORDING has `turns` and `answers`; of the model only the vocabulary is used. Every
answer is read token by token, one row a call, and at each token the tree is made that drafters
offer; what it promises is what is counted.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from specgen.cli.prepare import ensure_model
from specgen.core.cost.model import load_curve
from specgen.core.drafting.acceptance import AcceptanceModel, shipped_priors
from specgen.core.drafting.best_first import TreeRequest
from specgen.core.drafting.builder import Builder, Choice, TextState
from specgen.core.drafting.guarded import SafeDrafter
from specgen.core.drafting.outlook import Outlook
from specgen.core.drafting.speculator import Speculator
from specgen.core.evaluation.replay import Reader, RecordedBackend, Recording, load_recordings
from specgen.core.llama.backend import open_vocab
from specgen.core.session import Session
from specgen.core.tree import DraftTree
from specgen.drafters.ensemble import ensemble

NOW = (1.3, 2.0, 3.2)
LATELY = (0.3, 0.7, 1.2)
MAX_DRAFTS = 63
CURVE = "flat"  # where rows cost next to nothing, trees show all that drafters offer
SIZES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)


class Watcher(Builder):
    """Builds trees for what they promise, and drafts nothing."""

    seen: list[tuple[float, list[float]]]  # at each token the trend, and what 1, 2, … nodes promise

    def build(
        self, request: TreeRequest, drafters: Sequence[SafeDrafter], text: TextState
    ) -> Choice:
        """The root alone, with the tree to learn from."""
        grown = self._grown(request, drafters, text.run)
        self.seen.append((text.trend.value, grown.expected))
        text.trend.promised(grown.expected)
        return Choice(DraftTree.root(request.root), 1, grown.best_first)


def main(recording: Path, model: str | None) -> None:
    """Count, and write."""
    vocab = open_vocab(ensure_model(model))
    recordings = load_recordings(
        recording, lambda text: vocab.tokenize(text, add_bos=False, special=False)
    )
    n = (len(NOW) + 1) * (len(LATELY) + 1)
    blank = Outlook(NOW, LATELY, SIZES, np.ones((n, len(SIZES))), np.eye(n))
    moves, tokens, visits = np.full((n, n), 1e-3), np.ones((n, len(SIZES))), np.ones(n)
    acceptance = shipped_priors()
    for number, conversation in enumerate(recordings, start=1):
        print(f"\r{number}/{len(recordings)}", end="", file=sys.stderr, flush=True)
        for seen in _turns(conversation, acceptance):
            states = [blank.state(expected, trend) for trend, expected in seen]
            np.add.at(moves, (states[:-1], states[1:]), 1)
            for state, (_, expected) in zip(states, seen, strict=True):
                tokens[state] += [expected[min(size, len(expected)) - 1] for size in SIZES]
                visits[state] += 1
    found = Outlook(
        NOW,
        LATELY,
        SIZES,
        tokens / visits[:, None],
        moves / moves.sum(axis=1, keepdims=True),
    )
    target = Path(__file__).parents[1] / "core" / "drafting" / "outlook.json"
    target.write_text(json.dumps(found.record()).replace("], ", "],\n") + "\n")
    print(f"\n{int(visits.sum() - n)} tokens: {target}")


def _turns(
    conversation: Recording, acceptance: AcceptanceModel
) -> Iterator[list[tuple[float, list[float]]]]:
    """What was seen at each token of each answer."""
    backend = RecordedBackend(MAX_DRAFTS + 64)
    builder = Watcher(backend.limits, MAX_DRAFTS, acceptance=acceptance, pricing=load_curve(CURVE))
    session = Session(backend, Speculator(builder, ensemble("auto")))
    text: list[int] = []
    for prompt, answer in conversation.turns:
        text += prompt
        session.feed(text)
        builder.seen = []
        for _ in session.generate(Reader(answer), len(answer), lambda _: False):
            pass
        text += answer
        yield builder.seen


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else None)
