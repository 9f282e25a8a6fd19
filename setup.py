"""Build of the compiled core; everything else about the package is in `pyproject.toml`.

    python setup.py build_ext --inplace        the core, beside its sources
    SIMVM_DEBUG=1 python setup.py build_ext    with bounds checks and C assertions

The core is one extension, `simvm._core`, compiled from `simvm/_core.pyx` and the headers in
`simvm/core/`. A digest of these sources is compiled in, so that a core older than its sources is
noticed when it is loaded (`simvm/core_check.py`) instead of answering in their name.
"""

import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import Cython
import numpy
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext  # derived from Cython's, which is installed

ROOT = Path(__file__).resolve().parent
DEBUG = os.environ.get("SIMVM_DEBUG", "0") not in ("", "0")

# One table for the module and for every header that it includes.
DIRECTIVES: dict[str, Any] = {
    "language_level": "3",
    "boundscheck": DEBUG,
    "wraparound": False,
    "cdivision": not DEBUG,
    "initializedcheck": DEBUG,
    "nonecheck": DEBUG,
    "overflowcheck": False,  # page numbers and random bits wrap on purpose
    "embedsignature": True,
}

# Neither -ffast-math nor -march=native: the same input gives the same bytes on any machine.
# A failing sqrt or log sets no errno here, so that they compile to instructions.
RELEASE_FLAGS = ["-O3", "-fno-math-errno"]
DEBUG_FLAGS = ["-O1", "-g", "-UNDEBUG", "-fno-math-errno"]


def core_sources_module() -> ModuleType:
    """`simvm/core_sources.py`, loaded by its path: the package is not importable in a build."""
    path = ROOT / "simvm" / "core_sources.py"
    spec = importlib.util.spec_from_file_location("core_sources", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


CORE_SOURCES = core_sources_module()
DIGEST = CORE_SOURCES.digest(ROOT / "simvm")


def core_extension() -> Extension:
    """The extension, with the headers that make it out of date."""
    macros: list[tuple[str, str | None]] = [("SIMVM_CORE_DIGEST", f'"{DIGEST}"')]
    if DEBUG:
        macros.append(("SIMVM_DEBUG", "1"))
    return Extension(
        "simvm._core",
        sources=["simvm/_core.pyx"],
        depends=[
            source.relative_to(ROOT).as_posix()
            for source in CORE_SOURCES.sources(ROOT / "simvm")
        ],
        include_dirs=[numpy.get_include(), "simvm"],
        define_macros=macros,
        extra_compile_args=DEBUG_FLAGS if DEBUG else RELEASE_FLAGS,
    )


class BuildCore(build_ext):
    """Keeps the C file out of the source tree and rebuilds when anything that counts changed."""

    def finalize_options(self) -> None:
        super().finalize_options()
        if self.inplace:  # an editable install and `build_ext --inplace` share one compilation
            self.build_temp = "build/core"
            self.build_lib = "build/core/lib"
        self.cython_c_in_temp = True
        self.cython_directives = DIRECTIVES

    def run(self) -> None:
        # File times alone miss a header that went away, a debug build after a release build, and
        # another Python, Cython or NumPy.
        flags = [repr(DIRECTIVES), *RELEASE_FLAGS, *DEBUG_FLAGS]
        tools = [sys.version, Cython.__version__, numpy.__version__]
        identity = "\n".join([DIGEST, *flags, *tools])
        record = Path(self.build_temp) / "core.identity"
        if not record.exists() or record.read_text(encoding="utf-8") != identity:
            self.force = True
        super().run()
        record.parent.mkdir(parents=True, exist_ok=True)
        record.write_text(identity, encoding="utf-8")


setup(ext_modules=[core_extension()], cmdclass={"build_ext": BuildCore})
