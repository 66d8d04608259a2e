"""Runs strangers' Jinja programs: no way out of them, and no more than so much of anything.

A chat template comes out of a model's file. Jinja's sandbox keeps it from Python's insides; here
the sizes, numbers and steps and, where the system can do so, the bytes that it takes are bounded as
well, so that most of what takes too much fails with a reason. The bounds are far beyond what
templates of models need. All of this is in a process of its own, see sandbox.py.
"""

from __future__ import annotations

import functools
import json
import math
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from types import FrameType
from typing import Any, Final, NoReturn

from jinja2 import Template, TemplateSyntaxError, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from .sandbox import MAX_SECONDS, Failed, Refused, TooMuch

# A template may have so many characters; the longest of known models have 30,000.
MAX_SOURCE: Final = 1 << 20
MAX_STEPS: Final = 2_000_000  # so many lines of Python may run; a long chat takes some thousands
MAX_TEXT: Final = 4 << 20  # whatever is made of parts may have so many characters or items
# The template may take so many bytes beyond what the process and its variables have.
MAX_BYTES: Final = 64 << 20
# Each character of the variables counts as so many bytes: several copies of 4 bytes.
_CHARACTER_BYTES: Final = 32
_MAX_NUMBER: Final = 1_000_000  # functions and filters are given no larger number
_MAX_BITS: Final = 10_000  # whole numbers have no more bits; Python prints no larger ones either
_LONGEST_REASON: Final = 1000  # a reason is cut to so many characters
# Matches a width in a format that is too large, or that cannot be seen.
_WIDE: Final = re.compile(r"\d{7}|\*")


def serve() -> None:
    """Answer requests until there are no more: a line of JSON on stdin, and one on stdout."""
    for line in sys.stdin.buffer:
        answer = json.dumps(_answer(json.loads(line)))
        sys.stdout.buffer.write(answer.encode() + b"\n")
        sys.stdout.buffer.flush()


def _answer(request: Mapping[str, Any]) -> tuple[str, str]:
    """A text and what it is: that of a template, or why there is none.

    A request has the source of a template and, if that is to run, its variables.
    """
    try:
        _bound_process()
        template = _compiled(request["source"])
        if "variables" not in request:
            return "text", ""
        return "text", _run(template, request["n_characters"], request["variables"])
    except (Refused, Failed) as error:
        return type(error).__name__, str(error)[:_LONGEST_REASON]
    except MemoryError:
        return TooMuch.__name__, "it takes too much memory"
    except Exception as error:  # anything may come out of it
        return Failed.__name__, _reason(error)[:_LONGEST_REASON]


@functools.lru_cache(maxsize=4)
def _compiled(source: str) -> Template:
    if len(source) > MAX_SOURCE:
        raise Failed(f"it has {len(source):,} characters, and {MAX_SOURCE:,} are possible")
    try:
        with _bounded_memory(MAX_BYTES):
            return _environment().from_string(source)
    except TemplateSyntaxError as error:
        raise Failed(f"line {error.lineno}: {_first_line(error.message or '')}") from error


def _run(template: Template, n_characters: int, variables: Mapping[str, Any]) -> str:
    pieces: list[str] = []
    size = 0
    with _bounded_memory(MAX_BYTES + _CHARACTER_BYTES * n_characters), _bounded_steps():
        for piece in template.generate(variables):
            size += len(piece)
            if size > MAX_TEXT:
                raise TooMuch(f"its text has more than {MAX_TEXT:,} characters")
            pieces.append(piece)
    return "".join(pieces)


def _reason(error: Exception) -> str:
    if isinstance(error, MemoryError):
        return "it takes too much memory"
    if isinstance(error, RecursionError):
        return "it is nested too deeply (maximum recursion depth exceeded)"
    if isinstance(error, SyntaxError):  # its line is one of Python's, not of the template
        return f"it cannot be compiled: {error.msg}"
    return _first_line(str(error)) or type(error).__name__


def _first_line(text: str) -> str:
    return text.strip().partition("\n")[0]


@contextmanager
def _bounded_memory(n_bytes: int) -> Iterator[None]:
    """Within, the process gets no more than `n_bytes` of further addresses; Linux alone can."""
    try:
        import resource

        pages = int(Path("/proc/self/statm").read_text().split()[0])
        soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    except (ImportError, OSError, ValueError):
        yield
        return
    most = pages * resource.getpagesize() + n_bytes
    if soft != resource.RLIM_INFINITY:
        most = min(most, soft)
    resource.setrlimit(resource.RLIMIT_AS, (most, hard))
    try:
        yield
    finally:
        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@contextmanager
def _bounded_steps() -> Iterator[None]:
    """Within, TooMuch is raised in whatever runs after MAX_STEPS lines."""
    left = MAX_STEPS

    def step(_frame: FrameType, _event: str, _argument: Any) -> Any:
        nonlocal left
        left -= 1
        if left < 0:
            raise TooMuch(f"it runs for more than {MAX_STEPS:,} steps")
        return step

    before = sys.gettrace()
    sys.settrace(step)
    try:
        yield
    finally:
        sys.settrace(before)


def _bound_process() -> None:
    """See to it that the process ends even if nobody is left to end it, and leaves nothing."""
    try:
        import resource
    except ImportError:  # Windows has no such bounds
        return
    most = math.ceil(time.process_time() + MAX_SECONDS) + 1
    for kind, value in ((resource.RLIMIT_CPU, most), (resource.RLIMIT_CORE, 0)):
        _, hard = resource.getrlimit(kind)
        with suppress(ValueError, OSError):  # there is a lower one
            resource.setrlimit(kind, (value, hard))


class _Environment(ImmutableSandboxedEnvironment):
    """Operators and calls are looked at before they run: what is one step may take for ever."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        _check_operation(operator, left, right)
        return super().call_binop(context, operator, left, right)

    def call(*arguments: Any, **named: Any) -> Any:  # names of ours could be a template's
        self, _, _, *given = arguments
        _check_numbers(given, named)
        return super(_Environment, self).call(*arguments[1:], **named)


def _check_operation(operator: str, left: Any, right: Any) -> None:
    """Raise TooMuch for a result that is too large to be computed."""
    if operator == "%":
        if isinstance(left, str) and _WIDE.search(left):
            raise TooMuch("a format has a width that is not allowed")
        return
    numbers = isinstance(left, int) and isinstance(right, int)
    if operator == "**":
        bits = left.bit_length() * max(right, 0) if numbers else 0
    elif numbers:
        bits = left.bit_length() + right.bit_length()
    else:
        size = _size(left) + _size(right)
        if operator == "*":
            size = _size(left) * right if isinstance(right, int) else _size(right) * left
        if size > MAX_TEXT:
            raise TooMuch(f"it makes something of more than {MAX_TEXT:,} characters or items")
        return
    if bits > _MAX_BITS:
        raise TooMuch(f"it makes a number of more than {_MAX_BITS:,} bits")


def _size(value: Any) -> int:
    return len(value) if isinstance(value, (str, bytes, list, tuple)) else 0


def _check_numbers(given: Any, named: Mapping[str, Any]) -> None:
    for value in (*given, *named.values()):
        if isinstance(value, int) and abs(value) > _MAX_NUMBER:
            raise TooMuch(f"{value} is given to a function, and {_MAX_NUMBER:,} is the most")


def _checked(work: Callable[..., Any]) -> Callable[..., Any]:
    """A filter that takes no huge numbers."""

    @functools.wraps(work)
    def checked(*given: Any, **named: Any) -> Any:
        _check_numbers(given[1:], named)  # the first one is filtered
        return work(*given, **named)

    return checked


class _GenerationTag(Extension):
    """`{% generation %}` marks the assistant's text for training; here its body is just text."""

    tags = {"generation"}  # noqa: RUF012 - jinja2 declares it so

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _environment() -> _Environment:
    """What templates expect to find, as in Hugging Face's `apply_chat_template`."""
    environment = _Environment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=["jinja2.ext.loopcontrols", _GenerationTag],
    )
    environment.filters["tojson"] = _to_json
    # Its regular expressions can take for ever, and text of a chat has no links to mark up.
    del environment.filters["urlize"]
    environment.filters = {name: _checked(work) for name, work in environment.filters.items()}
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON without the HTML escapes of jinja2's own filter."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _raise_exception(message: str) -> NoReturn:
    raise Refused(message)


def _strftime_now(pattern: str) -> str:
    return datetime.now().strftime(pattern)
