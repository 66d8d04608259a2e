"""Layouts: sequence ids and positions against what a query of llama.cpp would see; batches."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from specgen.core.llama.buffers import Batch
from specgen.core.llama.layout import Layout, lay_out, lay_out_chain
from specgen.core.llama.library import library
from specgen.core.tree import DraftTree

# Any tree whose nodes follow their parents: the i-th number, cut to i, is node i+1's parent.
N_IDS = 13  # as many as a tree here has leaves, at most
TREES = st.lists(st.integers(0, 12), max_size=12).map(
    lambda numbers: DraftTree.from_parents(
        range(100, 101 + len(numbers)),
        [-1, *(number % (i + 1) for i, number in enumerate(numbers))],
    )
)
CHAINS = st.integers(1, 9).map(lambda n: DraftTree.from_parents([7] * n, range(-1, n - 1)))
LEADS = st.lists(st.integers(0, 9), max_size=3)


def ancestors(tree: DraftTree, node: int) -> set[int]:
    """`node` and everything above it."""
    return set() if node < 0 else {node} | ancestors(tree, tree.parents[node])


def visible(rows: Layout, row: int) -> set[int]:
    """Rows that `row` attends to: they carry its first id, at positions up to its own."""
    first = rows.sequences[row][0]
    return {
        other
        for other, ids in enumerate(rows.sequences)
        if first in ids and rows.positions[other] <= rows.positions[row]
    }


@given(tree=TREES, pending=LEADS, start=st.integers(0, 50))
def test_a_row_sees_the_lead_and_its_ancestors(
    tree: DraftTree, pending: list[int], start: int
) -> None:
    """A node's first id shows it the whole lead, its ancestors and itself, and nothing else."""
    rows = lay_out(tree, pending, start, N_IDS)
    n = len(pending)
    for row in range(n):
        assert visible(rows, row) == set(range(row + 1))
    for node in range(len(tree)):
        seen = {n + above for above in ancestors(tree, node)}
        assert visible(rows, n + node) == {*range(n), *seen}


@given(tree=TREES, pending=LEADS, start=st.integers(0, 50))
def test_tokens_and_positions_are_the_places_in_the_text(
    tree: DraftTree, pending: list[int], start: int
) -> None:
    """The lead comes first, one position a row; each node comes one position after its parent."""
    rows = lay_out(tree, pending, start, N_IDS)
    n = len(pending)
    assert rows.tokens == (*pending, *tree.tokens)
    assert rows.positions[: n + 1] == tuple(range(start, start + n + 1))
    for node in range(1, len(tree)):
        assert rows.positions[n + node] == rows.positions[n + tree.parents[node]] + 1


@given(tree=TREES, pending=LEADS)
def test_a_row_carries_the_ids_of_the_leaves_below_it(tree: DraftTree, pending: list[int]) -> None:
    """Each leaf has one id of its own, 0 and up; a node has those below it. What lies ahead of the
    first node that may fork has all ids that there are.
    """
    rows = lay_out(tree, pending, 0, N_IDS)
    every = tuple(range(N_IDS))
    if len(tree.leaves) == 1:
        assert rows.sequences == (every,) * (len(pending) + len(tree))
        assert (rows.n_leaves, rows.n_shared) == (1, len(rows.sequences))
        return
    assert (rows.n_leaves, rows.n_shared) == (len(tree.leaves), len(pending) + 1)
    assert rows.sequences[: rows.n_shared] == (every,) * rows.n_shared
    ids = rows.sequences[len(pending) :]
    of_leaf = {leaf: ids[leaf][0] for leaf in tree.leaves}
    assert sorted(of_leaf.values()) == list(range(len(tree.leaves)))
    for node in range(1, len(tree)):
        below = [of_leaf[leaf] for leaf in tree.leaves if node in ancestors(tree, leaf)]
        assert ids[node] == tuple(sorted(below))


@given(tree=TREES, pending=LEADS)
def test_all_calls_have_the_same_number_of_ids(tree: DraftTree, pending: list[int]) -> None:
    """Whatever the tree: llama.cpp takes its graph again only where their number is the same."""
    rows = lay_out(tree, pending, 0, N_IDS)
    assert {id for row in rows.sequences for id in row} == set(range(N_IDS))


@given(tree=TREES)
def test_the_main_chain_owns_sequence_0(tree: DraftTree) -> None:
    """Sequence 0, the one that the cache keeps, holds the main chain."""
    rows = lay_out(tree, [], 0, N_IDS)
    assert all(rows.sequences[node][0] == 0 for node in range(tree.n_main))


@given(tree=CHAINS, pending=LEADS, start=st.integers(0, 50))
def test_a_chain_is_a_row_of_successive_positions(
    tree: DraftTree, pending: list[int], start: int
) -> None:
    """Each row of a chain takes one position, and all ids."""
    rows = lay_out(tree, pending, start, N_IDS)
    n = len(pending) + len(tree)
    tokens, places = (*pending, *tree.tokens), tuple(range(start, start + n))
    assert rows == Layout(tokens, places, (tuple(range(N_IDS)),) * n, 1, n)
    assert rows == lay_out_chain(tokens, start, N_IDS)


@given(trees=st.lists(st.tuples(TREES, LEADS, st.booleans()), min_size=1, max_size=4))
def test_a_batch_holds_the_layout_and_nothing_of_earlier_ones(
    trees: list[tuple[DraftTree, list[int], bool]],
) -> None:
    """What llama_decode reads, of whichever layouts came before."""
    batch = Batch(library().api, max_rows=16, n_ids=N_IDS)
    for tree, pending, outputs in trees:
        rows = lay_out(tree, pending, 5, N_IDS)
        filled = batch.fill(rows, outputs)
        n = len(rows.tokens)
        assert filled.n_tokens == n
        assert tuple(filled.token[:n]) == rows.tokens
        assert tuple(filled.pos[:n]) == rows.positions
        ids = [tuple(filled.seq_id[row][: filled.n_seq_id[row]]) for row in range(n)]
        assert tuple(ids) == rows.sequences
        assert [bool(flag) for flag in filled.logits[:n]] == [outputs] * n
