"""`specgen generate`: one completion, made for pipes. Text goes to stdout, nothing else does."""

from __future__ import annotations

from typing import Annotated

import typer

from specgen.core.errors import UsageError

from .grouping import grouped
from .options import (
    EngineOptions,
    ModelArgument,
    OutputOptions,
    SamplingOptions,
    SystemPrompt,
    TemplateFile,
    TextOptions,
    Verbosity,
)


@grouped
def generate(
    model: ModelArgument = None,
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
    file: Annotated[
        str | None,
        typer.Option("-f", "--file", metavar="FILE", help="Read the text from a file; - is stdin."),
    ] = None,
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

    stdout has the text alone; a final newline is added on a terminal only.
    """
    from .prompt import read_prompt
    from .run import Job, as_message, as_text, complete, require_model, set_up_logging

    set_up_logging(verbose)
    job = Job.of(model, text, output, sampling, engine)
    if prompt_argument is not None and prompt_option is not None:
        raise UsageError("there are two prompts, an argument and --prompt", "give one of them")
    if (system or template) and not chat:
        raise UsageError("--system-prompt and --chat-template-file need --chat", "add --chat")
    if output.logprobs is not None and not output.as_json:
        raise UsageError("--logprobs needs --json", "add --json")
    require_model(model)
    prompt = read_prompt(prompt_argument or prompt_option, file)
    complete(job, as_message(prompt, system, template) if chat else as_text(prompt))
