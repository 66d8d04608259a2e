"""`specgen bench --replay`: drafters on recorded conversations, without running a model."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from specgen.cli.choices import Format
from specgen.cli.prepare import ensure_model
from specgen.core.cost.model import load_curve
from specgen.core.errors import UsageError
from specgen.core.evaluation.replay import load_recordings
from specgen.drafters.ensemble import ensemble

from .format import Report, print_report

if TYPE_CHECKING:
    from specgen.core.cost.model import CostModel
    from specgen.core.evaluation.replay import Recording, Tally

ALL = "all"  # the group of all groups
MAX_DRAFTS = 63

_HEADS = ("group", "drafter", "curve", "tokens\n/step", "nodes\n/step", "speed")


def run_replay(
    model: str | None,
    recording: Path,
    names: Sequence[str],
    curve: str,
    format: Format,
) -> None:
    """Replay recorded answers through drafters and print what they are worth.

    Of the model only the vocabulary is used. Raises UsageError or ModelError.
    """
    curves = {name.strip(): load_curve(name.strip()) for name in curve.split(",")}
    recordings = load_recordings(recording, _tokenizer(ensure_model(model)))
    if not any(answer for r in recordings for _, answer in r.turns):
        raise UsageError(f"{recording} has no answers to replay")
    records = []
    for label, cost in curves.items():
        for name in names:
            tallies = _replay(recordings, name, cost)
            for group, tally in tallies.items():
                figures = _figures(tally)
                records.append({"drafter": name, "curve": label, "group": group, **figures})
    print_report(_report(records, recording), format)


def _tokenizer(path: Path) -> Any:
    from specgen.core.llama.backend import open_vocab

    vocab = open_vocab(path)
    return lambda text: vocab.tokenize(text, add_bos=False, special=False)


def _replay(recordings: list[Recording], name: str, cost: CostModel) -> dict[str, Tally]:
    """Tallies by group, all together first.

    Drafters are new for each conversation; the acceptance model of several goes along.
    """
    from specgen.core.drafting.acceptance import shipped_priors
    from specgen.core.evaluation.replay import Tally, replay
    from specgen.drafters import names_of

    acceptance = shipped_priors() if len(names_of(name)) > 1 else None
    tallies = {ALL: Tally()}
    for number, recording in enumerate(recordings, start=1):
        _show(f"{name}: {number}/{len(recordings)}")
        made = replay(recording, ensemble(name), cost, acceptance, MAX_DRAFTS)
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


def _report(records: Sequence[dict[str, Any]], recording: Path) -> Report:
    cells = [
        (
            r["group"],
            r["drafter"],
            r["curve"],
            f"{r['tokens_per_step']:.3f}",
            f"{r['nodes_per_step']:.2f}",
            f"{r['speedup']:.3f}x",
        )
        for r in records
    ]
    above = [("recording", str(recording))]
    below = [
        *_shares(records),
        "",
        "speed: relative to plain decoding, if calls cost what the curve says",
    ]
    return Report(above, _HEADS, (), cells, below, records, {"replay": list(records)})


def _shares(records: Sequence[dict[str, Any]]) -> Iterator[str]:
    for r in records:
        if r["group"] == ALL and r["accepted"]:
            shares = [f"{name} {100 * n / r['tokens']:.0f}" for name, n in r["accepted"].items()]
            who = f"{r['drafter']}, {r['curve']}"
            yield f"{who}: of 100 tokens drafted by {', '.join(shares)}"
