"""Does a drafter keep its promises? `check_drafter` is the test to run on a new one.

It takes a way to make the drafter, asks everything that protocols.Drafter promises, and raises
AssertionError with what was broken. Texts come from a fixed seed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

import numpy as np

from specgen.core.drafting.builder import Builder
from specgen.core.drafting.guarded import find_fault
from specgen.core.drafting.speculator import Speculator
from specgen.core.protocols import Candidate, DraftCost, Drafter, Logits, Tokens
from specgen.core.sampling import Sampler, SamplingParams
from specgen.core.session import Session
from specgen.core.tree import DraftTree

from .fakes import FakeBackend, HashModel, fake_limits

Make: TypeAlias = Callable[[], Drafter]

_N_STATES = 40  # looked at below one root
_N_NEW = 40  # tokens of one generation
_EOG = 0  # the token that ends a generation, where one does
_SAMPLERS = (
    SamplingParams(temperature=0),
    SamplingParams(temperature=0, repeat_penalty=1.3),
    SamplingParams(temperature=0.8, seed=1),
    SamplingParams(temperature=1.5, top_k=0, top_p=1, min_p=0, seed=2),
)


def check_drafter(make: Make, *, n_vocab: int = 12, n_long: int = 100_000) -> None:
    """Raise AssertionError unless the drafters that `make` makes keep the contract.

    Args:
        make: gives a new drafter that has seen nothing.
        n_vocab: size of the vocabulary to test with, 4 or more.
        n_long: length of the longest context.
    """
    _check_attributes(make())
    rng = np.random.default_rng(0)
    repeating = [repeating_text(n, n_vocab, seed) for seed, n in enumerate((9, 80))]
    contexts: list[list[int]] = [[], [1], [0, 0], [1, 0, 1], *repeating]
    for context in contexts:
        _check_states(make, context, n_vocab)
        _check_learning(make, context, n_vocab, rng)
    _check_begin(make, contexts, n_vocab)
    _check_long_context(make, n_vocab, n_long)
    _check_arrays_are_not_kept(make, contexts[-1], n_vocab)
    for budget in range(17):
        for branch in (True, False):
            params = _SAMPLERS[(budget + branch) % len(_SAMPLERS)]
            _check_lossless(make, contexts[-1][:20], params, budget, branch, n_vocab)


def repeating_text(n: int, n_vocab: int, seed: int) -> list[int]:
    """`n` tokens: stretches of chance, and copies of earlier ones."""
    rng = np.random.default_rng(seed)
    text: list[int] = rng.integers(0, n_vocab, min(n, 6)).tolist()
    while len(text) < n:
        length = int(rng.integers(2, 12))
        if rng.random() < 0.6:
            start = int(rng.integers(0, max(len(text) - length, 1)))
            text += text[start : start + length]
        else:
            text += rng.integers(0, n_vocab, length).tolist()
    return text[:n]


class Watched:
    """A drafter behind checks: every answer is looked at, calls are counted.

    The first thing that is wrong is kept in `complaint`, since a caller may survive a drafter
    that fails.
    """

    def __init__(self, drafter: Drafter, n_vocab: int) -> None:
        self.name = drafter.name
        self.effort = drafter.effort
        self.reads_logits = drafter.reads_logits
        self.n_predicted = 0
        self.complaint: BaseException | None = None
        self._drafter = drafter
        self._n_vocab = n_vocab

    def begin(self, context: Tokens) -> None:
        """See Drafter."""
        self._watch(self._drafter.begin, context)

    def root(self) -> Any:
        """See Drafter."""
        return self._watch(self._drafter.root)

    def predict(self, state: Any) -> Sequence[Candidate]:
        """See Drafter."""
        self.n_predicted += 1
        guesses: Sequence[Candidate] = self._watch(self._drafter.predict, state)
        self._watch(check_guesses, guesses, self.name, self._n_vocab)
        return guesses

    def advance(self, state: Any, token: int) -> Any:
        """See Drafter."""
        return self._watch(self._drafter.advance, state, token)

    def observe(self, emitted: Sequence[int], tree: DraftTree, logits: Logits) -> None:
        """See Drafter."""
        self._watch(self._drafter.observe, emitted, tree, logits)

    def _watch(self, call: Callable[..., Any], *args: Any) -> Any:
        try:
            return call(*args)
        except Exception as error:
            self.complaint = self.complaint or error
            raise


def check_guesses(guesses: Sequence[Candidate], name: str, n_vocab: int) -> None:
    """Raise AssertionError unless `guesses` are an answer that `predict` may give."""
    for _, evidence, _ in guesses:
        assert all(isinstance(item, str | int) for item in evidence), f"evidence {evidence!r}"
    fault = find_fault(guesses, name, n_vocab)
    assert fault is None, fault


def _check_attributes(drafter: Drafter) -> None:
    """A name, and what asking it takes."""
    assert drafter.name and isinstance(drafter.name, str), f"its name is {drafter.name!r}"
    effort = drafter.effort
    assert effort is None or isinstance(effort, DraftCost), f"its effort is {effort!r}"
    assert isinstance(drafter.reads_logits, bool), f"reads_logits is {drafter.reads_logits!r}"


def _begun(make: Make, context: Sequence[int]) -> Drafter:
    drafter = make()
    drafter.begin(np.array(context, np.int32))
    return drafter


def _guesses(drafter: Drafter, state: Any) -> list[Candidate]:
    return [] if state is None else list(drafter.predict(state))


def _walk(drafter: Drafter, n_vocab: int) -> tuple[list[Any], list[list[Candidate]]]:
    """The root's state and those below it, by guesses and by a token that may be none.

    With the guesses in each state, asked for before anything is advanced from it.
    """
    states, guesses = [drafter.root()], []
    for state in states:
        guesses.append(_guesses(drafter, state))
        if state is None:
            continue
        tokens = [guess.token for guess in guesses[-1]]
        for token in dict.fromkeys([*tokens, len(states) % n_vocab]):
            if len(states) < _N_STATES:
                states.append(drafter.advance(state, token))
    return states, guesses


def _view(drafter: Drafter, n_vocab: int) -> list[list[Candidate]]:
    """All that a drafter thinks of what comes next."""
    return _walk(drafter, n_vocab)[1]


def _check_states(make: Make, context: Sequence[int], n_vocab: int) -> None:
    """Answers are in order, and the same ones whenever they are asked for."""
    drafter = _begun(make, context)
    states, first = _walk(drafter, n_vocab)
    for guesses in first:
        check_guesses(guesses, drafter.name, n_vocab)
    later = [_guesses(drafter, state) for state in reversed(states)][::-1]
    assert first == later, "predict or advance changed a state or the drafter"
    assert first == _view(drafter, n_vocab), "the same walk gives other guesses"
    assert first == _view(_begun(make, context), n_vocab), "two new drafters disagree"


def _check_begin(make: Make, contexts: Sequence[Sequence[int]], n_vocab: int) -> None:
    """`begin` starts anew, for the same text, another one, and one that goes on."""
    for before in contexts:
        for context in (*contexts, [*before, 1, 2, 3]):
            drafter = _begun(make, before)
            drafter.begin(np.array(context, np.int32))
            new = _view(_begun(make, context), n_vocab)
            assert _view(drafter, n_vocab) == new, "begin leaves something of the text before"


def _check_learning(
    make: Make, context: Sequence[int], n_vocab: int, rng: np.random.Generator
) -> None:
    """`observe` takes trees of any shape, with and without logits, and learns the same twice."""
    drafters = [Watched(_begun(make, context), n_vocab) for _ in range(2)]
    last = context[-1] if context else 0
    for tree, emitted, logits in _steps(last, n_vocab, rng):
        for drafter in drafters:
            drafter.observe(emitted, tree, logits)
        views = [_view(drafter, n_vocab) for drafter in drafters]
        assert views[0] == views[1], "two drafters that saw the same disagree"


def _steps(
    last: int, n_vocab: int, rng: np.random.Generator
) -> Iterator[tuple[DraftTree, list[int], Logits]]:
    for n in (1, 2, 5, 9, 5):
        tokens, parents, edges = [last], [-1], set()
        while len(tokens) < n:
            edge = (int(rng.integers(0, len(tokens))), int(rng.integers(0, n_vocab)))
            if edge not in edges:
                edges.add(edge)
                parents.append(edge[0])
                tokens.append(edge[1])
        logits = rng.standard_normal((n, n_vocab)).astype(np.float32)
        if n == 2:
            logits[0], logits[1] = np.nan, -np.inf
        emitted = rng.integers(0, n_vocab, int(rng.integers(1, 4))).tolist()
        tree = DraftTree.from_parents(tokens, parents)
        yield tree, emitted, logits if n != 5 else logits[:0]
        last = emitted[-1]


def _check_long_context(make: Make, n_vocab: int, n: int) -> None:
    """A long text is taken, of many and of few different tokens."""
    for text in (repeating_text(n, n_vocab, 5), [1] * n):
        drafter = _begun(make, text)
        for guesses in _view(drafter, n_vocab):
            check_guesses(guesses, drafter.name, n_vocab)


def _check_arrays_are_not_kept(make: Make, context: Sequence[int], n_vocab: int) -> None:
    """What a drafter was given may be overwritten as soon as it returns."""
    drafter = make()
    array = np.array(context, np.int32)
    drafter.begin(array)
    tree = DraftTree.from_parents([context[-1], 2, 3], [-1, 0, 0])
    logits = np.linspace(0, 9, 3 * n_vocab, dtype=np.float32).reshape(3, n_vocab)
    drafter.observe([2, 1], tree, logits)
    before = _view(drafter, n_vocab)
    assert array.tolist() == list(context), "the context was changed"
    array[:] = (array + 1) % n_vocab
    logits[:] = logits[:, ::-1].copy()
    assert _view(drafter, n_vocab) == before, "an array that was given is still in use"


def _check_lossless(
    make: Make, prompt: list[int], params: SamplingParams, budget: int, branch: bool, n_vocab: int
) -> None:
    """Two turns through Session equal a loop that knows nothing of drafts."""
    model = HashModel(n_vocab, order=2, seed=budget)
    backend = FakeBackend(model, fake_limits(n_vocab, branch=branch))
    watched = Watched(make(), n_vocab)
    session = Session(backend, Speculator(Builder(backend.limits, budget), [watched]))
    sampler, plain = Sampler(params, n_vocab), Sampler(params, n_vocab)
    text = list(prompt)
    for ends in (lambda _: False, lambda token: token == _EOG):
        session.feed(text)
        before = watched.n_predicted
        steps = list(session.generate(sampler, _N_NEW, ends))
        if watched.complaint:
            raise AssertionError(f"failed in use: {watched.complaint!r}") from watched.complaint
        plain_text = _plain(model, text, plain, ends)
        assert session.tokens == plain_text, "the text differs from plain decoding"
        # Each node of a tree is asked once for what comes next, and so is the root.
        limit = sum(len(step.tree) for step in steps)
        assert watched.n_predicted - before <= limit, "more guesses were asked for than fit"
        text = [*session.tokens, 1, 2]


def _plain(
    model: HashModel, prompt: list[int], sampler: Sampler, ends: Callable[[int], bool]
) -> list[int]:
    """One token after another."""
    text = list(prompt)
    sampler.begin(text)
    for _ in range(_N_NEW):
        text.append(sampler.next(model.logits(text)))
        if ends(text[-1]):
            break
    return text
