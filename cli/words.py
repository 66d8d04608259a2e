"""The words of a command line, looked at before Typer takes them apart.

Typer reads a word like "-hf" as "-h -f": options that there are, and that nobody asked for. So
options are written as they are declared, one a word; what else may stand there is said here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final

from typer.core import TyperGroup

from specgen.core.errors import UsageError
from specgen.core.models.catalogue import NO_HUB, find_entry
from specgen.core.text.encoding import decode, text_of
from specgen.core.text.spelling import nearest

TYPED: Final = "messages are typed at a terminal, or one comes on stdin"

# By the names of their parameters: words that may be paths, of any bytes; all others are text.
_PATHS: Final = frozenset({"model", "model_option", "model_draft", "files", "curve"})
# What the model reads: a second one would replace the first without a word.
_ONCE: Final = frozenset({"prompt_option", "system", "template", "predicted_output"})

_OPTION: Final = re.compile(r"--?[A-Za-z][\w-]*")
_NUMBER: Final = re.compile(r"[+-]?[0-9]+(?:\.[0-9]+)?")
_NO_NUMBER: Final = re.compile(r"is not a valid (int|float)(?:eger)?(?: range)?(?=\.?$)")
_ESCAPE: Final = re.compile(rb"""\\(x[0-9a-fA-F]{2}|[nrt'"\\])""")
_MEANINGS: Final = MappingProxyType({b"n": b"\n", b"r": b"\r", b"t": b"\t"})
_SHOWN: Final = 60  # letters of a word in an error
_DASHES: Final = "\u2010\u2011\u2012\u2013\u2014\u2212"  # that word processors make of hyphens

# By command: what there is for somebody who gives more arguments than it takes.
_ARGUMENTS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "generate": "quote a text of several words; -p gives one without naming a model",
        "chat": TYPED,
        "pull": "it takes one name",
    }
)

_TALK: Final = "`specgen chat` talks with a model, `specgen generate --chat` answers one message"
_BEHIND: Final = "options stand behind the command, as in `specgen generate -m MODEL`"
_STAYS: Final = "a model is loaded as long as its command runs"

# What other tools have, and what there is here.
_OPTIONS_ELSEWHERE: Final[Mapping[str, str]] = MappingProxyType(
    dict.fromkeys(
        ("-hf", "--hf", "-hfr", "--hf-repo", "-hff", "--hf-file", "-hfd", "-hfrd"), NO_HUB
    )
    | dict.fromkeys(("--hf-repo-draft", "-hft", "--hf-token", "-mu", "--model-url"), NO_HUB)
    | dict.fromkeys(("-dr", "--docker-repo"), NO_HUB)
    | dict.fromkeys(("-cnv", "--conversation", "-i", "--interactive", "-if"), _TALK)
    | dict.fromkeys(("-no-cnv", "--no-conversation"), "`specgen generate` continues a text")
    | dict.fromkeys(("-sysf", "--system-prompt-file"), '-sys "$(cat FILE)" does that')
    | dict.fromkeys(("-bf", "--binary-file", "--prompt-file"), "-f reads a text from a file")
    | dict.fromkeys(("--draft", "--draft-n"), "--draft-max bounds the draft tokens of a call")
)
_COMMANDS_ELSEWHERE: Final[Mapping[str, str]] = MappingProxyType(
    {
        "run": "`specgen chat MODEL` talks with a model, `specgen generate MODEL TEXT` continues a"
        " text",
        "rm": "`specgen list --json` shows where the files are; remove the file",
        "show": "`specgen info MODEL` shows what is in a model",
        "quantize": "specgen runs GGUF files as they are",
        "version": "`specgen --version` shows it",
    }
    | dict.fromkeys(("ls", "models"), "`specgen list` shows the models")
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
            args = _Reader(self, ctx, ctx.command_path, self.commands).read(args)
        return super().parse_args(ctx, args)

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        """The command that is named. Raises UsageError if there is none, or for its words."""
        if not ctx.resilient_parsing:
            if args[0] not in self.commands:
                raise self._no_command(ctx, args[0])
            command, path = self.commands[args[0]], f"{ctx.command_path} {args[0]}"
            args = [args[0], *_Reader(command, ctx, path, self.commands).read(args[1:])]
        return super().resolve_command(ctx, args)

    def _no_command(self, ctx: Any, word: str) -> UsageError:
        hint = "" if ctx.parent else _COMMANDS_ELSEWHERE.get(word.casefold(), "")
        near = nearest(word, self.commands)
        if not hint and near:
            hint = f"the nearest is {near}"
        if not hint and (word.casefold().endswith(".gguf") or find_entry(word)):
            hint = "the model stands behind the command, as in `specgen generate MODEL TEXT`"
        usage = f"`{ctx.command_path} --help` shows the usage"
        return UsageError(f"there is no command {_shown(word)}", _joined(hint, usage))


class _Reader:
    """Reads the words of one command: its options, their values, its arguments.

    Args:
        ctx: the command's context or the one above it.
        path: how the command is called.
        others: commands beside it, which may have an option that it has not.
    """

    def __init__(self, command: Any, ctx: Any, path: str, others: Mapping[str, Any]) -> None:
        self._ctx = ctx
        self._name = path.rpartition(" ")[2]
        self._usage = f"`{path} --help` shows the usage"
        self._is_group = isinstance(command, Group)
        self._others = others
        self._options = _options_of(command, ctx)
        parameters = command.get_params(ctx)
        self._arguments = iter([p for p in parameters if p.param_type_name == "argument"])
        self._seen: set[str] = set()

    def read(self, words: Sequence[str]) -> list[str]:
        """The words as Typer may have them, what is text decoded.

        The words of a command in a group are its own. Raises UsageError for what is no option, for
        a value or an argument too few or too many, and for text that is not UTF-8.
        """
        rest, read = list(words), list[str]()
        while rest:
            word = rest.pop(0)
            if word == "--":
                return [*read, word, *(self._argument(other, behind=True) for other in rest)]
            if self._is_argument(word):
                if self._is_group:
                    return [*read, word, *rest]
                read.append(self._argument(word))
                continue
            name, value = self._option(word)
            if value is not None:
                read.append(f"{word.removesuffix(value)}{self._value(name, value)}")
                continue
            values, rest = self._values_of(name, rest)
            read += [word, *(self._value(name, value) for value in values)]
        return read

    def _is_argument(self, word: str) -> bool:
        if word != "-" and word.startswith("-"):
            return False
        name = word.lstrip(_DASHES)
        if name != word and not {f"-{name}", f"--{name}"}.isdisjoint(self._options):
            raise self._no_option(word, f"options begin with a hyphen, -, and not with {word[0]}")
        return True

    def _option(self, word: str) -> tuple[str, str | None]:
        """The option in a word, and the value that is joined to it: --top-k=3, -ngl=3, -n3, -vv."""
        if word in self._options:
            self._note(word)
            return word, None
        name, joined, value = word.partition("=")
        if joined and name in self._options:
            if not _takes_values(self._options[name]):
                raise UsageError(f"{name} takes no value, and it was given '{_shown(value)}'")
            if len(name) == 2:
                example = f"{name} {_shown(value)}"
                raise UsageError(f"the value of {name} is a word of its own, as in {example}")
        else:
            name, value = word[:2], word[2:]
            option = self._options.get(name)
            if option is not None and option.count and not value.strip(name[1]):
                return name, None
            if option is None or not (_takes_values(option) and _NUMBER.fullmatch(value)):
                name = word.partition("=")[0]
                raise self._no_option(name, self._hint(name))
        self._note(name)
        return name, value

    def _note(self, name: str) -> None:
        parameter = self._options[name].name
        if parameter in self._seen & _ONCE:
            raise UsageError(f"{name} is given twice", "give one of them")
        self._seen.add(parameter)

    def _values_of(self, name: str, rest: list[str]) -> tuple[list[str], list[str]]:
        option = self._options[name]
        n_values = option.nargs if _takes_values(option) else 0
        if len(rest) < n_values:
            values = ", ".join(getattr(option.type, "choices", ()))
            hint = f"choose from: {values}" if values else self._usage
            raise UsageError(f"{name} needs a value behind it", hint)
        return rest[:n_values], rest[n_values:]

    def _value(self, name: str, value: str) -> str:
        return value if _is_path(self._options[name]) else text_of(value, name)

    def _argument(self, word: str, *, behind: bool = False) -> str:
        """An argument; `behind` the -- that ends the options."""
        parameter = next(self._arguments, None)
        if parameter is None:
            hint = _ARGUMENTS.get(self._name, "")
            if behind and word in self._options:
                hint = "options stand before --"
            raise UsageError(
                f"there is an argument too many: '{_shown(word)}'", _joined(hint, self._usage)
            )
        if _is_path(parameter):
            return word
        return text_of(word, parameter.make_metavar(self._ctx).strip("[]"))

    def _no_option(self, name: str, hint: str) -> UsageError:
        return UsageError(f"there is no option {_shown(name)}", _joined(hint, self._usage))

    def _hint(self, name: str) -> str:
        """What may have been meant by an option that there is not."""
        if name in _OPTIONS_ELSEWHERE:
            return _OPTIONS_ELSEWHERE[name]
        if not _OPTION.fullmatch(name):
            return "a text that starts with a dash stands behind --"
        owners = [
            own for own, other in self._others.items() if name in _options_of(other, self._ctx)
        ]
        if owners:
            return _BEHIND if self._is_group else f"`specgen {owners[0]}` has it"
        if near := nearest(name, self._options):
            return f"the nearest is {near}"
        if name[:2] in self._options:
            return "each option is a word of its own, and so is its value"
        return ""


def _options_of(command: Any, ctx: Any) -> dict[str, Any]:
    """The options of a command by all their names."""
    return {
        name: parameter
        for parameter in command.get_params(ctx)
        if parameter.param_type_name == "option"
        for name in (*parameter.opts, *parameter.secondary_opts)
    }


def _is_path(parameter: Any) -> bool:
    return parameter.name in _PATHS or "path" in parameter.type.name


def _takes_values(option: Any) -> bool:
    return not (option.is_flag or option.count)


def plain(message: str) -> str:
    """Typer's message about a value in the words of this program."""
    return _NO_NUMBER.sub(_what_number, message).removesuffix(".")


def _what_number(found: re.Match[str]) -> str:
    return "is no whole number" if found[1] == "int" else "is no number"


def unescape(word: str, source: str) -> str:
    r"""`word` with \n, \r, \t, \\, \', \" and \xHH as llama.cpp reads them; all else stays.

    \xHH is a byte, so that several make a character. Raises UsageError if bytes make none.
    """
    data = _ESCAPE.sub(_meaning, word.encode())
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
