"""A fake target model for tests and for authors of drafters.

`FakeBackend` is a language model made of a hash of the last few tokens, behind a cache of
cells that follows llama.cpp's rules and asserts them: which cells a query sees, where each
sequence may continue, that all ids are in each call, and that the committed cache has no holes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from specgen.core.errors import ContextFull
from specgen.core.llama.layout import Layout, lay_out
from specgen.core.protocols import Limits, Logits, Tokens
from specgen.core.tree import DraftTree


class HashModel:
    """A deterministic language model: logits are random numbers seeded by the last tokens.

    Args:
        n_vocab: size of the vocabulary.
        order: tokens that the logits depend on; small orders make repetitive text.
        seed: another seed is another model.
    """

    def __init__(self, n_vocab: int, order: int = 2, seed: int = 0) -> None:
        self.n_vocab = n_vocab
        self._order = order
        self._seed = seed
        self._known: dict[tuple[int, ...], NDArray[np.float32]] = {}

    def logits(self, context: Sequence[int]) -> NDArray[np.float32]:  # (n_vocab,)
        """Logits of the token after `context`."""
        key = tuple(context[-self._order :])
        if key not in self._known:
            rng = np.random.default_rng([self._seed, len(key), *key])
            self._known[key] = (2.5 * rng.standard_normal(self.n_vocab)).astype(np.float32)
        return self._known[key]


@dataclass(slots=True)
class _Cell:
    token: int
    position: int
    sequences: set[int]


class FakeBackend:
    """A `Backend` over a `HashModel`; breaking one of llama.cpp's rules is an AssertionError.

    Args:
        model: gives the logits.
        limits: what it pretends to be able to do; see `fake_limits`.
    """

    def __init__(self, model: HashModel, limits: Limits) -> None:
        self.limits = limits
        self.calls = 0  # target calls: `score` only
        self._model = model
        self._cells: list[_Cell] = []
        self._length = 0
        self._ids = range(limits.max_leaves)
        self._scored: Layout | None = None
        self._n_pending = 0
        self._given: Logits | None = None

    @property
    def length(self) -> int:
        """See protocols.Backend."""
        return self._length

    @property
    def cached(self) -> list[int]:
        """The committed tokens, in order of position."""
        committed = self._cells[: self._length]  # rows that are scored now come behind them
        return [cell.token for cell in sorted(committed, key=lambda cell: cell.position)]

    def prefill(self, tokens: Tokens) -> None:
        """See protocols.Backend."""
        assert self._scored is None, "prefill before commit"
        assert 0 < len(tokens) <= self.limits.chunk
        self._require_room(len(tokens))
        for token in tokens.tolist():
            self._cells.append(_Cell(token, self._length, set(self._ids)))
            self._length += 1

    def submit(self, tree: DraftTree, pending: Sequence[int]) -> None:
        """See protocols.Backend. The rows given before are overwritten."""
        assert self._scored is None, "submit before commit"
        if self._given is not None:
            self._given.fill(np.nan)
        tree.check()
        rows = lay_out(tree, pending, self._length, len(self._ids))
        assert len(rows.tokens) <= self.limits.max_rows, "too many rows"
        assert rows.n_leaves <= self.limits.max_leaves, "too many leaves"
        assert self.limits.can_branch or tree.n_main == len(tree), "a tree for a chain model"
        self._require_room(len(rows.tokens))
        self.calls += 1
        self._check_rules(rows)
        for row in zip(rows.tokens, rows.positions, rows.sequences, strict=True):
            self._cells.append(_Cell(row[0], row[1], set(row[2])))
        self._scored = rows
        self._n_pending = len(pending)

    def wait(self) -> Logits:
        """See protocols.Backend."""
        rows = self._scored
        assert rows is not None, "wait before submit"
        logits = [
            self._model.logits(self._visible(sequences, position))
            for position, sequences in zip(rows.positions, rows.sequences, strict=True)
        ]
        self._given = np.stack(logits)[self._n_pending :]
        return self._given

    def score(self, tree: DraftTree, pending: Sequence[int]) -> Logits:
        """See protocols.Backend."""
        self.submit(tree, pending)
        return self.wait()

    def commit(self, n_kept: int) -> None:
        """See protocols.Backend."""
        rows, self._scored = self._scored, None
        assert rows is not None, "commit without score"
        assert all(0 in row for row in rows.sequences[:n_kept]), "kept a side branch"
        self._length += n_kept
        if n_kept == 0 and not self.limits.can_rewind:
            self._length = 0
        for cell in self._cells:
            if 0 not in cell.sequences:
                cell.sequences.clear()
        self._drop_beyond(self._length)
        for cell in self._cells:
            cell.sequences.update(self._ids)

    def rewind(self, length: int) -> int:
        """See protocols.Backend."""
        assert self._scored is None, "rewind before commit"
        assert length >= 0
        if length < self._length:
            self._length = length if self.limits.can_rewind else 0
            self._drop_beyond(self._length)
        return self._length

    def close(self) -> None:
        """Nothing to free."""

    def _drop_beyond(self, length: int) -> None:
        self._cells = [c for c in self._cells if c.sequences and c.position < length]
        positions = [cell.position for cell in self._cells]
        assert positions == list(range(length)), "the committed cache has a hole"

    def _require_room(self, n: int) -> None:
        if self._length + n > self.limits.n_ctx:
            raise ContextFull(f"{self._length + n} tokens exceed {self.limits.n_ctx}")

    def _check_rules(self, rows: Layout) -> None:
        """llama.cpp's batch rules: per sequence, positions go on from the cache without a gap."""
        next_position = dict.fromkeys(self._ids, self._length)
        assert {id for row in rows.sequences for id in row} == set(self._ids), "ids come and go"
        for position, sequences in zip(rows.positions, rows.sequences, strict=True):
            assert sequences == tuple(sorted(set(sequences))), "sequence ids out of order"
            for sequence in sequences:
                assert position == next_position[sequence], "a gap in a sequence"
                next_position[sequence] += 1

    def _visible(self, sequences: Sequence[int], position: int) -> list[int]:
        """Tokens that a query at `position` attends to, by whichever of its sequences."""
        first, *others = [self._seen(sequence, position) for sequence in sequences]
        assert all(other == first for other in others), "it depends on the id what a query sees"
        return first

    def _seen(self, sequence: int, position: int) -> list[int]:
        seen = [c for c in self._cells if sequence in c.sequences and c.position <= position]
        seen.sort(key=lambda cell: cell.position)
        assert [c.position for c in seen] == list(range(position + 1)), "a query sees a hole"
        return [cell.token for cell in seen]


def fake_limits(
    n_vocab: int,
    *,
    n_ctx: int = 512,
    max_rows: int = 24,
    max_leaves: int = 16,
    chunk: int = 7,
    branch: bool = True,
    rewind: bool = True,
    computes_behind: bool = False,
) -> Limits:
    """Limits for a FakeBackend; small, so that tests meet them."""
    leaves = max_leaves if branch else 1
    return Limits(
        n_vocab, n_ctx, max_rows, leaves, chunk, branch, rewind, computes_behind=computes_behind
    )
