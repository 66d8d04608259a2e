"""`specgen bench --replay`: drafters on recorded conversations, without running a model."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from specgen.cli.choices import Format
from specgen.cli.prepare import ensure_model
from specgen.core.cost.model import load_curve
from specgen.core.errors import UsageError
from specgen.core.evaluation.replay import load_recordings

from .format import Report, print_report

if TYPE_CHECKING:
    from specgen.core.cost.model import CostModel
    from specgen.core.evaluation.replay import Recording, Tally
    from specgen.core.protocols import Drafter

ALL = "all"  # the group of all groups
MAX_DRAFTS = 63
_LONGEST_PART = 40  # characters: Python reads no number of thousands of digits

_HEADS = ("group", "drafter", "curve", "tokens\n/step", "nodes\n/step", "speed")


def run_replay(
    model: str | None,
    recording: Path,
    names: Sequence[str],
    curve: str,
    learn_on: str | None,
    only: str | None,
    format: Format,
) -> None:
    """Replay recorded answers through drafters and print what they are worth.

    Of the model only the vocabulary is used. Raises UsageError or ModelError.
    """
    curves = {name.strip(): load_curve(name.strip()) for name in curve.split(",")}
    learnt, measured = _part(learn_on, "--learn-on"), _part(only, "--only")
    recordings = load_recordings(recording, _tokenizer(ensure_model(model)))
    past = [r for r in recordings if learnt is None or r.question % learnt[1] == learnt[0]]
    subject = [r for r in recordings if measured is None or r.question % measured[1] == measured[0]]
    if not any(answer for r in subject for _, answer in r.turns):
        if only is None:
            raise UsageError(f"{recording} has no answers to replay")
        raise UsageError(f"--only {only} leaves nothing of {recording} to measure")
    records = []
    for label, cost in curves.items():
        for name in names:
            tallies = _replay(subject, past if learnt else None, name, cost)
            for group, tally in tallies.items():
                figures = _figures(tally)
                records.append({"drafter": name, "curve": label, "group": group, **figures})
    print_report(_report(records, recording), format)


def _tokenizer(path: Path) -> Any:
    from specgen.core.llama.backend import open_vocab

    vocab = open_vocab(path)
    return lambda text: vocab.tokenize(text, add_bos=False, special=False)


def _part(text: str | None, option: str) -> tuple[int, int] | None:
    """R and M of "R/M". Raises UsageError."""
    if text is None:
        return None
    found = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", text)
    if found and int(found[1]) < int(found[2]):
        return int(found[1]), int(found[2])
    raise UsageError(f"{option} is '{text}'; it must be R/M with R below M", "such as 0/4")


def _replay(
    recordings: list[Recording], past: list[Recording] | None, name: str, cost: CostModel
) -> dict[str, Tally]:
    """Tallies by group, all together first.

    Without `past` the acceptance model goes on from one conversation to the next; with it, each
    begins with what was learnt there. Drafters are new each time.
    """
    from specgen.core.drafting.acceptance import shipped_priors
    from specgen.core.evaluation.replay import Tally, learn, replay
    from specgen.drafters import create, with_past

    def drafters(answers: Any) -> tuple[Drafter, ...]:
        return with_past(create(name), answers)

    learned = acceptance = None
    if len(create(name)) > 1:
        if past is None:
            acceptance = shipped_priors()
        else:
            _show(f"{name}: learning")
            learned = learn(past, drafters, cost, MAX_DRAFTS, shipped_priors())
    tallies = {ALL: Tally()}
    for number, recording in enumerate(recordings, start=1):
        _show(f"{name}: {number}/{len(recordings)}")
        if learned:
            acceptance = learned.acceptance.copy()
        made = replay(
            recording, drafters(learned.answers if learned else ()), cost, acceptance, MAX_DRAFTS
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
            yield f"{who}: of 100 tokens guessed by {', '.join(shares)}"
