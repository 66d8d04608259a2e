"""`specgen generate`: one completion, made for pipes. Text goes to stdout, nothing else does."""

from __future__ import annotations

from typing import Annotated

import typer

from specgen.core.errors import UsageError
from specgen.core.models.catalogue import NAMES

from .grouping import grouped
from .model_choice import ModelChoice
from .options import (
    EngineOptions,
    OutputOptions,
    SamplingOptions,
    SystemPrompt,
    TemplateFile,
    TextOptions,
    Verbosity,
)
from .terminal import set_up_logging


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command("generate")(generate)


@grouped
def generate(
    chosen: ModelChoice,
    prompt_argument: Annotated[
        str | None,
        typer.Argument(metavar="PROMPT", help="The text to continue.", show_default=False),
    ] = None,
    prompt_option: Annotated[
        str | None,
        typer.Option(
            "-p", "--prompt", metavar="TEXT", help="The text to continue, without naming a model."
        ),
    ] = None,
    files: Annotated[
        list[str] | None,
        typer.Option(
            "-f",
            "--file",
            metavar="FILE",
            show_default=False,
            help="Read the text from a file; - is stdin. Several are joined in their order.",
        ),
    ] = None,
    no_stdin: Annotated[
        bool,
        typer.Option("--no-stdin", help="Leave stdin alone, as in a loop that reads its lines."),
    ] = False,
    chat: Annotated[
        bool, typer.Option("--chat", help="The text is a message: apply the chat template.")
    ] = False,
    system: SystemPrompt = None,
    template: TemplateFile = None,
    verbose: Verbosity = 0,
    *,
    text: TextOptions,
    output: OutputOptions,
    sampling: SamplingOptions,
    engine: EngineOptions,
) -> None:
    """Continue a text. Parts of a prompt are joined in this order: stdin, --file, argument.

    stdin is read to its end unless it is a terminal, or --no-stdin is given.
    stdout has the text alone; a final newline is added on a terminal only.
    """
    from .prepare import require_model
    from .prompt import read_prompt
    from .run import Job, as_message, as_text, complete

    set_up_logging(verbose)
    model, argument = chosen.and_prompt(prompt_argument)
    if argument is not None and prompt_option is not None:
        raise UsageError("there are two prompts, an argument and --prompt", "give one of them")
    if (system or template) and not chat:
        raise UsageError("--system-prompt and --chat-template-file need --chat", "add --chat")
    if output.logprobs is not None and not output.as_json:
        raise UsageError("--logprobs needs --json", "add --json")
    job = Job.of(model, text.read_stops(), output, sampling, engine)
    hint = (
        NAMES
        if chosen.model_option is not None
        else f"{NAMES}; to give a prompt without a model, use -p"
    )
    require_model(model, engine.model_draft, hint=hint)
    words = text.read(argument or prompt_option or "", "the prompt")
    prompt = read_prompt(words, files or (), stdin=not no_stdin)
    complete(job, as_message(prompt, system, template) if chat else as_text(prompt))
