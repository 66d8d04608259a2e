"""Plots of benchmarks: files of the three kinds, what is in them, and what is refused."""

from __future__ import annotations

import html
import io
import os
import re
import stat
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest

from specgen.cli.bench import plot as bench_plot
from specgen.cli.bench.plot import LEAST_STEPS, SUFFIXES, accepted_by_depth, check_plot, plot
from specgen.core.errors import UsageError
from specgen.core.evaluation.results import PLAIN, Results
from tests.support.made_up import CARD, CURVE, DRAFTERS, TASKS, benchmark, results, run

PNG = b"\x89PNG\r\n\x1a\n"
SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def made() -> Results:
    """Eleven tasks, three drafters."""
    return benchmark()


@pytest.fixture(scope="module")
def svg(made: Results, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Its plot."""
    file = tmp_path_factory.mktemp("plot") / "plot.svg"
    plot(made, file)
    return file.read_text("utf-8")


@pytest.fixture
def drawn(svg: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The same for any results, without drawing: for tests of what is done with it."""
    monkeypatch.setattr(bench_plot, "_drawn", lambda results, format: svg.encode())
    return svg


def texts(svg: str) -> set[str]:
    """What is written in a drawing, which must be well-formed."""
    root = ET.fromstring(svg)
    assert root.tag == f"{SVG}svg"
    return {"".join(node.itertext()).strip() for node in root.iter(f"{SVG}text")}


def test_svg(svg: str) -> None:
    """It says what the panels show, names all tasks and drafters, and is text."""
    said = texts(svg)
    assert set(TASKS) <= said
    assert set(DRAFTERS) - {PLAIN} <= said
    assert {"all tasks", "Time of a call", "Calls of that size", "128", "1,024", "3,072"} <= said
    assert any(CARD.model in text and "2026-03-01" in text for text in said)
    assert any("2 threads, flash attention on, CPU" in text for text in said)
    assert not any(text.startswith(("too few", "less than", "the cost")) for text in said)


def test_png(tmp_path: Path) -> None:
    """The suffix says it, in capitals as well; a file that was there is replaced."""
    file = tmp_path / "plot.PNG"
    file.write_text("old")
    plot(results(run()), file)
    data = file.read_bytes()
    assert data.startswith(PNG)
    assert data.endswith(b"IEND\xaeB`\x82")
    width, height = (int.from_bytes(data[at : at + 4], "big") for at in (16, 20))
    assert 1000 < width < 2000
    assert 600 < height < 2000
    assert list(tmp_path.glob("*.new")) == []


def test_html(made: Results, svg: str, tmp_path: Path) -> None:
    """A page with a title that needs no other file; drawn again, the drawing is the same."""
    file = tmp_path / "plot.html"
    plot(made, file)
    page = file.read_text("utf-8")
    assert page.startswith("<!DOCTYPE html>")
    assert f"<title>{html.escape(CARD.model)}, 2026-03-01</title>" in page
    assert page.count("<svg") == 1
    drawing = page[page.index("<svg") : page.index("</svg>") + len("</svg>")]
    assert drawing == svg[svg.index("<svg") :].rstrip()
    assert not re.search(r'(src|href)="(?!#)', page)


@pytest.mark.usefixtures("drawn")
def test_anyone_may_read_it_who_may_read_other_files(tmp_path: Path) -> None:
    """The file has the permissions of any new file."""
    (tmp_path / "other").touch()
    plot(results(), tmp_path / "plot.svg")
    modes = {stat.S_IMODE(file.stat().st_mode) for file in tmp_path.iterdir() if file.is_file()}
    assert len(modes) == 1


@pytest.mark.parametrize(
    ("few", "said"),
    [
        (
            results(),
            {
                *("too few runs to compare", "the cost curve is not known"),
                f"less than {LEAST_STEPS} steps had a draft",
            },
        ),
        (results(run(), run(drafter="auto")), {"auto", "code", "too few runs to compare"}),
        (benchmark(tasks=("text",), drafters=(PLAIN,)), {"text", "too few runs to compare"}),
    ],
    ids=["nothing", "not repeated", "plain only"],
)
def test_little_to_draw(few: Results, said: set[str], tmp_path: Path) -> None:
    """It says what is missing in place of it."""
    plot(few, tmp_path / "plot.svg")
    assert said <= texts((tmp_path / "plot.svg").read_text("utf-8"))


def test_many_drafters_and_tasks(tmp_path: Path) -> None:
    """More than there are colours; names of any script and any length; a $ is no formula."""
    tasks = [
        "$x$ & <y>",
        "数学",
        "mathematical reasoning in words",
        "\x1b[31m",
        *map(str, range(12)),
    ]
    names = [PLAIN, *(f"drafter-{n}" for n in range(9))]
    plot(benchmark(tasks=tasks, drafters=names, prompts=1, repetitions=2), tmp_path / "plot.svg")
    said = texts((tmp_path / "plot.svg").read_text("utf-8"))
    assert {"$x$ & <y>", "数学", "mathematical reasoning …", *names[1:]} <= said


def test_a_large_tree_widens_the_axis(tmp_path: Path) -> None:
    """But rows stay legible."""
    made = results(run(drafter="auto", sizes={1: 100, 60: 100}), curve=CURVE)
    plot(made, tmp_path / "plot.svg")
    said = texts((tmp_path / "plot.svg").read_text("utf-8"))
    assert {"1", "60"} <= said
    assert "59" not in said


def test_it_needs_no_display_and_leaves_nothing_behind(tmp_path: Path) -> None:
    """pyplot is not loaded, settings of the user's do not count and are as before."""
    script = f"""
import sys, warnings
warnings.simplefilter("error")
import matplotlib
matplotlib.rcParams["font.size"] = 33
names = ("font.size", "svg.fonttype", "axes.grid", "text.parse_math")  # asking for "backend" loads
before = [matplotlib.rcParams[name] for name in names]
from pathlib import Path
from specgen.cli.bench.plot import plot
from tests.support.made_up import results, run
plot(results(run()), Path({str(tmp_path / "plot.png")!r}))
assert [matplotlib.rcParams[name] for name in names] == before
assert "matplotlib.pyplot" not in sys.modules
assert "tkinter" not in sys.modules
"""
    environment = {k: v for k, v in os.environ.items() if k not in ("DISPLAY", "MPLBACKEND")}
    subprocess.run(
        [sys.executable, "-c", script], check=True, env=environment, cwd=Path(__file__).parents[2]
    )
    assert (tmp_path / "plot.png").read_bytes().startswith(PNG)


# ---- acceptance by depth


def test_acceptance_by_depth() -> None:
    """By hand: of 100 steps 60 were drafted 1 deep or deeper, of which 45 got the first right."""
    runs = [
        run(drafter="x", offered={0: 40, 1: 30, 2: 10, 5: 5}, reached={0: 50, 1: 20, 2: 11, 5: 4}),
        run(drafter="x", offered={3: 15}, reached={0: 5, 1: 7, 3: 3}),
        run(offered={9: 100}, reached={9: 100}),
    ]
    depths, shares = accepted_by_depth(results(*runs), "x")
    # At least as deep: 60, 30, 20, 5; accepted at least as many: 45, 18, 7. Five are too few.
    assert depths == [1, 2, 3]
    assert shares == pytest.approx([45 / 60, 18 / 30, 7 / 20])


@pytest.mark.parametrize("deepest", [1, 2, 15])
def test_depths_are_whole_numbers(deepest: int) -> None:
    """Nobody guesses one and a half tokens."""
    made = results(run(drafter="auto", offered={deepest: 100}, reached={deepest: 50, 0: 50}))
    axes = bench_plot._figure(made).axes[-1]
    assert axes.get_title() == "Guesses that were right, by depth"
    low, high = axes.get_xlim()
    ticks = [tick for tick in axes.get_xticks() if low <= tick <= high]
    assert ticks and all(tick == round(tick) >= 1 for tick in ticks)


# ---- what is refused


@pytest.mark.parametrize("name", ["plot.pdf", "plot", "plot.svg.gz", ".svg"])
def test_a_suffix_that_is_not_known(name: str, made: Results, tmp_path: Path) -> None:
    """The three that are known are named."""
    for act in (check_plot, lambda path: plot(made, path)):
        with pytest.raises(UsageError, match=r"must end with \.svg, \.png or \.html") as caught:
            act(tmp_path / name)
        assert all(suffix in caught.value.message for suffix in SUFFIXES)
    assert not (tmp_path / name).exists()


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    """It is not made."""
    with pytest.raises(UsageError, match="there is no folder"):
        check_plot(tmp_path / "none" / "plot.svg")
    assert not (tmp_path / "none").exists()
    (tmp_path / "folder.svg").mkdir()
    with pytest.raises(UsageError, match="it is a folder"):
        check_plot(tmp_path / "folder.svg")


def test_matplotlib_is_not_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The error says how to install it."""
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(UsageError, match="matplotlib, which is not installed") as caught:
        check_plot(tmp_path / "plot.svg")
    assert caught.value.hint == f"run `{sys.executable} -m pip install matplotlib`"
    assert list(tmp_path.glob("*.svg")) == []


def test_a_good_path_is_left_alone(tmp_path: Path) -> None:
    """The check writes nothing."""
    (tmp_path / "plot.svg").write_text("old")
    for suffix in SUFFIXES:
        check_plot(tmp_path / f"plot{suffix}")
    assert [file.name for file in tmp_path.glob("plot*")] == ["plot.svg"]
    assert (tmp_path / "plot.svg").read_text() == "old"


class HalfFile(io.FileIO):
    """A file that has room for half of what is written."""

    def write(self, data: Any) -> int:
        """Half of it."""
        super().write(data[: len(data) // 2])
        raise OSError(28, "No space left on device")


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of every file can be written."""

    def open_half(path: Path, mode: str, opener: Any) -> HalfFile:
        return HalfFile(path, mode.replace("b", ""), opener=opener)

    monkeypatch.setattr("specgen.core.host.files.open", open_half, raising=False)


@pytest.mark.usefixtures("drawn", "full_disk")
def test_no_half_of_a_file(tmp_path: Path) -> None:
    """What was there before stays, and nothing lies beside it."""
    file = tmp_path / "plot.svg"
    file.write_text("old")
    with pytest.raises(UsageError, match="No space left on device"):
        plot(results(), file)
    assert file.read_text() == "old"
    assert [found.name for found in tmp_path.glob("plot*")] == ["plot.svg"]


def test_a_failure_while_drawing_touches_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """It is drawn before anything is written."""

    def fail(*args: Any) -> None:
        raise RuntimeError("no ink")

    monkeypatch.setattr(bench_plot, "_draw_depths", fail)
    with pytest.raises(RuntimeError, match="no ink"):
        plot(results(), tmp_path / "plot.svg")
    assert list(tmp_path.glob("plot*")) == []
