"""A benchmark as one figure: speed by task, what calls cost and which were made, who is right.

matplotlib draws it; it is imported only here, and only when it is asked for.
"""

from __future__ import annotations

import html
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from specgen.cli.files import check_place, save
from specgen.cli.terminal import clean
from specgen.core.errors import UsageError
from specgen.core.evaluation.card import Card
from specgen.core.evaluation.results import PLAIN, Results
from specgen.core.evaluation.summary import ALL, LARGEST, Row, summarize
from specgen.core.host.interpreter import install_hint

from .format import shortened

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SUFFIXES: Final = (".svg", ".png", ".html")
LEAST_STEPS: Final = 20  # that a share of steps is worth drawing for

# Okabe and Ito's, told apart by the colour-blind as well; markers differ, too.
_COLOURS: Final = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_MARKERS: Final = ("o", "s", "^", "D", "v", "P", "X")
_GREYS: Final = ("0.65", "0.4", "0.1")
_STYLE: Final[Any] = {  # the type is of matplotlib's, which may not be there
    "font.family": "DejaVu Sans",  # comes with matplotlib
    "font.size": 10.0,
    "axes.titlesize": 11.0,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": "0.9",
    "legend.frameon": False,
    "text.parse_math": False,  # a $ in a name is a $
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "specgen",  # the same results make the same file
}
_INCHES: Final = 13.0
_MOST_INCHES: Final = 40.0
_DOTS_PER_INCH: Final = 110
_LONGEST_TASK: Final = 24
_LEAST_ROWS: Final = 16
_SELDOM: Final = 0.01  # of the calls


@dataclass(frozen=True, slots=True)
class _Look:
    """How a drafter is drawn: the `number`th, from 0, of `count`."""

    colour: str
    marker: str
    number: int
    count: int

    @property
    def width(self) -> float:
        """Of what one drafter takes, where all of them share 1."""
        return 0.8 / self.count

    @property
    def offset(self) -> float:
        """From the middle of what they share."""
        return (self.number - (self.count - 1) / 2) * self.width


def check_plot(path: Path) -> None:
    """Raises UsageError if `plot` could not write to `path`; worth asking before long work."""
    if path.suffix.lower() not in SUFFIXES:
        *others, last = SUFFIXES
        raise UsageError(
            f"cannot plot to {path}: its name must end with {', '.join(others)} or {last}"
        )
    check_place(path)
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        missing = "plots need matplotlib, which is not installed"
        raise UsageError(missing, install_hint("matplotlib")) from None


def plot(results: Results, path: Path) -> None:
    """Draw the results to a file: SVG, PNG, or an HTML page, by its suffix. Raises UsageError."""
    check_plot(path)
    suffix = path.suffix.lower()
    data = _drawn(results, "png" if suffix == ".png" else "svg")
    if suffix == ".html":
        data = _page(_title(results), data)
    save(path, data)


def _page(title: str, svg: bytes) -> bytes:
    """A page that needs no other file."""
    drawing = svg[svg.index(b"<svg") :].decode("utf-8")
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f"<title>{html.escape(title)}</title>\n"
        "<style>body { margin: 1em } svg { max-width: 100%; height: auto }</style>\n"
        f"</head>\n<body>\n{drawing}</body>\n</html>\n"
    ).encode()


def _title(results: Results) -> str:
    return f"{clean(results.card.model)}, {results.card.date[:10]}"


def _settings(card: Card) -> str:
    attention = {True: "on", False: "off", None: "as llama.cpp decides"}[card.flash_attention]
    threads = f"{card.threads} thread{'' if card.threads == 1 else 's'}"
    return f"{threads}, flash attention {attention}, {clean(', '.join(card.devices))}"


def _drawn(results: Results, format: str) -> bytes:
    import matplotlib

    file = BytesIO()
    with matplotlib.rc_context(), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a name in a script that the font has not
        matplotlib.rcdefaults()  # not what the user's files say
        matplotlib.rcParams.update(_STYLE)
        figure = _figure(results)
        metadata = {"Date": None} if format == "svg" else {}
        figure.savefig(file, format=format, dpi=_DOTS_PER_INCH, metadata=metadata)
    return file.getvalue()


def _figure(results: Results) -> Figure:
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    looks = _looks(results)
    inches = 2.5 + 0.16 * max(len(looks), 2) * (len(results.tasks) + 1)
    figure = Figure(figsize=(_INCHES, min(max(8.0, inches), _MOST_INCHES)), layout="constrained")
    figure.suptitle(f"{_title(results)}\n{_settings(results.card)}", fontsize=13)
    panels = figure.subplot_mosaic(
        [["speeds", "cost"], ["speeds", "sizes"], ["speeds", "depths"]],
        width_ratios=(1, 1.05),
        height_ratios=(1, 0.6, 1),
    )
    widest = _widest(results)
    _draw_speeds(panels["speeds"], summarize(results), looks)
    _draw_cost(panels["cost"], results, widest)
    _draw_sizes(panels["sizes"], results, looks, widest)
    _draw_depths(panels["depths"], results, looks)
    lines = [Line2D([], [], color=look.colour, marker=look.marker) for look in looks.values()]
    if lines:
        figure.legend(lines, list(map(clean, looks)), loc="outside lower center", ncols=6)
    return figure


def _looks(results: Results) -> dict[str, _Look]:
    """Of every drafter but plain decoding."""
    names = [name for name in results.drafters if name != PLAIN]
    return {
        name: _Look(_COLOURS[i % len(_COLOURS)], _MARKERS[i % len(_MARKERS)], i, len(names))
        for i, name in enumerate(names)
    }


def _draw_speeds(axes: Axes, rows: Sequence[Row], looks: Mapping[str, _Look]) -> None:
    """Ratios to plain decoding, a line for each task."""
    tasks = list(dict.fromkeys(row.task for row in rows))
    axes.set_title("Speed, relative to plain decoding")
    axes.axvline(1.0, color="0.3", linewidth=1)
    drawn = False
    for row in rows:
        if row.ratio is not None:
            look, drawn = looks[row.drafter], True
            axes.errorbar(
                row.ratio.value,
                tasks.index(row.task) + look.offset,
                xerr=row.ratio.noise,
                fmt=look.marker,
                color=look.colour,
                markersize=5,
                elinewidth=1.3,
                capsize=2,
            )
    for i in range(1, len(tasks), 2):
        axes.axhspan(i - 0.5, i + 0.5, color="0.96", zorder=0)
    if len(tasks) > 1:
        axes.axhline(0.5, color="0.6", linewidth=0.8)  # between all and the single ones
    axes.set_yticks(range(len(tasks)), [_label(task) for task in tasks])
    axes.set_ylim(max(len(tasks), 1) - 0.5, -0.5)
    axes.grid(axis="y", visible=False)
    axes.set_xlabel("times as fast; bars: 95 of 100 benchmarks come that close to the truth")
    if not drawn:
        _say(axes, "too few runs to compare")


def _label(task: str) -> str:
    return "all tasks" if task == ALL else shortened(clean(task), _LONGEST_TASK)


def _draw_cost(axes: Axes, results: Results, widest: int) -> None:
    """The curve at a few contexts."""
    axes.set_title("Time of a call")
    axes.set_ylabel("ms")
    _count_rows(axes, widest)
    curve = results.curve
    if curve is None:
        _say(axes, "the cost curve is not known")
        return
    numbers = range(1, widest + 1)
    at = [n - 1 for n in curve.sizes if n <= widest]  # measured; lines are drawn between
    contexts = curve.contexts
    chosen = sorted({contexts[0], contexts[len(contexts) // 2], contexts[-1]})
    for context, grey in reversed([*zip(chosen, _GREYS[-len(chosen) :], strict=True)]):
        times = [1e3 * curve.seconds(n, context) for n in numbers]
        axes.plot(
            numbers, times, color=grey, marker="o", markersize=4, markevery=at, label=f"{context:,}"
        )
    axes.set_ylim(bottom=0)
    axes.legend(title="tokens of\ncontext", loc="upper left", bbox_to_anchor=(1, 1))


def _draw_sizes(axes: Axes, results: Results, looks: Mapping[str, _Look], widest: int) -> None:
    """How often each drafter chose a size."""
    axes.set_title("Calls of that size")
    axes.set_xlabel("rows of a call: the last token and its draft tokens")
    axes.set_ylabel("% of the steps")
    _count_rows(axes, widest)
    for drafter, look in looks.items():
        counts = _counted(results, drafter, "sizes")
        shares = [100 * counts[n] / (counts.total() or 1) for n in range(1, widest + 1)]
        at = [n + look.offset for n in range(1, widest + 1)]
        axes.bar(at, shares, width=look.width, color=look.colour)
    axes.grid(axis="x", visible=False)


def _count_rows(axes: Axes, widest: int) -> None:
    """Rows of a call as the horizontal axis."""
    step = 1 + (widest - 1) // _LEAST_ROWS
    axes.set_xticks([1, *range(step if step > 1 else 2, widest + 1, step)])
    axes.set_xlim(0.5, widest + 0.5)


def _draw_depths(axes: Axes, results: Results, looks: Mapping[str, _Look]) -> None:
    """Of the steps with a tree at least so deep, those that accepted as many draft tokens."""
    from matplotlib.ticker import MaxNLocator

    axes.set_title("Guesses that were right, by depth")
    axes.set_xlabel("draft tokens in a row; of the steps that had so many")
    axes.set_ylabel("% all right")
    axes.set_ylim(0, 103)
    deepest, drawn = 1, False
    for drafter, look in looks.items():
        depths, shares = accepted_by_depth(results, drafter)
        deepest, drawn = max([deepest, *depths]), drawn or bool(depths)
        axes.plot(
            depths,
            [100 * share for share in shares],
            color=look.colour,
            marker=look.marker,
            markersize=5,
        )
    axes.set_xlim(0.5, deepest + 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    if not drawn:
        _say(axes, f"less than {LEAST_STEPS} steps had a draft")


def accepted_by_depth(results: Results, drafter: str) -> tuple[list[int], list[float]]:
    """Depths, from 1 to where too few steps were drafted so deep, and the shares accepted there."""
    offered = _counted(results, drafter, "offered")
    reached = _counted(results, drafter, "reached")
    depths, shares = [], []
    for depth in range(1, max(offered, default=0) + 1):
        n_offered = sum(n for deep, n in offered.items() if deep >= depth)
        if n_offered < LEAST_STEPS:
            break
        depths.append(depth)
        shares.append(sum(n for right, n in reached.items() if right >= depth) / n_offered)
    return depths, shares


def _counted(results: Results, drafter: str, name: str) -> Counter[int]:
    """Sums of a count over the runs of a drafter."""
    total: Counter[int] = Counter()
    for run in results.runs:
        if run.drafter == drafter:
            total.update(getattr(run, name))
    return total


def _widest(results: Results) -> int:
    """Rows that the axes reach to: nearly all calls are smaller."""
    counts: Counter[int] = Counter()
    for drafter in results.drafters:
        counts.update(_counted(results, drafter, "sizes"))
    left = counts.total()
    for size in sorted(counts):
        left -= counts[size]
        if left <= counts.total() * _SELDOM:
            return min(max(size, _LEAST_ROWS), LARGEST)
    return _LEAST_ROWS


def _say(axes: Axes, text: str) -> None:
    """In place of data."""
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", color="0.4")
