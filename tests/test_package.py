"""The package as a whole: one version, light imports, and data that is installed with it."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import simvm

ROOT = Path(__file__).resolve().parents[1]


def loaded_after(statement: str) -> set[str]:
    """The top-level modules that a fresh interpreter holds after `statement`."""
    code = f"import json, sys; {statement}; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return set(json.loads(done.stdout))


def test_changelog_and_citation_name_the_version() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    headings = re.findall(r"^## \[(\d+\.\d+\.\d+)\]", changelog, re.MULTILINE)
    assert headings[0] == simvm.__version__
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert re.findall(r"^version: (.+)$", citation, re.MULTILINE) == [simvm.__version__]


def test_importing_simvm_imports_nothing_heavy() -> None:
    loaded = loaded_after("import simvm")
    assert not loaded & {"numpy", "simpy", "pydantic", "pyarrow", "altair", "simvm._core"}


def test_scenarios_are_checked_without_a_core_or_an_event_queue() -> None:
    loaded = loaded_after("import simvm; simvm.load")
    assert "simvm.scenario" in loaded
    assert not loaded & {"simpy", "simvm._core", "altair", "vl_convert"}


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'lode'"):
        simvm.lode  # noqa: B018
    assert {"load", "run", "__version__"} <= set(dir(simvm))


def test_every_file_of_the_package_is_installed(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "setup.py", "--quiet", "build_py", "--build-lib", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    left_out = {".so", ".pyc"}
    expected = {
        path.relative_to(ROOT)
        for path in (ROOT / "simvm").rglob("*")
        if path.is_file() and path.suffix not in left_out
    }
    installed = {path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file()}
    assert installed == expected
