"""The documents say what the program does: commands, options, examples, links and targets."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from docs.generate_cli import PAGE, arguments, commands, names, options, render

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
README_MAX_LINES = 180
COMMANDS = commands()
SHELL_BLOCK = re.compile(r"^```(?:sh|bash|shell|console)\n(.*?)^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\((?!https?:|mailto:|#)([^)#\s]+)")
OPTION = re.compile(r"--?[A-Za-z][\w-]*")
OPERATORS = re.compile(r"[|&;()<>]+")

each_command = pytest.mark.parametrize("name", COMMANDS)


def page_section(name: str) -> str:
    """What docs/cli.md says of a command."""
    text = PAGE.read_text("utf-8")
    found = re.search(rf"^## {name}\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    assert found, f"docs/cli.md has no section on {name}"
    return found[1]


def shell_words() -> Iterator[list[str]]:
    """Each simple command of the shell examples in the README, as words."""
    for block in SHELL_BLOCK.findall(README.read_text("utf-8")):
        for line in block.replace("\\\n", " ").splitlines():
            lexer = shlex.shlex(line.removeprefix("$ "), posix=True, punctuation_chars=True)
            lexer.whitespace_split = True
            words: list[str] = []
            for word in [*lexer, ";"]:
                if not OPERATORS.fullmatch(word):
                    words.append(word)
                elif words:
                    yield words
                    words = []


def specgen_examples() -> Iterator[list[str]]:
    """The words after `specgen` of each example that calls it."""
    for words in shell_words():
        while words and re.fullmatch(r"\w+=.*", words[0]):  # FOO=bar specgen ...
            words = words[1:]
        if words and Path(words[0]).name == "specgen":
            yield words[1:]
        elif words[1:3] == ["-m", "specgen"]:
            yield words[3:]


@each_command
def test_commands_and_options_have_help(name: str) -> None:
    """Every command, argument and option says what it is for."""
    command = COMMANDS[name]
    assert command.help
    assert not [p.name for p in (*arguments(command), *options(command)) if not p.help]


@each_command
def test_page_names_all_of_a_command(name: str) -> None:
    """docs/cli.md gives each command a section with all its arguments and options."""
    section = page_section(name)
    parameters = (*arguments(COMMANDS[name]), *options(COMMANDS[name]))
    spelled = {spelling for parameter in parameters for spelling in names(parameter)}
    assert not {spelling for spelling in spelled if f"`{spelling}`" not in section}


def test_page_is_up_to_date() -> None:
    """docs/cli.md is what `make docs` would write."""
    assert PAGE.read_text("utf-8") == render()


def test_readme_calls_commands_that_exist() -> None:
    """The README's shell examples use existing commands with existing options."""
    examples = list(specgen_examples())
    assert examples
    for words in examples:
        command = f"specgen {words[0]}" if words and not words[0].startswith("-") else "specgen"
        assert command in COMMANDS, words
        known = {spelling for option in options(COMMANDS[command]) for spelling in names(option)}
        used = {word.partition("=")[0] for word in words}
        unknown = {w for w in used if OPTION.fullmatch(w)} - known - {"-h", "--help"}
        assert not unknown, words


def test_readme_names_targets_that_exist() -> None:
    """`make TARGET` in the README's examples is a target of the Makefile."""
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    used = [words[1:] for words in shell_words() if words[0] == "make"]
    assert used
    named = {word for words in used for word in words if "=" not in word}
    assert named <= targets


def test_readme_is_short() -> None:
    """The README can be read in a few minutes."""
    assert len(README.read_text("utf-8").splitlines()) <= README_MAX_LINES


@pytest.mark.parametrize("document", ["README.md", "CONTRIBUTING.md", "docs/architecture.md"])
def test_links_lead_somewhere(document: str) -> None:
    """Relative links in the documents name files that exist."""
    path = ROOT / document
    targets = LINK.findall(path.read_text("utf-8"))
    assert not [target for target in targets if not (path.parent / target).exists()]
