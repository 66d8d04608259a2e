"""What a generation did: one `Step` per target call, summed up in `GenerationStats`.

Times are seconds. Tokens per step count the target's own token: plain decoding makes 1.00.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from .tree import DraftTree


@dataclass(frozen=True, slots=True)
class Step:
    """One target call.

    Attributes:
        tokens: emitted tokens, one or more.
        tree: what was verified.
        n_rows: rows of the call: pending tokens ahead of the tree, and its nodes.
        path: accepted nodes below the root.
        finished: the text has ended (see verify.Verdict).
        draft_s: time to build the tree.
        score_s: time inside the backend's `score`.
        total_s: the whole step; total_s - score_s is the host's share.
    """

    tokens: tuple[int, ...]
    tree: DraftTree
    n_rows: int
    path: tuple[int, ...]
    finished: bool
    draft_s: float
    score_s: float
    total_s: float


@dataclass(slots=True)
class GenerationStats:
    """Sums over the steps of one generation.

    Attributes:
        nodes: scored, roots included.
        sizes: how many steps had a tree of so many nodes.
        offered: how many steps had a tree so deep.
        reached: how many steps accepted so many draft tokens in a row.
        drafted_by, accepted_by: draft tokens by drafter; one of several counts for each of them.
    """

    steps: int = 0
    tokens: int = 0
    nodes: int = 0
    accepted: int = 0
    draft_s: float = 0.0
    score_s: float = 0.0
    total_s: float = 0.0
    drafted_by: Counter[str] = field(default_factory=Counter)
    accepted_by: Counter[str] = field(default_factory=Counter)
    sizes: Counter[int] = field(default_factory=Counter)
    offered: Counter[int] = field(default_factory=Counter)
    reached: Counter[int] = field(default_factory=Counter)

    def add(self, step: Step) -> None:
        """Count one step."""
        self.steps += 1
        self.tokens += len(step.tokens)
        self.nodes += len(step.tree)
        self.accepted += len(step.path)
        self.draft_s += step.draft_s
        self.score_s += step.score_s
        self.total_s += step.total_s
        self.sizes[len(step.tree)] += 1
        self.offered[step.tree.depth] += 1
        self.reached[len(step.path)] += 1
        if len(step.tree) > 1:
            self.drafted_by.update(sources(step.tree, range(1, len(step.tree))))
            self.accepted_by.update(sources(step.tree, step.path))

    @property
    def drafted(self) -> int:
        """Draft tokens: all nodes but the roots."""
        return self.nodes - self.steps

    @property
    def tokens_per_step(self) -> float:
        """Mean tokens of a target call; 0.0 before the first."""
        return self.tokens / self.steps if self.steps else 0.0

    @property
    def tokens_per_s(self) -> float:
        """Decoding speed, prompt processing left out; 0.0 before the first step."""
        return self.tokens / self.total_s if self.total_s else 0.0

    @property
    def host_s_per_step(self) -> float:
        """Mean time of a step outside the backend's `score`."""
        return (self.total_s - self.score_s) / self.steps if self.steps else 0.0


def sources(tree: DraftTree, nodes: Iterable[int]) -> list[str]:
    """Who proposed the nodes: a name for each of them and each of its drafters."""
    return [str(evidence[0]) for node in nodes for evidence in tree.evidence[node]]
