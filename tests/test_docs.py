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
MAX_COLUMNS = 110
DOCUMENTS = sorted(
    str(path.relative_to(ROOT))
    for path in (README, ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md"))
)
COMMANDS = commands()
SHELL_BLOCK = re.compile(r"^```(?:sh|bash|shell|console)\n(.*?)^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\((?!https?:|mailto:)([^)#\s]*)#?([^)\s]*)\)")
OPTION = re.compile(r"--?[A-Za-z][\w-]*")
OPERATORS = re.compile(r"[|&;()<>]+")

each_command = pytest.mark.parametrize("name", COMMANDS)
each_document = pytest.mark.parametrize("document", DOCUMENTS)


def page_section(name: str) -> str:
    """What docs/cli.md says of a command."""
    text = PAGE.read_text("utf-8")
    found = re.search(rf"^## {name}\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    assert found, f"docs/cli.md has no section on {name}"
    return found[1]


def anchors(document: Path) -> set[str]:
    """What a link may name in a document: its headings, spelled as GitHub does."""
    headings = re.findall(r"^#+ (.*)", document.read_text("utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def shell_words(document: str) -> Iterator[list[str]]:
    """Each simple command of the shell examples in a document, as words."""
    for block in SHELL_BLOCK.findall((ROOT / document).read_text("utf-8")):
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


def specgen_examples(document: str) -> Iterator[list[str]]:
    """The words after `specgen` of each example that calls it."""
    for words in shell_words(document):
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


@each_document
def test_examples_call_commands_that_exist(document: str) -> None:
    """The documents' shell examples use existing commands with existing options."""
    for words in specgen_examples(document):
        command = f"specgen {words[0]}" if words and not words[0].startswith("-") else "specgen"
        if len(words) > 1 and f"{command} {words[1]}" in COMMANDS:  # specgen cache clear
            command = f"{command} {words[1]}"
        assert command in COMMANDS, words
        known = {spelling for option in options(COMMANDS[command]) for spelling in names(option)}
        used = {word.partition("=")[0] for word in words}
        unknown = {w for w in used if OPTION.fullmatch(w)} - known - {"-h", "--help"}
        assert not unknown, words


def test_readme_and_guide_have_examples() -> None:
    """The checks of examples find some where a newcomer looks."""
    assert list(specgen_examples("README.md"))
    assert list(specgen_examples("docs/guide.md"))


@each_document
def test_examples_name_targets_that_exist(document: str) -> None:
    """`make TARGET` in the documents' examples is a target of the Makefile."""
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    used = [words[1:] for words in shell_words(document) if words[0] == "make"]
    named = {word for words in used for word in words if "=" not in word}
    assert named <= targets


def test_readme_is_short() -> None:
    """The README can be read in a few minutes."""
    assert len(README.read_text("utf-8").splitlines()) <= README_MAX_LINES


@each_document
def test_links_lead_somewhere(document: str) -> None:
    """Relative links in the documents name files that exist, and headings that they have."""
    path = ROOT / document
    wrong = []
    for target, heading in LINK.findall(path.read_text("utf-8")):
        named = path.parent / target if target else path
        if not named.exists() or (heading and heading not in anchors(named)):
            wrong.append(f"{target}#{heading}")
    assert not wrong


@each_document
def test_lines_fit_an_editor(document: str) -> None:
    """Prose has at most 110 columns; rows of tables may be longer."""
    lines = (ROOT / document).read_text("utf-8").splitlines()
    assert not [line for line in lines if len(line) > MAX_COLUMNS and not line.startswith("|")]
