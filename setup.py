"""What pyproject.toml cannot say: how the kernels are compiled, and how a wheel with them is named.

The kernels are a plain shared library that core/compiled.py loads with ctypes. It knows
nothing of Python, so one file serves every version of it.
"""

from __future__ import annotations

import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

KERNELS = Extension(
    "specgen.core.llama._kernels",
    sources=["kernels/kernels.cpp"],
    depends=sorted(path.as_posix() for path in Path("kernels").glob("*.h")),
    # Sums and products are fused only where the code says so; gcc warns of its own headers when
    # it optimizes; `make lint` compiles without that and with all warnings.
    extra_compile_args=["-std=c++17", "-O3", "-ffp-contract=off", "-g0", "-w"],
    language="c++",
    optional=True,  # without a compiler llama.cpp's own kernels do all the work
)


class BuildLibrary(build_ext):
    """Compiles a shared library that is not a module of one version of Python."""

    def get_ext_filename(self, fullname: str) -> str:
        """The file's path in the package, without Python's version in its name."""
        return str(Path(*fullname.split("."))) + ".so"


class TaggedByContent(bdist_wheel):
    """A wheel for any Python 3: for one platform if a library is in it, else for all."""

    def get_tag(self) -> tuple[str, str, str]:
        """The tags of Python, ABI and platform. Asked for when all files are in place."""
        self.root_is_pure = not any(Path(self.bdist_dir).rglob("*.so"))
        _, _, platform = super().get_tag()
        return "py3", "none", platform


setup(
    # The kernels build on the names that gcc and clang give to C++ functions; Microsoft's differ.
    ext_modules=[] if sys.platform == "win32" else [KERNELS],
    cmdclass={"build_ext": BuildLibrary, "bdist_wheel": TaggedByContent},
)
