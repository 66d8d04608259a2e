"""The live benchmark: who runs when, what is carried over, and whether a slowdown is found.

Mostly on a fake model. Where speed is measured, time is a clock that only its calls move.
"""

from __future__ import annotations

import json
import math
import random
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest

import specgen.core.engine as engine_module
import specgen.core.session as session_module
from specgen.cli.bench.live import _drafters
from specgen.core.config import EngineConfig
from specgen.core.drafting.acceptance import shipped_priors
from specgen.core.engine import Engine
from specgen.core.errors import UsageError
from specgen.core.evaluation.benchmark import Arm, Plan, measure_arms
from specgen.core.evaluation.results import PLAIN, Results, Run, load_results
from specgen.core.evaluation.summary import ALL, Ratio, summarize
from specgen.core.evaluation.tasks import Prompt
from specgen.core.generation import Generation
from specgen.core.knowledge.learned import Learned
from specgen.core.protocols import Drafter, Tokens
from specgen.core.sampling import SamplingParams
from specgen.core.session import Session
from specgen.core.stop import never
from specgen.core.testing.fakes import FakeBackend, HashModel, fake_limits
from specgen.core.tree import DraftTree
from specgen.drafters.ensemble import ensemble
from tests.support.guessers import Letters
from tests.support.made_up import CARD, CURVE, benchmark, results, run

N_VOCAB = 12
WARM_UPS = 2  # the first arm and the last one, once
SAMPLED = SamplingParams(temperature=1.0)


class Renewal(NamedTuple):
    """What an engine was told to begin anew with."""

    drafters: tuple[Drafter, ...]
    learned: Learned | None
    strict: bool | None


class FakeEngine(Engine):
    """An engine on a fake model without a chat template, that remembers what it was asked."""

    def __init__(self, backend: FakeBackend | None = None, n_ctx: int = 256) -> None:
        fake: Any = backend or FakeBackend(
            HashModel(N_VOCAB, 2, 3), fake_limits(N_VOCAB, n_ctx=n_ctx)
        )
        vocab: Any = Letters(N_VOCAB)
        model: Any = SimpleNamespace(chat_template=lambda: None)
        self.backend, self.vocab, self.model = fake, vocab, model
        self.config, self.profile, self.strict = EngineConfig(), None, None
        self.load_s, self._should_stop, self.session = 0.0, never, Session(fake)
        self.renewals: list[Renewal] = []
        self.generations: list[Generation] = []

    def renew(
        self,
        drafters: Sequence[Drafter],
        learned: Learned | None = None,
        *,
        tree: bool | None = None,
        strict: bool | None = None,
    ) -> None:
        """See Engine."""
        super().renew(drafters, learned, tree=tree, strict=False)  # nothing is measured of it
        self.renewals.append(Renewal(tuple(drafters), learned, strict))

    def generate(self, *args: Any, **options: Any) -> Generation:
        """See Engine."""
        self.generations.append(super().generate(*args, **options))
        return self.generations[-1]


class Asked:
    """An arm's source of drafters that remembers what it was asked."""

    def __init__(self, name: str = PLAIN) -> None:
        self._name = name
        self.answers: list[list[int]] = []

    def __call__(self, prompt: Prompt, answers: Tokens) -> Sequence[Drafter]:
        self.answers.append(answers.tolist())
        return ensemble(self._name, answers=answers)


def arm(name: str, drafter: str = PLAIN, **options: bool) -> Arm:
    """An arm with new drafters for each prompt."""
    return Arm(name, Asked(drafter), **options)


PLAIN_ARM = arm(PLAIN)


def prompts(n: int, length: int = 12, **options: Any) -> list[Prompt]:
    """Prompts of a single turn in two tasks, each with another end."""
    letters = "abcdefghijkl"
    texts = [(letters[i:] + letters[:i])[-length:] for i in range(n)]
    return [Prompt(f"task {i % 2}", (text,), **options) for i, text in enumerate(texts)]


def order(runs: Sequence[Run]) -> list[tuple[int, int, str]]:
    """Repetition, prompt and arm of each run."""
    return [(r.repetition, r.prompt, r.drafter) for r in runs]


# ---- who runs when


def test_arms_take_turns() -> None:
    """One right after the other, prompt by prompt; who is first changes; repetitions go around."""
    plan = Plan(prompts(2), [PLAIN_ARM, arm("x"), arm("y")], 2, 4)
    assert order(list(measure_arms(FakeEngine(), plan))) == [
        *[(0, 0, PLAIN), (0, 0, "x"), (0, 0, "y")],
        *[(0, 1, "x"), (0, 1, "y"), (0, 1, PLAIN)],
        *[(1, 0, "x"), (1, 0, "y"), (1, 0, PLAIN)],
        *[(1, 1, "y"), (1, 1, PLAIN), (1, 1, "x")],
    ]


@pytest.mark.parametrize("n_prompts", [4, 5, 6])
def test_nobody_is_always_first(n_prompts: int) -> None:
    """Of two arms each begins half the time, and each prompt is begun by both."""
    plan = Plan(prompts(n_prompts), [PLAIN_ARM, arm("x")], 2, 2)
    firsts = order(list(measure_arms(FakeEngine(), plan)))[::2]
    assert Counter(name for _, _, name in firsts) == {PLAIN: n_prompts, "x": n_prompts}
    assert len({(prompt, name) for _, prompt, name in firsts}) == len(firsts)


def test_the_warm_up_does_not_count() -> None:
    """A few tokens of the first prompt, before all else, are none of the runs."""
    engine, plan = FakeEngine(), Plan(prompts(3), [PLAIN_ARM, arm("x", "auto")], 2, 20)
    runs = list(measure_arms(engine, plan))
    assert len(runs) == plan.n_turns == 12
    warm_ups, counted = engine.generations[:WARM_UPS], engine.generations[WARM_UPS:]
    assert [run.tokens for run in runs] == [len(generation.tokens) for generation in counted]
    assert all(0 < len(generation.tokens) < 20 for generation in warm_ups)
    assert {run.tokens for run in runs} == {20}


def test_figures_are_those_of_the_generation() -> None:
    """Steps, nodes, guesses, and the counts that histograms are made of."""
    engine = FakeEngine()
    *_, last = measure_arms(engine, Plan(prompts(1), [PLAIN_ARM, arm("x", "auto")], 1, 60))
    stats, generation = engine.generations[-1].stats, engine.generations[-1]
    assert (last.task, last.prompt, last.turn, last.drafter) == ("task 0", 0, 1, "x")
    assert (last.tokens, last.steps, last.nodes) == (60, stats.steps, stats.nodes)
    assert (last.drafted, last.accepted) == (stats.nodes - stats.steps, stats.accepted)
    assert last.accepted > 0  # or there was nothing to count
    assert last.accepted_by == stats.accepted_by
    for counts, total in ((last.sizes, last.nodes), (last.reached, last.accepted)):
        assert sum(counts.values()) == last.steps
        assert sum(size * n for size, n in counts.items()) == total
    assert sum(last.offered.values()) == last.steps
    assert last.context == len(generation.prompt) + 30
    assert 0 < last.host_s < last.seconds
    assert last.peak_bytes >= 0


# ---- what is carried over


def test_cold_arms_know_nothing() -> None:
    """Drafters are new for each prompt, told of no answer; nothing is learnt, nothing cached."""
    cold = Asked("auto")
    engine = FakeEngine()
    plan = Plan(prompts(3), [PLAIN_ARM, Arm("x", cold)], 2, 12)
    assert list(measure_arms(engine, plan))
    assert cold.answers == [[]] * (3 * 2 + 1)
    assert all(renewal.learned is None for renewal in engine.renewals)
    made = [drafter for renewal in engine.renewals for drafter in renewal.drafters]
    assert len({id(drafter) for drafter in made}) == len(made)
    assert [generation.reused for generation in engine.generations] == [0] * (2 + plan.n_turns)


def test_warm_arms_go_on_from_prompt_to_prompt() -> None:
    """With one acceptance model and all answers so far; anew in each repetition."""
    warm = Asked("auto")
    engine = FakeEngine()
    plan = Plan(prompts(3), [PLAIN_ARM, Arm("x warm", warm, warm=True)], 2, 12)
    runs = list(measure_arms(engine, plan))
    pairs = list(zip(runs, engine.renewals[WARM_UPS:], engine.generations[WARM_UPS:], strict=True))
    mine = [(r, renewal, generation) for r, renewal, generation in pairs if r.drafter != PLAIN]
    told = iter(warm.answers[1:])  # the first time was the warm-up
    for repetition in range(2):
        of_it = [one for one in mine if one[0].repetition == repetition]
        known: list[int] = []
        for _, renewal, generation in of_it:
            assert renewal.learned is of_it[0][1].learned
            assert next(told) == known
            known += generation.tokens
        learned = of_it[0][1].learned
        assert learned is not None
        assert learned.answers.tolist() == known
        assert learned.acceptance.record() != shipped_priors().record()
        assert learned.key is None  # nothing is stored for others
    assert len({id(renewal.learned) for _, renewal, _ in mine}) == 2
    assert [renewal.learned for r, renewal, _ in pairs if r.drafter == PLAIN] == [None] * 6
    assert not any(generation.reused for _, _, generation in mine)


def test_a_strict_arm_is_strict() -> None:
    """And no other."""
    engine = FakeEngine()
    arms = [PLAIN_ARM, arm("x strict", strict=True)]
    runs = list(measure_arms(engine, Plan(prompts(2), arms, 1, 2)))
    for found, renewal in zip(runs, engine.renewals[WARM_UPS:], strict=True):
        assert renewal.strict == (found.drafter == "x strict")


# ---- the texts


@pytest.mark.parametrize("sampling", [SamplingParams(temperature=0.0), SAMPLED])
def test_all_arms_write_the_same(sampling: SamplingParams) -> None:
    """Whoever drafts; a repetition samples other texts, and greedily the same."""
    engine = FakeEngine()
    arms = [
        PLAIN_ARM,
        arm("auto", "auto"),
        arm("auto warm", "auto", warm=True),
        arm("lookup", "prompt-lookup"),
    ]
    runs = list(measure_arms(engine, Plan(prompts(2, sampling=sampling), arms, 2, 40)))
    texts = defaultdict(set)
    for found, generation in zip(runs, engine.generations[WARM_UPS:], strict=True):
        texts[found.prompt, found.repetition].add(tuple(generation.tokens))
    assert len(texts) == 4
    assert all(len(of_arms) == 1 for of_arms in texts.values())
    assert len({text for of_arms in texts.values() for text in of_arms}) == (
        2 if sampling.temperature == 0 else 4
    )


def test_later_turns_go_on_from_the_answers() -> None:
    """Each arm from its own; only tasks with several turns name them."""
    engine = FakeEngine()
    asked = [Prompt("talk", ("abc", "def", "ghi")), Prompt("ask", ("cab",))]
    runs = list(measure_arms(engine, Plan(asked, [PLAIN_ARM, arm("x", "auto")], 1, 6)))
    names = ["talk turn 1", "talk turn 2", "talk turn 3"]
    assert [run.task for run in runs] == [*names, *names, "ask", "ask"]
    assert [run.turn for run in runs] == [1, 2, 3, 1, 2, 3, 1, 1]
    generations = engine.generations[WARM_UPS:]
    for i, letters in enumerate([(3, 4, 5), (6, 7, 8)]):
        before, after = generations[i : i + 2]
        assert after.prompt == (*before.prompt, *before.tokens, *letters)
        assert after.reused == len(before.prompt) + len(before.tokens) - 1  # one is pending
    assert [g.tokens for g in generations[:3]] == [g.tokens for g in generations[3:6]]


@pytest.mark.llama
def test_later_turns_on_a_model_with_a_template(endless: Path) -> None:
    """A conversation: the answer is between two messages, token by token, and is still cached."""
    asked = [Prompt("talk", ("The way to work.", "And what of it?"), sampling=SAMPLED)]
    found: list[Generation] = []
    config = EngineConfig(n_ctx=512, threads=1, flash_attention=True)
    with Engine(endless, (), config) as engine:
        generate = engine.generate

        def noting(*args: Any, **options: Any) -> Generation:
            found.append(generate(*args, **options))
            return found[-1]

        engine.generate = noting  # type: ignore[method-assign]
        runs = list(measure_arms(engine, Plan(asked, [PLAIN_ARM, arm("x", "auto")], 1, 12)))
        template_end = engine.vocab.tokenize("<|im_start|>", add_bos=False, special=True)
    first, second, *others = found[WARM_UPS:]
    assert [run.task for run in runs] == ["talk turn 1", "talk turn 2"] * 2
    assert second.prompt[: len(first.prompt) + 12] == (*first.prompt, *first.tokens)
    assert set(template_end) < set(second.prompt[len(first.prompt) + 12 :])
    assert (first.reused, others[0].reused) == (0, 0)
    assert second.reused >= len(first.prompt)
    assert [g.tokens for g in (first, second)] == [g.tokens for g in others]


# ---- what ends it early


def test_a_full_context_ends_a_conversation() -> None:
    """The others go on: the second turn of the long one does not fit, and a prompt not at all."""
    asked = [
        Prompt("long", ("abcdefghij", "abcdefghij", "abc")),
        Prompt("too long", ("abcdefghij" * 4,)),
        Prompt("short", ("abc",)),
    ]
    engine = FakeEngine(n_ctx=32)
    runs = list(measure_arms(engine, Plan(asked, [PLAIN_ARM, arm("x", "auto")], 1, 10)))
    assert [run.task for run in runs] == ["long turn 1"] * 2 + ["short"] * 2
    assert [run.tokens for run in runs] == [10] * 4


def test_a_stop_keeps_what_was_measured() -> None:
    """What `check` raises comes out at once, after the runs that were complete."""
    engine, runs, n_checks = FakeEngine(), list[Run](), 0

    def check() -> None:
        nonlocal n_checks
        n_checks += 1
        if n_checks == 65:
            raise KeyboardInterrupt

    plan = Plan(prompts(3), [PLAIN_ARM, arm("x")], 2, 10)
    with pytest.raises(KeyboardInterrupt):
        for found in measure_arms(engine, plan, check):
            runs.append(found)
    assert n_checks == 65
    assert 0 < len(runs) < plan.n_turns
    assert [run.tokens for run in runs] == [10] * len(runs)
    assert 0 < len(engine.generations[-1].tokens) < 10


def test_a_stop_while_a_prompt_is_read() -> None:
    """It is asked between chunks of the prompt, too."""

    class Stop(Exception):
        pass

    def check() -> None:
        raise Stop

    engine = FakeEngine()
    with pytest.raises(Stop):
        next(measure_arms(engine, Plan(prompts(1), [PLAIN_ARM], 1, 10), check))
    assert engine.backend.length == engine.backend.limits.chunk
    assert not engine.generations[0].tokens


# ---- drafters of the command


@pytest.mark.parametrize(
    ("name", "predicted", "expected"),
    [
        ("auto", "abc", ["predicted", *(drafter.name for drafter in ensemble("auto"))]),
        ("auto", None, [drafter.name for drafter in ensemble("auto")]),
        ("prompt-lookup", "abc", ["prompt-lookup"]),
        ("none", "abc", ["none"]),
    ],
)
def test_a_predicted_text_goes_to_several(
    name: str, predicted: str | None, expected: list[str]
) -> None:
    """A single drafter is measured as its paper describes it."""
    prompt, nothing = Prompt("edit", ("abc",), predicted), Learned(shipped_priors()).answers
    found = _drafters(name, Letters(N_VOCAB), prompt, nothing)
    assert [drafter.name for drafter in found] == expected


def test_past_answers_go_to_several() -> None:
    """To suffixes of the text, which are then looked for there."""
    answers = Learned(shipped_priors(), [1, 2, 3]).answers
    names = [
        [
            drafter.name
            for drafter in _drafters(name, Letters(N_VOCAB), Prompt("t", ("a",)), answers)
        ]
        for name in ("auto", "suffix")
    ]
    assert names == [[*(drafter.name for drafter in ensemble("auto")), "past"], ["suffix"]]


# ---- is a slowdown found?


class Clock:
    """Stands still but for what is added to it."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Noisy(FakeBackend):
    """Calls take 10 ms, give or take, and ever longer; times `slower`.

    So they do on a machine that gets warm while others use it, too.
    """

    def __init__(self, clock: Clock, seed: int) -> None:
        super().__init__(HashModel(N_VOCAB, 2, 3), fake_limits(N_VOCAB, n_ctx=32, chunk=32))
        self.slower = 1.0
        self._clock = clock
        self._rng = random.Random(seed)
        self._heat = 0.0

    def submit(self, tree: DraftTree, pending: Sequence[int]) -> None:
        """See Backend."""
        self._heat += 0.0003
        noise = self._heat + self._rng.gauss(0, 0.05)
        self._clock.now += 0.01 * self.slower * math.exp(noise)
        super().submit(tree, pending)

    def arm(self, name: str, slower: float) -> Arm:
        """Plain decoding, each call of which takes so many times as long."""

        def drafters(prompt: Prompt, answers: Tokens) -> Sequence[Drafter]:
            self.slower = slower
            return ()

        return Arm(name, drafters)


SLOWDOWN = 1.05
BENCHMARKS = 20


@pytest.fixture(scope="module")
def measured() -> list[dict[str, Ratio]]:
    """Ratios of all tasks to plain decoding: of itself, and of what is 5 % slower."""
    found = []
    with pytest.MonkeyPatch.context() as patch:
        for seed in range(BENCHMARKS):
            clock = Clock()
            patch.setattr(session_module, "perf_counter", clock)
            patch.setattr(engine_module, "perf_counter", clock)
            backend = Noisy(clock, seed)
            arms = [
                backend.arm(PLAIN, 1.0),
                backend.arm("same", 1.0),
                backend.arm("slow", SLOWDOWN),
            ]
            runs = tuple(measure_arms(FakeEngine(backend), Plan(prompts(11, 2), arms, 3, 4)))
            rows = summarize(Results(CARD, None, runs))
            found.append({row.drafter: row.ratio for row in rows if row.task == ALL and row.ratio})
    return found


def test_a_small_slowdown_is_found(measured: list[dict[str, Ratio]]) -> None:
    """Calls that take 5 % longer are told from nothing, in every benchmark."""
    for ratios in measured:
        assert ratios["slow"].value + ratios["slow"].noise < 1
    mean = sum(ratios["slow"].value for ratios in measured) / BENCHMARKS
    assert mean == pytest.approx(1 / SLOWDOWN, abs=0.005)


def test_plain_decoding_is_as_fast_as_itself(measured: list[dict[str, Ratio]]) -> None:
    """1.00 within the noise that is stated, in 95 of 100: of 20 in 16 or more, but for bad luck."""
    ratios = [one["same"] for one in measured]
    assert sum(abs(ratio.value - 1) <= ratio.noise for ratio in ratios) >= 16
    assert all(0.005 < ratio.noise < 0.03 for ratio in ratios)
    assert sum(ratio.value for ratio in ratios) / BENCHMARKS == pytest.approx(1, abs=0.005)


# ---- what is kept of it


def saved(path: Path, of: Results, **changes: Any) -> Path:
    """A file of results, with some values of the record replaced."""
    path.write_text(json.dumps({**of.record(), **changes}))
    return path


def test_what_was_saved_is_read_back(tmp_path: Path) -> None:
    """All of it, with numbers as keys."""
    made = benchmark(tasks=("code", "edit"), repetitions=1)
    read = load_results(saved(tmp_path / "a.json", made))
    assert (read.card, read.runs) == (CARD, made.runs)
    assert read.curve and read.curve.record() == CURVE.record()
    cut = results(run(), card=replace(CARD, flash_attention=None))
    assert load_results(saved(tmp_path / "b.json", cut)) == cut
    assert Results.from_record(made.record()).runs == made.runs


def test_counts_of_any_kind_are_kept(tmp_path: Path) -> None:
    """A Counter is a mapping like others, and so is one with defaults."""
    counts = defaultdict(int, {0: 3, 2: 1})
    made = results(
        run(sizes=Counter({1: 3, 4: 1}), offered=counts, accepted_by=Counter({"suffix": 2}))
    )
    record = made.record()["runs"][0]
    assert (record["sizes"], record["offered"]) == ({1: 3, 4: 1}, {0: 3, 2: 1})
    assert load_results(saved(tmp_path / "a.json", made)) == made


def test_live_runs_are_kept(tmp_path: Path) -> None:
    """As they come out of the benchmark."""
    plan = Plan(prompts(2), [PLAIN_ARM, arm("x", "auto")], 1, 20)
    made = Results(CARD, None, tuple(measure_arms(FakeEngine(), plan)))
    assert load_results(saved(tmp_path / "a.json", made)) == made


def test_files_that_are_no_results(tmp_path: Path) -> None:
    """Another JSON, another version, cut off, or nothing: one line says which file and why."""
    made = results(run())
    broken: dict[str, tuple[str | bytes, str]] = {
        "text.json": ("hello", "not JSON"),
        "list.json": ("[1]", "no results of specgen bench"),
        "curve.json": (json.dumps(CURVE.record()), "no results of specgen bench"),
        "cut.json": (json.dumps(made.record())[:200], "not JSON"),
        "deep.json": ("[" * 100_000, "nested too deeply"),
        "bytes.json": (b"\xff\xfe\xff", ""),
    }
    for name, (content, said) in broken.items():
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        check_refused(path, said)
    check_refused(tmp_path / "none.json", "No such file")
    check_refused(tmp_path, "Is a directory")
    check_refused(saved(tmp_path / "new.json", made, version=9), "version 9, and only 1")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("tokens", value) for value in ("many", None, -1, 1.5, [1])),
        *(("seconds", value) for value in (math.nan, math.inf, "1")),
        *(("sizes", value) for value in (None, [1], {"one": 1}, {"1": None})),
        ("accepted_by", {"suffix": "x"}),
        ("task", 7),
    ],
)
def test_a_damaged_run(field: str, value: Any, tmp_path: Path) -> None:
    """It is refused when it is read, not when it is summed up."""
    record = results(run()).record()
    damaged = {**record["runs"][0], field: value}
    said = "not JSON" if value in (math.inf, math.nan) else "damaged results"
    check_refused(saved(tmp_path / "a.json", results(), runs=[damaged]), said)
    del damaged[field]
    check_refused(saved(tmp_path / "b.json", results(), runs=[damaged]), f"there is no '{field}'")


@pytest.mark.parametrize(
    "changes",
    [{"runs": 3}, {"runs": [3]}, {"card": None}, {"card": {}}, {"curve": 3}, {"curve": {}}],
)
def test_a_damaged_file(changes: dict[str, Any], tmp_path: Path) -> None:
    """No card, no runs, or no curve where one should be."""
    check_refused(saved(tmp_path / "a.json", results(run()), **changes), "damaged results")


def check_refused(path: Path, said: str) -> None:
    """Loading it is one line of an error, with the file's name, and a hint."""
    with pytest.raises(UsageError) as caught:
        load_results(path)
    assert str(path) in caught.value.message
    assert said in caught.value.message
    assert "\n" not in caught.value.message
