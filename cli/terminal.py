"""What is said on stdout and stderr, and the one place where text leaves for a terminal.

A terminal obeys control characters: text of a model or a file could write the clipboard, move the
cursor or answer in the user's name. So what goes to a terminal goes through `harmless` first,
here; only what specgen draws itself (`draw`) does not. Pipes and files get text as it is.

Imports nothing heavy.
"""

from __future__ import annotations

import codecs
import contextlib
import io
import logging
import os
import re
import shutil
import sys
import traceback
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any, Final, Literal, TextIO, TypeAlias
from weakref import WeakSet

_ANY_WIDTH: Final = 1 << 20  # characters, so that no line of a table is folded
LONGEST_LINE: Final = 4000  # characters of an error or a warning; what it quotes may have millions

_HELD: Final = 4096  # most characters of a sequence: an end that never comes holds no more back
_CSI: Final = rf"(?:\x1b\[|\x9b)[0-?]{{0,{_HELD}}}[ -/]{{0,{_HELD}}}"
_STRING: Final = (
    rf"(?:\x1b[\]PX^_]|[\x9d\x90\x98\x9e\x9f])[^\x07\x18\x1a\x1b\x80-\x9f]{{0,{_HELD}}}"
)
_SHORT: Final = rf"\x1b[ -/]{{0,{_HELD}}}"
_WHOLE: Final = rf"{_CSI}[@-~]|{_STRING}(?:\x07|\x9c|\x1b\\)"
_LOOSE: Final = rf"{_SHORT}[0-~]|[\x00-\x08\x0b-\x1f\x7f-\x9f]|(?P<half>[\ud800-\udfff])"
_DROPPED: Final = re.compile(rf"{_WHOLE}|{_LOOSE}")
_DROPPED_SO_FAR: Final = re.compile(
    rf"{_WHOLE}|(?P<open>(?:{_CSI}|{_STRING}\x1b?|{_SHORT})\Z)|{_LOOSE}"
)

_REPORT: Final = (
    "a fault of specgen: please report it, with the output of -vv where the command has that"
)
_INCOMPLETE: Final = "a part is missing, or has another version: install specgen again"
_JOINERS: Final = "\u200c\u200d\u200e\u200f\u00ad"  # of scripts and emoji, within one cell
_BYTES_AS_TEXT: Final = range(0xDC80, 0xDD00)  # how Python holds bytes of a path that are no text


class Harmless:
    """Drops from a text what a terminal would obey, piece by piece.

    That is C0 but line break and tab, DEL, C1, and escape sequences as a whole: CSI, the strings
    OSC, DCS, SOS, PM and APC, and the short ones. What may yet become a sequence is held until
    more text decides; of one that does not end within _HELD characters, or at all, only the
    characters that begin it are dropped. So the result does not depend on how the text is cut.
    Bytes that are no text (in paths) become U+FFFD. Marks of writing direction stay: they are
    part of texts from right to left.
    """

    def __init__(self) -> None:
        self._held = ""

    def __call__(self, piece: str) -> str:
        """What may be shown once the text has gone on with `piece`."""
        text, self._held = self._held + piece, ""
        return _DROPPED_SO_FAR.sub(self._replace, text)

    def rest(self) -> str:
        """What was held, once the text has ended."""
        text, self._held = self._held, ""
        return _DROPPED.sub(self._replace, text)

    def _replace(self, match: re.Match[str]) -> str:
        self._held = match.groupdict().get("open") or ""
        return "\N{REPLACEMENT CHARACTER}" if match["half"] else ""


def harmless(text: str) -> str:
    """A whole text without what a terminal would obey, see `Harmless`."""
    show = Harmless()
    return show(text) + show.rest()


def clean(text: str) -> str:
    """A text for a cell of a table, wherever that goes: harmless, and in one line.

    Spaces of all kinds become spaces. Marks that turn the direction of all that follows, and
    characters that nobody can see, become U+FFFD.
    """
    return "".join(map(_in_a_cell, harmless(text)))


def _in_a_cell(char: str) -> str:
    if char.isprintable() or char in _JOINERS:
        return char
    return " " if char.isspace() else "\N{REPLACEMENT CHARACTER}"


def in_one_line(text: str) -> str:
    """The first line of a text that has any characters, at most LONGEST_LINE of them."""
    lines = (line.strip() for line in text.splitlines())
    line = next(filter(None, lines), "")
    return line if len(line) <= LONGEST_LINE else line[: LONGEST_LINE - 1] + "…"


class Writer:
    """The text of one answer to stdout, piece by piece as it comes. `close` it at the end."""

    def __init__(self) -> None:
        self._filter = Harmless() if sys.stdout.isatty() else None

    def __call__(self, piece: str) -> None:
        """Write what may be shown."""
        draw(self._filter(piece) if self._filter else piece)

    def close(self) -> None:
        """Write what a terminal was not shown yet."""
        if self._filter:
            draw(self._filter.rest())


def write(text: str) -> None:
    """A whole text, or JSON, to stdout at once: see `draw` for its encoding."""
    writer = Writer()
    writer(text)
    writer.close()


def draw(text: str) -> None:
    """Text to stdout with our own escape sequences in it.

    Pipes and files get UTF-8 whatever the locale says: whoever reads a model's text, or JSON,
    expects that. A terminal gets its own encoding, and what that has not becomes "?": in UTF-8 no
    letter of another one would be right, and some are bytes that a terminal of 8 bits obeys.
    """
    if text:
        encoding = sys.stdout.encoding if sys.stdout.isatty() else "utf-8"
        sys.stdout.buffer.write(text.encode(encoding, _AS_FAR_AS_POSSIBLE))
        sys.stdout.buffer.flush()
        _remember(sys.stdout, text)


def show(line: object, end: str = "\n") -> None:
    """A line for people on stdout, in the encoding that the environment asks for."""
    _print(f"{line}", end, sys.stdout)


def note(line: str) -> None:
    """A line on stderr, which begins a line where stdout goes to the same place."""
    if sys.stdout in _UNENDED and _is_one_place():
        _UNENDED.discard(sys.stdout)
        line = f"\n{line}"
    _print(line, "\n", sys.stderr)


def error_line(message: str, hint: str = "") -> str:
    """An error as one line, whatever the message quotes."""
    more = f" ({in_one_line(hint)})" if hint else ""
    with contextlib.suppress(UnicodeError):  # words that the locale made no text of
        message = message.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return f"specgen: error: {in_one_line(''.join(map(_visible, message)))}{more}"


def _visible(char: str) -> str:
    """Words of a command line may have line ends and escape sequences in them: they are shown."""
    return char if char.isprintable() else char.encode("unicode_escape").decode("ascii")


def say_error(message: str, hint: str = "") -> None:
    """An error's line on stderr."""
    with contextlib.suppress(OSError):  # stderr may be what is broken
        note(error_line(message, hint))


def say_unexpected(error: Exception) -> None:
    """What nobody foresaw, as one line on stderr; with -vv it comes with its traceback."""
    if logging.getLogger("specgen").isEnabledFor(logging.DEBUG):
        with contextlib.suppress(OSError):
            note("".join(traceback.format_exception(error)).rstrip())
    if isinstance(error, MemoryError):
        say_error("there is not enough memory", "`specgen plan` says what a model takes")
        return
    what = type(error).__name__
    with contextlib.suppress(Exception):  # its text may fail as well
        what += f": {in_one_line(str(error))}" if str(error).strip() else ""
    if isinstance(error, RecursionError):
        what = "something is nested too deeply"
    (*_, place) = traceback.extract_tb(error.__traceback__) or [None]
    where = f" in {os.path.basename(place.filename)}, line {place.lineno}" if place else ""
    say_error(f"{what}{where}", _INCOMPLETE if isinstance(error, ImportError) else _REPORT)


def _print(text: str, end: str, stream: TextIO) -> None:
    print(harmless(text) if stream.isatty() else text, end=end, file=stream, flush=True)
    _remember(stream, text + end)


def _remember(stream: TextIO, text: str) -> None:
    """Whether what was written to a stream has ended its last line."""
    if text.endswith("\n"):
        _UNENDED.discard(stream)
    elif text:
        _UNENDED.add(stream)


_UNENDED: Final = WeakSet[TextIO]()


def _is_one_place() -> bool:
    """Whether stdout and stderr go to the same place: a terminal, or as with `> log 2>&1`."""
    try:
        out, err = (os.fstat(stream.fileno()) for stream in (sys.stdout, sys.stderr))
    except (OSError, ValueError):  # not a file of the system
        return False
    return os.path.samestat(out, err)


class NoteHandler(logging.Handler):
    """Shows what is logged as notes, a line each."""

    def emit(self, record: logging.LogRecord) -> None:
        """See logging.Handler."""
        with contextlib.suppress(OSError):  # stderr may be what is broken
            note(f"specgen: {in_one_line(record.getMessage())}")


def is_terminal(stream: TextIO) -> bool:
    """Whether people see the stream as it is written."""
    return stream.isatty()


def set_up_logging(verbosity: int) -> None:
    """Log to stderr: 0 warnings, 1 what specgen does, 2 llama.cpp's log too."""
    level = {0: logging.WARNING, 1: logging.INFO}.get(verbosity, logging.DEBUG)
    logger = logging.getLogger("specgen")
    logger.handlers[:] = [NoteHandler()]
    logger.setLevel(level)
    # Errors of llama.cpp reach the user in our own message, which quotes them.
    logging.getLogger("specgen.llama").setLevel(level if verbosity > 1 else logging.CRITICAL)


def print_table(
    heads: Sequence[str], rows: Sequence[Sequence[str]], *, right: Collection[int] = ()
) -> None:
    """A table on stdout, see `table_text`."""
    if is_terminal(sys.stdout):
        draw(f"{table_text(heads, rows, right=right, columns=terminal_columns())}\n")
    else:
        show(table_text(heads, rows, right=right))


def table_text(
    heads: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    right: Collection[int] = (),
    columns: int | None = None,
    gap: int = 2,
) -> str:
    """A head and rows as aligned lines, whose cells are clean.

    Args:
        heads: of the columns, with line breaks; none where the first column says what a row is.
        right: the columns that are flush right; the others are flush left.
        columns: how wide the terminal is: cells are folded where they do not fit, and have
            colours. None is plain text, as wide as it needs to be.
        gap: spaces between columns.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    colours: Literal["auto"] | None = "auto" if columns else None
    console = Console(width=columns or _ANY_WIDTH, color_system=colours, highlight=False)
    table = Table(box=None, show_header=bool(heads), padding=(0, gap, 0, 0), pad_edge=False)
    for i in range(len(heads or rows[0])):
        head = Text("\n".join(map(clean, heads[i].split("\n")))) if heads else ""
        justify: Literal["left", "right"] = "right" if i in right else "left"
        style = "" if heads or i else "bold"
        table.add_column(head, style=style, justify=justify, vertical="bottom", overflow="fold")
    for row in rows:
        table.add_row(*(Text(clean(cell)) for cell in row))
    with console.capture() as capture:
        console.print(table)
    return "\n".join(line.rstrip() for line in capture.get().splitlines())


def terminal_columns() -> int:
    """How wide the terminal is, in characters."""
    return shutil.get_terminal_size().columns


Progress: TypeAlias = Callable[[str, float], None]  # told what is done, and the part of it, 0..1


@contextlib.contextmanager
def shown_progress() -> Iterator[Progress]:
    """While entered, what the progress is told is shown."""
    if not sys.stderr.isatty():
        stages: set[str] = set()

        def tell(stage: str, share: float) -> None:
            if stage not in stages:
                note(f"specgen: {stage}")
            stages.add(stage)

        yield tell
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import Progress as Bars

    with Bars(console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task("", total=1.0)

        def draw(stage: str, share: float) -> None:
            bars.update(task, description=escape(clean(stage)), completed=share)

        yield draw


def prepare_stdout() -> None:
    """Let no character stop the output that the encoding of stdout does not have.

    Python does so for stderr by itself: they are spelt out there.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors=_AS_FAR_AS_POSSIBLE)


def _as_far_as_possible(error: UnicodeError) -> tuple[Any, int]:
    """Bytes of a path come out as they came in; other characters that there are not as "?"."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    codes = map(ord, error.object[error.start : error.end])
    return bytes([n - 0xDC00 if n in _BYTES_AS_TEXT else ord("?") for n in codes]), error.end


_AS_FAR_AS_POSSIBLE: Final = "specgen.as_far_as_possible"
codecs.register_error(_AS_FAR_AS_POSSIBLE, _as_far_as_possible)
