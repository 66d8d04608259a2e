"""`specgen bench`: what drafters are worth, live or on recorded conversations."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from specgen.cli.choices import Format
from specgen.cli.grouping import grouped
from specgen.cli.model_choice import ModelChoice
from specgen.cli.options import MachineOptions, MemoryBudget, ModelDraft, Verbosity
from specgen.cli.terminal import set_up_logging
from specgen.core.config import DEFAULT_MAX_DRAFTS
from specgen.core.errors import UsageError
from specgen.drafters import AUTO, names_of

_LIVE = "Live"
_REPLAY = "Replay"
_SAVED = "Saved results"
_HINT = "`specgen bench --help` says what goes together"


@dataclass(frozen=True, slots=True)
class LiveOptions:
    """What is measured on the model."""

    data: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Prompts in Spec-Bench's or MT-Bench's format, instead of our own.",
            rich_help_panel=_LIVE,
        ),
    ] = None
    per_task: Annotated[
        int | None,
        typer.Option(
            min=0,
            show_default="2",
            help="Prompts of each task; 0 takes all.",
            rich_help_panel=_LIVE,
        ),
    ] = None
    n_predict: Annotated[
        int | None,
        typer.Option(
            "-n",
            "--predict",
            "--n-predict",
            min=1,
            show_default="128",
            help="Most tokens of an answer.",
            rich_help_panel=_LIVE,
        ),
    ] = None
    repetitions: Annotated[
        int | None,
        typer.Option(
            "-r",
            "--repetitions",
            min=1,
            show_default="3, or 2 with --quick",
            help="How often all is measured.",
            rich_help_panel=_LIVE,
        ),
    ] = None
    quick: Annotated[
        bool,
        typer.Option(
            "--quick",
            help="One prompt of each task, 24 tokens each, unless told otherwise.",
            rich_help_panel=_LIVE,
        ),
    ] = False
    warm: Annotated[
        bool,
        typer.Option(
            "--warm",
            help="Measure drafters that learn from one prompt to the next, too.",
            rich_help_panel=_LIVE,
        ),
    ] = False
    strict: Annotated[
        bool,
        typer.Option(
            "--strict",
            help="Decode strictly, with drafters and without, against plain decoding that is not.",
            rich_help_panel=_LIVE,
        ),
    ] = False
    draft_max: Annotated[
        int,
        typer.Option(min=0, max=63, help="Most draft tokens of a call.", rich_help_panel=_LIVE),
    ] = DEFAULT_MAX_DRAFTS
    model_draft: ModelDraft = None
    memory_budget: MemoryBudget = None


@dataclass(frozen=True, slots=True)
class ReplayOptions:
    """Recorded conversations, and what calls cost there."""

    replay: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Conversations to replay without running the model: JSON lines with `turns` and"
            " `answers`, or a plain text.",
            rich_help_panel=_REPLAY,
        ),
    ] = None
    curve: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|FILE[,…]",
            help="What calls cost: cpu2, mi50, flat, h100-8b, h100-135m, or a saved curve.",
            show_default="cpu2",
            rich_help_panel=_REPLAY,
        ),
    ] = None


@dataclass(frozen=True, slots=True)
class SavedOptions:
    """Results in files."""

    save: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Keep the results with all runs, for --load and --compare.",
            rich_help_panel=_SAVED,
        ),
    ] = None
    plot: Annotated[
        Path | None,
        typer.Option(metavar="FILE.svg|png|html", help="Draw the results.", rich_help_panel=_SAVED),
    ] = None
    load: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Show saved results, and measure nothing.", rich_help_panel=_SAVED
        ),
    ] = None
    compare: Annotated[
        tuple[Path, Path] | None,
        typer.Option(
            metavar="A B",
            help="Show how fast saved results B are, relative to A.",
            rich_help_panel=_SAVED,
        ),
    ] = None


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command("bench")(bench)


@grouped
def bench(
    chosen: ModelChoice,
    drafter: Annotated[
        str,
        typer.Option(
            metavar="NAME[,NAME]",
            help="Drafters, each measured by itself; auto is all of them together.",
        ),
    ] = "auto",
    output: Annotated[Format, typer.Option("-o", "--output", help="How to print.")] = Format.table,
    verbose: Verbosity = 0,
    *,
    live: LiveOptions,
    replay: ReplayOptions,
    saved: SavedOptions,
    engine: MachineOptions,
) -> None:
    """Measure what drafters are worth: with a loaded model, or on recorded answers with --replay.

    Each prompt is answered plainly and with drafters, in turns. Nothing is carried to the next.
    """
    set_up_logging(verbose)
    model = chosen.name
    names = list(dict.fromkeys(name.strip() for name in drafter.split(",")))
    for name in names:
        names_of(name)  # before the long work: an unknown name ends here
    asked = _Asked(model, None if drafter == AUTO else drafter)
    if saved.compare:
        _refuse("with --compare", asked, live, replay, engine, replace(saved, compare=None))
        _compare(saved.compare, output)
    elif saved.load:
        others = replace(saved, load=None, plot=None)
        _refuse("with --load", asked, live, replay, engine, others)
        _show_saved(saved.load, saved.plot, output)
    elif replay.replay:
        _refuse("with --replay", live, engine, saved)
        from .replay import run_replay

        run_replay(model, replay.replay, names, replay.curve or "cpu2", output)
    else:
        _refuse("without --replay", replay)
        _measure(model, names, output, live, saved, engine)


@dataclass(frozen=True, slots=True)
class _Asked:
    """What was asked for besides the groups of options."""

    model: str | None = None
    drafter: str | None = None


def _measure(
    model: str | None,
    names: list[str],
    output: Format,
    live: LiveOptions,
    saved: SavedOptions,
    engine: MachineOptions,
) -> None:
    from specgen.cli.prepare import require_model

    from .live import LiveJob, run_live

    require_model(model, live.model_draft)
    if live.warm and all(len(names_of(name)) < 2 for name in names):
        raise UsageError(
            f"--warm does nothing with {', '.join(names)}: what is learnt is used by auto only",
            "add auto to --drafter",
        )
    per_task, n_predict = (1, 24) if live.quick else (2, 128)
    run_live(
        LiveJob(
            model=model,
            config=replace(engine.config(), strict=live.strict, max_drafts=live.draft_max),
            names=names,
            draft=live.model_draft,
            data=live.data,
            per_task=per_task if live.per_task is None else live.per_task,
            n_predict=live.n_predict or n_predict,
            repetitions=live.repetitions or (2 if live.quick else 3),
            warm=live.warm,
            memory_budget=live.memory_budget,
            save=saved.save,
            plot=saved.plot,
            format=output,
        )
    )


def _compare(paths: tuple[Path, Path], output: Format) -> None:
    from specgen.core.evaluation.results import load_results

    from .report import write_comparison

    a, b = map(load_results, paths)
    write_comparison(a, b, (str(paths[0]), str(paths[1])), output)


def _show_saved(path: Path, plot: Path | None, output: Format) -> None:
    from specgen.core.evaluation.results import load_results

    from .live import show
    from .plot import check_plot

    if plot:
        check_plot(plot)
    show(load_results(path), output, None, plot)


def _refuse(where: str, *groups: Any) -> None:
    """Raise UsageError for what was given and has no meaning there."""
    for group in groups:
        for field in fields(group):
            if getattr(group, field.name) != field.default:
                name = field.name.replace("_", "-")
                option = "MODEL" if name == "model" else f"--{name}"
                raise UsageError(f"{option} does nothing {where}", _HINT)
