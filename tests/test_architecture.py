"""The import rule and the house rules, read off the syntax trees: nothing is imported."""

from __future__ import annotations

import ast
import sys
from collections.abc import Callable, Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import TypeAlias

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("core", "drafters", "cli")
MODULES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))
DRAFTERS_MAY_USE = {
    f"specgen.core.{name}" for name in ("errors", "protocols", "rows", "sampling", "tree")
}
TERMINAL = {"typer", "click", "rich", "prompt_toolkit"}
MAX_LINES = 400

Function: TypeAlias = ast.FunctionDef | ast.AsyncFunctionDef
Definition: TypeAlias = Function | ast.ClassDef

each_module = pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))


def parse(path: Path) -> ast.Module:
    """The syntax tree of a file."""
    return ast.parse(path.read_text("utf-8"), str(path))


def folder_of(path: Path) -> str:
    """core, drafters or cli."""
    return path.relative_to(ROOT).parts[0]


def imports(path: Path) -> set[str]:
    """Absolute names of all modules that a file imports, wherever it does so."""
    package = ["specgen", *path.relative_to(ROOT).parent.parts]
    names: set[str] = set()
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*above, *(node.module or "").split(".")]).rstrip(".")
            names |= {_submodule(module, alias.name) for alias in node.names}
    return names


def _submodule(module: str, name: str) -> str:
    """`from module import name` imports module.name where that is one of our modules."""
    inner = f"{module}.{name}"
    place = ROOT.joinpath(*inner.split(".")[1:])
    is_ours = module.split(".")[0] == "specgen" and place != ROOT
    return inner if is_ours and (place.is_dir() or place.with_suffix(".py").is_file()) else module


def top(name: str) -> str:
    """The distribution's import name: `rich` of `rich.console`."""
    return name.split(".")[0]


def within(name: str, *packages: str) -> bool:
    """Whether a module is one of these packages or inside it."""
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def package(name: str) -> str:
    """The package that a module of ours lies in; what lies in specgen.core itself is its heart."""
    parts = name.split(".")
    place = ROOT.joinpath(*parts[1:])
    return name if place.is_dir() else ".".join(parts[:-1])


def arrows(between: Callable[[str], str]) -> dict[str, set[str]]:
    """Who imports whom when the program starts, by what `between` makes of a module's name."""
    found: dict[str, set[str]] = {}
    for path in MODULES:
        parts = path.relative_to(ROOT).with_suffix("").parts
        user = ".".join(["specgen", *(parts[:-1] if parts[-1] == "__init__" else parts)])
        used = {between(name) for name in imports(path) if within(name, "specgen")}
        found.setdefault(between(user), set()).update(used - {between(user)})
    return found


def test_no_import_cycles() -> None:
    """No two files import each other, not even by way of others, and no two packages but those
    that lie in each other do: core's folders use its heart, and the engine uses them.
    """
    assert _first_cycle(arrows(lambda name: name)) is None
    inner = {
        name: {used for used in others if used.count(".") > 1}
        for name, others in arrows(package).items()
        if name.count(".") > 1
    }
    assert _first_cycle(inner) is None


def _first_cycle(graph: dict[str, set[str]]) -> list[str] | None:
    try:
        tuple(TopologicalSorter(graph).static_order())
    except CycleError as error:
        return list(error.args[1])
    return None


@each_module
def test_core_stands_alone(path: Path) -> None:
    """core imports neither drafters nor cli, nor what opens models with both."""
    if folder_of(path) == "core":
        higher = [f"specgen.{name}" for name in ("drafters", "cli", "opening", "api")]
        assert not {name for name in imports(path) if within(name, *higher)}


@each_module
def test_drafters_are_pure_algorithms(path: Path) -> None:
    """drafters import NumPy, the standard library and the core's vocabulary, nothing else."""
    if folder_of(path) != "drafters":
        return
    allowed = {"numpy", *sys.stdlib_module_names}
    others = {
        name
        for name in imports(path)
        if top(name) not in allowed
        and name not in DRAFTERS_MAY_USE
        and not within(name, "specgen.drafters")
    }
    assert not others


@each_module
def test_one_module_knows_llama_cpp(path: Path) -> None:
    """Only core/llama/library.py names llama_cpp."""
    users = any(within(name, "llama_cpp") for name in imports(path))
    assert not users or path == ROOT / "core" / "llama" / "library.py"


@each_module
def test_only_the_command_line_knows_the_terminal(path: Path) -> None:
    """Typer, Rich and prompt_toolkit are imported in cli alone."""
    if folder_of(path) != "cli":
        assert not {name for name in imports(path) if top(name) in TERMINAL}


@each_module
def test_library_code_prints_nothing(path: Path) -> None:
    """core and drafters do not call print."""
    if folder_of(path) == "cli":
        return
    calls = (node.func for node in ast.walk(parse(path)) if isinstance(node, ast.Call))
    assert not [func.lineno for func in calls if isinstance(func, ast.Name) and func.id == "print"]


@each_module
def test_modules_stay_small(path: Path) -> None:
    """No module is over 400 lines."""
    n_lines = len(path.read_text("utf-8").splitlines())
    assert n_lines <= MAX_LINES


@each_module
def test_public_names_are_documented(path: Path) -> None:
    """Modules, public classes, functions and methods say what they do.

    Members of protocols and properties that only return something may leave it to their names.
    """
    tree = parse(path)
    silent = [
        f"{name} (line {node.lineno})"
        for name, node, owner in _public(tree)
        if not ast.get_docstring(node) and not _speaks_for_itself(node, owner)
    ]
    assert ast.get_docstring(tree) or path.name == "__init__.py"
    assert not silent


@each_module
def test_public_functions_are_annotated(path: Path) -> None:
    """Public functions and methods annotate every argument and what they return."""
    bare = [
        f"{name} (line {node.lineno})"
        for name, node, owner in _public(parse(path))
        if not isinstance(node, ast.ClassDef) and not _is_annotated(node, owner)
    ]
    assert not bare


def _public(
    body: ast.Module | ast.ClassDef, owner: ast.ClassDef | None = None
) -> Iterator[tuple[str, Definition, ast.ClassDef | None]]:
    """Name, definition and class of everything public, not looking inside functions."""
    prefix = f"{owner.name}." if owner else ""
    for node in body.body:
        if not isinstance(node, Definition) or node.name.startswith("_"):
            continue
        yield prefix + node.name, node, owner
        if isinstance(node, ast.ClassDef):
            yield from _public(node, node)


def _speaks_for_itself(node: Definition, owner: ast.ClassDef | None) -> bool:
    if isinstance(node, ast.ClassDef) or owner is None:
        return False
    if any(_last_name(base) == "Protocol" for base in owner.bases):
        return True
    is_property = any(_last_name(d) in ("property", "cached_property") for d in node.decorator_list)
    return is_property and len(node.body) == 1


def _is_annotated(node: Function, owner: ast.ClassDef | None) -> bool:
    spec = node.args
    arguments = [*spec.posonlyargs, *spec.args]
    if owner and not any(_last_name(d) == "staticmethod" for d in node.decorator_list):
        arguments = arguments[1:]  # self or cls
    arguments += spec.kwonlyargs
    arguments += [extra for extra in (spec.vararg, spec.kwarg) if extra]
    return node.returns is not None and all(argument.annotation for argument in arguments)


def _last_name(node: ast.expr) -> str:
    """`Protocol` of `Protocol`, `typing.Protocol` and `Protocol[T]`."""
    if isinstance(node, ast.Subscript):
        node = node.value
    if isinstance(node, ast.Call):
        node = node.func
    return node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")
