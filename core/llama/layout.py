"""How a tree becomes one batch of llama.cpp: a row per token, with position and sequence ids.

Each leaf gets a sequence id and each row carries the ids of all leaves below it. A query sees
the cells that carry its first id, at positions up to its own: exactly its ancestors. The main
chain owns id 0. Ids are contiguous from 0, so a row's ids are a few small integers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from specgen.core.tree import DraftTree


@dataclass(frozen=True, slots=True)
class Layout:
    """Rows of a batch: the pending tokens, then the tree's nodes in order.

    Attributes:
        tokens: (rows,) token ids.
        positions: (rows,) place of each token in the text.
        sequences: (rows,) sequence ids of each row, smallest first.
        n_sequences: ids used, 1 for a chain.
    """

    tokens: tuple[int, ...]
    positions: tuple[int, ...]
    sequences: tuple[tuple[int, ...], ...]
    n_sequences: int


def lay_out(tree: DraftTree, pending: Sequence[int], start: int) -> Layout:
    """The batch that scores `pending` and then `tree`, the first row at position `start`."""
    tokens = (*pending, *tree.tokens)
    n_rows = len(tokens)
    if tree.n_main == len(tree):
        return Layout(tokens, tuple(range(start, start + n_rows)), ((0,),) * n_rows, 1)
    n_pending = len(pending)
    base = start + n_pending
    positions = (*range(start, base), *[base + depth for depth in tree.depths])
    ids = _leaves_below(tree)
    return Layout(tokens, positions, (*[ids[0]] * n_pending, *ids), len(ids[0]))


def _leaves_below(tree: DraftTree) -> list[tuple[int, ...]]:
    """For each node the numbers of the leaves below it, or its own, 0 for the main chain's."""
    parents = tree.parents
    main = tree.n_main - 1
    for node in range(tree.n_main, len(parents)):
        if parents[node] == main:  # the chain's end has a child after all, later in the order
            main = node
    below: list[list[int]] = [[] for _ in parents]
    for number, leaf in enumerate([main, *[leaf for leaf in tree.leaves if leaf != main]]):
        node = leaf
        while node >= 0:
            below[node].append(number)
            node = parents[node]
    return [tuple(numbers) for numbers in below]
