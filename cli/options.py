"""Options shared by commands, in groups: each group is a dataclass, each field an option.

A command takes a whole group as one parameter; `grouped` shows Typer the fields instead.
llama.cpp's names are the canonical ones.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from specgen.core.config import DEFAULT_MAX_DRAFTS, EngineConfig
from specgen.drafters import AUTO, DEFAULT_DRAFTER, REGISTRY, most_drafts, names_of

from .choices import CacheType, OnOff, OnOffAuto, parse_layers
from .words import unescape

if TYPE_CHECKING:
    from specgen.core.sampling import SamplingParams

_SAMPLING = "Sampling"
_MODEL = "Model and machine"
_SPECULATION = "Speculation"


Verbosity = Annotated[
    int,
    typer.Option(
        "-v",
        "--verbose",
        count=True,
        show_default=False,
        help="Say what is done; -vv adds llama.cpp's own log.",
    ),
]


SystemPrompt = Annotated[
    str | None,
    typer.Option("-sys", "--system-prompt", metavar="TEXT", help="A system message."),
]

TemplateFile = Annotated[
    Path | None,
    typer.Option(
        "--chat-template-file", metavar="FILE", help="A Jinja template instead of the model's."
    ),
]


def _size(text: str | None) -> str | None:
    """A budget that is a size. Raises UsageError for one that is none."""
    if text is not None:
        from specgen.core.memory.budget import parse_size

        parse_size(text)
    return text


LearnAnswers = Annotated[
    bool,
    typer.Option(
        "--learn-answers",
        help="Also keep the model's last answers, in clear, and draft from them in later runs."
        " `specgen cache clear` forgets them.",
        rich_help_panel=_SPECULATION,
    ),
]

MemoryBudget = Annotated[
    str | None,
    typer.Option(
        callback=_size,
        metavar="SIZE|PCT",
        show_default="85% of what is available",
        help="Memory to stay within, such as 400M, 2G or 60%.",
        rich_help_panel=_MODEL,
    ),
]


ModelDraft = Annotated[
    str | None,
    typer.Option(
        "-md",
        "--model-draft",
        metavar="MODEL",
        show_default=False,
        help="A smaller model of the same family that drafts, too, where it pays: needs"
        " `specgen calibrate`.",
        rich_help_panel=_SPECULATION,
    ),
]


@dataclass(frozen=True, slots=True)
class TextOptions:
    """How long the text may get, and how words of the command line are read."""

    n_predict: Annotated[
        int,
        typer.Option(
            "-n",
            "--predict",
            "--n-predict",
            "--max-tokens",
            min=-1,
            help="Most tokens to generate; -1 goes on until the text ends.",
        ),
    ] = -1
    stop: Annotated[
        list[str] | None,
        typer.Option(
            "--stop",
            "-r",
            "--reverse-prompt",
            metavar="TEXT",
            show_default=False,
            help="End before this text. May be given several times.",
        ),
    ] = None
    escape: Annotated[
        bool,
        typer.Option(
            "-e",
            "--escape",
            help=r"Read \n, \r, \t, \', \", \\ and \xHH as escapes in --stop and in an argument"
            r" that is the prompt.",
        ),
    ] = False

    def read(self, word: str, source: str) -> str:
        """What a word of the command line means; `source` names it in errors.

        Raises UsageError if escapes make it something else than UTF-8.
        """
        return unescape(word, source) if self.escape else word

    def read_stops(self) -> TextOptions:
        """The same with --stop read. Raises UsageError."""
        return replace(self, stop=[self.read(text, "--stop") for text in self.stop or ()])


@dataclass(frozen=True, slots=True)
class OutputOptions:
    """What is told about a text besides the text."""

    stats: Annotated[
        bool, typer.Option("--stats", help="A line of figures on stderr at the end.")
    ] = False
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object on stdout instead of the text.")
    ] = False
    logprobs: Annotated[
        int | None,
        typer.Option(
            min=0,
            max=100,
            help="Adds to --json the model's log-probability of each token, and those of the N"
            " likeliest in its place.",
        ),
    ] = None


@dataclass(frozen=True, slots=True)
class SamplingOptions:
    """llama.cpp's samplers, their names and defaults."""

    temperature: Annotated[
        float,
        typer.Option(
            "--temp",
            "--temperature",
            help="0 is greedy.",
            rich_help_panel=_SAMPLING,
        ),
    ] = 0.8
    top_k: Annotated[
        int, typer.Option(help="Likeliest tokens kept; 0 keeps all.", rich_help_panel=_SAMPLING)
    ] = 40
    top_p: Annotated[
        float, typer.Option(help="Probability kept; 1 keeps all.", rich_help_panel=_SAMPLING)
    ] = 0.95
    min_p: Annotated[
        float,
        typer.Option(
            help="Least probability relative to the likeliest; 0 keeps all.",
            rich_help_panel=_SAMPLING,
        ),
    ] = 0.05
    typical_p: Annotated[
        float,
        typer.Option(
            "--typical",
            "--typical-p",
            help="Locally typical; 1 is off.",
            rich_help_panel=_SAMPLING,
        ),
    ] = 1.0
    repeat_penalty: Annotated[float, typer.Option(help="1 is off.", rich_help_panel=_SAMPLING)] = (
        1.0
    )
    repeat_last_n: Annotated[
        int,
        typer.Option(
            help="Tokens that penalties look back on; 0 none, -1 all.", rich_help_panel=_SAMPLING
        ),
    ] = 64
    presence_penalty: Annotated[
        float, typer.Option(help="0 is off.", rich_help_panel=_SAMPLING)
    ] = 0.0
    frequency_penalty: Annotated[
        float, typer.Option(help="0 is off.", rich_help_panel=_SAMPLING)
    ] = 0.0
    seed: Annotated[
        int,
        typer.Option(
            "-s",
            "--seed",
            help="Of the random numbers; -1 draws one and --stats tells it.",
            rich_help_panel=_SAMPLING,
        ),
    ] = -1
    greedy: Annotated[
        bool,
        typer.Option("--greedy", help="The same as --temp 0.", rich_help_panel=_SAMPLING),
    ] = False

    def params(self) -> SamplingParams:
        """The core's parameters. Raises UsageError for a value out of range."""

        from specgen.core.sampling import SamplingParams

        return SamplingParams(
            temperature=0.0 if self.greedy else self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            min_p=self.min_p,
            typical_p=self.typical_p,
            repeat_penalty=self.repeat_penalty,
            repeat_last_n=self.repeat_last_n,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            seed=None if self.seed == -1 else self.seed,
        )


@dataclass(frozen=True, slots=True)
class MachineOptions:
    """How the model runs."""

    ctx_size: Annotated[
        int | None,
        typer.Option(
            "-c",
            "--ctx-size",
            min=0,
            show_default="the model's, at most 8192",
            help="Tokens of context; 0 takes all that the model was trained for.",
            rich_help_panel=_MODEL,
        ),
    ] = None
    threads: Annotated[
        int | None,
        typer.Option(
            "-t",
            "--threads",
            min=1,
            max=1024,
            show_default="what the machine allows",
            help="CPU threads.",
            rich_help_panel=_MODEL,
        ),
    ] = None
    gpu_layers: Annotated[
        str,
        typer.Option(
            "-ngl",
            "--gpu-layers",
            "--n-gpu-layers",
            metavar="N|auto|all",
            help="Layers to keep on the GPU, if llama.cpp was built for one.",
            rich_help_panel=_MODEL,
        ),
    ] = "auto"
    flash_attn: Annotated[
        OnOffAuto,
        typer.Option("-fa", "--flash-attn", rich_help_panel=_MODEL, help="Flash attention."),
    ] = OnOffAuto.auto
    cache_type_k: Annotated[
        CacheType | None,
        typer.Option(
            "-ctk",
            "--cache-type-k",
            show_default="f16, less where memory is short",
            help="Type of keys in the cache.",
            rich_help_panel=_MODEL,
        ),
    ] = None
    cache_type_v: Annotated[
        CacheType | None,
        typer.Option(
            "-ctv",
            "--cache-type-v",
            show_default="f16, less where memory is short",
            help="Type of values; all but f32, f16 and bf16 need flash attention.",
            rich_help_panel=_MODEL,
        ),
    ] = None
    swa_full: Annotated[
        OnOff,
        typer.Option(
            help="Keep the whole cache of sliding-window layers: more memory, and trees work.",
            rich_help_panel=_MODEL,
        ),
    ] = OnOff.on

    def config(self) -> EngineConfig:
        """The core's configuration. Raises UsageError for a value that means nothing."""
        return EngineConfig(
            n_ctx=self.ctx_size,
            threads=self.threads,
            gpu_layers=parse_layers(self.gpu_layers),
            flash_attention=self.flash_attn.choice,
            swa_full=self.swa_full == OnOff.on,
            type_k=self.cache_type_k,
            type_v=self.cache_type_v,
        )


@dataclass(frozen=True, slots=True)
class EngineOptions(MachineOptions):
    """How the model runs, and how drafts are made."""

    memory_budget: MemoryBudget = None

    drafter: Annotated[
        str,
        typer.Option(
            metavar="NAME[,NAME]",
            help=f"Who drafts: {', '.join([AUTO, *REGISTRY])}.",
            rich_help_panel=_SPECULATION,
        ),
    ] = DEFAULT_DRAFTER
    model_draft: ModelDraft = None
    predicted_output: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="A text that the output will resemble, such as the document to be edited.",
            rich_help_panel=_SPECULATION,
        ),
    ] = None
    draft_max: Annotated[
        int,
        typer.Option(
            min=0, max=63, help="Most draft tokens of a call.", rich_help_panel=_SPECULATION
        ),
    ] = DEFAULT_MAX_DRAFTS
    learn: Annotated[
        bool,
        typer.Option(
            "--learn/--no-learn",
            help="Use and keep how often drafts on the model were accepted, not the texts."
            " With --no-learn nothing is used or kept.",
            rich_help_panel=_SPECULATION,
        ),
    ] = True
    learn_answers: LearnAnswers = False
    strict: Annotated[
        bool,
        typer.Option(
            "--strict",
            help="Give all calls widths that round alike: the text has the same bytes with every"
            " drafter and without. Slower.",
            rich_help_panel=_SPECULATION,
        ),
    ] = False
    tree: Annotated[
        OnOffAuto,
        typer.Option(
            help="Side branches in drafts: auto has them where the model can.",
            rich_help_panel=_SPECULATION,
        ),
    ] = OnOffAuto.auto

    def config(self) -> EngineConfig:
        """The core's configuration. Raises UsageError for a value that means nothing."""
        config = MachineOptions.config(self)
        others = bool(self.predicted_output or self.model_draft)
        max_drafts = most_drafts(self.drafter, self.draft_max, others=others)
        return replace(config, max_drafts=max_drafts, tree=self.tree.choice, strict=self.strict)

    def drafters(self) -> str:
        """The drafters' names. Raises UsageError for one that there is not."""
        names_of(self.drafter)
        return self.drafter
