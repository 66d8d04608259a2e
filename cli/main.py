"""The `specgen` command: the app, its subcommands, and the one place where errors become text."""

from __future__ import annotations

import os
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from specgen import __version__
from specgen.core.errors import SpecgenError

from . import models
from .chat import chat
from .generate import generate

EPIPE_EXIT_CODE = 141  # 128 + SIGPIPE, what a shell reports for `yes | head`


class ErrorGroup(TyperGroup):
    """Turns what specgen raises into one line on stderr and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except SpecgenError as error:
            _say(error)
            raise typer.Exit(error.exit_code) from None
        except BrokenPipeError:
            # Whoever read our output has seen enough. Python would complain once more when it
            # flushes stdout at exit, so there must be something to flush into.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(EPIPE_EXIT_CODE) from None
        except KeyboardInterrupt:
            raise typer.Exit(130) from None


def _say(error: SpecgenError) -> None:
    hint = f" ({error.hint})" if error.hint else ""
    typer.echo(f"specgen: error: {error.message}{hint}", err=True)


app = typer.Typer(
    cls=ErrorGroup,
    name="specgen",
    help="Faster local text generation: train-free speculative decoding for GGUF models.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"specgen {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    """Faster local text generation: train-free speculative decoding for GGUF models."""


app.command("generate")(generate)
app.command("chat")(chat)
models.register(app)


def main() -> None:
    """Entry point of the `specgen` script."""
    app()
