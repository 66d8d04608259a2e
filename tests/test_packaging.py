"""The package that users install is the tree that is developed."""

from __future__ import annotations

import importlib.metadata
import shutil
import subprocess
import sys
import tomllib
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import pytest

import specgen

ROOT = Path(__file__).parents[1]
FOLDERS = ("core", "drafters", "cli")
BUILD_NEEDS = ("pyproject.toml", "README.md", "LICENSE")


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    """pyproject.toml."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))


@pytest.fixture(scope="module")
def wheel_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Names and contents of the files in a wheel built from a copy of the tree."""
    copy = tmp_path_factory.mktemp("tree")
    skip = shutil.ignore_patterns("__pycache__", "*.so")
    for folder in ("specgen", *FOLDERS, "kernels"):
        shutil.copytree(ROOT / folder, copy / folder, symlinks=True, ignore=skip)
    for name in BUILD_NEEDS:
        shutil.copy(ROOT / name, copy)
    built = copy / "built"
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", str(built)]
    command += ["--disable-pip-version-check", *_isolation(), str(copy)]
    subprocess.run(command, check=True, capture_output=True, text=True, timeout=120)
    (wheel,) = built.glob("*.whl")
    with ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def _isolation() -> list[str]:
    """A setuptools that is new enough spares fetching one for the build."""
    try:
        version = importlib.metadata.version("setuptools")
    except importlib.metadata.PackageNotFoundError:
        return []
    return ["--no-build-isolation"] if int(version.split(".")[0]) >= 77 else []


def _package_folders() -> dict[str, str]:
    """Package name to folder, of every folder that holds an __init__.py."""
    found = {"specgen": "specgen"}
    for folder in FOLDERS:
        for init in (ROOT / folder).rglob("__init__.py"):
            place = init.parent.relative_to(ROOT)
            found[".".join(["specgen", *place.parts])] = place.as_posix()
    return found


def test_every_folder_is_a_declared_package(project: dict[str, Any]) -> None:
    """`packages` and `package-dir` name exactly the folders with an __init__.py."""
    declared = project["tool"]["setuptools"]
    folders = _package_folders()
    assert sorted(declared["packages"]) == sorted(folders)
    assert declared["package-dir"].items() <= folders.items()
    assert {f"specgen.{name}" for name in FOLDERS} <= declared["package-dir"].keys()


@pytest.mark.parametrize("folder", FOLDERS)
def test_links_show_the_same_tree(folder: str) -> None:
    """specgen/core, specgen/drafters and specgen/cli are relative links to the folders."""
    link = ROOT / "specgen" / folder
    if not link.is_symlink():
        pytest.skip("this checkout has no symbolic links; builds do not need them")
    assert link.readlink() == Path("..") / folder
    assert link.resolve() == (ROOT / folder).resolve()


@pytest.mark.long
def test_wheel_holds_the_whole_tree(wheel_files: dict[str, bytes]) -> None:
    """Every module and data file of the four folders is in the wheel, unchanged, once."""
    expected = {
        f"{name.replace('.', '/')}/{path.name}": path.read_bytes()
        for name, folder in _package_folders().items()
        for path in (ROOT / folder).iterdir()
        if path.is_file() and path.suffix in (".py", ".json", ".typed")
    }
    found = {
        name: data
        for name, data in wheel_files.items()
        if name.startswith("specgen/") and name not in compiled(wheel_files)
    }
    assert sorted(found) == sorted(expected)
    assert found == expected
    assert "specgen/py.typed" in found


def compiled(files: dict[str, bytes]) -> list[str]:
    """Names of the libraries among the files of a wheel."""
    return [name for name in files if name.endswith((".so", ".pyd"))]


@pytest.mark.long
def test_wheel_holds_the_kernels(wheel_files: dict[str, bytes]) -> None:
    """The kernels are compiled while a wheel is built, if they could be for this installation."""
    if find_spec("specgen.core.llama._kernels") is None:
        pytest.skip("this installation had no compiler for them")
    (name,) = compiled(wheel_files)
    assert name.startswith("specgen/core/llama/_kernels.")
    assert b"specgen_install" in wheel_files[name]


def test_every_source_of_the_kernels_is_named(project: dict[str, Any]) -> None:
    """What a source distribution must hold is what lies in kernels/."""
    (extension,) = project["tool"]["setuptools"]["ext-modules"]
    named = [*extension["sources"], *extension["depends"]]
    assert sorted(named) == sorted(f"kernels/{path.name}" for path in (ROOT / "kernels").iterdir())


@pytest.mark.long
def test_wheel_declares_the_script(wheel_files: dict[str, bytes], project: dict[str, Any]) -> None:
    """Installing the wheel gives the `specgen` command, with the licence beside it."""
    (scripts,) = (text for name, text in wheel_files.items() if name.endswith("entry_points.txt"))
    assert f"specgen = {project['project']['scripts']['specgen']}" in scripts.decode()
    assert any(name.endswith("licenses/LICENSE") for name in wheel_files)


def test_one_version(project: dict[str, Any]) -> None:
    """pyproject and the package tell the same version."""
    assert project["project"]["version"] == specgen.__version__
