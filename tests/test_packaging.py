"""The package that users install is the tree that is developed."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import subprocess
import sys
import tarfile
import tomllib
from dataclasses import dataclass
from email.parser import Parser
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import pytest

import specgen
from specgen.core import compiled

ROOT = Path(__file__).parents[1]
FOLDERS = ("core", "drafters", "cli")
# setup.py takes bdist_wheel from it; an older one would be updated from the network.
SETUPTOOLS = 77
NO_COMPILER = {"CC": "no-such-compiler", "CXX": "no-such-compiler"}


@dataclass(frozen=True)
class Wheel:
    """A built wheel: its name without the suffix, and what is in it by name."""

    name: str
    files: dict[str, bytes]

    def metadata(self, name: str) -> Any:
        """The file of this name in its dist-info, as the headers of a message."""
        (text,) = (data for path, data in self.files.items() if path.endswith(f"dist-info/{name}"))
        return Parser().parsestr(text.decode())

    @property
    def libraries(self) -> list[str]:
        """Names of what was compiled."""
        return [name for name in self.files if name.endswith((".so", ".pyd", ".dll", ".dylib"))]


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    """pyproject.toml."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The unpacked source distribution of a copy of the tree, which building would litter."""
    copy = tmp_path_factory.mktemp("tree") / "copy"
    litter = shutil.ignore_patterns(
        ".git", ".venv", ".*_cache", ".hypothesis", "*.egg-info", "build", "dist", "shared"
    )
    shutil.copytree(ROOT, copy, symlinks=True, ignore=litter)
    archive = _build("sdist", copy)
    with tarfile.open(archive) as tar:
        tar.extractall(archive.parent, filter="data")
    (folder,) = (path for path in archive.parent.iterdir() if path.is_dir())
    return folder


@pytest.fixture(scope="module")
def plain_wheel(sdist: Path) -> Wheel:
    """A wheel built from the source distribution where there is no compiler."""
    return _wheel(_build("wheel", sdist, NO_COMPILER))


@pytest.fixture(scope="module")
def compiled_wheel(sdist: Path) -> Wheel:
    """A wheel built from the source distribution."""
    if sys.platform == "win32" or not compiled.LIBRARY.exists():
        pytest.skip("this installation had no compiler for the kernels")
    return _wheel(_build("wheel", sdist))


def _build(kind: str, folder: Path, environment: dict[str, str] | None = None) -> Path:
    """The sdist or wheel that the build backend makes of a source tree, in a folder of its own."""
    version = importlib.metadata.version("setuptools") if find_spec("setuptools") else "0"
    if int(version.split(".")[0]) < SETUPTOOLS:
        pytest.skip(f"builds need setuptools {SETUPTOOLS}, which `make dev` installs")
    target = folder.parent / f"{kind}{len(list(folder.parent.iterdir()))}"
    code = f"from setuptools import build_meta; build_meta.build_{kind}(sys.argv[1])"
    subprocess.run(
        [sys.executable, "-c", f"import sys; {code}", target],
        cwd=folder,
        env={**os.environ, **(environment or {})},
        check=True,
        capture_output=True,
        timeout=300,
    )
    (built,) = target.iterdir()
    return built


def _wheel(path: Path) -> Wheel:
    with ZipFile(path) as archive:
        return Wheel(path.stem, {name: archive.read(name) for name in archive.namelist()})


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


def test_sdist_holds_the_project(sdist: Path) -> None:
    """All that is under version control but settings of its host and the links, and no litter."""
    found = {path.relative_to(sdist).as_posix() for path in sdist.rglob("*") if path.is_file()}
    suffixes = {path.rpartition(".")[2] for path in found}
    assert not suffixes & {"pyc", "so", "o", "gguf"}
    if not (ROOT / ".git").exists():
        pytest.skip("only a git checkout tells which files belong to the project")
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, check=True, capture_output=True, text=True,
    ).stdout.split("\0")  # fmt: skip
    expected = {
        name
        for name in filter(None, listed)
        if not name.startswith((".git", ".ci/")) and not (ROOT / name).is_symlink()
    }
    made = {"PKG-INFO", "setup.cfg"}
    assert expected <= found
    assert not {name for name in found - expected - made if ".egg-info/" not in name}


def test_wheel_holds_the_whole_tree(plain_wheel: Wheel) -> None:
    """Every module and data file of the packages is in the wheel, unchanged, once."""
    expected = {
        f"{name.replace('.', '/')}/{path.name}": path.read_bytes()
        for name, folder in _package_folders().items()
        for path in (ROOT / folder).iterdir()
        if path.is_file() and path.suffix in (".py", ".json", ".typed")
    }
    found = {name: data for name, data in plain_wheel.files.items() if name.startswith("specgen/")}
    assert sorted(found) == sorted(expected)
    assert found == expected
    assert "specgen/py.typed" in found


def test_wheel_without_a_compiler(plain_wheel: Wheel) -> None:
    """The build succeeds, without kernels, and the wheel is for every platform."""
    assert not plain_wheel.libraries
    assert plain_wheel.name.endswith("-py3-none-any")
    assert plain_wheel.metadata("WHEEL")["Tag"] == "py3-none-any"
    assert plain_wheel.metadata("WHEEL")["Root-Is-Purelib"] == "true"


@pytest.mark.long
def test_wheel_with_the_kernels(compiled_wheel: Wheel) -> None:
    """They are one library that any Python 3 loads: the wheel is for one platform only."""
    (name,) = compiled_wheel.libraries
    assert name == "specgen/core/llama/_kernels.so"
    assert b"specgen_install" in compiled_wheel.files[name]
    assert b"PyInit" not in compiled_wheel.files[name]
    *_, python, abi, platform = compiled_wheel.name.split("-")
    assert (python, abi) == ("py3", "none")
    assert platform != "any"
    assert compiled_wheel.metadata("WHEEL")["Root-Is-Purelib"] == "false"


def test_wheel_declares_the_script(plain_wheel: Wheel, project: dict[str, Any]) -> None:
    """Installing the wheel gives the `specgen` command, with the licence beside it."""
    (scripts,) = (t for name, t in plain_wheel.files.items() if name.endswith("entry_points.txt"))
    assert f"specgen = {project['project']['scripts']['specgen']}" in scripts.decode()
    assert any(name.endswith("licenses/LICENSE") for name in plain_wheel.files)


def test_distribution_has_a_name_of_its_own(plain_wheel: Wheel, project: dict[str, Any]) -> None:
    """`specgen` on the package index is another project: no page says to install that."""
    name = project["project"]["name"]
    assert name != "specgen"
    assert plain_wheel.metadata("METADATA")["Name"] == name
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    assert not [page.name for page in pages if "pip install specgen" in page.read_text("utf-8")]


def test_one_version(project: dict[str, Any]) -> None:
    """pyproject and the package tell the same version."""
    assert project["project"]["version"] == specgen.__version__
