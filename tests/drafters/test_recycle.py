"""Token recycling: rows of runners-up, and the exact top k, by naive definitions."""

from __future__ import annotations

import numpy as np

from specgen.core.tree import DraftTree
from specgen.drafters.recycle import Recycle, make_template
from tests.support.drafting import N_VOCAB, begun, guesses_at_root, observe


def test_recycle_keeps_the_newest_row_of_every_node() -> None:
    """Rows are the naive top 8 by token and by pair; the accepted path wins over other nodes."""
    rng = np.random.default_rng(4)
    drafter = begun(Recycle(), [7, 3])
    tree = DraftTree.from_parents([3, 5, 6, 5, 6], [-1, 0, 1, 2, 0])
    logits = (3 * rng.standard_normal((5, N_VOCAB))).astype(np.float32)
    drafter.observe([5, 9], tree, logits)  # nodes 0 and 1 are accepted, then comes a 9
    ranked = np.argsort(-logits, axis=1)[:, :8]

    def row(before: int, token: int) -> list[int]:
        begun(drafter, [before, token])
        return [guess.token for guess in guesses_at_root(drafter)]

    def is_from(node: int, tokens: list[int]) -> bool:
        return tokens == ranked[node][: len(tokens)].tolist() and len(tokens) > 1

    assert is_from(0, row(7, 3)) and is_from(0, row(8, 3))
    assert is_from(1, row(3, 5)) and is_from(1, row(8, 5))  # node 1, though node 3 is later
    assert is_from(3, row(6, 5))
    assert is_from(2, row(5, 6)) and is_from(4, row(3, 6)) and is_from(4, row(8, 6))


def test_recycle_follows_the_text_where_it_has_no_logits() -> None:
    """Without rows, what followed in the text is guessed, the latest first, pairs before tokens."""
    drafter = begun(Recycle(), [1, 2, 3, 1, 2, 4, 8, 2, 5, 1, 2])
    assert [guess.token for guess in guesses_at_root(drafter)] == [4, 3]
    observe(drafter, [9, 2])
    assert [guess.token for guess in guesses_at_root(drafter)] == [9, 5, 4, 3]


def test_recycle_remembers_the_target_but_not_the_text() -> None:
    """A new text keeps rows made of logits and drops those made of text."""
    drafter = begun(Recycle(), [1, 2, 1])
    drafter.observe([4], DraftTree.root(1), np.eye(1, N_VOCAB, 6, np.float32) * 9)
    begun(drafter, [2])
    assert not guesses_at_root(drafter)
    begun(drafter, [1])
    assert guesses_at_root(drafter)[0].token == 6


def test_recycle_skips_rows_without_usable_logits() -> None:
    """NaN and infinities leave no row behind."""
    drafter = begun(Recycle(), [1])
    logits = np.zeros((3, N_VOCAB), np.float32)
    logits[0], logits[1], logits[2, 7] = np.nan, -np.inf, np.inf
    drafter.observe([2], DraftTree.from_parents([1, 2, 3], [-1, 0, 1]), logits)
    for token in (1, 2, 3):
        begun(drafter, [token])
        assert not guesses_at_root(drafter)


def test_recycle_alone_drafts_the_likeliest_tree_by_ranks() -> None:
    """60 nodes whose sums of ranks are the smallest, in a shape like the paper's."""
    template = make_template(60)
    costs, depths = {0: 0}, {0: 0}
    for node, children in enumerate(template):
        for rank, child in enumerate(children):
            costs[child], depths[child] = costs[node] + rank + 1, depths[node] + 1
    assert len(costs) == 61
    assert [sum(cost == n for cost in costs.values()) for n in range(7)] == [1, 1, 2, 4, 8, 16, 29]
    assert [sum(depth == n for depth in depths.values()) for n in range(6)] == [1, 6, 15, 20, 15, 4]


def test_recycle_alone_stays_in_its_template() -> None:
    """With a full row at every token the fixed tree is drafted, no more and no less."""
    drafter = begun(Recycle(standalone=True), [0])
    tree = DraftTree.from_parents(range(8), range(-1, 7))
    drafter.observe([0], tree, np.tile(np.linspace(9, 0, N_VOCAB, dtype=np.float32), (8, 1)))
    states = [begun(drafter, [0]).root()]
    for state in states:
        states += [drafter.advance(state, guess.token) for guess in drafter.predict(state)]
    assert len(states) == 60 + 1
    assert drafter.advance(states[0], 40) is None
