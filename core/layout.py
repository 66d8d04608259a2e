"""How a tree becomes one batch of llama.cpp: a row per token, with position and sequence ids.

Each leaf gets a sequence id and each row carries the ids of all leaves below it. A query sees
the cells that carry its first id, at positions up to its own: exactly its ancestors. The main
chain owns id 0. Ids are contiguous from 0, so a row's ids are a few small integers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .tree import DraftTree


@dataclass(frozen=True, slots=True)
class Layout:
    """Rows of a batch, the lead first, then the tree's nodes in order.

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


def lay_out(tree: DraftTree, lead: Sequence[int], start: int) -> Layout:
    """The batch that scores `lead` and then `tree`, the first row at position `start`."""
    n_lead = len(lead)
    base = start + n_lead
    tokens = (*lead, *tree.tokens)
    positions = (*range(start, base), *(base + depth for depth in tree.depths))
    if tree.n_main == len(tree):
        return Layout(tokens, positions, ((0,),) * len(tokens), 1)
    ids: list[list[int]] = [[] for _ in tree.tokens]
    for sequence, leaf in enumerate(_main_leaf_first(tree)):
        node = leaf
        while node >= 0:
            ids[node].append(sequence)
            node = tree.parents[node]
    everyone = tuple(ids[0])
    sequences = (*((everyone,) * n_lead), *(tuple(row) for row in ids))
    return Layout(tokens, positions, sequences, len(everyone))


def _main_leaf_first(tree: DraftTree) -> list[int]:
    """Leaves, the first one below the end of the main chain, so that the chain gets id 0."""

    def is_side(leaf: int) -> bool:
        while leaf >= tree.n_main:
            leaf = tree.parents[leaf]
        return leaf != tree.n_main - 1

    return sorted(tree.leaves, key=is_side)
