"""Speculation never changes a text: every drafter, tree and sampler, against a plain loop.

Then the test is tested: bugs of the kinds that speculative decoders really had are planted
one at a time, and each must be caught by the same comparison.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import specgen.core.session as session_module
from specgen.core.drafting.builder import Builder
from specgen.core.drafting.guarded import SafeDrafter
from specgen.core.llama import layout
from specgen.core.protocols import Logits
from specgen.core.sampling import Sampler, SamplingParams
from specgen.core.session import Session
from specgen.core.testing import fakes as testing
from specgen.core.tree import DraftTree, Evidence
from specgen.core.verify import Verdict, verify
from tests.support.drafting import session_of
from tests.support.guessers import TriesSizes
from tests.support.lossless import DRAFTERS, Case, Outcome, plain, random_case, speculative

N_CASES = 5_000


@pytest.mark.parametrize(
    "batch", [0, 1, *(pytest.param(i, marks=pytest.mark.long) for i in range(2, 10))]
)
def test_same_tokens_text_and_random_numbers_as_plain_decoding(batch: int) -> None:
    """Thousands of generations equal the independent loop, down to the random numbers used."""
    for seed in range(batch * N_CASES // 10, (batch + 1) * N_CASES // 10):
        case = random_case(seed)
        assert speculative(case) == plain(case), f"case {seed}: {case}"


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    n_vocab=st.integers(2, 17),
    budget=st.integers(0, 16),
    drafter=st.sampled_from(DRAFTERS),
)
def test_same_as_plain_decoding_wherever_hypothesis_looks(
    seed: int, n_vocab: int, budget: int, drafter: str
) -> None:
    """The same, with failing cases shrunk to small ones."""
    case = _case(seed=seed, n_vocab=n_vocab, budget=budget, drafter=drafter)
    assert speculative(case) == plain(case)


def test_drafts_do_get_accepted() -> None:
    """The oracle's drafts save target calls, so the comparisons above compare speculation."""
    case = _case(seed=3, n_vocab=17, budget=7, drafter="oracle")
    truth = [*case.prompt, *plain(case).tokens]
    backend = testing.FakeBackend(
        testing.HashModel(17, case.order, case.model_seed), testing.fake_limits(17)
    )
    from tests.support.guessers import Oracle

    session = session_of(backend, [Oracle(truth, 17, decoys=0)], 7)
    session.feed(case.prompt)
    steps = list(session.generate(Sampler(case.params, 17), 40, lambda _: False))
    assert sum(len(step.tokens) for step in steps) == 40
    assert backend.calls == 5


def test_feed_reuses_the_common_prefix_and_continues_the_same() -> None:
    """A text fed after another one continues as if it had been fed first."""
    model = testing.HashModel(9, 3, 1)
    rng = np.random.default_rng(7)
    session = session_of(testing.FakeBackend(model, testing.fake_limits(9)), [], 0)
    text: list[int] = rng.integers(0, 9, 30).tolist()
    session.feed(text)
    for _ in range(40):
        cut = int(rng.integers(0, len(text)))
        text = [*text[:cut], *rng.integers(0, 9, int(rng.integers(1, 12))).tolist()]
        before = session.tokens
        reused = session.feed(text)
        assert text[:reused] == before[:reused]
        assert reused >= min(cut, len(text) - 1, len(before) - 1)
        sampler = Sampler(SamplingParams(temperature=0), 9)
        made = [t for step in session.generate(sampler, 5, lambda _: False) for t in step.tokens]
        fresh = session_of(testing.FakeBackend(model, testing.fake_limits(9)), [], 0)
        fresh.feed(text)
        again = [t for step in fresh.generate(sampler, 5, lambda _: False) for t in step.tokens]
        assert made == again


def test_an_abandoned_generation_leaves_a_usable_session() -> None:
    """Leaving a generation early, or a callback that raises, keeps text and cache in step."""
    case = _case(seed=11, n_vocab=12, budget=8, drafter="none")
    backend = testing.FakeBackend(testing.HashModel(12, 2, 11), testing.fake_limits(12))
    session = session_of(backend, [], 0)

    def give_up(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        session.feed([1] * 40, give_up)
    assert backend.cached == [1] * backend.length
    session.feed([1] * 40)
    steps = session.generate(Sampler(case.params, 12), 30, lambda _: False)
    next(steps)
    steps.close()  # type: ignore[attr-defined]
    assert backend.cached == session.tokens[: backend.length]
    session.feed([*session.tokens, 3])
    assert backend.cached == session.tokens[:-1]


def _case(*, seed: int, n_vocab: int, budget: int, drafter: str) -> Case:
    return Case(
        n_vocab=n_vocab,
        order=2,
        model_seed=seed,
        prompt=(0, 1, 0),
        params=SamplingParams(temperature=0.8, seed=seed),
        eog=frozenset(),
        stops=(),
        max_tokens=40,
        n_ctx=64,
        drafter=drafter,
        budget=budget,
        branch=True,
        rewind=True,
        judged=False,
        max_leaves=16,
    )


# --- planted bugs -------------------------------------------------------------------------------


def _wrong_bonus_row(patch: pytest.MonkeyPatch) -> None:
    def walk(tree: DraftTree, logits: Logits, *rest: Any) -> Verdict:
        return verify(tree, np.roll(logits, 1, axis=0), *rest)

    patch.setattr(session_module, "verify", walk)


def _child_ignores_parent(patch: pytest.MonkeyPatch) -> None:
    def child(self: DraftTree, node: int, token: int) -> int | None:
        return next((i for i in range(node + 1, len(self)) if self.tokens[i] == token), None)

    patch.setattr(DraftTree, "child", child)


def _cache_not_cut_at_the_end(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(session_module, "_accepted_on_main", lambda tree, path: tree.n_main - 1)


def _side_branch_kept_in_the_cache(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(session_module, "_accepted_on_main", lambda tree, path: len(path))


def _hole_left_in_the_cache(patch: pytest.MonkeyPatch) -> None:
    def drop(self: testing.FakeBackend, length: int) -> None:
        self._cells = [c for c in self._cells if c.position < length]
        for cell in self._cells:
            cell.sequences.add(0)

    patch.setattr(testing.FakeBackend, "_drop_beyond", drop)


def _pending_in_wrong_order(patch: pytest.MonkeyPatch) -> None:
    submit = testing.FakeBackend.submit

    def reversed_lead(self: testing.FakeBackend, tree: DraftTree, pending: Sequence[int]) -> None:
        submit(self, tree, pending[::-1])

    patch.setattr(testing.FakeBackend, "submit", reversed_lead)


def _extra_draw(patch: pytest.MonkeyPatch) -> None:
    def walk(
        tree: DraftTree, logits: Logits, sampler: Sampler, limit: int, ends: Callable[[int], bool]
    ) -> Verdict:
        verdict = verify(tree, logits, sampler, limit, ends)
        if len(tree) > 1:
            sampler._rng.random()
        return verdict

    patch.setattr(session_module, "verify", walk)


def _double_prefill(patch: pytest.MonkeyPatch) -> None:
    prefill = Session._prefill

    def twice(self: Session, on_chunk: Any) -> None:
        first = self.tokens[:1]
        self._backend.prefill(np.array(first, np.int32))
        prefill(self, on_chunk)

    patch.setattr(Session, "_prefill", twice)


def _lost_side_token(patch: pytest.MonkeyPatch) -> None:
    step = Session.step

    def forgetful(self: Session, *args: Any) -> Any:
        before = len(self.tokens)
        done = step(self, *args)
        n_pending = len(self.tokens) - self._backend.length
        if n_pending > 1:  # a side branch was accepted
            del self.tokens[before]
        return done

    patch.setattr(Session, "step", forgetful)


def _sampled_per_path(patch: pytest.MonkeyPatch) -> None:
    def walk(
        tree: DraftTree, logits: Logits, sampler: Sampler, limit: int, ends: Callable[[int], bool]
    ) -> Verdict:
        best: tuple[list[int], list[int]] = ([], [])
        for leaf in tree.leaves:
            path = [leaf]
            while tree.parents[path[0]] >= 0:
                path.insert(0, tree.parents[path[0]])
            tokens: list[int] = []
            taken: list[int] = []
            for node in path:
                tokens.append(sampler.next(logits[node]))
                child = tree.child(node, tokens[-1])
                if child not in path:
                    break
                taken.append(child)
            if len(tokens) > len(best[0]):
                best = (tokens, taken[: len(tokens) - 1])
        tokens = best[0][:limit]
        cut = next((i for i, token in enumerate(tokens, 1) if ends(token)), None)
        return Verdict(tuple(tokens[:cut]), tuple(best[1][: len(tokens[:cut]) - 1]), bool(cut))

    patch.setattr(session_module, "verify", walk)


def _overrun(patch: pytest.MonkeyPatch) -> None:
    def walk(
        tree: DraftTree, logits: Logits, sampler: Sampler, limit: int, ends: Callable[[int], bool]
    ) -> Verdict:
        verdict = verify(tree, logits, sampler, limit, lambda _: False)
        return Verdict(verdict.tokens, verdict.path, any([ends(t) for t in verdict.tokens]))

    patch.setattr(session_module, "verify", walk)


def _position_is_the_index(patch: pytest.MonkeyPatch) -> None:
    def by_index(tree: DraftTree, pending: Sequence[int], start: int, n_ids: int) -> layout.Layout:
        rows = layout.lay_out(tree, pending, start, n_ids)
        return replace(rows, positions=tuple(range(start, start + len(rows.tokens))))

    patch.setattr(testing, "lay_out", by_index)


def _rewinds_too_little(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(session_module, "common_prefix", lambda a, b: min(len(a), len(b)))


def _budget_of_tokens_ignored(patch: pytest.MonkeyPatch) -> None:
    def walk(tree: DraftTree, logits: Logits, sampler: Sampler, limit: int, ends: Any) -> Verdict:
        return verify(tree, logits, sampler, limit + 9, ends)

    build = Builder.build
    patch.setattr(session_module, "verify", walk)
    patch.setattr(
        Builder,
        "build",
        lambda self, root, room, depth, **more: build(self, root, room, depth + 9, **more),
    )


def _drafters_unguarded(patch: pytest.MonkeyPatch) -> None:
    def plainly(name: str) -> Callable[..., Any]:
        return lambda self, *args: getattr(self._drafter, name)(*args)

    for name in ("begin", "root", "predict", "advance", "observe"):
        patch.setattr(SafeDrafter, name, plainly(name))


def _padding_beside_guesses(patch: pytest.MonkeyPatch) -> None:
    def extended(self: DraftTree, tokens: Sequence[int], evidence: Evidence) -> DraftTree:
        n = len(tokens)
        return DraftTree(
            (*self.tokens, *tokens),
            (*self.parents, *[0] * n),
            (*self.probs, *[0.0] * n),
            (*self.evidence, *[()] * n),
        )

    patch.setattr(DraftTree, "extended", extended)


def _padding_beyond_the_budget(patch: pytest.MonkeyPatch) -> None:
    explore = TriesSizes.explore
    patch.setattr(TriesSizes, "explore", lambda self, at, n: explore(self, at, n + 1))


BUGS = [
    _drafters_unguarded,
    _padding_beside_guesses,
    _padding_beyond_the_budget,
    _wrong_bonus_row,
    _child_ignores_parent,
    _cache_not_cut_at_the_end,
    _side_branch_kept_in_the_cache,
    _hole_left_in_the_cache,
    _pending_in_wrong_order,
    _extra_draw,
    _double_prefill,
    _lost_side_token,
    _sampled_per_path,
    _overrun,
    _position_is_the_index,
    _budget_of_tokens_ignored,
]


@pytest.mark.parametrize("plant", BUGS, ids=lambda plant: plant.__name__.strip("_"))
def test_planted_bug_is_caught(
    plant: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each bug makes the comparison fail, or the fake's rules assert, within 400 cases."""
    cases = [random_case(seed) for seed in range(400)]
    truths = [plain(case) for case in cases]
    plant(monkeypatch)
    assert any(not _agrees(*pair) for pair in zip(cases, truths, strict=True))


def test_planted_bug_in_prefix_reuse_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """A session that keeps cached tokens which the new text does not have is caught."""
    _rewinds_too_little(monkeypatch)
    with pytest.raises(AssertionError):
        test_feed_reuses_the_common_prefix_and_continues_the_same()


def _agrees(case: Case, truth: Outcome) -> bool:
    try:
        return speculative(case) == truth
    except (AssertionError, ValueError, TypeError, IndexError, RuntimeError):
        return False
