"""How a tree becomes one batch of llama.cpp: a row per token, with position and sequence ids.

Each leaf has a sequence id, 0 for the end of the main chain, and each row the ids of all leaves
below it. A query sees the cells that carry one of its ids, at positions up to its own: exactly its
ancestors. (Which of its ids that is, llama.cpp does not say; all of them give the same.) What lies
ahead of the first fork carries all ids there are, used or not: so calls of one width have the same
number of ids, whatever their tree, and llama.cpp takes its graph again.
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
        n_leaves: of the tree, 1 for a chain.
        n_shared: rows at the front that carry all ids: all of a chain; pending ones and the root.
    """

    tokens: tuple[int, ...]
    positions: tuple[int, ...]
    sequences: tuple[tuple[int, ...], ...]
    n_leaves: int
    n_shared: int


def lay_out(tree: DraftTree, pending: Sequence[int], start: int, n_ids: int) -> Layout:
    """The batch that scores `pending` and then `tree`, the first row at position `start`.

    There are `n_ids` sequence ids, as many as the tree has leaves or more.
    """
    tokens = (*pending, *tree.tokens)
    if tree.n_main == len(tree):
        return lay_out_chain(tokens, start, n_ids)
    n_shared = len(pending) + 1
    base = start + len(pending)
    positions = (*range(start, base), *[base + depth for depth in tree.depths])
    ids = _leaves_below(tree)
    shared = (tuple(range(n_ids)),) * n_shared
    return Layout(tokens, positions, (*shared, *ids[1:]), len(ids[0]), n_shared)


def lay_out_chain(tokens: Sequence[int], start: int, n_ids: int) -> Layout:
    """The batch of tokens that follow each other, the first at position `start`."""
    n = len(tokens)
    ids = (tuple(range(n_ids)),) * n
    return Layout(tuple(tokens), tuple(range(start, start + n)), ids, 1, n)


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
