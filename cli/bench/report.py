"""What a benchmark measured, as a table, Markdown, CSV or JSON; and how two of them differ."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

from specgen.cli.choices import Format
from specgen.cli.model_card import size_text
from specgen.cli.terminal import clean
from specgen.core.cost.gear import FREE, change_text
from specgen.core.errors import UsageError
from specgen.core.evaluation.card import Card
from specgen.core.evaluation.results import PLAIN, Results
from specgen.core.evaluation.summary import (
    ALL,
    LEAST_PAIRS,
    LEAST_REPETITIONS,
    Change,
    Ratio,
    Row,
    compare,
    summarize,
)
from specgen.core.memory.plan import memory_text

from .format import Report, print_report, render, shortened

_LONGEST_NAME: Final = 20
_CEILINGS: Final = (0, 1024)  # tokens of context
_BANDWIDTHS_DIFFER: Final = 0.1  # less is the measurement's noise
_UNKNOWN: Final = "-"
LEAST: Final = f"{LEAST_PAIRS} pairs, and {LEAST_REPETITIONS} repetitions of a prompt"


def show(results: Results, format: Format) -> str:
    """The results as text that ends with a line break."""
    return render(_report(results), format)


def show_comparison(a: Results, b: Results, names: tuple[str, str], format: Format) -> str:
    """How fast `b` is, relative to `a`, as text that ends with a line break.

    Raises UsageError if they have nothing in common.
    """
    return render(_comparison(a, b, names), format)


def write(results: Results, format: Format) -> None:
    """Print the results on stdout."""
    print_report(_report(results), format)


def write_comparison(a: Results, b: Results, names: tuple[str, str], format: Format) -> None:
    """Print on stdout how fast `b` is, relative to `a`. Raises UsageError."""
    print_report(_comparison(a, b, names), format)


_HEADS: Final = (
    *("task", "drafter", "t/s", "quartiles", "speedup", "tokens\n/step", "nodes\n/step"),
    *("accepted\ndrafts", "host\nms", "first\nms", "of\nbest"),
)
_SPARE: Final = (3, 9, 8, 10, 6)  # columns of _HEADS


def _report(results: Results) -> Report:
    rows = summarize(results)
    records = [_record(row) for row in rows]
    return Report(
        above=[*card_lines(results.card), *_change_lines(results)],
        heads=_HEADS,
        spare=_SPARE,
        cells=[_cells(row) for row in rows],
        below=[*_totals(rows), "", *_legend(rows)] if rows else ["nothing was measured"],
        records=records,
        whole={**results.record(), "rows": records},
    )


def _change_lines(results: Results) -> Iterator[tuple[str, str]]:
    """What a call takes more that has another number of rows than the one before."""
    if results.curve and results.curve.change != FREE:
        yield "change of rows", change_text(results.curve.change)


def _record(row: Row) -> dict[str, Any]:
    """All figures of a row, times in milliseconds as their names say."""
    return {
        "task": row.task,
        "drafter": row.drafter,
        "tokens_per_second": _rounded(row.tokens_per_s),
        "tokens_per_second_low": _rounded(row.low),
        "tokens_per_second_high": _rounded(row.high),
        **_ratio_record(row.ratio),
        "tokens_per_step": _rounded(row.tokens_per_step),
        "nodes_per_step": _rounded(row.nodes_per_step),
        "acceptance": _rounded(row.acceptance),
        "by_drafter": {name: _rounded(share) for name, share in row.share_by.items()},
        "host_ms_per_step": _rounded(1e3 * row.host_s_per_step),
        "first_token_ms": _rounded(1e3 * row.first_token_s),
        "peak_memory_mb": _rounded(row.peak_bytes / 1e6 if row.peak_bytes else None),
        "of_best": _rounded(row.of_best),
        "runs": row.runs,
        "tokens": row.tokens,
    }


def _ratio_record(ratio: Ratio | None) -> dict[str, float | None]:
    return {
        "speedup": None if ratio is None else _rounded(ratio.value),
        "speedup_noise": None if ratio is None else _rounded(ratio.noise),
    }


def _rounded(value: float | None) -> float | None:
    """To what is worth printing."""
    return None if value is None else round(value, 4)


def _cells(row: Row) -> list[str]:
    return [
        row.task,
        row.drafter,
        _speed(row.tokens_per_s),
        f"{_speed(row.low)}-{_speed(row.high)}",
        "1" if row.drafter == PLAIN else _ratio(row.ratio),
        f"{row.tokens_per_step:.2f}",
        f"{row.nodes_per_step:.1f}",
        _percent(row.acceptance),
        f"{1e3 * row.host_s_per_step:.2f}",
        f"{1e3 * row.first_token_s:.0f}",
        _percent(row.of_best),
    ]


def _speed(tokens_per_s: float) -> str:
    """Three digits."""
    decimals = 0 if tokens_per_s >= 99.95 else 1 if tokens_per_s >= 9.995 else 2
    return f"{tokens_per_s:.{decimals}f}"


def _ratio(ratio: Ratio | None) -> str:
    return f"{ratio.value:.2f} ±{max(ratio.noise, 0.01):.2f}" if ratio else _UNKNOWN


def _percent(share: float | None) -> str:
    return _UNKNOWN if share is None else f"{100 * share:.0f} %"


def card_lines(card: Card) -> Iterator[tuple[str, str]]:
    """Label and value of each line."""
    contexts = dict.fromkeys(min(context, card.n_ctx) for context in _CEILINGS)
    ceilings = " and ".join(f"{_speed(card.ceiling(n))} t/s at {n:,} tokens" for n in contexts)
    yield "model", card.model
    yield "quantization", f"{card.quantization}, {card.n_params:,} parameters, {card.architecture}"
    yield "weights", f"{size_text(card.weight_bytes)}; {size_text(card.read_bytes)} read per token"
    yield "KV cache", f"{size_text(card.kv_bytes_per_token)} per token of context, read as well"
    yield "memory", f"{size_text(round(card.bandwidth))} per second"
    yield "ceiling", f"{ceilings} of context, for plain decoding that only waits for memory"
    yield "threads", str(card.threads)
    yield "flash attention", _on(card.flash_attention)
    yield "context", f"{card.n_ctx:,} tokens"
    yield "devices", ", ".join(card.devices)
    yield "date", _date(card)
    yield "build", card.build


def _on(setting: bool | None) -> str:
    return {True: "on", False: "off", None: "llama.cpp decides"}[setting]


def _date(card: Card) -> str:
    return f"{card.date[:16].replace('T', ' ')} UTC"


def _totals(rows: Sequence[Row]) -> Iterator[str]:
    """What the table has no room for, of all tasks together."""
    for row in rows:
        if row.task == ALL and row.share_by:
            shares = ", ".join(f"{name} {100 * s:.0f}" for name, s in row.share_by.items())
            yield f"{row.drafter}: of 100 tokens drafted by {shares}"
    peaks = [f"{r.drafter} {memory_text(r.peak_bytes)}" for r in rows if r.task == ALL]
    if any(row.peak_bytes for row in rows):
        yield f"most memory: {', '.join(peaks)}"


def _legend(rows: Sequence[Row]) -> Iterator[str]:
    drafted = [row for row in rows if row.drafter != PLAIN]
    yield "t/s: tokens per second, the prompt left out: median and quartiles of the runs"
    if any(row.ratio for row in drafted):
        yield (
            "speedup: plain decoding's time over the drafter's, from pairs of runs with the same"
            " prompt; of 100 benchmarks, 95 come within ± of the truth"
        )
    if not all(row.ratio for row in drafted):
        yield f"speedup -: too few runs; it takes {LEAST}"
    if drafted:
        yield "accepted drafts: of those that were checked"
    yield "host: time of a step outside llama.cpp; first: from the question to the first token"
    if any(row.of_best is not None for row in rows):
        yield (
            "of best: speed, relative to drafts of the best size that are always right and cost"
            " nothing to make"
        )


def _comparison(a: Results, b: Results, names: tuple[str, str]) -> Report:
    changes = compare(a, b)
    if not changes:
        raise UsageError(
            f"{names[0]} and {names[1]} have no prompt in common that a same drafter answered",
            "compare benchmarks of the same prompts and drafters",
        )
    differences = list(_differences(a.card, b.card))
    records = [_change_record(change) for change in changes]
    shown = [shortened(clean(name), _LONGEST_NAME) for name in names]
    sides = [
        {"name": name, "card": results.card.record()}
        for name, results in zip(names, (a, b), strict=True)
    ]
    return Report(
        above=[
            ("A", f"{names[0]}: {a.card.model}, {_date(a.card)}"),
            ("B", f"{names[1]}: {b.card.model}, {_date(b.card)}"),
            *((f"{label} differs", f"A {old}, B {new}") for label, old, new in differences),
            *(() if differences else [("cards", "the same but for the dates")]),
        ],
        heads=("task", "drafter", f"A t/s\n{shown[0]}", f"B t/s\n{shown[1]}", "B relative\nto A"),
        spare=(),
        cells=[
            [c.task, c.drafter, _speed(c.before), _speed(c.after), _ratio(c.ratio)] for c in changes
        ],
        below=list(_comparison_legend(changes)),
        records=records,
        whole={
            "a": sides[0],
            "b": sides[1],
            "differences": {label: [old, new] for label, old, new in differences},
            "rows": records,
        },
    )


def _change_record(change: Change) -> dict[str, Any]:
    return {
        "task": change.task,
        "drafter": change.drafter,
        "tokens_per_second_a": _rounded(change.before),
        "tokens_per_second_b": _rounded(change.after),
        **_ratio_record(change.ratio),
    }


def _differences(a: Card, b: Card) -> Iterator[tuple[str, str, str]]:
    """Labels and values of what differs and may be why speeds do."""
    left_out = {"date", "ceiling"}  # the latter follows from others
    if abs(a.bandwidth / b.bandwidth - 1) <= _BANDWIDTHS_DIFFER:
        left_out.add("memory")
    for (label, old), (_, new) in zip(card_lines(a), card_lines(b), strict=True):
        if old != new and label not in left_out:
            yield label, old, new


def _comparison_legend(changes: Sequence[Change]) -> Iterator[str]:
    yield "only prompts that both have; t/s: median of the runs; B relative to A: A's time over B's"
    if any(change.ratio for change in changes):
        yield "±: what repetitions differ by; how one day differs from another comes on top"
    if not all(change.ratio for change in changes):
        yield f"-: too few runs; it takes {LEAST} on either side"
