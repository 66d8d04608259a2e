"""`specgen verify`: prove that drafts leave the text alone, or show where they do not."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from specgen.core.config import DEFAULT_MAX_DRAFTS
from specgen.core.errors import UsageError
from specgen.drafters import AUTO, REGISTRY, create

from .options import MachineOptions, ModelArgument, OnOffAuto, Verbosity, grouped
from .progress import shown_progress
from .tables import print_table

if TYPE_CHECKING:
    from specgen.core.audit import Difference, Finding, Question, Setting
    from specgen.core.engine import Engine
    from specgen.core.fit import Fit
    from specgen.core.tasks import Prompt

DIFFERENT = 7  # exit code

_PLAIN = "none"
_LONG = 600  # tokens of a long question: kernels change with the context
_SHOWN = 20  # differences
_GREEDY_IN_TURN = 2  # questions that are answered greedily, then as many sampled


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command("verify")(verify)


@grouped
def verify(
    model: ModelArgument = None,
    data: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Questions in Spec-Bench's or MT-Bench's format; else our own."
        ),
    ] = None,
    prompts: Annotated[int, typer.Option(min=1, help="How many questions are asked.")] = 8,
    n_predict: Annotated[
        int, typer.Option("-n", "--predict", "--n-predict", min=1, help="Tokens of each answer.")
    ] = 64,
    drafter: Annotated[
        str | None,
        typer.Option(metavar="NAME[,NAME]", help="Drafters to verify.", show_default="all"),
    ] = None,
    draft_max: Annotated[
        int, typer.Option(min=0, max=63, help="Most guesses checked at once.")
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
            min=0.0, help="Logits by which a token may be behind the plain one and be called a tie."
        ),
    ] = 1.0,
    draws: Annotated[
        int, typer.Option(min=0, help="Answers whose distribution is tested; 0 tests none.")
    ] = 300,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    verbose: Verbosity = 0,
    *,
    engine: MachineOptions,
) -> None:
    """Compare texts with and without drafts, token by token; exit 7 if drafts show in them.

    Half of the questions are long, and half of the answers are sampled with a seed.
    """
    from specgen.core.engine import Engine
    from specgen.core.tasks import load_prompts, own_prompts

    from .calibrate import ensure_profile
    from .interrupt import Interrupts
    from .models import ensure_model
    from .run import require_model, set_up_logging

    set_up_logging(verbose)
    require_model(model)
    names = [name.strip() for name in (drafter or _all_drafters()).split(",")]
    for name in names:
        create(name)  # before the long work: an unknown name ends here
    asked = load_prompts(data) if data else own_prompts()
    path = ensure_model(model)
    config = replace(engine.config(), max_drafts=draft_max, strict=strict)
    profile = ensure_profile(path, config)
    with Engine(path, (), config, profile=profile) as opened, Interrupts() as interrupts:
        questions = _questions(opened, asked, prompts)
        settings = _settings(names, tree.choice, branch=opened.can_branch)
        findings = _ask(opened, questions, settings, n_predict, interrupts)
        fit = None
        if draws and interrupts.signal is None:
            fit = _fit(opened, questions, draws)
        bound = 0.0 if strict else gap
        if as_json:
            typer.echo(json.dumps(_record(findings, fit, bound)))
        else:
            _print(opened, findings, settings, fit, bound)
        if interrupts.signal is not None:
            raise typer.Exit(interrupts.exit_code)
    if _faults(findings, bound) or (fit and not fit.is_good):
        raise typer.Exit(DIFFERENT)


def _all_drafters() -> str:
    """None too: what differs from itself proves nothing."""
    return ",".join([AUTO, *REGISTRY])


def _questions(engine: Engine, prompts: Sequence[Prompt], count: int) -> list[Question]:
    """`count` questions; every second one long, and of each four two sampled."""
    from specgen.core.audit import Question
    from specgen.core.sampling import SamplingParams

    questions = []
    for i in range(count):
        text = prompts[i % len(prompts)].turns[0]
        tokens = _ask_tokens(engine, text)
        others = i
        while i % 2 and len(tokens) < _LONG:
            others += 1
            text = f"{prompts[others % len(prompts)].turns[0]}\n\n{text}"
            tokens = _ask_tokens(engine, text)
        greedy = i // _GREEDY_IN_TURN % 2 == 0
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
    from specgen.core.audit import Setting

    if tree and not branch:
        raise UsageError("--tree on is not possible here: no side branches", "use --tree auto")
    settings = []
    for name in names:
        make = partial(create, name)
        if branch and tree is not False and name != _PLAIN:
            settings.append(Setting(name, make, tree=True))
        if tree is not True:
            settings.append(Setting(_chains(name), make, tree=False))
    return settings


def _chains(name: str) -> str:
    return f"{name}, again" if name == _PLAIN else f"{name}, chains"


def _ask(
    engine: Engine,
    questions: Sequence[Question],
    settings: Sequence[Setting],
    n_predict: int,
    interrupts: Any,
) -> list[Finding]:
    """The findings so far when it ends or is interrupted."""
    from specgen.core.audit import audit

    findings: list[Finding] = []
    total = len(questions) * len(settings)
    with shown_progress() as progress:
        for finding in audit(engine, questions, settings, n_predict):
            findings.append(finding)
            progress(f"question {finding.question + 1} of {len(questions)}", len(findings) / total)
            if interrupts.signal is not None:
                break
    return findings


def _fit(engine: Engine, questions: Sequence[Question], draws: int) -> Fit:
    """The distribution of first tokens, with the drafter that guesses most of them."""
    from specgen.core.audit import Question, first_tokens
    from specgen.core.sampling import SamplingParams

    with shown_progress() as progress:
        progress(f"distribution of {draws} sampled answers", 0.0)
        question = Question(questions[0].tokens, SamplingParams(temperature=1.0))
        return first_tokens(engine, question, create("recycle"), draws)


def _faults(findings: Sequence[Finding], bound: float) -> list[Finding]:
    return [f for f in findings if f.difference and not _is_tie(f.difference, bound)]


def _is_tie(difference: Difference, bound: float) -> bool:
    return bound > 0 and difference.worst <= bound


def _record(findings: Sequence[Finding], fit: Fit | None, bound: float) -> dict[str, Any]:
    faults = _faults(findings, bound)
    return {
        "answers": len(findings),
        "tokens": sum(f.n_tokens for f in findings),
        "identical": sum(f.difference is None for f in findings),
        "ties": sum(f.difference is not None for f in findings) - len(faults),
        "faults": len(faults),
        "gap": bound,
        "differences": [
            {"question": f.question, "setting": f.setting, "tie": f not in faults}
            | asdict(f.difference)
            for f in findings
            if f.difference
        ],
        "distribution": fit and asdict(fit) | {"fits": fit.is_good},
    }


def _print(
    engine: Engine,
    findings: Sequence[Finding],
    settings: Sequence[Setting],
    fit: Fit | None,
    bound: float,
) -> None:
    """A row for each setting, a line for each difference, and what follows."""
    print_table(
        ("setting", "answers", "tokens", "identical", "ties", "faults", "largest gap"),
        [_row(setting.name, findings, bound) for setting in settings],
        n_left=1,
    )
    typer.echo("")
    different = [finding for finding in findings if finding.difference]
    for finding in different[:_SHOWN]:
        typer.echo(_difference(engine, finding, bound))
    if len(different) > _SHOWN:
        typer.echo(f"and {len(different) - _SHOWN} more; --json has them all")
    for line in _verdict(findings, fit, bound):
        typer.echo(line)
    if engine.strict:
        typer.echo(f"calls had {' or '.join(map(str, engine.strict.widths))} rows")


def _row(setting: str, findings: Sequence[Finding], bound: float) -> list[str]:
    of = [finding for finding in findings if finding.setting == setting]
    differences = [finding.difference for finding in of if finding.difference]
    ties = sum(_is_tie(difference, bound) for difference in differences)
    counts = (
        len(of),
        sum(f.n_tokens for f in of),
        len(of) - len(differences),
        ties,
        len(differences) - ties,
    )
    gap = f"{max(d.worst for d in differences):.3f}" if differences else "-"
    return [setting, *map(str, counts), gap]


def _difference(engine: Engine, finding: Finding, bound: float) -> str:
    difference = finding.difference
    assert difference is not None
    plain, other = (_token_text(engine, token) for token in difference.tokens)
    kind = "a tie" if _is_tie(difference, bound) else "a FAULT"
    return (
        f"question {finding.question + 1}, {finding.setting}, token {difference.position + 1}"
        f" (context {difference.context}): {other} for {plain}, {difference.gap:.3f} logits behind,"
        f" {difference.worst:.3f} at most later; calls of {difference.widths[0]} and"
        f" {difference.widths[1]} rows; {kind}"
    )


def _token_text(engine: Engine, token: int | None) -> str:
    if token is None:
        return "the end"
    return repr(engine.vocab.piece(token, special=True).decode("utf-8", "replace"))


def _verdict(findings: Sequence[Finding], fit: Fit | None, bound: float) -> Iterator[str]:
    n_faults = len(_faults(findings, bound))
    n_different = sum(finding.difference is not None for finding in findings)
    if n_faults:
        yield f"drafts show: {n_faults} of {len(findings)} answers are not the target's own"
    elif n_different:
        yield (
            f"{n_different} of {len(findings)} answers differ by ties below {bound:g} logits: calls"
            " of other widths round otherwise (--strict avoids it); all else is identical"
        )
    else:
        yield f"all {len(findings)} answers are identical"
    if fit:
        fits = "fit" if fit.is_good else "do NOT fit"
        yield (
            f"{fit.draws} sampled answers {fits} the target's distribution: chi-square"
            f" {fit.statistic:.1f} in {fit.cells} cells, p = {fit.p:.2g}"
        )
