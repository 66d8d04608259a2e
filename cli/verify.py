"""`specgen verify`: prove that drafts leave the text alone, or show where they do not."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from specgen.core.config import DEFAULT_MAX_DRAFTS
from specgen.core.errors import ContextFull, UsageError
from specgen.drafters import AUTO, REGISTRY, names_of, together
from specgen.drafters.ensemble import ensemble

from .choices import OnOffAuto, number
from .grouping import grouped
from .model_choice import ModelChoice
from .options import MachineOptions, Verbosity
from .terminal import print_table, set_up_logging, show, shown_progress

if TYPE_CHECKING:
    from specgen.core.engine import Engine
    from specgen.core.evaluation.chi_square import ChiSquare
    from specgen.core.evaluation.lossless import Difference, Finding, Question, Setting
    from specgen.core.evaluation.tasks import Prompt

DIFFERENT = 7  # exit code

_PLAIN = "none"
_LONG = 600  # tokens of a long question: kernels change with the context
_SPARE = 8  # prompts that only make others longer
_SHOWN = 20  # differences
_NOT_TESTED = "sampled answers were not tested: no two widths of calls here round alike"
_GREEDY_IN_TURN = 2  # questions that are answered greedily, then as many sampled


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command("verify")(verify)


@grouped
def verify(
    chosen: ModelChoice,
    data: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Questions in Spec-Bench's or MT-Bench's format; else our own."
        ),
    ] = None,
    prompts: Annotated[
        int, typer.Option(min=1, max=1_000_000, help="How many questions are asked.")
    ] = 8,
    n_predict: Annotated[
        int, typer.Option("-n", "--predict", "--n-predict", min=1, help="Tokens of each answer.")
    ] = 64,
    drafter: Annotated[
        str | None,
        typer.Option(metavar="NAME[,NAME]", help="Drafters to verify.", show_default="all"),
    ] = None,
    draft_max: Annotated[
        int, typer.Option(min=0, max=63, help="Most draft tokens checked at once.")
    ] = DEFAULT_MAX_DRAFTS,
    tree: Annotated[
        OnOffAuto, typer.Option(help="Verify drafts with side branches, without, or both.")
    ] = OnOffAuto.auto,
    strict: Annotated[
        bool,
        typer.Option("--strict", help="Decode strictly, where no difference at all is allowed."),
    ] = False,
    gap: Annotated[
        float,
        typer.Option(
            min=0.0,
            callback=number,
            help="Logits by which a token of a greedy answer may be behind the plain one and be"
            " called a tie.",
        ),
    ] = 1.0,
    draws: Annotated[
        int,
        typer.Option(
            min=0, max=1_000_000, help="Answers whose distribution is tested; 0 tests none."
        ),
    ] = 300,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    verbose: Verbosity = 0,
    *,
    engine: MachineOptions,
) -> None:
    """Compare texts with and without drafts, token by token; exit 7 if drafts show in them.

    Half of the questions are long. Half of the answers are greedy, half are sampled with a seed
    and decoded strictly, so that any difference in them is a fault.
    """
    from specgen.core.engine import Engine
    from specgen.core.evaluation.tasks import load_prompts, own_prompts
    from specgen.opening import Wanted, fitted

    from .interrupt import Interrupts
    from .prepare import ensure_model, ensure_profile, require_model

    set_up_logging(verbose)
    model = chosen.name
    require_model(model)
    names = [name.strip() for name in (drafter or _all_drafters()).split(",")]
    for name in names:
        names_of(name)  # before the long work: an unknown name ends here
    asked = load_prompts(data) if data else own_prompts()
    with Interrupts() as interrupts:
        path = ensure_model(model)
        config = replace(engine.config(), max_drafts=draft_max, strict=strict)
        profile = ensure_profile(path, config, None, interrupts.came)
        config = fitted(Wanted(path, config, together(names), None, learn=False), profile).config
        with Engine(path, (), config, profile=profile, should_stop=interrupts.came) as opened:
            settings = _settings(names, tree.choice, branch=opened.can_branch)
            # Padding takes some of the context.
            room = opened.n_ctx - n_predict - profile.strict.slack
            can_sample = 1 < profile.strict.within(config.max_rows).largest <= config.max_rows
            questions = _questions(opened, asked, prompts, room, can_sample=can_sample)
            findings = _ask(opened, questions, settings, n_predict, interrupts)
            fit = None
            if draws and not interrupts.came() and can_sample:
                fit = _fit(opened, questions[0], draws, interrupts)
            bound = 0.0 if strict else gap
            if as_json:
                show(json.dumps(_record(findings, fit, bound)))
            else:
                _print(opened, findings, fit, bound)
                if not can_sample:
                    show(_NOT_TESTED)
                if interrupts.came():
                    n_all = len(questions) * len(settings)
                    show(f"stopped after {len(findings)} of {n_all} answers")
            interrupts.check()
    if _faults(findings, bound) or (fit and not fit.is_good):
        raise typer.Exit(DIFFERENT)


def _all_drafters() -> str:
    """None too: what differs from itself proves nothing."""
    return ",".join([AUTO, *REGISTRY])


def _questions(
    engine: Engine, prompts: Sequence[Prompt], count: int, room: int, *, can_sample: bool
) -> list[Question]:
    """`count` questions; every second one long, and two of each four sampled if `can_sample`.

    Prompts of more than `room` tokens are passed over. Raises ContextFull if all are.
    """
    from specgen.core.evaluation.lossless import Question
    from specgen.core.sampling import SamplingParams

    asked = (prompt.turns[0] for prompt in prompts)
    fitting = (text for text in asked if len(_ask_tokens(engine, text)) <= room)
    texts = list(islice(fitting, count + _SPARE))
    if not texts:
        raise ContextFull(
            "no question leaves room for an answer in the available context size of"
            f" {engine.n_ctx}",
            "use a larger context (-c) or shorter answers (-n)",
        )
    questions = []
    for i in range(count):
        others = islice(cycle(texts), i, None)
        text = next(others)
        tokens = _ask_tokens(engine, text)
        while i % 2 and len(tokens) < _LONG:
            text = f"{next(others)}\n\n{text}"
            longer = _ask_tokens(engine, text)
            if not len(tokens) < len(longer) <= room:
                break
            tokens = longer
        greedy = not can_sample or i // _GREEDY_IN_TURN % 2 == 0
        params = SamplingParams(temperature=0.0) if greedy else SamplingParams(seed=i)
        questions.append(Question(tuple(tokens), params))
    return questions


def _ask_tokens(engine: Engine, text: str) -> list[int]:
    """A prompt that asks `text`: as a message where the model has a chat template."""
    if engine.model.chat_template() is None:
        return engine.tokenize(text)
    return engine.conversation().ask(text)


def _settings(names: Sequence[str], tree: bool | None, *, branch: bool) -> list[Setting]:
    """Every drafter, with side branches where `branch` allows them and without, or as `tree` says.

    Raises UsageError if side branches are asked for where there are none.
    """
    from specgen.core.evaluation.lossless import Setting

    if tree and not branch:
        raise UsageError("--tree on is not possible here: no side branches", "use --tree auto")
    settings = []
    for name in names:
        make = partial(ensemble, name)
        if name == _PLAIN:
            settings.append(Setting(f"{name}, again", make, tree=False))
            continue
        if branch and tree is not False:
            settings.append(Setting(name, make, tree=True))
        if tree is not True:
            settings.append(Setting(f"{name}, chains", make, tree=False))
    return settings


def _ask(
    engine: Engine,
    questions: Sequence[Question],
    settings: Sequence[Setting],
    n_predict: int,
    interrupts: Any,
) -> list[Finding]:
    """The findings so far when it ends or is interrupted."""
    from specgen.core.evaluation.lossless import audit
    from specgen.core.stop import Interrupted

    findings: list[Finding] = []
    total = len(questions) * len(settings)
    with shown_progress() as progress, suppress(Interrupted):
        for finding in audit(engine, questions, settings, n_predict, interrupts.check):
            findings.append(finding)
            progress(f"question {finding.question + 1} of {len(questions)}", len(findings) / total)
    return findings


def _fit(engine: Engine, question: Question, draws: int, interrupts: Any) -> ChiSquare | None:
    """The distribution of first tokens, with the drafter that drafts most of them.

    None when it is interrupted.
    """
    from specgen.core.evaluation.lossless import Question, first_tokens
    from specgen.core.sampling import SamplingParams
    from specgen.core.stop import Interrupted

    sampled = Question(question.tokens, SamplingParams(temperature=1.0))
    with shown_progress() as progress, suppress(Interrupted):

        def on_draw(n: int) -> None:
            interrupts.check()
            progress(f"distribution of {draws} sampled answers", n / draws)

        return first_tokens(engine, sampled, ensemble("recycle"), draws, on_draw)
    return None


def _faults(findings: Sequence[Finding], bound: float) -> list[Finding]:
    return [f for f in findings if f.difference and not _is_tie(f.difference, bound)]


def _is_tie(difference: Difference, bound: float) -> bool:
    return bound > 0 and difference.worst <= bound


def _record(findings: Sequence[Finding], fit: ChiSquare | None, bound: float) -> dict[str, Any]:
    faults = _faults(findings, bound)
    return {
        "answers": len(findings),
        "tokens": sum(f.n_tokens for f in findings),
        "accepted": sum(f.n_accepted for f in findings),
        "identical": sum(f.difference is None for f in findings),
        "ties": sum(f.difference is not None for f in findings) - len(faults),
        "faults": len(faults),
        "gap": bound,
        "differences": [
            {"question": f.question, "setting": f.setting, "tie": f not in faults}
            | _finite(asdict(f.difference))
            for f in findings
            if f.difference
        ],
        "distribution": fit and _finite(asdict(fit)) | {"fits": fit.is_good},
    }


def _finite(record: dict[str, Any]) -> dict[str, Any]:
    """The record with null for what is infinite, which JSON does not know."""
    return {name: None if value == math.inf else value for name, value in record.items()}


def _print(
    engine: Engine, findings: Sequence[Finding], fit: ChiSquare | None, bound: float
) -> None:
    """A row for each setting, a line for each difference, and what follows."""
    heads = (
        "setting",
        "answers",
        "tokens",
        "accepted",
        "identical",
        "ties",
        "faults",
        "largest gap",
    )
    names = dict.fromkeys(finding.setting for finding in findings)
    print_table(heads, [_row(name, findings, bound) for name in names], right=range(1, len(heads)))
    show("")
    different = [finding for finding in findings if finding.difference]
    for finding in different[:_SHOWN]:
        for line in _difference(engine, finding, bound):
            show(line)
    if len(different) > _SHOWN:
        show(f"and {len(different) - _SHOWN} more; --json has them all")
    for line in _verdict(findings, fit, bound):
        show(line)
    if engine.strict:
        widths = ", ".join(map(str, engine.strict.widths))
        show(f"each call had one of these numbers of rows: {widths}")


def _row(setting: str, findings: Sequence[Finding], bound: float) -> list[str]:
    of = [finding for finding in findings if finding.setting == setting]
    differences = [finding.difference for finding in of if finding.difference]
    ties = sum(_is_tie(difference, bound) for difference in differences)
    counts = (
        len(of),
        sum(f.n_tokens for f in of),
        sum(f.n_accepted for f in of),
        len(of) - len(differences),
        ties,
        len(differences) - ties,
    )
    gap = f"{max(d.worst for d in differences):.2g}" if differences else "-"
    return [setting, *map(str, counts), gap]


def _difference(engine: Engine, finding: Finding, bound: float) -> Iterator[str]:
    difference = finding.difference
    assert difference is not None
    plain, other = (_token_text(engine, token) for token in difference.tokens)
    kind = "a tie" if _is_tie(difference, bound) else "a FAULT"
    yield (
        f"{kind}: question {finding.question + 1}, {finding.setting}, token"
        f" {difference.position + 1}: {other} in place of {plain}"
    )
    gaps = f"{difference.gap:.2g} logits behind, the worst of its answer {difference.worst:.2g}"
    if math.isinf(difference.gap):
        gaps = "not by rounding"
    widths = f"calls of {difference.widths[1]} and {difference.widths[0]} rows"
    yield f"  {gaps}; {widths}, after {difference.context} tokens"


def _token_text(engine: Engine, token: int | None) -> str:
    if token is None:
        return "the end"
    return repr(engine.vocab.piece(token, special=True).decode("utf-8", "replace"))


def _verdict(findings: Sequence[Finding], fit: ChiSquare | None, bound: float) -> Iterator[str]:
    n_faults = len(_faults(findings, bound))
    n_different = sum(finding.difference is not None for finding in findings)
    if n_faults:
        yield f"drafts show: {n_faults} of {len(findings)} answers are not the target's own"
    elif n_different:
        yield f"{n_different} of {len(findings)} answers differ by ties, the others are identical"
        yield "calls of other widths round otherwise; --strict avoids it"
    elif findings:
        yield f"all {len(findings)} answers are identical"
    if findings and not any(finding.n_accepted for finding in findings):
        yield "no draft token was accepted, so this proves little"
    if fit:
        fits = "fit" if fit.is_good else "do NOT fit"
        yield (
            f"{fit.draws} sampled answers {fits} the target's distribution: chi-square"
            f" {fit.statistic:.1f} in {fit.cells} cells, p = {fit.p:.2g}"
        )
