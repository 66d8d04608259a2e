"""Verification: sample the target once per node and follow the child that matches.

Lossless for every sampler and every deterministic drafter: the sampler is asked once per
emitted token, in order, with the true text behind it, exactly as in plain decoding. For
point-mass drafts this also accepts with the highest possible probability
(Sun et al., "SpecTr", arXiv 2310.15141, discuss the optimal-transport bound).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from .protocols import Logits
from .sampling import Sampler
from .tree import DraftTree


@dataclass(frozen=True, slots=True)
class Verdict:
    """What one walk through the tree gave.

    Attributes:
        tokens: emitted tokens, one or more; the last one is the target's own.
        path: accepted nodes below the root, in order.
        finished: the walk was ended by `ends`.
    """

    tokens: tuple[int, ...]
    path: tuple[int, ...]
    finished: bool


def verify(
    tree: DraftTree,
    logits: Logits,  # (len(tree), n_vocab)
    sampler: Sampler,
    limit: int,
    ends: Callable[[int], bool],
) -> Verdict:
    """Walk down from the root, emitting 1..`limit` tokens.

    `ends` is told every emitted token and cuts the walk by returning True; no token is drawn
    after that. The sampler draws once per emitted token.
    """
    tokens: list[int] = []
    path: list[int] = []
    node = 0
    while True:
        token = sampler.next(logits[node])
        tokens.append(token)
        if ends(token):
            return Verdict(tuple(tokens), tuple(path), finished=True)
        child = tree.child(node, token)
        if child is None or len(tokens) == limit:
            return Verdict(tuple(tokens), tuple(path), finished=False)
        path.append(child)
        node = child
