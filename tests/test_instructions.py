"""`benchmarks/instructions.py`: what counts as a rise, what is compared, that counting works."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from simvm.bench import throughput
from simvm.core_check import load_core

SCRIPT = Path(__file__).resolve().parents[1] / "benchmarks" / "instructions.py"
BUILT = {"compiler": "GCC: (Here) 12.2.0", "machine": "x86_64"}
BEFORE = {"hot/native 4K": 40.0, "uniform/nested 4K+4K": 1000.0}


def load_script() -> ModuleType:
    specification = importlib.util.spec_from_file_location("instructions", SCRIPT)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


instructions = load_script()


def entry(counts: dict[str, float], **changes: str) -> dict[str, Any]:
    return {"version": "0.9.0", **BUILT, "counts": counts, **changes}


def test_a_made_up_rise_fails(capsys: pytest.CaptureFixture[str]) -> None:
    risen = {"hot/native 4K": 40.0 * 1.051, "uniform/nested 4K+4K": 1000.0}
    assert instructions.report(risen, [entry(BEFORE)], BUILT) == 1
    told = capsys.readouterr().out
    (line,) = [line for line in told.splitlines() if line.endswith("rose")]
    assert line.split() == ["hot/native", "4K", "40.00", "42.04", "+5.1%", "rose"]
    assert "1 of 2 cases rose by more than 5% since version 0.9.0" in told


@pytest.mark.parametrize("factor", [1.049, 1.0, 0.5])
def test_a_small_rise_and_a_fall_pass(
    factor: float, capsys: pytest.CaptureFixture[str]
) -> None:
    now = {case: value * factor for case, value in BEFORE.items()}
    assert instructions.report(now, [entry(BEFORE)], BUILT) == 0
    assert "no case rose" in capsys.readouterr().out


def test_the_newest_entry_of_the_same_compiler_counts() -> None:
    older, newer = entry({"hot/native 4K": 80.0}), entry(BEFORE)
    foreign = entry({"hot/native 4K": 1.0}, compiler="clang version 19")
    assert instructions.last([older, newer, foreign], BUILT) is newer
    assert instructions.report(BEFORE, [newer, older], BUILT) == 0
    assert instructions.report(BEFORE, [newer, entry({"hot/native 4K": 20.0})], BUILT) == 1


def test_another_compiler_is_compared_with_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    foreign = entry({"hot/native 4K": 1.0}, compiler="clang version 19")
    assert instructions.report(BEFORE, [foreign], BUILT) == 0
    told = capsys.readouterr().out
    assert "nothing compared: the record has clang version 19, x86_64" in told
    assert "uniform/nested 4K+4K" in told
    assert instructions.report(BEFORE, [], BUILT) == 0
    assert "nothing compared: the record has no entry" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("binary", "compiler"),
    [
        (b"x\0GCC: (Debian 12.2.0-14) 12.2.0\0y", "GCC: (Debian 12.2.0-14) 12.2.0"),
        (b"\0GCC: (A) 13\0\0Debian clang version 19.1.7 (3)\0", "Debian clang version 19.1.7 (3)"),
        (b"stripped", "unknown"),
    ],
)
def test_the_core_says_who_compiled_it(binary: bytes, compiler: str) -> None:
    assert instructions._compiler(binary) == compiler


def test_recording_adds_an_entry(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    record = tmp_path / "instructions.json"
    monkeypatch.setattr(instructions, "ROOT", tmp_path)
    monkeypatch.setattr(instructions, "RECORD", record)
    monkeypatch.setattr(instructions, "build", lambda: BUILT)
    for factor, arguments, code in (
        (1.0, ["--record"], 0), (2.0, [], 1), (2.0, ["--record"], 0), (2.0, [], 0),
    ):  # fmt: skip
        now = {case: value * factor for case, value in BEFORE.items()}
        monkeypatch.setattr(instructions, "count", lambda cases, now=now: now)
        assert instructions.main(arguments) == code
    history = json.loads(record.read_text())
    assert [old["counts"]["hot/native 4K"] for old in history] == [40.0, 80.0]
    assert "recorded in instructions.json" in capsys.readouterr().out


def test_what_cannot_be_counted_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(instructions, "build", lambda: BUILT)
    assert instructions.main(["--case", "hott"]) == 2
    assert "'hot'" in capsys.readouterr().err
    monkeypatch.setattr(instructions, "_make_marks", lambda folder: None)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert instructions.main(["--case", "hot"]) == 2
    assert "valgrind is not installed" in capsys.readouterr().err


def test_the_record_is_of_every_case() -> None:
    history = json.loads(instructions.RECORD.read_text())
    cases = {"/".join(case) for case in throughput.choose([])}
    assert set(history[-1]) == {"version", "compiler", "machine", "counts"}
    assert set(history[-1]["counts"]) == cases


def test_instructions_are_those_of_the_core() -> None:
    if shutil.which("valgrind") is None:
        pytest.skip("valgrind is not installed")
    if load_core().debug_build():
        with pytest.raises(instructions.CannotCount, match="debug build"):
            instructions.build()
        return
    hot, uniform = (f"{name}/nested 1G+2M" for name in ("hot", "uniform"))
    counts = instructions.count([hot, uniform], 5_000)
    assert list(counts) == [hot, uniform]
    # No access takes fewer than a look at one set, and one that misses takes a walk on top.
    assert 5 < counts[hot] < counts[uniform] < 5_000
