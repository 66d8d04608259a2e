"""The words of a command line, looked at before Typer takes them apart.

Typer reads a word like "-hf" as "-h -f": options that there are, and that nobody asked for. So
options are written as they are declared, one a word; what else may stand there is said here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final

from typer.core import TyperGroup

from specgen.core.encoding import decode, encode_word, require_utf8
from specgen.core.errors import UsageError
from specgen.core.spelling import nearest

# By the names of their parameters: words that may be paths, of any bytes; all others are text.
_PATHS: Final = frozenset({"model", "model_option", "model_draft", "files", "curve"})
# What the model reads: a second one would replace the first without a word.
_ONCE: Final = frozenset({"prompt_option", "system", "template", "predicted_output"})

_OPTION: Final = re.compile(r"--?[A-Za-z][\w-]*")
_NUMBER: Final = re.compile(r"[+-]?[0-9]+(?:\.[0-9]+)?")
_ESCAPE: Final = re.compile(rb"""\\(x[0-9a-fA-F]{2}|[nrt'"\\])""")
_MEANINGS: Final = MappingProxyType({b"n": b"\n", b"r": b"\r", b"t": b"\t"})
_SHOWN: Final = 60  # letters of a word in an error

_HUB: Final = (
    "models are not fetched from hubs: download the GGUF file and give its path, or take a name of"
    " `specgen list`"
)
_TALK: Final = "`specgen chat` talks with a model, `specgen generate --chat` answers one message"
_STAYS: Final = "a model is loaded as long as its command runs"

# What other tools have, and what there is here.
_OPTIONS_ELSEWHERE: Final[Mapping[str, str]] = MappingProxyType(
    dict.fromkeys(("-hf", "-hfr", "--hf-repo", "-hff", "--hf-file", "-hfd", "-hfrd"), _HUB)
    | dict.fromkeys(("--hf-repo-draft", "-hft", "--hf-token", "-mu", "--model-url"), _HUB)
    | dict.fromkeys(("-dr", "--docker-repo"), _HUB)
    | dict.fromkeys(("-cnv", "--conversation", "-i", "--interactive", "-if"), _TALK)
    | dict.fromkeys(("-no-cnv", "--no-conversation"), "`specgen generate` continues a text")
    | dict.fromkeys(("-sysf", "--system-prompt-file"), '-sys "$(cat FILE)" does that')
    | dict.fromkeys(("-bf", "--binary-file"), "-f reads a text from a file")
)
_COMMANDS_ELSEWHERE: Final[Mapping[str, str]] = MappingProxyType(
    {
        "run": "`specgen chat MODEL` talks with a model, `specgen generate MODEL TEXT` continues a"
        " text",
        "rm": "`specgen list --json` shows where the files are; remove the file",
        "ls": "`specgen list` shows the models",
        "show": "`specgen info MODEL` shows what is in a model",
        "quantize": "specgen runs GGUF files as they are",
        "version": "`specgen --version` shows it",
    }
    | dict.fromkeys(("ps", "stop", "start", "load", "unload"), _STAYS)
    | dict.fromkeys(
        ("serve", "server"), "there is no server; `generate --json` is made for scripts"
    )
    | dict.fromkeys(("delete", "remove"), "`specgen list --json` shows where the files are")
    | dict.fromkeys(("create", "cp", "push"), "a model is a GGUF file; give its path")
    | dict.fromkeys(("embed", "embedding"), "specgen writes text; it does not embed any")
    | dict.fromkeys(("complete", "completion", "prompt"), "`specgen generate` continues a text")
    | dict.fromkeys(("download", "fetch", "install"), "`specgen pull NAME` fetches a model")
)


class Group(TyperGroup):
    """Commands, each of which sees its words only once they are known to mean something."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read the words before the command's name; `help COMMAND` is `COMMAND --help`."""
        if args[:1] == ["help"]:
            args = [*args[1:], "--help"]
        if not ctx.resilient_parsing:  # as the shell's completion does, of half a line
            check_words(self, ctx, ctx.command_path, args)
        return super().parse_args(ctx, args)

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        """The command that is named. Raises UsageError if there is none, or for its words."""
        if not ctx.resilient_parsing:
            if args[0] not in self.commands:
                raise self._no_command(ctx.command_path, args[0])
            path = f"{ctx.command_path} {args[0]}"
            check_words(self.commands[args[0]], ctx, path, args[1:])
        return super().resolve_command(ctx, args)

    def _no_command(self, path: str, word: str) -> UsageError:
        hint = _COMMANDS_ELSEWHERE.get(word.casefold(), "")
        near = nearest(word, self.commands)
        if not hint and near:
            hint = f"the nearest is {near}"
        if not hint and word.casefold().endswith(".gguf"):
            hint = "the model stands behind the command, as in `specgen generate MODEL TEXT`"
        usage = f"`{path} --help` shows the usage"
        return UsageError(f"there is no command {_shown(word)}", _joined(hint, usage))


def check_words(command: Any, ctx: Any, path: str, words: Sequence[str]) -> None:
    """Raise UsageError for an option that `command` has not, and for text that is not UTF-8.

    `path` is how the command is called; `ctx` is its context or the one above it.
    """
    parameters = command.get_params(ctx)
    options = {
        name: parameter
        for parameter in parameters
        if parameter.param_type_name == "option"
        for name in (*parameter.opts, *parameter.secondary_opts)
    }
    arguments = iter([p for p in parameters if p.param_type_name == "argument"])
    seen: set[str] = set()
    for option, values in _taken_apart(words, options, path, nested=isinstance(command, Group)):
        parameter = options[option] if option else next(arguments, None)
        if parameter is None:
            continue
        if parameter.name in seen & _ONCE:
            raise UsageError(f"{option} is given twice", "give one of them")
        seen.add(parameter.name)
        if not _is_path(parameter):
            for value in values:
                require_utf8(value, option or parameter.make_metavar(ctx).strip("[]"))


def _is_path(parameter: Any) -> bool:
    return parameter.name in _PATHS or "path" in parameter.type.name


def _taken_apart(
    words: Sequence[str], options: Mapping[str, Any], path: str, *, nested: bool
) -> Iterator[tuple[str, Sequence[str]]]:
    """Each option as it is spelled, with its values; "" with an argument.

    The words of a command in a group (`nested`) are its own. Raises UsageError for what is no
    option.
    """
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if word == "--":
            yield from (("", [argument]) for argument in rest)
            return
        if word == "-" or not word.startswith("-"):
            if nested:
                return
            yield "", [word]
            continue
        found = _option(word, options)
        if found is None:
            raise _no_option(word, options, path, nested=nested)
        name, values = found
        if not values and _takes_values(options[name]):
            n_values = options[name].nargs
            values, rest = rest[:n_values], rest[n_values:]
        yield name, values


def _option(word: str, options: Mapping[str, Any]) -> tuple[str, list[str]] | None:
    """The option in a word, and the value that is joined to it: --top-k=3, -ngl=3, -n3, -vv."""
    if word in options:
        return word, []
    name, joined, value = word.partition("=")
    if joined and name in options and len(name) > 2:
        return name, [value]
    name, value = word[:2], word[2:]
    option = options.get(name)
    if option is None:
        return None
    if option.count and not value.strip(name[1]):
        return name, []
    return (name, [value]) if _takes_values(option) and _NUMBER.fullmatch(value) else None


def _takes_values(option: Any) -> bool:
    return not (option.is_flag or option.count)


def _no_option(word: str, options: Mapping[str, Any], path: str, *, nested: bool) -> UsageError:
    name = word.partition("=")[0]
    hint = _OPTIONS_ELSEWHERE.get(name, "")
    if not hint and not _OPTION.fullmatch(name):
        hint = "a text that starts with a dash stands behind --"
    if not hint and nested:
        hint = "options stand behind the command"
    if not hint and (near := nearest(name, options)):
        hint = f"the nearest is {near}"
    if not hint and name[:2] in options:
        hint = "each option is a word of its own, and so is its value"
    usage = f"`{path} --help` shows the usage"
    return UsageError(f"there is no option {_shown(name)}", _joined(hint, usage))


def unescape(word: str, source: str) -> str:
    r"""`word` with \n, \r, \t, \\, \', \" and \xHH as llama.cpp reads them; all else stays.

    \xHH is a byte, so that several make a character. Raises UsageError if bytes make none.
    """
    data = _ESCAPE.sub(_meaning, encode_word(word))
    return decode(data, f"{source} with its escapes")


def _meaning(found: re.Match[bytes]) -> bytes:
    escape = found[1]
    if escape.startswith(b"x"):
        return bytes.fromhex(escape[1:].decode())
    return _MEANINGS.get(escape, escape)


def _joined(*hints: str) -> str:
    return "; ".join(filter(None, hints))


def _shown(word: str) -> str:
    return word if len(word) <= _SHOWN else word[: _SHOWN - 3] + "..."
