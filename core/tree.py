"""The draft tree: what one target call verifies.

Node 0 is the last emitted token, not yet in the cache. `parents[i] < i`, siblings carry
distinct tokens, and the main chain comes first: nodes 0..n_main-1 each continue the one before.
Only the main chain may stay in the cache, so it should be the likeliest path.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

import numpy as np

# A small hashable bucket whose first entry is the drafter's name.
Evidence: TypeAlias = tuple[str | int, ...]


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens both begin with."""
    n = min(len(a), len(b))
    differs = np.asarray(a[:n], np.int64) != np.asarray(b[:n], np.int64)
    return int(differs.argmax()) if differs.any() else n


@dataclass(frozen=True)
class DraftTree:
    """Flat arrays of n nodes. Tuples: Python reads their items faster than NumPy's.

    Attributes:
        tokens: (n,) token ids; tokens[0] is the last emitted token.
        parents: (n,) index of each node's parent; -1 for node 0.
        probs: (n,) estimates of P(node accepted | parent accepted); 1.0 for node 0.
        evidence: (n,) what each drafter that proposed the node based it on; () for node 0.
    """

    tokens: tuple[int, ...]
    parents: tuple[int, ...]
    probs: tuple[float, ...]
    evidence: tuple[tuple[Evidence, ...], ...]

    def __len__(self) -> int:
        return len(self.tokens)

    @classmethod
    def root(cls, token: int) -> DraftTree:
        """A tree that drafts nothing: plain decoding."""
        return cls((token,), (-1,), (1.0,), ((),))

    @classmethod
    def from_parents(cls, tokens: Sequence[int], parents: Sequence[int]) -> DraftTree:
        """A tree without estimates or evidence, for tests and tools.

        Raises ValueError where `check` does.
        """
        n = len(tokens)
        tree = cls(tuple(tokens), tuple(parents), (1.0,) * n, ((),) * n)
        tree.check()
        return tree

    @cached_property
    def n_main(self) -> int:
        """Nodes of the main chain, the root included."""
        n = 1
        while n < len(self.parents) and self.parents[n] == n - 1:
            n += 1
        return n

    @cached_property
    def depths(self) -> tuple[int, ...]:
        """(n,) distance of each node from the root."""
        depths = [0] * len(self.parents)
        for node in range(1, len(depths)):
            depths[node] = depths[self.parents[node]] + 1
        return tuple(depths)

    @property
    def depth(self) -> int:
        """Most draft tokens on a path."""
        n = len(self.parents)
        return n - 1 if self.n_main == n else max(self.depths)

    @cached_property
    def leaves(self) -> tuple[int, ...]:
        """Nodes without children, in order."""
        inner = set(self.parents)
        return tuple(node for node in range(len(self.parents)) if node not in inner)

    def child(self, node: int, token: int) -> int | None:
        """The child of `node` that carries `token`, or None."""
        for i in range(node + 1, len(self.tokens)):
            if self.tokens[i] == token and self.parents[i] == node:
                return i
        return None

    def extended(self, tokens: Sequence[int], evidence: Evidence) -> DraftTree:
        """The tree with a chain of `tokens` below its last node, which nobody drafted."""
        n = len(self.tokens)
        return DraftTree(
            (*self.tokens, *tokens),
            (*self.parents, *range(n - 1, n - 1 + len(tokens))),
            (*self.probs, *[0.0] * len(tokens)),
            (*self.evidence, *[(evidence,)] * len(tokens)),
        )

    def check(self) -> None:
        """Raise ValueError if an invariant of the class does not hold."""
        n = len(self.tokens)
        if not n == len(self.parents) == len(self.probs) == len(self.evidence):
            raise ValueError("tokens, parents, probs and evidence differ in length")
        if n == 0 or self.parents[0] != -1:
            raise ValueError("node 0 must be the root, with parent -1")
        for node in range(1, n):
            if not 0 <= self.parents[node] < node:
                raise ValueError(f"node {node} has parent {self.parents[node]}, not an earlier one")
        edges = set(zip(self.parents[1:], self.tokens[1:], strict=True))
        if len(edges) != n - 1:
            raise ValueError("two siblings carry the same token")
