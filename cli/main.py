"""The `specgen` command: the app, its subcommands, and the one place where errors become text."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import Annotated, Any

import typer

from specgen import __version__
from specgen.core.errors import SpecgenError

from . import bench, calibrate, models, plan, verify
from .chat import chat
from .generate import generate
from .words import Group

EPIPE_EXIT_CODE = 141  # 128 + SIGPIPE, what a shell reports for `yes | head`


# Typer does not export it, and where it lives has changed with Typer's versions.
_CommandLineError: type[Any] = typer.BadParameter.__bases__[0]


class ErrorGroup(Group):
    """Turns what goes wrong into one line on stderr and an exit code."""

    def make_context(self, *args: Any, **kwargs: Any) -> Any:
        """Read the command line up to the command's name."""
        with _errors_as_text():
            return super().make_context(*args, **kwargs)

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        with _errors_as_text():
            return super().invoke(ctx)


@contextlib.contextmanager
def _errors_as_text() -> Iterator[None]:
    try:
        yield
    except SpecgenError as error:
        _say(error.message, error.hint)
        raise typer.Exit(error.exit_code) from None
    except _CommandLineError as error:
        message = error.format_message()
        if type(error).__name__ == "NoArgsIsHelpError":  # it shows the help by itself
            raise
        _say(message, f"`{error.ctx.command_path} --help` shows the usage" if error.ctx else "")
        raise typer.Exit(error.exit_code) from None
    except BrokenPipeError:
        _give_up_output()  # whoever read it has seen enough
        raise typer.Exit(EPIPE_EXIT_CODE) from None
    except OSError as error:
        _say(f"{error.filename or 'cannot write the output'}: {error.strerror or error}")
        _give_up_output()
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        raise typer.Exit(130) from None


def _say(message: str, hint: str = "") -> None:
    line = f"specgen: error: {message}" + (f" ({hint})" if hint else "")
    with contextlib.suppress(OSError):  # stderr may be what is broken
        typer.echo("".join(map(_visible, line)), err=True)


def _visible(letter: str) -> str:
    """Words of a command line may have line ends in them: an error is one line all the same."""
    return letter if letter.isprintable() else letter.encode("unicode_escape").decode("ascii")


def _give_up_output() -> None:
    """Let what a stream could not write go nowhere: Python tries again at exit, and complains."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


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
calibrate.register(app)
bench.register(app)
verify.register(app)
plan.register(app)


def main() -> None:
    """Entry point of the `specgen` script."""
    # Streams that our parent has closed: the next file opened would take their place.
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115
    app()
