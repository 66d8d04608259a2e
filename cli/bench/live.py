"""`specgen bench`: plain decoding against drafters, in turns, on a loaded model."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from specgen.cli.choices import Format
from specgen.cli.files import check_place, save
from specgen.cli.interrupt import Interrupts
from specgen.cli.prepare import ensure_model, ensure_profile
from specgen.cli.terminal import note, shown_progress
from specgen.core.config import EngineConfig
from specgen.core.engine import Engine
from specgen.core.errors import ContextFull
from specgen.core.evaluation.benchmark import Arm, Plan, answers_by_task, measure_arms
from specgen.core.evaluation.machine import card_of
from specgen.core.evaluation.results import PLAIN, Results, Run
from specgen.core.evaluation.summary import ALL, without_ratio
from specgen.core.evaluation.tasks import Prompt, load_prompts, own_prompts, sampled
from specgen.core.host.bandwidth import measure_bandwidth
from specgen.core.host.limits import default_threads, load
from specgen.core.knowledge.profile import Profile
from specgen.core.memory.budget import FittedConfig
from specgen.core.protocols import Backend, Drafter, Tokens, Vocab
from specgen.core.stop import Interrupted
from specgen.drafters import AUTO, names_of, together
from specgen.drafters.draft_model import DraftModel
from specgen.drafters.ensemble import ensemble
from specgen.opening import Wanted, fitted

from .plot import check_plot, plot
from .report import LEAST, write

_MOST_READ = 512 << 20  # bytes
_REPORT = 10 << 20  # bytes of Rich and of what is remembered of runs


@dataclass(frozen=True, slots=True)
class LiveJob:
    """What to measure, and what to do with the results.

    Attributes:
        names: of drafters.
        draft: the draft model, as `model` is given, or None.
        data: questions; None takes our own.
        per_task: prompts of each task; 0 takes all.
        warm: whether to measure drafters that go on learning, too.
        memory_budget: as it was given, or None.
        save, plot: files to write, or None.
    """

    model: str | None
    config: EngineConfig
    names: Sequence[str]
    draft: str | None
    data: Path | None
    per_task: int
    n_predict: int
    repetitions: int
    warm: bool
    memory_budget: str | None
    save: Path | None
    plot: Path | None
    format: Format

    def check(self) -> None:
        """Raise UsageError for what would fail at the end of the long work."""
        if self.save:
            check_place(self.save)
        if self.plot:
            check_plot(self.plot)


def run_live(job: LiveJob) -> None:
    """Measure, print, save and plot. An interrupt ends it with what there is.

    Raises SpecgenError, and typer.Exit(128 + signal) after an interrupt.
    """
    job.check()
    prompts = load_prompts(job.data) if job.data else own_prompts()
    if job.per_task:
        prompts = sampled(prompts, job.per_task)
    with Interrupts() as interrupts:
        _run(job, prompts, interrupts)


def _run(job: LiveJob, prompts: Sequence[Prompt], interrupts: Interrupts) -> None:
    for warning in _foreseen(prompts, job.repetitions):
        note(f"specgen: {warning}")
    path = ensure_model(job.model)
    draft = None if job.draft is None else ensure_model(job.draft)
    wanted = replace(job.config, draft_model=draft)
    profile = ensure_profile(path, wanted, job.memory_budget, interrupts.came)
    names = AUTO if list(job.names) == [AUTO] else together(job.names)
    fit = fitted(
        Wanted(
            path,
            wanted,
            names,
            job.memory_budget,
            learn=job.warm,
            answers=job.warm,
            interface=_REPORT,
        ),
        profile,
    )
    config = fit.config
    bandwidth = _bandwidth(job, fit)
    with Engine(path, (), config, profile=profile, should_stop=interrupts.came) as engine:
        engine.planned = fit.plan
        arms = list(_arms(job, config, engine))
        plan = Plan(prompts, arms, job.repetitions, job.n_predict)
        runs = _measure(engine, plan, interrupts)
        results = _results(engine, profile, bandwidth, runs)
    left_out = 0 if interrupts.signal else plan.n_turns - len(runs)
    if runs:
        show(results, job.format, job.save, job.plot)
    elif left_out:
        raise ContextFull(
            f"no prompt and its answer fit the context of {engine.n_ctx} tokens",
            "use a larger context (-c) or shorter answers (-n)",
        )
    if left_out:
        answers = "1 answer is" if left_out == 1 else f"{left_out} answers are"
        note(f"specgen: {answers} left out: they did not fit the context of {engine.n_ctx} tokens")
    interrupts.check()


def _foreseen(prompts: Sequence[Prompt], repetitions: int) -> Iterator[str]:
    """What will be missing in the results, or not be worth much."""
    answers = answers_by_task(prompts, repetitions)
    missing = without_ratio(answers, repetitions)
    of = "" if ALL in missing else f" of {', '.join(missing)}"
    if missing == list(answers):
        of = " of single tasks"
    if missing:
        yield f"there will be no ratios{of}: it takes {LEAST} (-r, --per-task)"
    tasks, cpus = load() or (0.0, 1)
    if tasks > cpus:
        yield f"the machine is busy: its load is {tasks:.1f} on {cpus} CPUs, so speeds will vary"


def show(results: Results, format: Format, save: Path | None, plot_to: Path | None) -> None:
    """Print the results, and write the files that are asked for. Raises UsageError.

    Whatever of it fails, the rest is done: measuring takes minutes.
    """
    with ExitStack() as others:
        if plot_to:
            others.callback(plot, results, plot_to)
        if save:
            others.callback(_save, results, save)
        write(results, format)


def _bandwidth(job: LiveJob, fit: FittedConfig) -> float:
    """How fast memory is read, with no more of it than the model will take."""
    threads = job.config.threads or default_threads()
    if job.memory_budget is None:
        return measure_bandwidth(threads)
    return measure_bandwidth(threads, min(_MOST_READ, fit.plan.weights + fit.plan.context))


def _measure(engine: Engine, plan: Plan, interrupts: Interrupts) -> tuple[Run, ...]:
    runs: list[Run] = []
    with shown_progress() as progress:
        try:
            for run in measure_arms(engine, plan, interrupts.check):
                runs.append(run)
                stage = f"round {run.repetition + 1} of {plan.repetitions}"
                progress(stage, len(runs) / plan.n_turns)
        except Interrupted:
            pass
    return tuple(runs)


def _results(engine: Engine, profile: Profile, bandwidth: float, runs: tuple[Run, ...]) -> Results:
    config = engine.config
    card = card_of(
        engine.path,
        threads=config.threads or default_threads(),
        flash_attention=config.flash_attention,
        n_ctx=engine.n_ctx,
        now=datetime.now(UTC),
        bandwidth=bandwidth,
    )
    return Results(card, profile.prices, runs)


def _arms(job: LiveJob, config: EngineConfig, engine: Engine) -> Iterator[Arm]:
    """Plain decoding, then each drafter: cold, warm where asked for, and with a draft model.

    The draft model alone comes last.
    """
    strict, draft = job.config.strict, engine.draft
    yield Arm(PLAIN, lambda prompt, answers: ())
    if strict and PLAIN not in job.names:
        yield Arm(f"{PLAIN} strict", lambda prompt, answers: (), strict=True)
    for name in job.names if config.max_drafts else ():
        label = f"{name} strict" if strict else f"{name} again" if name == PLAIN else name
        make = partial(_drafters, name, engine.vocab, few=config.few_drafters)
        yield Arm(label, make, strict=strict)
        if len(names_of(name)) < 2:  # a single one learns nothing that is kept
            continue
        if job.warm:
            yield Arm(f"{label} warm", make, warm=True, strict=strict)
        if draft:
            yield Arm(f"{label} + {DraftModel.name}", partial(make, draft=draft), strict=strict)
    if draft:
        label = f"{DraftModel.name} strict" if strict else DraftModel.name
        yield Arm(
            label, lambda prompt, answers: (DraftModel(draft, standalone=True),), strict=strict
        )


def _drafters(
    name: str,
    vocab: Vocab,
    prompt: Prompt,
    answers: Tokens,
    *,
    draft: Backend | None = None,
    few: bool = False,
) -> Sequence[Drafter]:
    """Drafters as `generate` has them. A single one is compared as its paper describes it."""
    if len(names_of(name)) < 2:
        return ensemble(name)
    text = prompt.predicted
    predicted = None if text is None else vocab.tokenize(text, add_bos=False, special=False)
    return ensemble(name, predicted=predicted, draft=draft, answers=answers, few=few)


def _save(results: Results, path: Path) -> None:
    save(path, f"{json.dumps(results.record())}\n".encode())
