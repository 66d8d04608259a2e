"""What was measured of specgen and llama-server, as one table: see peers.py."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean, median
from typing import Final, TypeAlias

from specgen.cli.bench.format import Report
from specgen.cli.bench.report import card_lines
from specgen.core.evaluation.card import Card
from specgen.core.evaluation.summary import geometric_mean

from .llama_server import PLAIN, Reply

LLAMA_SERVER: Final = "llama-server"
SPECGEN: Final = "specgen"
BASES: Final = ((LLAMA_SERVER, PLAIN), (SPECGEN, PLAIN))  # what all arms are compared with
HEADS: Final = (
    *("program", "drafts", "t/s", "x llama-server plain", "x specgen plain"),
    *("whole request x llama-server plain", "worst text"),
)

_UNKNOWN: Final = "-"

Name: TypeAlias = tuple[str, str]  # program, and what drafts
Asked: TypeAlias = tuple[str, int, int]  # task, prompt and turn
Pair: TypeAlias = tuple[Asked, float, float]  # what was asked, seconds a token of a base and an arm
Clock: TypeAlias = Callable[[Reply], float]  # seconds a token; 0 where nothing was timed


@dataclass(frozen=True, slots=True)
class Answer:
    """What one arm took for one question; `round` counts from 0."""

    arm: Name
    asked: Asked
    round: int
    reply: Reply


@dataclass(frozen=True, slots=True)
class Row:
    """Figures of one arm.

    Attributes:
        tokens_per_s: of decoding, the median of all answers.
        of_bases: how many times as fast as each of BASES; see `ratio_text`.
        whole: how many times as fast as llama-server plain, by the time of whole requests.
        worst: the kind of text with the least speed relative to llama-server plain, and that.
    """

    arm: Name
    tokens_per_s: float
    of_bases: Sequence[str]
    whole: str
    worst: str


def decoding(reply: Reply) -> float:
    """Seconds of decoding a token."""
    return reply.seconds / reply.timed if reply.timed else 0.0


def whole(reply: Reply) -> float:
    """Seconds of the whole request a token."""
    return reply.wall_s / reply.tokens if reply.tokens else 0.0


def paired(answers: Iterable[Answer], arm: Name, base: Name, clock: Clock) -> list[Pair]:
    """What was asked, and how long `base` and `arm` took a token, as they were made."""
    seconds = {(a.asked, a.round, a.arm): clock(a.reply) for a in answers}
    return [
        (asked, seconds[asked, number, base], took)
        for (asked, number, name), took in seconds.items()
        if name == arm and took and seconds.get((asked, number, base))
    ]


def ratio_text(pairs: Sequence[Pair]) -> str:
    """The geometric mean of the prompts' ratios, and within what it is known, if that is known."""
    ratio = geometric_mean(pairs)
    if ratio:
        return f"{ratio.value:.2f} ±{max(ratio.noise, 0.01):.2f}"
    return f"{simple_mean(pairs):.2f}" if pairs else _UNKNOWN


def simple_mean(pairs: Iterable[Pair]) -> float:
    """The geometric mean of the pairs' ratios."""
    return math.exp(fmean(math.log(base / took) for _, base, took in pairs))


def worst_text(pairs: Sequence[Pair]) -> str:
    """The task with the least ratio, and that."""
    tasks = {asked[0] for asked, _, _ in pairs}
    means = [(simple_mean(p for p in pairs if p[0][0] == task), task) for task in tasks]
    return "{1} {0:.2f}".format(*min(means)) if means else _UNKNOWN


def rows(answers: Sequence[Answer]) -> list[Row]:
    """A row for each arm that decoded anything, in the order of their first answers."""
    names = dict.fromkeys(answer.arm for answer in answers)
    return [row for name in names if (row := _row(answers, name))]


def _row(answers: Sequence[Answer], arm: Name) -> Row | None:
    took = [decoding(a.reply) for a in answers if a.arm == arm]
    speeds = [1 / seconds for seconds in took if seconds]
    if not speeds:
        return None
    pairs = {base: paired(answers, arm, base, decoding) for base in BASES}
    first = BASES[0]
    return Row(
        arm,
        median(speeds),
        ["1" if arm == base else ratio_text(pairs[base]) for base in BASES],
        "1" if arm == first else ratio_text(paired(answers, arm, first, whole)),
        _UNKNOWN if arm == first else worst_text(pairs[first]),
    )


def report(answers: Sequence[Answer], card: Card, settings: Mapping[str, str]) -> Report:
    """All that is shown, and as JSON all that was measured."""
    table = rows(answers)
    return Report(
        above=[*card_lines(card), *settings.items()],
        heads=HEADS,
        spare=(),
        cells=[[*r.arm, f"{r.tokens_per_s:.1f}", *r.of_bases, r.whole, r.worst] for r in table],
        below=[
            "x: how many times as fast, the geometric mean over the questions; 95 of 100 such runs"
            " are within ± of the truth for these questions",
            "t/s and ratios are of decoding, by each program's own clock; a whole request has the"
            " prompt in it, and for llama-server the way over loopback",
            "worst text: the kind of text with the least speed relative to llama-server plain",
        ],
        records=(),
        whole={
            "format": "specgen peers",
            "card": card.record(),
            "settings": dict(settings),
            "answers": [asdict(answer) for answer in answers],
        },
    )
