"""What is printed of a benchmark, read back; and how two of them are compared."""

from __future__ import annotations

import csv
import io
import json
import os
import sys
from dataclasses import replace
from itertools import pairwise
from typing import Any, cast

import pytest

from specgen.cli.bench.format import Report, render
from specgen.cli.bench.report import show, show_comparison, write, write_comparison
from specgen.cli.choices import Format
from specgen.core.errors import UsageError
from specgen.core.evaluation.results import PLAIN, Results
from specgen.core.evaluation.summary import ALL, compare, summarize
from specgen.core.protocols import Change as ChangeOfRows
from tests.support.made_up import CARD, CURVE, DRAFTERS, TASKS, benchmark, results, run

WIDTH = 100
KEYS = {
    *("task", "drafter", "tokens_per_second", "speedup", "speedup_noise", "tokens_per_step"),
    *("nodes_per_step", "acceptance", "by_drafter", "host_ms_per_step", "first_token_ms"),
    *("peak_memory_mb", "of_best", "tokens_per_second_low", "tokens_per_second_high"),
    *("runs", "tokens"),
}
NAMES = ("before.json", "after.json")


@pytest.fixture(scope="module")
def made() -> Results:
    """Eleven tasks, three drafters."""
    return benchmark()


@pytest.fixture(scope="module")
def later(made: Results) -> Results:
    """The same prompts on four threads."""
    return replace(benchmark(seed=2), card=replace(CARD, threads=4, date="2026-03-02T08:00:00"))


def records(of: Results) -> list[dict[str, Any]]:
    """The JSON lines."""
    return [json.loads(line) for line in show(of, Format.jsonl).splitlines()]


def table_of(text: str) -> list[str]:
    """The lines of the table in an aligned text: what lies between the first two empty lines."""
    return text.split("\n\n")[1].splitlines()


# ---- one benchmark


def test_a_line_of_json_for_each_row(made: Results) -> None:
    """All tasks first, with all keys and the figures of the summary."""
    found, rows = records(made), summarize(made)
    order = [(task, name) for task in (ALL, *TASKS) for name in DRAFTERS]
    assert [(r["task"], r["drafter"]) for r in found] == order
    for record, row in zip(found, rows, strict=True):
        assert record.keys() == KEYS
        assert record["tokens_per_second"] == pytest.approx(row.tokens_per_s, rel=1e-3)
        assert record["first_token_ms"] == pytest.approx(1e3 * row.first_token_s, rel=1e-3)
        assert record["host_ms_per_step"] == pytest.approx(1e3 * row.host_s_per_step, rel=1e-3)
        assert record["peak_memory_mb"] == pytest.approx(row.peak_bytes / 1e6, rel=1e-3)
        assert record["by_drafter"] == pytest.approx(dict(row.share_by), abs=1e-4)
        if row.ratio is None:
            assert record["drafter"] == PLAIN
            assert record["speedup"] is record["speedup_noise"] is None
        else:
            shown = record["speedup"], record["speedup_noise"]
            assert shown == pytest.approx((row.ratio.value, row.ratio.noise), abs=1e-4)


def test_what_is_not_known_is_null() -> None:
    """A single run without a curve, of a process whose memory is not known."""
    (record, _) = records(results(run(peak_bytes=0)))
    unknown = {name for name, value in record.items() if value is None}
    assert unknown == {"speedup", "speedup_noise", "acceptance", "peak_memory_mb", "of_best"}


def test_json_has_everything(made: Results) -> None:
    """One object: the card, the curve, the rows and the runs, which can be loaded again."""
    text = show(made, Format.json)
    record = json.loads(text)
    assert text.count("\n") == 1
    assert record["rows"] == records(made)
    assert record["card"] == CARD.record()
    assert record["curve"] == CURVE.record()
    assert Results.from_record(record).runs == made.runs


def test_csv_is_the_same_flat_record(made: Results) -> None:
    """One head; what has parts is JSON, what is not known is empty."""
    rows = list(csv.DictReader(io.StringIO(show(made, Format.csv))))
    expected = records(made)
    assert len(rows) == len(expected)
    for row, record in zip(rows, expected, strict=True):
        assert row.keys() == KEYS
        for name, value in record.items():
            if isinstance(value, str):
                assert row[name] == value
            elif value is None:
                assert row[name] == ""
            else:
                assert json.loads(row[name]) == value


def test_names_that_need_quotes() -> None:
    """A task of a user's file may be called anything."""
    name = 'a "b", c|d\nä\x1b[31m'
    made = results(run(name))
    (_, row) = csv.DictReader(io.StringIO(show(made, Format.csv)))
    assert row["task"] == records(made)[1]["task"] == name
    for format in (Format.table, Format.md):
        assert "\x1b" not in show(made, format)
    *_, line = [line for line in show(made, Format.md).splitlines() if line.startswith("|")]
    assert line.count("|") - line.count("\\|") == 12


def test_markdown(made: Results) -> None:
    """The card as a list, a table with as many cells in every row, the legend as a list."""
    lines = show(made, Format.md).splitlines()
    rows = [line for line in lines if line.startswith("|")]
    assert len(rows) == 2 + len(DRAFTERS) * (1 + len(TASKS))
    assert len({row.count("|") for row in rows}) == 1
    assert set(rows[1]) <= set("|-: ")
    assert [row.split("|")[1].strip() for row in rows[2:]] == [
        task for task in (ALL, *TASKS) for _ in DRAFTERS
    ]
    others = [line for line in lines if line and not line.startswith("|")]
    assert all(line.startswith("- ") for line in others)
    assert f"- model: {CARD.model}" in others
    # A list or a table ends at an empty line.
    kinds = [line[:1] for line in lines]
    assert all("" in pair or pair[0] == pair[1] for pair in pairwise(kinds))


def test_the_table_fits(made: Results) -> None:
    """No line is longer than 100 characters, with the longest names as well."""
    text = show(made, Format.table)
    assert max(map(len, text.splitlines())) <= WIDTH
    long = "mathematical_reasoning"
    wide = benchmark(tasks=(long, "code"), drafters=(PLAIN, "auto", "prompt-lookup warm"))
    shown = show(wide, Format.table)
    assert max(map(len, shown.splitlines())) <= WIDTH
    assert "mathematical_re…" in shown
    assert "prompt-lookup warm" in shown


def test_names_are_whole_where_there_is_room() -> None:
    """Two that begin alike can be told apart."""
    names = ("a_kind_of_questions turn 1", "a_kind_of_questions turn 2")
    cells = [[name, "auto", "1.00"] for name in names]
    report = Report([("file", "a")], ["task", "drafter", "speed"], [], cells, [], [], {})
    text = render(report, Format.table)
    assert all(name in text for name in names)


def test_the_table_is_aligned(made: Results) -> None:
    """Figures end where their heads end; a task is named once."""
    upper, lower, *rows = table_of(show(made, Format.table))
    assert {len(row) for row in rows} == {len(lower)}
    assert [row.split()[0] for row in rows[:: len(DRAFTERS)]] == [ALL, *TASKS]
    assert all(row.startswith("   ") for row in rows if row[0] == " ")
    assert upper.split() == ["tokens", "nodes", "accepted", "host", "first", "of"]
    assert lower.startswith("task ")
    place = lower.index("drafter")
    assert [row[place:].split()[0] for row in rows[:2]] == [PLAIN, "auto"]


def test_the_table_says_what_was_measured(made: Results) -> None:
    """Speed, its quartiles, the ratio and its noise, as the summary has them."""
    row = summarize(made)[1]
    assert row.ratio
    (line,) = (line for line in table_of(show(made, Format.table))[3:4])
    assert line.split() == [
        "auto",
        f"{row.tokens_per_s:.0f}",
        f"{row.low:.0f}-{row.high:.0f}",
        f"{row.ratio.value:.2f}",
        f"±{row.ratio.noise:.2f}",
        f"{row.tokens_per_step:.2f}",
        f"{row.nodes_per_step:.1f}",
        f"{100 * cast(float, row.acceptance):.0f}",
        "%",
        f"{1e3 * row.host_s_per_step:.2f}",
        f"{1e3 * row.first_token_s:.0f}",
        f"{100 * cast(float, row.of_best):.0f}",
        "%",
    ]


def test_the_card_is_above_and_the_shares_below(made: Results) -> None:
    """What bounds the figures, and what the table has no room for."""
    above, _, below = show(made, Format.table).split("\n\n", 2)
    said = " ".join(above.split())
    for words in (
        f"model {CARD.model}",
        "quantization Q4_0",
        "weights 91.7 MB; 77.3 MB read per token",
        "KV cache 23.0 kB per token",
        "memory 21.3 GB per second",
        "ceiling 275 t/s at 0 tokens and 211 t/s at 1,024 tokens of context",
        "threads 2",
        "flash attention on",
        "devices CPU",
        "date 2026-03-01 12:34 UTC",
        CARD.build,
    ):
        assert words in said
    rows = {row.drafter: row for row in summarize(made) if row.task == ALL}
    share = 100 * rows["prompt-lookup"].share_by["prompt-lookup"]
    assert f"prompt-lookup: of 100 tokens drafted by prompt-lookup {share:.0f}\n" in below
    assert "auto: of 100 tokens drafted by suffix " in below
    assert "most memory: none 326 MiB, " in below


def test_what_a_change_takes_is_told(made: Results) -> None:
    """Where it shows: in one line above the table."""
    changed = replace(CURVE, change=ChangeOfRows(0.9e-3, 4.2e-3))
    line = "change of rows 0.9 ms at the first call, 4.2 ms at the second"
    for curve, is_told in ((CURVE, False), (None, False), (changed, True)):
        above = show(replace(made, curve=curve), Format.table).split("\n\n", 1)[0]
        assert (line in " ".join(above.split())) == is_told


def test_a_short_context_has_one_ceiling() -> None:
    """Beyond its end there is none."""
    made = results(run(), card=replace(CARD, n_ctx=0, flash_attention=None, devices=("A", "B")))
    said = " ".join(show(made, Format.table).split())
    assert "ceiling 275 t/s at 0 tokens of context" in said
    assert "flash attention llama.cpp decides" in said
    assert "devices A, B" in said


def test_the_legend_explains_what_is_shown(made: Results) -> None:
    """And nothing else."""
    full = show(made, Format.table)
    assert "come within ± of the truth" in " ".join(full.split())
    assert "of best: " in full
    assert "too few runs" not in full
    few = show(results(run(), run(drafter="auto")), Format.table)
    assert "speedup -: too few runs; it takes 3 pairs" in few
    assert "±" not in few
    assert "of best: " not in few
    plain = show(results(run()), Format.table)
    assert "speedup" not in plain.split("\n\n", 2)[2]
    assert "accepted drafts" not in plain


@pytest.mark.parametrize("format", Format)
def test_nothing_measured(format: Format) -> None:
    """Interrupted before the first answer: no rows, no failure."""
    text = show(results(), format)
    assert ("nothing was measured" in text) == (format in (Format.table, Format.md))
    assert format != Format.json or json.loads(text)["rows"] == []


def test_speeds_have_three_digits() -> None:
    """A slow model's as well."""
    shown = {
        speed: table_of(show(results(run(seconds=100 / speed)), Format.table))[2].split()[2]
        for speed in (0.123, 1.234, 12.34, 99.96, 1234.5)
    }
    assert list(shown.values()) == ["0.12", "1.23", "12.3", "100", "1234"]


# ---- on a terminal


class Terminal(io.TextIOWrapper):
    """A stdout that says it is a terminal, or not."""

    def __init__(self, is_terminal: bool) -> None:
        self.written = io.BytesIO()
        self.is_terminal = is_terminal
        super().__init__(self.written, encoding="utf-8" if is_terminal else "ascii")

    def isatty(self) -> bool:
        """As was said."""
        return self.is_terminal

    @property
    def text(self) -> str:
        """All of it."""
        return self.written.getvalue().decode()


def shown_on(terminal: Terminal, monkeypatch: pytest.MonkeyPatch, of: Results, width: int) -> str:
    """The table on a terminal of that width."""
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stdout", terminal)
    write(of, Format.table)
    return terminal.text


def test_a_pipe_gets_plain_text(made: Results, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever its width is said to be."""
    assert shown_on(Terminal(False), monkeypatch, made, 40) == show(made, Format.table)


def test_a_terminal_gets_colours(made: Results, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the same figures."""
    text = shown_on(Terminal(True), monkeypatch, made, 120)
    assert "\x1b[" in text
    plain = show(made, Format.table)
    assert [line.split() for line in table_of(text)[2:]] == [
        line.split() for line in table_of(plain)[2:]
    ]
    assert "a wider terminal" not in text


@pytest.mark.parametrize("width", [60, 80, 90])
def test_a_narrow_terminal_gets_fewer_columns(
    made: Results, monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    """Instead of figures with an ellipsis; it says which ones are missing."""
    monkeypatch.setenv("NO_COLOR", "1")
    text = shown_on(Terminal(True), monkeypatch, made, width)
    assert "a wider terminal, or another format, also shows: quartiles" in " ".join(text.split())
    bare = text.replace("\x1b[1m", "").replace("\x1b[0m", "")
    assert max(map(len, bare.splitlines())) <= width
    assert "…" not in text


@pytest.mark.parametrize("width", [60, 80, 90, 120])
def test_a_long_name_takes_no_figures_away(monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    """It is cut to the room that they leave."""
    monkeypatch.setenv("NO_COLOR", "1")
    heads = []
    for name in ("a" * 16, "a" * 60):
        of = benchmark(tasks=(name, "code"), drafters=(PLAIN, "auto"))
        text = shown_on(Terminal(True), monkeypatch, of, width)
        bare = text.replace("\x1b[1m", "").replace("\x1b[0m", "")
        assert max(map(len, bare.splitlines())) <= width
        heads.append([line.split() for line in table_of(bare)[:2]])
    assert heads[0] == heads[1]


def test_other_formats_are_the_same_on_a_terminal(
    made: Results, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are read by programs."""
    terminal = Terminal(True)
    monkeypatch.setattr(sys, "stdout", terminal)
    for format in (Format.md, Format.csv, Format.json, Format.jsonl):
        write(made, format)
    expected = (show(made, f) for f in (Format.md, Format.csv, Format.json, Format.jsonl))
    assert terminal.text == "".join(expected)
    assert os.linesep == "\n" or "\r" not in terminal.text


# ---- two benchmarks


def test_a_comparison_in_json_lines(made: Results, later: Results) -> None:
    """Both speeds and their ratio, by task and drafter, plain decoding as well."""
    text = show_comparison(made, later, NAMES, Format.jsonl)
    found = [json.loads(line) for line in text.splitlines()]
    for record, change in zip(found, compare(made, later), strict=True):
        assert change.ratio
        assert (record["task"], record["drafter"]) == (change.task, change.drafter)
        speeds = record["tokens_per_second_a"], record["tokens_per_second_b"]
        assert speeds == pytest.approx((change.before, change.after), abs=1e-4)
        shown = record["speedup"], record["speedup_noise"]
        assert shown == pytest.approx((change.ratio.value, change.ratio.noise), abs=1e-4)
    assert (found[0]["task"], found[0]["drafter"]) == (ALL, PLAIN)


def test_a_comparison_in_other_formats(made: Results, later: Results) -> None:
    """The same records; JSON has both cards and what they differ in."""
    whole = json.loads(show_comparison(made, later, NAMES, Format.json))
    assert [whole[side]["name"] for side in "ab"] == list(NAMES)
    assert whole["b"]["card"]["threads"] == 4
    assert whole["differences"] == {"threads": ["2", "4"]}
    rows = list(csv.DictReader(io.StringIO(show_comparison(made, later, NAMES, Format.csv))))
    assert [float(row["speedup"]) for row in rows] == [row["speedup"] for row in whole["rows"]]
    lines = show_comparison(made, later, NAMES, Format.md).splitlines()
    assert len({line.count("|") for line in lines if line.startswith("|")}) == 1


def test_a_comparison_as_a_table(made: Results, later: Results) -> None:
    """It names the files, says what differs, and fits."""
    text = show_comparison(made, later, NAMES, Format.table)
    said = " ".join(text.split())
    assert f"A before.json: {CARD.model}, 2026-03-01 12:34 UTC" in said
    assert f"B after.json: {CARD.model}, 2026-03-02 08:00 UTC" in said
    assert "threads differs A 2, B 4" in said
    assert "build differs" not in said
    upper, lower, *_ = table_of(text)
    assert upper.split() == ["A", "t/s", "B", "t/s", "B", "relative"]
    assert lower.split() == ["task", "drafter", *NAMES, "to", "A"]
    assert max(map(len, text.splitlines())) <= WIDTH
    assert "±: what repetitions differ by" in text


def test_cards_that_are_the_same(made: Results) -> None:
    """But for the date, and for how fast memory was measured to be."""
    card = replace(CARD, date="2026-04-01T00:00:00", bandwidth=1.05 * CARD.bandwidth)
    text = show_comparison(made, replace(made, card=card), NAMES, Format.table)
    assert "the same but for the dates" in text
    faster = replace(made, card=replace(CARD, bandwidth=2 * CARD.bandwidth))
    assert "memory differs" in show_comparison(made, faster, NAMES, Format.table)


def test_too_few_runs_to_compare() -> None:
    """Speeds are shown, ratios are not."""
    text = show_comparison(results(run()), results(run(seconds=2.0)), NAMES, Format.table)
    assert table_of(text)[2].split() == [ALL, PLAIN, "20.0", "50.0", "-"]
    assert "-: too few runs" in text
    assert "±" not in text


@pytest.mark.parametrize("format", Format)
def test_nothing_to_compare(made: Results, format: Format) -> None:
    """Other tasks: one clear error, and nothing is written."""
    with pytest.raises(UsageError, match=r"before\.json and after\.json have no prompt in common"):
        show_comparison(made, results(run("cooking")), NAMES, format)


def test_a_comparison_on_a_terminal(
    made: Results, later: Results, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With colours."""
    terminal = Terminal(True)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(sys, "stdout", terminal)
    write_comparison(made, later, NAMES, Format.table)
    assert "\x1b[" in terminal.text
    assert "relative" in terminal.text
