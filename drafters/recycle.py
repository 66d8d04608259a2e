"""Token recycling: the target's own runners-up, remembered by the token they came after.

Every scored node, rejected ones too, leaves the likeliest 8 tokens of its logits in the row of
its token, with their probabilities; the newest row wins. A draft follows the rows. A second
table by the last two tokens is sharper and backs off to the first; where no logits were seen
yet, what followed in the text stands in, the latest first.

Source: Luo et al., "Turning Trash into Treasure: Accelerating Inference of LLMs with Token
Recycling", arXiv 2408.08696, sections 3.1 to 3.3. Probabilities and longer keys as in Song et
al., "STAND", arXiv 2506.04708.
"""

from __future__ import annotations

import heapq
from array import array
from collections.abc import Iterator, Sequence
from typing import Final, TypeAlias

import numpy as np

from specgen.core.protocols import Candidate, Logits, Tokens
from specgen.core.rows import likeliest
from specgen.core.tree import DraftTree, Evidence

from .evidence import N_CHANCES, chance_bucket
from .slots import Slots

K: Final = 8  # a row keeps so many tokens
PAIRS: Final = 1 << 15  # so many pairs of tokens have a row, the newest
TEMPLATE_NODES: Final = 60  # the tree of a standalone drafter has so many nodes
SEED_TOKENS: Final = 1 << 14  # text rows are made from so many tokens of a context, the last
TEXT_ROWS: Final = 1 << 14  # each of the two kinds of keys has at most so many text rows

_NAME: Final = "recycle"

_ROW: Final = 8 * K  # bytes that are kept of a token
_PAGE: Final = 4096  # bytes of a page of memory
_TOKENS_PER_PAGE: Final = 5  # tokens of text that touch one more page; 8 to 15 were seen
_LEAST = 0.005  # candidates that are less likely than this are not worth offering
_LOW: Final = (1 << 32) - 1

# What a row's probability is worth in the place where the row is used again, by length of key.
_TRUST = {1: 0.55, 2: 0.8}
# Rough chances of text rows: of the only token known by length of key, else by rank.
_TEXT_ONLY = {1: 0.3, 2: 0.6}
_TEXT_CHANCE = {
    1: (0.12, 0.1, 0.06, 0.05, 0.04, 0.03, 0.02, 0.02),
    2: (0.3, 0.25, 0.15, 0.1, 0.08, 0.07, 0.06, 0.05),
}

_EVIDENCE: Final[dict[int, list[list[Evidence]]]] = {
    order: [[(_NAME, order, rank, chance) for chance in range(N_CHANCES)] for rank in range(K)]
    for order in (1, 2)
}

Template: TypeAlias = list[tuple[int, ...]]  # children of each node by rank
# The last two tokens, packed; and the node of the template when alone.
_State: TypeAlias = tuple[int, int]


class Recycle:
    """See specgen.core.protocols.Drafter.

    A new text keeps the rows made of logits: they tell of the target, not of a text. Rows made
    of text go.

    Memory: 64 bytes per token of the vocabulary (3 MiB for 49,152, 16 MiB for 262,144), 6 MiB for
    pairs and at most 5 MiB for text rows.

    Args:
        standalone: draft a fixed tree of 60 nodes by ranks, from the rows of single tokens.
    """

    name = _NAME
    effort = None
    reads_logits = True

    def __init__(self, standalone: bool = False) -> None:
        self._template = make_template(TEMPLATE_NODES) if standalone else None
        self._rows = _LogitRows(0)  # by token
        self._pairs = Slots(PAIRS)
        self._pair_rows = _LogitRows(PAIRS)
        self._pair = -1  # the last two tokens of the text, packed; negative before the second
        self._forget_text()

    def _forget_text(self) -> None:
        self._text = _TextRows()
        self._pair_text = _TextRows()
        self._n_tokens = 0

    @staticmethod
    def table_bytes(n_vocab: int, n_ctx: int) -> int:
        """Bytes of its tables once a context of `n_ctx` tokens is full.

        Rows by token lie in pages that are touched one by one; text and pairs are dictionaries.
        """
        rows = min(_ROW * n_vocab, _PAGE * n_ctx // _TOKENS_PER_PAGE)
        return rows + 320 * min(TEXT_ROWS, n_ctx) + (120 + _ROW) * min(PAIRS // 2, 4 * n_ctx)

    def begin(self, context: Tokens) -> None:
        """See Drafter."""
        self._forget_text()
        self._extend(context[-SEED_TOKENS:].tolist())

    def root(self) -> _State | None:
        """The last two tokens."""
        return (self._pair, 0) if self._n_tokens else None

    def advance(self, state: _State, token: int) -> _State | None:
        """The pair moves on. Alone, to the token's place in the template, where it has one."""
        pair, node = state
        if self._template is None:
            return (_next_pair(pair, token), 0)
        for child, candidate in zip(self._template[node], self.predict(state), strict=False):
            if candidate.token == token:
                return (_next_pair(pair, token), child)
        return None

    def predict(self, state: _State) -> Sequence[Candidate]:
        """The row of the last two tokens, or else of the last one."""
        pair, node = state
        if self._template is not None:
            return self._ranked(pair & _LOW, len(self._template[node]))
        slot = self._pairs.get(pair)
        if slot is not None:
            return _weighed(2, self._pair_rows.get(slot))
        token = pair & _LOW
        if row := self._row(token):
            return _weighed(1, row)
        if text := self._pair_text.get(pair):
            return _from_text(2, text)
        return _from_text(1, self._text.get(token))

    def _row(self, token: int) -> list[tuple[int, float]]:
        """What the logits after `token` said last, or nothing."""
        row = self._rows.get(token) if token < len(self._rows) else []
        return row if row and row[0][1] > 0 else []

    def _ranked(self, token: int, n: int) -> Sequence[Candidate]:
        """The first `n` of the token's row, each half as likely as the one before."""
        row = [successor for successor, p in self._row(token) if p > 0] or self._text.get(token)
        return [
            Candidate(successor, (_NAME, 0, rank), 0.5 ** (rank + 1))
            for rank, successor in enumerate(row[:n])
        ]

    def observe(self, emitted: Sequence[int], tree: DraftTree, logits: Logits) -> None:
        """See Drafter. Without rows of logits only the text is learnt."""
        if logits.size:  # a replay has none
            self._recycle(emitted, tree, logits)
        self._extend(emitted)

    def _recycle(self, emitted: Sequence[int], tree: DraftTree, logits: Logits) -> None:
        """Put every node's likeliest tokens in the rows of its keys."""
        found, chances = likeliest(logits, K)
        if len(self._rows) < logits.shape[1]:
            self._rows = _LogitRows(logits.shape[1], self._rows)
        k = len(found) // len(tree)
        by_token: dict[int, int] = {}  # node whose row wins
        by_slot: dict[int, int] = {}
        tokens, parents, pairs = tree.tokens, tree.parents, self._pairs
        for node in _accepted_last(tree, emitted):
            if not chances[k * node]:  # no usable logits
                continue
            by_token[tokens[node]] = node
            pair = _next_pair(tokens[parents[node]], tokens[node]) if node else self._pair
            slot = pairs.get(pair)
            by_slot[pairs.take(pair) if slot is None else slot] = node
        for table, nodes in ((self._rows, by_token), (self._pair_rows, by_slot)):
            for key, node in nodes.items():
                place = slice(k * node, k * node + k)
                table.put(key, found[place], chances[place])

    def _extend(self, tokens: Sequence[int]) -> None:
        for token in tokens:
            if self._n_tokens:
                self._text.move_to_front(self._pair & _LOW, token)
            if self._n_tokens > 1:
                self._pair_text.move_to_front(self._pair, token)
            self._pair = _next_pair(self._pair, token) if self._n_tokens else token - (1 << 62)
            self._n_tokens += 1


def make_template(n_nodes: int) -> Template:
    """Children by rank of each node of the likeliest tree where rank r has chance 0.5 ** (r + 1).

    Node 0 is the root; of equals the shallower one goes first.
    """
    children: list[list[int]] = [[]]
    offers = [(1, 1, 0, 0)]  # (minus log2 of the path's chance, depth, parent, rank)
    while len(children) <= n_nodes:
        cost, depth, parent, rank = heapq.heappop(offers)
        node = len(children)
        children.append([])
        children[parent].append(node)
        if rank + 1 < K:
            heapq.heappush(offers, (cost + 1, depth, parent, rank + 1))
        heapq.heappush(offers, (cost + 1, depth + 1, node, 0))
    return [tuple(row) for row in children]


def _accepted_last(tree: DraftTree, emitted: Sequence[int]) -> Iterator[int]:
    """All nodes, those of the accepted path after the others."""
    path = [0]
    for token in emitted:
        child = tree.child(path[-1], token)
        if child is None:
            break
        path.append(child)
    on_path = set(path)
    yield from (node for node in range(len(tree)) if node not in on_path)
    yield from path


def _weighed(order: int, row: Sequence[tuple[int, float]]) -> Sequence[Candidate]:
    trust, evidence = _TRUST[order], _EVIDENCE[order]
    return [
        Candidate(token, evidence[rank][chance_bucket(p)], trust * p)
        for rank, (token, p) in enumerate(row)
        if p > _LEAST
    ]


def _from_text(order: int, row: Sequence[int]) -> Sequence[Candidate]:
    n_known = min(len(row), 4)
    chances = _TEXT_CHANCE[order] if n_known > 1 else (_TEXT_ONLY[order],)
    return [
        Candidate(token, (_NAME, "text", order, rank, n_known), chances[rank])
        for rank, token in enumerate(row)
    ]


class _LogitRows:
    """Tokens and probabilities, the likeliest first; probability 0 where there is nothing.

    In pages of memory that are touched one by one.
    """

    def __init__(self, n_rows: int, old: _LogitRows | None = None) -> None:
        self._n_rows = n_rows
        both = np.zeros(_ROW * n_rows, np.uint8).data
        self._tokens, self._probs = both.cast("i"), both.cast("f")  # in halves of each row
        if old:
            self._tokens[: len(old._tokens)] = old._tokens

    def __len__(self) -> int:
        return self._n_rows

    def get(self, row: int) -> list[tuple[int, float]]:
        """All of a row."""
        start, middle, end = 2 * K * row, 2 * K * row + K, 2 * K * row + 2 * K
        return [*zip(self._tokens[start:middle], self._probs[middle:end], strict=True)]

    def put(self, row: int, tokens: array[int], probs: array[float]) -> None:
        """Write the first of a row; the others stay as they are."""
        start = 2 * K * row
        self._tokens[start : start + len(tokens)] = tokens
        self._probs[start + K : start + K + len(probs)] = probs


class _TextRows:
    """What followed each of the newest keys in the text, the latest first."""

    def __init__(self) -> None:
        self._slots = Slots(TEXT_ROWS)
        self._sizes = bytearray()
        self._tokens = array("i")

    def get(self, key: int) -> Sequence[int]:
        """The row of `key`, empty where there is none."""
        slot = self._slots.get(key)
        return () if slot is None else self._tokens[slot * K : slot * K + self._sizes[slot]]

    def move_to_front(self, key: int, token: int) -> None:
        """Make `token` the first of its row; a full row loses its last."""
        slot = self._slots.get(key)
        if slot is None:
            slot = self._slots.take(key)
            if slot == len(self._sizes):
                self._sizes.append(0)
                self._tokens.extend([0] * K)
            self._sizes[slot] = 0
        start, size, tokens = slot * K, self._sizes[slot], self._tokens
        at = next((i for i in range(start, start + size) if tokens[i] == token), -1)
        if at < 0:
            self._sizes[slot] = size = min(size + 1, K)
            at = start + size - 1
        tokens[start + 1 : at + 1] = tokens[start:at]
        tokens[start] = token


def _next_pair(pair: int, token: int) -> int:
    return (pair & _LOW) << 32 | token
