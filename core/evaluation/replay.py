"""Replay: recorded answers through drafters, without the model that gave them.

A drafter that looks only at text drafts the same whether the target runs or its answer is read
from a file, so tokens and nodes per step are exact and the same on every machine. Speed follows
under a cost curve, what changes of width take included. Everything but the target and the sampler
is the code that generates.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from specgen.core.config import MOST_LEAVES
from specgen.core.cost.gear import Gear
from specgen.core.cost.model import CostModel
from specgen.core.drafting.acceptance import AcceptanceModel
from specgen.core.drafting.builder import Builder
from specgen.core.drafting.speculator import Speculator
from specgen.core.errors import UsageError
from specgen.core.protocols import Drafter, Limits, Logits, Tokens
from specgen.core.records import items, member, parse_record
from specgen.core.records import text as as_text
from specgen.core.sampling import Sampler, SamplingParams
from specgen.core.session import Session
from specgen.core.stats import Step, sources
from specgen.core.text.encoding import decode_text
from specgen.core.tree import DraftTree


@dataclass(frozen=True, slots=True)
class Recording:
    """One conversation.

    Attributes:
        task: the group that it belongs to.
        turns: pairs of prompt tokens and answer tokens.
    """

    task: str
    turns: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]


@dataclass(slots=True)
class Tally:
    """Sums over the steps of one group."""

    tokens: int = 0
    steps: int = 0
    nodes: int = 0
    drafted_s: float = 0.0  # under the curve, as drafted
    plain_s: float = 0.0  # under the curve, one token at a time
    accepted_by: Counter[str] = field(default_factory=Counter)  # draft tokens, by their drafters

    def add(self, other: Tally) -> None:
        """Add another group's sums."""
        self.tokens += other.tokens
        self.steps += other.steps
        self.nodes += other.nodes
        self.drafted_s += other.drafted_s
        self.plain_s += other.plain_s
        self.accepted_by += other.accepted_by

    @property
    def tokens_per_step(self) -> float:
        """Mean tokens of a target call."""
        return self.tokens / self.steps

    @property
    def nodes_per_step(self) -> float:
        """Mean rows of a target call."""
        return self.nodes / self.steps

    @property
    def speedup(self) -> float:
        """Speed relative to plain decoding, under the curve."""
        return self.plain_s / self.drafted_s


class RecordedBackend:
    """A backend that computes nothing: it knows how long its cache would be."""

    def __init__(self, max_rows: int) -> None:
        self.limits = Limits(1 << 30, 1 << 30, max_rows, MOST_LEAVES, 1 << 30, True, True)
        self._length = 0
        self._no_logits = np.empty((max_rows, 0), np.float32)
        self._n_rows = 0

    @property
    def length(self) -> int:
        """See protocols.Backend."""
        return self._length

    def prefill(self, tokens: Tokens) -> None:
        """See protocols.Backend."""
        self._length += len(tokens)

    def submit(self, tree: DraftTree, pending: Sequence[int]) -> None:
        """See protocols.Backend."""
        self._n_rows = len(tree)

    def wait(self) -> Logits:
        """See protocols.Backend."""
        return self._no_logits[: self._n_rows]

    def score(self, tree: DraftTree, pending: Sequence[int]) -> Logits:
        """See protocols.Backend."""
        self.submit(tree, pending)
        return self.wait()

    def commit(self, n_kept: int) -> None:
        """See protocols.Backend."""
        self._length += n_kept

    def rewind(self, length: int) -> int:
        """See protocols.Backend."""
        self._length = min(length, self._length)
        return self._length

    def close(self) -> None:
        """Nothing to free."""


class Reader(Sampler):
    """A sampler that reads its tokens from a recorded answer."""

    def __init__(self, answer: Sequence[int]) -> None:
        super().__init__(SamplingParams(temperature=0), 1)
        self._rest = iter(answer)

    def next(self, logits: Any) -> int:
        """The recorded token."""
        return next(self._rest)


def replay(
    recording: Recording,
    drafters: Sequence[Drafter],
    curve: CostModel,
    acceptance: AcceptanceModel | None,
    max_drafts: int,
) -> dict[str, Tally]:
    """Tallies of one conversation by group, "task turn N". The drafters must be new.

    There is none of an answer without tokens.

    With an acceptance model, trees are sized by the curve; without one they take every candidate.
    """
    backend = RecordedBackend(max_drafts + 64)
    pricing = curve if acceptance is not None else None
    builder = Builder(backend.limits, max_drafts, acceptance=acceptance, pricing=pricing)
    session = Session(backend, Speculator(builder, drafters))
    text: list[int] = []
    gear = Gear()
    tallies = {}
    for turn, (prompt, answer) in enumerate(recording.turns, start=1):
        tally = tallies[f"{recording.task} turn {turn}"] = Tally()
        text += prompt
        session.feed(text)
        costs = curve.costs(0)
        before = backend.length
        for step in session.generate(Reader(answer), len(answer), lambda _: False):
            n_rows = _rows(step, before, len(text) + tally.tokens)
            before = backend.length
            tally.tokens += len(step.tokens)
            tally.steps += 1
            tally.nodes += n_rows
            n_rows = min(n_rows, len(costs))
            tally.drafted_s += costs[n_rows - 1] + gear.extra_s(n_rows, curve.change)
            gear = gear.after(n_rows)
            tally.plain_s += costs[0] * len(step.tokens)
            tally.accepted_by.update(sources(step.tree, step.path))
        text += answer
    return {group: tally for group, tally in tallies.items() if tally.steps}


def _rows(step: Step, n_cached: int, n_text: int) -> int:
    """Rows of a step: the tree, and the pending tokens ahead of its root."""
    return len(step.tree) + n_text - n_cached - 1


def load_recordings(path: Path, tokenize: Callable[[str], list[int]]) -> list[Recording]:
    """Conversations of a file: JSON lines with `turns` and `answers`, or a plain text.

    A line may also have `task`. Of a plain text the first 64 tokens are the prompt. Raises
    UsageError with the line at fault.
    """
    try:
        text = decode_text(path.read_bytes(), f"the recording {path}").replace("\r\n", "\n")
    except OSError as error:
        raise UsageError(f"cannot read the recording {path}: {error}") from None
    if path.suffix not in (".jsonl", ".json"):
        tokens = tuple(tokenize(text))
        return [Recording(path.stem, ((tokens[:64], tokens[64:]),))]
    recordings = []
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip():
            recordings.append(_recording(line, number, path, tokenize))
    return recordings


def _recording(
    line: str, number: int, path: Path, tokenize: Callable[[str], list[int]]
) -> Recording:
    try:
        record = parse_record(line)
        asked, answers = (items(member(record, name), name) for name in ("turns", "answers"))
        turns = tuple(
            (tuple(tokenize(f"\n\n{as_text(turn, 'a turn')}\n\n")), tuple(tokenize(answer)))
            for turn, answer in zip(asked, [as_text(a, "an answer") for a in answers], strict=True)
        )
        return Recording(str(record.get("task", "text")), turns)
    except (ValueError, TypeError) as error:
        raise UsageError(
            f"{path}, line {number} is no recorded conversation: {error}",
            "each line needs `turns` and `answers`, lists of the same length",
        ) from None
