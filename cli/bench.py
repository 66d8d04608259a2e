"""`specgen bench`: what drafters are worth on recorded conversations, without running a model."""

from __future__ import annotations

import json
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .options import ModelArgument

if TYPE_CHECKING:
    from specgen.core.cost import CostModel
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
    recordings = load_recordings(recording, _tokenizer(ensure_model(model)))
    results = [
        {"drafter": name, "curve": label, "group": group, **_figures(tally)}
        for label, cost in curves.items()
        for name in names
        for group, tally in _replay(recordings, name, cost).items()
    ]
    if output == Format.jsonl:
        for result in results:
            typer.echo(json.dumps(result))
    else:
        _print(results)


def _tokenizer(path: Path) -> Any:
    from specgen.core.llama import open_vocab

    vocab = open_vocab(path)
    return lambda text: vocab.tokenize(text, add_bos=False, special=False)


def _replay(recordings: list[Recording], name: str, cost: CostModel) -> dict[str, Tally]:
    """Tallies by group, all together first. The calibrator goes on, all else is new each time."""
    from specgen.core.calibrate import Calibrator
    from specgen.core.replay import Tally, replay
    from specgen.drafters import create

    calibrator = Calibrator() if len(create(name)) > 1 else None
    tallies = {ALL: Tally()}
    for number, recording in enumerate(recordings, start=1):
        if sys.stderr.isatty():
            end = "" if number < len(recordings) else "\r\x1b[K"
            print(f"\r{name}: {number}/{len(recordings)}{end}", end="", file=sys.stderr)
        made = replay(recording, create(name), cost, calibrator, MAX_DRAFTS)
        for group, tally in made.items():
            tallies.setdefault(group, Tally()).add(tally)
            tallies[ALL].add(tally)
    return dict(sorted(tallies.items(), key=lambda item: (item[0] != ALL, item[0])))


def _figures(tally: Tally) -> dict[str, float]:
    return {
        "tokens": tally.tokens,
        "steps": tally.steps,
        "tokens_per_step": round(tally.tokens_per_step, 4),
        "nodes_per_step": round(tally.nodes_per_step, 4),
        "speedup": round(tally.speedup, 4),
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
