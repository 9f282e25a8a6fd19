"""A missing or stale core is an error that says what to do, and the suite runs on the right one."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from simvm import core_sources
from simvm.core_check import PACKAGE, load_core

LOAD = "from simvm.core_check import load_core; load_core(); print('loaded')"


@pytest.fixture
def copied_package(tmp_path: Path) -> Path:
    """The modules that loading the core takes, with its sources and the compiled core."""
    package = tmp_path / "simvm"
    package.mkdir()
    compiled = Path(load_core().__file__ or "")
    names = ("__init__", "core_check", "core_sources", "errors")
    modules = [PACKAGE / f"{name}.py" for name in names]
    for path in [*modules, *core_sources.sources(PACKAGE), compiled]:
        target = package / path.relative_to(PACKAGE)
        target.parent.mkdir(exist_ok=True)
        shutil.copy(path, target)
    return package


def load_in(package: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", LOAD],
        cwd=package.parent,
        env={**os.environ, "PYTHONPATH": str(package.parent)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_suite_runs_on_the_core_of_these_sources() -> None:
    core = load_core()
    assert Path(core.__file__ or "").parent == Path(__file__).resolve().parents[1] / "simvm"
    assert core.debug_build() == (os.environ.get("SIMVM_DEBUG", "0") not in ("", "0"))


def test_a_copy_of_the_core_with_its_sources_loads(copied_package: Path) -> None:
    done = load_in(copied_package)
    assert (done.returncode, done.stdout) == (0, "loaded\n"), done.stderr


def test_an_installed_core_without_its_sources_loads(copied_package: Path) -> None:
    for path in core_sources.sources(copied_package):
        path.unlink()
    done = load_in(copied_package)
    assert (done.returncode, done.stdout) == (0, "loaded\n"), done.stderr


def test_a_missing_core_is_refused_with_the_command_that_mends_it(copied_package: Path) -> None:
    for path in copied_package.glob("_core*.so"):
        path.unlink()
    done = load_in(copied_package)
    assert done.returncode != 0
    assert "CoreMissing: the compiled core cannot be loaded" in done.stderr
    assert "run `pip install --force-reinstall .`" in done.stderr


def test_a_missing_core_of_a_checkout_is_mended_there(copied_package: Path) -> None:
    for path in copied_package.glob("_core*.so"):
        path.unlink()
    (copied_package.parent / "setup.py").touch()
    done = load_in(copied_package)
    assert f"run `make build` in {copied_package.parent}" in done.stderr


def test_a_core_that_cannot_be_loaded_is_refused(copied_package: Path) -> None:
    for path in copied_package.glob("_core*.so"):
        path.unlink()  # the file may be mapped by the process that copied it
        path.write_bytes(b"no shared object")
    done = load_in(copied_package)
    assert done.returncode != 0
    assert "CoreMissing: the compiled core cannot be loaded" in done.stderr


@pytest.mark.parametrize("change", ["edited", "added", "removed"])
def test_a_core_older_than_its_sources_is_refused(copied_package: Path, change: str) -> None:
    header = next(copied_package.glob("core/*.pxd"))
    if change == "edited":
        header.write_text(header.read_text(encoding="utf-8") + "\n# changed\n", encoding="utf-8")
    elif change == "added":
        (copied_package / "core" / "added.pxd").touch()
    else:
        header.unlink()
    done = load_in(copied_package)
    assert done.returncode != 0
    assert "CoreMissing: " in done.stderr
    assert "is stale, its sources have changed since; run `pip install" in done.stderr


def test_the_digest_is_of_names_and_contents(tmp_path: Path) -> None:
    (tmp_path / "core").mkdir()
    (tmp_path / "_core.pyx").write_text("a")
    (tmp_path / "core" / "x.pxd").write_text("b")
    first = core_sources.digest(tmp_path)
    os.utime(tmp_path / "_core.pyx", (0, 0))
    (tmp_path / "core" / "notes.txt").write_text("not compiled")
    assert core_sources.digest(tmp_path) == first
    (tmp_path / "core" / "x.pxd").rename(tmp_path / "core" / "y.pxd")
    assert core_sources.digest(tmp_path) != first
