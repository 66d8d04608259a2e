"""The `specgen` command: the app, its subcommands, and the one place where errors become text."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator, Mapping
from importlib import import_module
from types import MappingProxyType
from typing import Annotated, Any, Final

import typer
from typer.main import get_group

from specgen import __version__
from specgen.core.errors import SpecgenError

from .terminal import prepare_stdout, say_error, say_unexpected, show
from .words import Group, plain

EPIPE_EXIT_CODE = 141  # 128 + SIGPIPE, what a shell reports for `yes | head`


# Typer does not export it, and where it lives has changed with Typer's versions.
_CommandLineError: type[Any] = typer.BadParameter.__bases__[0]


# The modules of the commands, in the order in which the help shows them.
_MODULES: Final = MappingProxyType(
    {
        "generate": "generate",
        "chat": "chat",
        **dict.fromkeys(("pull", "list", "info"), "models"),
        "calibrate": "calibrate",
        "bench": "bench.command",
        "verify": "verify",
        "plan": "plan",
        "cache": "calibrate",
    }
)


class _Commands(Mapping[str, Any]):
    """All commands by name; a module is imported, and its options read, when it is looked at."""

    def __init__(self) -> None:
        self._known: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        if name not in self._known:
            module = import_module(f".{_MODULES[name]}", __package__)
            part = typer.Typer()
            module.register(part)
            self._known |= get_group(part).commands
        return self._known[name]

    def __contains__(self, name: object) -> bool:
        return name in _MODULES

    def __iter__(self) -> Iterator[str]:
        return iter(_MODULES)

    def __len__(self) -> int:
        return len(_MODULES)


class ErrorGroup(Group):
    """Turns what goes wrong into one line on stderr and an exit code."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.commands = _Commands()  # type: ignore[assignment]  # nobody adds to it

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
        say_error(error.message, error.hint)
        raise typer.Exit(error.exit_code) from None
    except _CommandLineError as error:
        message = plain(error.format_message())
        if not message or type(error).__name__ == "NoArgsIsHelpError":  # the help of a command
            raise
        usage = f"`{error.ctx.command_path} --help` shows the usage" if error.ctx else ""
        say_error(message, usage)
        raise typer.Exit(error.exit_code) from None
    except (typer.Exit, typer.Abort):
        raise
    except BrokenPipeError:
        _give_up_output()  # whoever read it has seen enough
        raise typer.Exit(EPIPE_EXIT_CODE) from None
    except SystemExit as end:
        if not isinstance(end.__context__, BrokenPipeError):
            raise
        _give_up_output()  # Rich, which shows the help, ends by itself
        raise typer.Exit(EPIPE_EXIT_CODE) from None
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None:
            say_error(f"{error.filename or 'cannot write the output'}: {error.strerror}")
        else:
            say_unexpected(error)
        _give_up_output()
        raise typer.Exit(1) from None


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
        show(f"specgen {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    """Faster local text generation: train-free speculative decoding for GGUF models."""


def main() -> None:
    """Entry point of the `specgen` script."""
    # Streams that our parent has closed: the next file opened would take their place.
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115
    prepare_stdout()
    try:
        with _errors_as_text():  # of Typer itself, around the commands
            app()
    except typer.Exit as end:
        sys.exit(end.exit_code)
