"""Log-probabilities are the model's own for every token, accepted guesses included.

The truth is a log-softmax of the logits of the whole text before each token. Then the test is
tested: wrong records of the kinds that other programs give are planted, and must be caught.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import specgen.core.session as session_module
from specgen.core.config import ContextConfig
from specgen.core.errors import BackendError
from specgen.core.llama.backend import LlamaBackend, LlamaModel
from specgen.core.logprobs import RecordingSampler, TokenLogprobs
from specgen.core.protocols import Logits
from specgen.core.sampling import Sampler, SamplingParams
from specgen.core.testing.fakes import HashModel
from specgen.core.tree import DraftTree
from specgen.core.verify import Verdict, verify
from tests.support.command import generate, record_of, run
from tests.support.lossless import DRAFTERS, Case, Outcome, plain, random_case, speculative
from tests.support.tiny import write_tiny

from .conftest import TinyModel
from .support import lossless

Row = NDArray[np.float32]
N_TOPS = (0, 1, 5)
N_CASES = 700
CLOSE = 1e-9  # what sums of doubles in another order differ by, and much more
LOOP = "the and was the and was the and was the and was"


# ---- on the fake model


def entry(row: Row, token: int, n_top: int) -> TokenLogprobs:
    """The truth, by definition: a log-softmax, and a sort."""
    exact = row.astype(np.float64)
    values = (exact - np.logaddexp.reduce(exact)).tolist()
    best = sorted(range(len(row)), key=lambda i: (-row[i], i))[:n_top]
    return TokenLogprobs(token, values[token], tuple((i, values[i]) for i in best))


def truth(case: Case, tokens: Sequence[int], n_top: int) -> list[TokenLogprobs]:
    """The truth for a text that continues the prompt of `case`."""
    model = HashModel(case.n_vocab, case.order, case.model_seed)
    rows = (model.logits([*case.prompt, *tokens[:i]]) for i in range(len(tokens)))
    return [entry(row, token, n_top) for row, token in zip(rows, tokens, strict=True)]


def same(entries: Sequence[TokenLogprobs], others: Sequence[TokenLogprobs]) -> bool:
    """Whether tokens are the same, in the same order, and their log-probabilities close."""

    def flat(entry: TokenLogprobs) -> tuple[list[int], list[float]]:
        pairs = [(entry.token, entry.logprob), *entry.top]
        return [token for token, _ in pairs], [logprob for _, logprob in pairs]

    pairs = [(flat(one), flat(other)) for one, other in zip(entries, others, strict=False)]
    return len(entries) == len(others) and all(
        ids == others and np.allclose(values, expected, rtol=0, atol=CLOSE)
        for (ids, values), (others, expected) in pairs
    )


@dataclass(frozen=True)
class Recorded:
    """What came of a case, and what was taken down."""

    outcome: Outcome
    entries: list[TokenLogprobs]


def recorded(case: Case, n_top: int, patch: pytest.MonkeyPatch) -> Recorded:
    """The text of `case` through Session, by a sampler that takes down `n_top`."""
    made: list[RecordingSampler] = []

    def sampler(params: SamplingParams, n_vocab: int) -> Sampler:
        made.append(RecordingSampler(params, n_vocab, n_top))
        return made[-1]

    with patch.context() as inner:
        inner.setattr(lossless, "Sampler", sampler)
        outcome = speculative(case)
    return Recorded(outcome, made[-1].recorded)  # some drafters had the text decoded before


def is_right(case: Case, n_top: int, patch: pytest.MonkeyPatch) -> bool:
    """Whether one right entry was taken down for each token."""
    found = recorded(case, n_top, patch)
    return same(found.entries, truth(case, found.outcome.tokens, n_top))


@pytest.mark.long
@pytest.mark.parametrize("n_top", N_TOPS)
def test_every_token_has_the_models_own(n_top: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """With every drafter, tree, sampler and way to end; and taking them down changes no text."""
    ways = set()
    for seed in range(N_CASES):
        case = random_case(seed)
        found = recorded(case, n_top, monkeypatch)
        assert same(found.entries, truth(case, found.outcome.tokens, n_top)), f"case {seed}: {case}"
        assert found.outcome == plain(case)
        ways.add((case.drafter, found.outcome.finish))
    assert ways == {(d, f) for d in DRAFTERS for f in ("eog", "stop", "length", "context")}


@pytest.mark.parametrize("drafter", ["oracle", "side oracle"])
def test_tokens_accepted_on_trees(drafter: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nearly all tokens are accepted guesses, on the main chain and on side branches."""
    for seed in range(60):
        case = replace(
            random_case(seed), drafter=drafter, branch=True, budget=12, max_tokens=40, n_ctx=64,
            eog=frozenset(), stops=(), judged=False, rests=False,
        )  # fmt: skip
        assert is_right(case, 5, monkeypatch), f"case {seed}: {case}"


# ---- one row


@pytest.mark.parametrize("n_top", [*N_TOPS, 8, 9])
@pytest.mark.parametrize(
    "values",
    [
        (1.0, 3.0, 3.0, -2.0, 3.0, 1.0, 0.0, 0.0),
        (0.0,) * 8,
        (-math.inf, 2.0, -math.inf, 2.0, 1.0, -math.inf, 2.0, -math.inf),
        (-math.inf,) * 7 + (5.0,),
        (2e38, -3e38, 1e38, 3e38, 0.0, -1e38, 0.0, 1.0),
        (-900.0, -901.0, -902.0, -903.0, -904.0, -905.0, -906.0, -907.0),
    ],
    ids=str,
)
def test_one_row(values: tuple[float, ...], n_top: int) -> None:
    """Of equals the lowest id is first; rows may hold -inf and huge logits; all may be listed."""
    sampler = RecordingSampler(SamplingParams(temperature=0), len(values), n_top)
    sampler.begin([])
    row = np.array(values, np.float32)
    before = row.copy()
    token = sampler.next(row)
    (found,) = sampler.recorded
    assert same([found], [entry(row, token, n_top)])
    assert len(found.top) == min(n_top, len(values))
    assert all(logprob <= 0 for _, logprob in found.top)
    assert np.array_equal(row, before)


def test_penalties_do_not_count() -> None:
    """They may choose a token that the model finds unlikely; it is said to be just that."""
    params = SamplingParams(temperature=0, repeat_penalty=1000, presence_penalty=5)
    sampler = RecordingSampler(params, 4, 2)
    sampler.begin([2, 2, 3])
    row = np.array([0.5, -1.0, 9.0, 4.0], np.float32)
    assert sampler.next(row) == 0
    assert same(sampler.recorded, [entry(row, 0, 2)])
    assert sampler.recorded[0].top[0][0] == 2
    assert sampler.recorded[0].logprob < -8


def test_a_record_is_of_one_text() -> None:
    """`begin` starts a new one, and the one before stays with who has it."""
    sampler = RecordingSampler(SamplingParams(temperature=0), 3, 0)
    sampler.begin([1])
    sampler.next(np.array([1, 2, 0], np.float32))
    first = sampler.recorded
    sampler.begin([1])
    assert sampler.recorded == []
    sampler.next(np.array([1, 0, 2], np.float32))
    assert ([e.token for e in first], [e.token for e in sampler.recorded]) == ([1], [2])


def test_a_row_without_a_choice_leaves_no_entry() -> None:
    """Where the sampler refuses, nothing was chosen."""
    sampler = RecordingSampler(SamplingParams(temperature=0), 2, 1)
    sampler.begin([])
    for value in (math.nan, -math.inf, math.inf):
        with pytest.raises(BackendError):
            sampler.next(np.array([-math.inf, value], np.float32))
    assert sampler.recorded == []


# ---- llama.cpp and the command


def content(record: Any) -> list[dict[str, Any]]:
    """The entries in a command's JSON."""
    entries: list[dict[str, Any]] = record["choices"][0]["logprobs"]["content"]
    return entries


def values(entries: Sequence[dict[str, Any]]) -> NDArray[np.float64]:
    """All log-probabilities, of every token and of the likeliest ones."""
    return np.array([[e["logprob"], *(t["logprob"] for t in e["top_logprobs"])] for e in entries])


def ids(entries: Sequence[dict[str, Any]]) -> list[list[int]]:
    """All tokens, in the same order."""
    return [[e["id"], *(t["id"] for t in e["top_logprobs"])] for e in entries]


@pytest.mark.llama
@pytest.mark.parametrize("options", [("--greedy",), ("--seed", "4", "--repeat-penalty", "1.1")])
@pytest.mark.parametrize("drafter", ["prompt-lookup", "recycle", "suffix"])
def test_the_same_with_and_without_drafts(
    tiny_model: TinyModel, options: Sequence[str], drafter: str
) -> None:
    """Q8_0 rows are the same bits however many are scored at once, and so is what is told."""
    words = (tiny_model("llama", "Q8_0"), LOOP, "-n", "100", "--logprobs", "4", "-fa", "on")
    plainly = record_of(*words, *options, "--drafter", "none")
    drafted = record_of(*words, *options, "--drafter", drafter)
    assert drafted["timings"]["draft_n_accepted"] > 0
    assert ids(content(drafted)) == ids(content(plainly))
    assert np.abs(values(content(drafted)) - values(content(plainly))).max() <= 1e-6


@pytest.mark.llama
def test_the_models_own_rows(tiny_model: TinyModel) -> None:
    """They are those of rows that llama.cpp gives for one token after another."""
    path = tiny_model("llama", "Q8_0")
    entries = content(record_of(path, LOOP, "--seed", "1", "-n", "40", "--logprobs", "3"))
    model = LlamaModel(path)
    backend = LlamaBackend(model, ContextConfig(n_ctx=256, threads=1))
    prompt = model.vocab.tokenize(LOOP, add_bos=True, special=True)
    backend.prefill(np.array(prompt[:-1], np.int32))
    last = prompt[-1]
    expected = []
    for each in entries:
        (row,) = backend.score(DraftTree.root(last), [])
        last = each["id"]
        expected.append(entry(row, last, 3))
        backend.commit(1)
    backend.close()
    model.close()
    told = [
        TokenLogprobs(
            e["id"], e["logprob"], tuple((t["id"], t["logprob"]) for t in e["top_logprobs"])
        )
        for e in entries
    ]
    assert same(told, expected)


@pytest.mark.llama
@pytest.mark.parametrize("n_top", N_TOPS)
def test_json(endless: Path, n_top: int) -> None:
    """OpenAI's format, with ids; the bytes of the tokens, joined, are the text."""
    words = (endless, LOOP, "--seed", "5", "-n", "50")
    record = record_of(*words, "--logprobs", str(n_top))
    assert record["choices"][0]["text"] == record_of(*words)["choices"][0]["text"]
    assert set(record["choices"][0]["logprobs"]) == {"content"}
    entries = content(record)
    assert len(entries) == record["usage"]["completion_tokens"] == 50
    for each in entries:
        top = each["top_logprobs"]
        assert set(each) == {"token", "id", "bytes", "logprob", "top_logprobs"}
        assert all(set(token) == {"token", "id", "bytes", "logprob"} for token in top)
        assert len(top) == n_top
        assert [t["logprob"] for t in top] == sorted((t["logprob"] for t in top), reverse=True)
        assert sum(math.exp(t["logprob"]) for t in top) <= 1 + CLOSE
        assert bytes(each["bytes"]).decode("utf-8", "replace") == each["token"]
    shown = b"".join(bytes(each["bytes"]) for each in entries).decode("utf-8", "replace")
    assert shown == record["choices"][0]["text"]


@pytest.mark.llama
def test_null_when_not_asked_for(endless: Path) -> None:
    """As in OpenAI's JSON."""
    assert record_of(endless, "he was", "-n", "3")["choices"][0]["logprobs"] is None


@pytest.mark.llama
def test_an_end_token_has_its_entry(tmp_path: Path) -> None:
    """It is named, and adds no bytes to the text."""
    model = write_tiny(tmp_path / "ending.gguf", end_gain=30)
    record = record_of(model, "he was", "--greedy", "--logprobs", "1")
    *others, end = content(record)
    assert len(others) + 1 == record["usage"]["completion_tokens"]
    assert end["token"] in ("</s>", "<|im_end|>")
    assert end["bytes"] == end["top_logprobs"][0]["bytes"] == []
    assert end["top_logprobs"][0]["id"] == end["id"]
    assert end["top_logprobs"][0]["logprob"] == end["logprob"]


@pytest.mark.llama
def test_tokens_behind_a_stop_string_have_theirs(endless: Path) -> None:
    """As many entries as tokens are counted, though the text is shorter."""
    words = (endless, "he was", "--greedy", "-n", "60", "--logprobs", "0")
    text = record_of(*words)["choices"][0]["text"]
    record = record_of(*words, "--stop", text[20:32])
    assert len(content(record)) == record["usage"]["completion_tokens"] < 60
    shown = b"".join(bytes(each["bytes"]) for each in content(record)).decode("utf-8", "replace")
    assert shown.startswith(record["choices"][0]["text"] + text[20:32])


@pytest.mark.llama
def test_a_token_ruled_out_is_null(endless: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """JSON has no infinity."""
    wait = LlamaBackend.wait

    def only_two(self: LlamaBackend) -> Logits:
        rows = np.full_like(wait(self), -np.inf)
        rows[:, 300:302] = 0
        return rows

    monkeypatch.setattr(LlamaBackend, "wait", only_two)
    outcome = generate(endless, "he was", "-n", "2", "--json", "--logprobs", "4", "--greedy")
    assert "Infinity" not in outcome.out
    half = math.log(0.5)
    expected = [half, half, half, None, None]
    for each in content(outcome.record):
        found = [each["logprob"], *(token["logprob"] for token in each["top_logprobs"])]
        assert found == pytest.approx(expected, abs=CLOSE)
    assert ids(content(outcome.record)) == [[300, 300, 301, 0, 1]] * 2


@pytest.mark.llama
@pytest.mark.parametrize("number", [1, 3])
def test_a_failure_leaves_entries_for_the_tokens_that_count(
    endless: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """What a failing step had chosen is not told."""
    commit = LlamaBackend.commit
    calls = []

    def fails(self: LlamaBackend, n_kept: int) -> None:
        commit(self, n_kept)
        calls.append(n_kept)
        if len(calls) == number:
            raise BackendError("failed on purpose")

    monkeypatch.setattr(LlamaBackend, "commit", fails)
    outcome = generate(
        endless, "he was", "-n", "9", "--json", "--logprobs", "1", "--drafter", "none"
    )
    assert outcome.code == 1
    assert outcome.record["error"]["message"] == "failed on purpose"
    assert outcome.record["usage"]["completion_tokens"] == number - 1
    assert len(content(outcome.record)) == number - 1


@pytest.mark.llama
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--logprobs", "3"), "--logprobs needs --json"),
        (("--logprobs", "0"), "--logprobs needs --json"),
        (("--json", "--logprobs", "-1"), "--logprobs"),
        (("--json", "--logprobs", "101"), "--logprobs"),
        (("--json", "--logprobs", "many"), "--logprobs"),
    ],
)
def test_bad_use_is_refused(endless: Path, words: Sequence[str], message: str) -> None:
    """In one line, with exit code 2."""
    outcome = generate(endless, "he was", *words)
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err.startswith("specgen: error: ")
    assert outcome.err.count("\n") == 1
    assert message in outcome.err


@pytest.mark.llama
def test_chat_has_no_such_option(endless: Path) -> None:
    """It would have nowhere to tell them."""
    outcome = run("chat", endless, "--logprobs", "3")
    assert outcome.code == 2
    assert "there is no option --logprobs" in outcome.err


# ---- planted bugs


def _after_verify(patch: pytest.MonkeyPatch, change: Callable[..., list[TokenLogprobs]]) -> None:
    """Let `change(logits, sampler, verdict, entries)` rewrite the entries of each step."""

    def walk(tree: DraftTree, logits: Logits, sampler: RecordingSampler, *rest: Any) -> Verdict:
        before = len(sampler.recorded)
        verdict = verify(tree, logits, sampler, *rest)
        entries = sampler.recorded[before:]
        sampler.recorded[before:] = change(logits, sampler, verdict, entries)
        return verdict

    patch.setattr(session_module, "verify", walk)


def _root_row_for_all(patch: pytest.MonkeyPatch) -> None:
    _after_verify(
        patch,
        lambda logits, sampler, verdict, entries: [
            entry(logits[0], e.token, len(e.top)) for e in entries
        ],
    )


def _next_rows_in_order(patch: pytest.MonkeyPatch) -> None:
    _after_verify(
        patch,
        lambda logits, sampler, verdict, entries: [
            entry(row, e.token, len(e.top)) for row, e in zip(logits, entries, strict=False)
        ],
    )


def _zero_for_accepted(patch: pytest.MonkeyPatch) -> None:
    _after_verify(
        patch,
        lambda logits, sampler, verdict, entries: [
            *[replace(e, logprob=0.0) for e in entries[: len(verdict.path)]],
            *entries[len(verdict.path) :],
        ],
    )


def _none_for_accepted(patch: pytest.MonkeyPatch) -> None:
    _after_verify(patch, lambda logits, sampler, verdict, entries: entries[len(verdict.path) :])


def _after_penalties(patch: pytest.MonkeyPatch) -> None:
    def penalized(self: RecordingSampler, logits: Row) -> int:
        row = self._row(logits)
        token = Sampler.next(self, logits)
        self.recorded.append(entry(row, token, self._n_top))
        return token

    patch.setattr(RecordingSampler, "next", penalized)


def _of_what_was_drawn_from(patch: pytest.MonkeyPatch) -> None:
    def filtered(self: RecordingSampler, logits: Row) -> int:
        candidates, probs = self.distribution(logits)
        token = Sampler.next(self, logits)
        chosen = float(np.log(probs[candidates == token][0]))
        self.recorded.append(replace(entry(logits, token, self._n_top), logprob=chosen))
        return token

    patch.setattr(RecordingSampler, "next", filtered)


BUGS = [
    _root_row_for_all,
    _next_rows_in_order,
    _zero_for_accepted,
    _none_for_accepted,
    _after_penalties,
    _of_what_was_drawn_from,
]


@pytest.mark.parametrize("n_top", N_TOPS)
@pytest.mark.parametrize("plant", BUGS, ids=lambda plant: plant.__name__.strip("_"))
def test_planted_bug_is_caught(
    plant: Callable[[pytest.MonkeyPatch], None], n_top: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each makes the comparison fail within 200 cases."""
    plant(monkeypatch)
    assert not all(is_right(random_case(seed), n_top, monkeypatch) for seed in range(200))
