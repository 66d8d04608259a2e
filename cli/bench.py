"""`specgen bench`: what drafters are worth on recorded conversations, without running a model."""

from __future__ import annotations

import json
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from specgen.core.errors import UsageError

from .options import ModelArgument

if TYPE_CHECKING:
    from specgen.core.cost import CostModel
    from specgen.core.protocols import Drafter
    from specgen.core.replay import Recording, Tally

ALL = "all"  # the group of all groups
MAX_DRAFTS = 63


class Format(StrEnum):
    """How results are printed."""

    table = "table"
    jsonl = "jsonl"


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command("bench")(bench)


def bench(
    model: ModelArgument = None,
    recording: Annotated[
        Path,
        typer.Option(
            "--replay",
            metavar="FILE",
            help="Conversations: JSON lines with `turns` and `answers`, or a plain text.",
        ),
    ] = ...,  # type: ignore[assignment]
    curve: Annotated[
        str,
        typer.Option(
            metavar="NAME|FILE[,…]", help="What calls cost: cpu2, mi50, flat, or a saved curve."
        ),
    ] = "cpu2",
    drafter: Annotated[
        str,
        typer.Option(metavar="NAME[,NAME]", help="Drafters, each measured by itself, or auto."),
    ] = "auto",
    learn_on: Annotated[
        str | None,
        typer.Option(
            metavar="R/M",
            help="First learn, as earlier runs would have, from the conversations whose question_id"
            " leaves R when divided by M. What is learnt from others is dropped.",
        ),
    ] = None,
    only: Annotated[
        str | None,
        typer.Option(metavar="R/M", help="Measure those conversations only."),
    ] = None,
    output: Annotated[Format, typer.Option("-o", "--output", help="How to print.")] = Format.table,
) -> None:
    """Replay recorded answers through drafters: tokens and rows per step, speed under a curve.

    Of MODEL only the vocabulary is used. The figures are the same on every machine.
    """
    from specgen.core.cost import load_curve
    from specgen.core.replay import load_recordings
    from specgen.drafters import create

    from .models import ensure_model

    names = [name.strip() for name in drafter.split(",")]
    for name in names:
        create(name)  # before the long work: an unknown name ends here
    curves = {name.strip(): load_curve(name.strip()) for name in curve.split(",")}
    learnt, measured = _part(learn_on, "--learn-on"), _part(only, "--only")
    recordings = load_recordings(recording, _tokenizer(ensure_model(model)))
    past = [r for r in recordings if learnt is None or r.question % learnt[1] == learnt[0]]
    subject = [r for r in recordings if measured is None or r.question % measured[1] == measured[0]]
    if not subject:
        raise UsageError(f"--only {only} leaves nothing of {recording} to measure")
    results = []
    for label, cost in curves.items():
        for name in names:
            tallies = _replay(subject, past if learnt else None, name, cost)
            for group, tally in tallies.items():
                figures = _figures(tally)
                results.append({"drafter": name, "curve": label, "group": group, **figures})
    if output == Format.jsonl:
        for result in results:
            typer.echo(json.dumps(result))
    else:
        _print(results)


def _tokenizer(path: Path) -> Any:
    from specgen.core.llama import open_vocab

    vocab = open_vocab(path)
    return lambda text: vocab.tokenize(text, add_bos=False, special=False)


def _part(text: str | None, option: str) -> tuple[int, int] | None:
    """R and M of "R/M". Raises UsageError."""
    if text is None:
        return None
    rest, _, modulus = text.partition("/")
    if rest.isdecimal() and modulus.isdecimal() and int(rest) < int(modulus):
        return int(rest), int(modulus)
    raise UsageError(f"{option} is '{text}'; it must be R/M with R below M", "such as 0/4")


def _replay(
    recordings: list[Recording], past: list[Recording] | None, name: str, cost: CostModel
) -> dict[str, Tally]:
    """Tallies by group, all together first.

    Without `past` the calibrator goes on from one conversation to the next; with it, each begins
    with what was learnt there. Drafters are new each time.
    """
    from specgen.core.calibrate import experienced
    from specgen.core.replay import Tally, learn, replay
    from specgen.drafters import create, with_past

    def drafters(answers: Any) -> tuple[Drafter, ...]:
        return with_past(create(name), answers)

    learned = calibrator = None
    if len(create(name)) > 1:
        if past is None:
            calibrator = experienced()
        else:
            _show(f"{name}: learning")
            learned = learn(past, drafters, cost, MAX_DRAFTS, experienced())
    tallies = {ALL: Tally()}
    for number, recording in enumerate(recordings, start=1):
        _show(f"{name}: {number}/{len(recordings)}")
        if learned:
            calibrator = learned.calibrator.copy()
        made = replay(
            recording, drafters(learned.answers if learned else ()), cost, calibrator, MAX_DRAFTS
        )
        for group, tally in made.items():
            tallies.setdefault(group, Tally()).add(tally)
            tallies[ALL].add(tally)
    _show("")
    return dict(sorted(tallies.items(), key=lambda item: (item[0] != ALL, item[0])))


def _show(progress: str) -> None:
    """In place of what was shown before."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{progress}", end="", file=sys.stderr, flush=True)


def _figures(tally: Tally) -> dict[str, Any]:
    return {
        "tokens": tally.tokens,
        "steps": tally.steps,
        "tokens_per_step": round(tally.tokens_per_step, 4),
        "nodes_per_step": round(tally.nodes_per_step, 4),
        "speedup": round(tally.speedup, 4),
        "accepted": dict(tally.accepted_by.most_common()),
    }


def _print(results: list[dict[str, Any]]) -> None:
    typer.echo(
        f"{'curve':<8}{'drafter':<15}{'group':<24}{'tokens/step':>12}{'rows/step':>11}{'speed':>8}"
    )
    for r in results:
        typer.echo(
            f"{r['curve'][:7]:<8}{r['drafter']:<15}{r['group'][:23]:<24}"
            f"{r['tokens_per_step']:>12.3f}{r['nodes_per_step']:>11.2f}{r['speedup']:>7.3f}x"
        )
        if r["group"] == ALL and r["accepted"]:
            shares = [f"{name} {100 * n / r['tokens']:.0f}" for name, n in r["accepted"].items()]
            typer.echo(f"{'':<8}of 100 tokens guessed by {', '.join(shares)}")
