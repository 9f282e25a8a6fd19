"""The command line: verbs, streams, exit codes."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from simvm import __version__, cli
from simvm.errors import CoreMissing, InvalidInput, Mistake, SimulationFailed

SMALL = """
schema = 1
[scenario]
name = "small"
sample_interval = "1ms"
[host]
cpu = "zen4"
cores = 2
memory = "1GiB"
[guest.web]
memory = "64MiB"
[[guest.web.workload]]
region = "heap"
allocate = "8MiB"
pattern = { kind = "uniform" }
accesses = "20k"
[variant.thp]
"guest.web.page_size" = "2MiB"
"""

BAD = SMALL.replace('"64MiB"', '"64MB"').replace("cores = 2", "cores = 0")


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small.toml").write_text(SMALL)
    (tmp_path / "bad.toml").write_text(BAD)
    return "small.toml"


def run(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str, str]:
    code = cli.main(argv)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


# --- check, show ------------------------------------------------------------------------


def test_check_of_a_good_file(small: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "check", small) == (0, "small.toml: no mistakes in base, thp\n", "")
    code, out, err = run(capsys, "check", small, "--format", "json")
    assert (code, err) == (0, "")
    assert json.loads(out) == {"file": "small.toml", "mistakes": []}


def test_check_lists_all_mistakes(small: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "check", "bad.toml")
    assert code == 3
    assert out.splitlines() == [
        "bad.toml: 2 mistakes",
        "  host.cores = 0",
        "    rule: must be more than 0",
        "    fix:  write 1 or more",
        '  guest.web.memory = "64MB"',
        "    rule: has the unit 'MB', which is none of B, KiB, MiB, GiB, TiB",
        '    fix:  write MiB: "64MiB"',
    ]
    code, out, _ = run(capsys, "check", "bad.toml", "--format", "json")
    assert code == 3
    found = json.loads(out)["mistakes"]
    assert [mistake["key"] for mistake in found] == ["host.cores", "guest.web.memory"]
    assert set(found[0]) == {"file", "key", "value", "rule", "fix"}


def test_check_takes_settings(small: str, capsys: pytest.CaptureFixture[str]) -> None:
    settings = ("--set", "host.cores=2", "--set", "guest.web.memory=64MiB")
    assert run(capsys, "check", "bad.toml", *settings)[0] == 0
    code, out, _ = run(capsys, "check", small, "--set", "host.cors=2")
    assert code == 3
    assert "did you mean 'cores'" in out


def test_show(small: str, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ("show", small, "--variant", "thp", "--set", "host.cores=3")
    code, out, _ = run(capsys, *argv, "--format", "json")
    assert code == 0
    rows = {row["key"]: (row["value"], row["origin"]) for row in json.loads(out)}
    assert rows["host.cores"] == ("3", "--set")
    assert rows["guest.web.page_size"] == ('"2MiB"', "variant thp")
    code, out, _ = run(capsys, *argv)
    assert code == 0
    assert "variant thp" in out
    code, out, _ = run(capsys, *argv, "--format", "toml")
    Path("again.toml").write_text(out)
    assert run(capsys, "check", "again.toml")[0] == 0
    assert 'page_size = "2MiB"' in out


def test_show_of_a_bad_file_goes_to_stderr(small: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "show", "bad.toml")
    assert (code, out) == (3, "")
    assert "host.cores" in err


# --- scenario, report -------------------------------------------------------------------


def test_a_scenario_runs_and_compares(small: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "scenario", small)
    assert code == 0
    assert "slowdown" in out
    assert "thp" in out
    assert "runs" not in out
    assert err == f"report: {Path('runs/small/report.html')}\n"  # and no progress
    directory = Path("runs/small")
    for variant in ("base", "thp"):
        names = {path.name for path in (directory / variant).iterdir()}
        assert names == {"manifest.json", "scenario.toml", "timeline.parquet", "summary.json"}
    assert (directory / "report.html").exists()
    code, out, err = run(capsys, "report", str(directory), "--format", "json", "--quiet")
    assert (code, err) == (0, "")
    assert json.loads(out) == json.loads((directory / "summary.json").read_text())


def test_options_of_a_scenario(small: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(
        capsys, "scenario", small, "--out", "here", "--seed", "9", "--variant", "thp",
        "--set", "guest.web.workload.heap.accesses=1k", "--format", "json", "--quiet",
    )  # fmt: skip
    assert (code, err) == (0, "")
    assert list(json.loads(out)["variants"]) == ["thp"]
    manifest = json.loads(Path("here/thp/manifest.json").read_text())
    assert manifest["seed"] == 9
    written = Path("here/thp/scenario.toml").read_text()
    assert "accesses = 1000" in written
    assert run(capsys, "check", "here/thp/scenario.toml")[0] == 0


def test_an_invalid_scenario_writes_nothing(small: str, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(Path().iterdir())
    code, out, err = run(capsys, "scenario", "bad.toml")
    assert (code, out) == (3, "")
    assert "bad.toml: 2 mistakes" in err
    code, _, err = run(capsys, "scenario", small, "--variant", "htp")
    assert code == 3
    assert "did you mean 'thp'" in err
    assert sorted(Path().iterdir()) == before


def test_what_is_not_a_run_is_not_overwritten(
    small: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("mine").mkdir()
    Path("mine/letter.txt").write_text("dear")
    code, out, err = run(capsys, "scenario", small, "--out", "mine")
    assert (code, out) == (3, "")
    assert "letter.txt" in err
    assert run(capsys, "report", "mine")[0] == 3


def test_an_expectation_that_fails_is_exit_1(
    small: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path(small).write_text(SMALL + '[expect]\n"guest.web.slowdown" = "< 0.5"\n')
    code, out, err = run(capsys, "scenario", small, "--format", "json", "--variant", "base")
    assert code == 1
    assert json.loads(out)["variants"]["base"]["slowdown"] > 0.5
    assert "guest.web.slowdown is" in err
    assert Path("runs/small/report.html").exists()


# --- the other verbs --------------------------------------------------------------------


def test_walk(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "walk", "--guest", "1GiB", "--host", "2MiB", "--format", "json")
    answer = json.loads(out)
    assert (code, answer["loads"], answer["tlb_entry"]) == (0, 11, "2MiB")
    assert len(answer["addresses"]) == 11
    code, out, _ = run(capsys, "walk", "--guest", "1GiB", "--host", "2MiB")
    assert code == 0
    assert "11 loads; the TLB entry covers 2MiB" in out
    argv = ("walk", "--virtualization", "none", "--host", "1GiB", "--format", "json")
    assert json.loads(run(capsys, *argv)[1])["loads"] == 2
    argv = ("walk", "--guest", "4KiB", "--guest-format", "sv39", "--host", "4KiB", "--host-format",
            "sv39x4", "--contiguous", "--format", "json")  # fmt: skip
    code, out, _ = run(capsys, *argv)
    answer = json.loads(out)
    assert (code, answer["loads"], answer["tlb_entry"]) == (0, 15, "64KiB")
    assert answer["host_format"]["root_tables"] == 4
    argv = ("walk", "--guest", "16KiB", "--guest-granule", "16KiB", "--guest-levels", "4",
            "--host", "64KiB", "--host-granule", "64KiB", "--host-levels", "5",
            "--host-root-tables", "16")  # fmt: skip
    code, out, err = run(capsys, *argv)
    assert (code, out) == (3, "")
    assert "2 mistakes" in err  # both reach too far
    assert run(capsys, "walk", "--host", "1GiB")[0] == 2
    assert run(capsys, "walk", "--guest", "3GiB", "--host", "1GiB")[0] == 3


def test_hardware_list(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "hardware", "list", "--format", "json")
    assert code == 0
    cpus = {cpu["name"]: cpu for cpu in json.loads(out)}
    assert cpus["zen4"]["l2"] == ["4KiB 3072/8", "2MiB 3072/6", "1GiB 64/full"]
    assert cpus["zen2"]["smash"]
    assert cpus["neoverse_n1"]["host_levels"] == 3
    code, out, _ = run(capsys, "hardware", "list")
    assert code == 0
    for text in (*cpus, "2.45", "4+3", "4K+2M+1G 16/full stores", "1G as 2M"):
        assert text in out
    assert "…" not in out


def test_hardware_show(capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("zen4", "costs"):
        code, out, _ = run(capsys, "hardware", "show", name, "--format", "json")
        assert code == 0
        assert all(row["source"] and row["unit"] and row["tag"] for row in json.loads(out))
        assert run(capsys, "hardware", "show", name)[0] == 0
    out = run(capsys, "hardware", "show", "zen2")[1]
    assert re.search(r"l2\.2MiB\.policy +lru +choice +assumed", out)
    assert re.search(r"smash +yes +choice +sec", out)
    assert re.search(r"nested_tlb\.entries +16 +entries +0 to 64 +range", out)
    code, _, err = run(capsys, "hardware", "show", "zen33")
    assert code == 3
    assert "did you mean 'zen3'" in err


def test_hardware_cite(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "hardware", "cite", "zen2", "costs")
    assert code == 0
    assert "% zen2.l2.4KiB.entries = 2048 entries: \\cite{zen2_tlb}, raw\n" in out
    assert "\n@misc{zen2_tlb,\n" in out
    assert "% costs.zap_4k: a range, 50 to 500 ns (nominal 158): no figure\n" in out
    assert "zen3" not in out
    code, out, _ = run(capsys, "hardware", "cite", "--format", "json")
    assert code == 0
    data = json.loads(out)
    keys = {source["key"] for source in data["sources"]}
    assert {"zen2_tlb", "sagepte", "hyperalloc"} <= keys
    assert {figure["source"] for figure in data["figures"]} - {None} == keys
    code, _, err = run(capsys, "hardware", "cite", "zen2", "zen33")
    assert code == 3
    assert "did you mean 'zen3'" in err


RECORDING = "==1== Command: prog\n" + "".join(
    f" {'LS'[i % 2]} {0x100000 + 4096 * (i % 50):08x},8\n" for i in range(1000)
)


def test_traces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("rec.txt").write_text(RECORDING)
    code, out, err = run(capsys, "trace", "import", "rec.txt", "--limit", "500")
    assert code == 0
    assert "500" in out
    assert "runs" not in out
    trace = Path("runs/rec.txt.simvm-trace")
    assert str(trace) in err
    code, out, _ = run(capsys, "trace", "info", str(trace), "--format", "json")
    assert code == 0
    assert json.loads(out)["distinct_4k_pages"] == 50
    assert run(capsys, "trace", "info", str(trace))[0] == 0
    assert run(capsys, "trace", "info", "rec.txt")[0] == 3
    assert run(capsys, "trace", "import", "rec.txt", "--limit", "many")[0] == 2


# --- errors -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "argv", [(), ("fly",), ("check",), ("scenario", "a", "--seed", "-1"),
             ("scenario", "a", "--format", "xml"), ("trace",), ("bench", "--only", "x")]
)  # fmt: skip
def test_usage(argv: Sequence[str], capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, *argv)
    assert (code, out) == (2, "")
    assert "usage: simvm" in err


def test_help_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "--version") == (0, f"simvm {__version__}\n", "")
    code, out, _ = run(capsys, "--help")
    assert code == 0
    for verb in ("scenario", "check", "show", "report", "trace", "hardware", "walk", "validate"):
        assert verb in out


def test_validate_prints_each_note_once_below_its_rows(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    row = {
        "target": "loads", "published": 1.5, "simulated": 2.0, "error": 1 / 3, "tolerance": 0.1,
        "within": False, "measure": "relative", "source": "s", "class": "predicted",
        "inputs": ["reach"], "note": "far",
    }  # fmt: skip
    order = {"published": "a > b", "simulated": "b > a", "error": 1, "tolerance": "direction"}
    rows = [
        row, {**row, "note": "", "within": True}, {**row, "target": "other"},
        {**row, **order, "measure": "pairs"}, {**row, "class": "identity", "within": True},
    ]  # fmt: skip
    monkeypatch.setattr("simvm.validation.run", lambda **_: rows)
    code, out, _ = run(capsys, "validate")
    assert code == 0
    assert out.count("far") == out.count("reach") == 1
    assert "n1: far" in out
    assert "i1: reach" in out
    assert "+33.33%" in out
    assert re.search(r"a > b +b > a +1 pairs +direction +no", out)
    out_headline = out.splitlines()[0]
    assert out_headline.startswith("1 of 4 predicted rows are within their tolerance")
    code, out, _ = run(capsys, "validate", "--format", "json")
    answer = json.loads(out)
    assert answer["rows"] == rows
    assert answer["counts"] == {
        "identity": {"rows": 1, "within": 1},
        "calibrated": {"rows": 0, "within": 0},
        "predicted": {"rows": 4, "within": 1},
    }
    assert answer["headline"] == out_headline


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_completion(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "--print-completion", shell)
    assert code == 0
    assert "scenario" in out


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (KeyboardInterrupt(), 130, "interrupted"),
        (InvalidInput([Mistake("f", "k", "v", "r", "x")]), 3, "f: 1 mistake\n  k = v\n"),
        (SimulationFailed("the ledger does not balance"), 4, "does not balance"),
        (CoreMissing("run `make build`"), 4, "make build"),
        (OSError(28, "No space left on device"), 4, "No space left"),
        (RuntimeError("odd"), 4, "defect"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_exceptions_become_exit_codes(
    error: BaseException, code: int, message: str,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr("simvm.scenario.check", fail)
    found, out, err = run(capsys, "check", "x.toml")
    assert (found, out) == (code, "")
    assert message in err
    assert ("Traceback" in err) == isinstance(error, RuntimeError) or code == 4


def shell(*argv: str, prelude: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    """A command line in a process of its own, after `prelude`."""
    program = f"{prelude}\nimport sys\nfrom simvm.cli import main\nsys.exit(main(sys.argv[1:]))"
    root = str(Path(__file__).resolve().parents[1])
    return subprocess.run(
        [sys.executable, "-c", program, *argv], capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": root, **environment}, timeout=60,
    )  # fmt: skip


def test_checking_needs_no_compiled_core(small: str) -> None:
    without = "import sys\nsys.modules['simvm._core'] = None"
    done = shell("check", small, prelude=without)
    assert (done.returncode, done.stderr) == (0, "")
    done = shell("scenario", small, prelude=without)
    assert done.returncode == 4
    assert "make build" in done.stderr or "pip install" in done.stderr
    assert "Traceback" not in done.stderr
    assert not Path("runs").exists()


def test_checking_loads_neither_the_simulation_nor_the_charts(small: str) -> None:
    code = (
        "import sys\nfrom simvm.cli import main\n"
        f"main(['check', {small!r}])\n"
        "print([m for m in ('simpy', 'simvm._core', 'altair', 'pyarrow') if m in sys.modules])"
    )
    root = str(Path(__file__).resolve().parents[1])
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True,
        env={**os.environ, "PYTHONPATH": root},
    )  # fmt: skip
    assert done.stdout.splitlines()[-1] == "[]"


def test_a_reader_that_leaves_is_no_error(small: str) -> None:
    # The pipe is closed before anything is written to it.
    prelude = "import os, sys\nread, write = os.pipe()\nos.close(read)\nos.dup2(write, 1)"
    done = shell("show", small, prelude=prelude)
    assert done.returncode == cli.EXIT_SIGPIPE
    assert done.stderr == ""


def test_no_colour_without_a_terminal(small: str) -> None:
    done = shell("show", small)
    assert done.returncode == 0
    assert "scenario.seed" in done.stdout
    assert "\x1b" not in done.stdout + done.stderr


def test_the_package_runs_as_a_module() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "simvm", "--version"], capture_output=True, text=True, check=True,
        cwd=Path(__file__).resolve().parents[1],
    )  # fmt: skip
    assert done.stdout == f"simvm {__version__}\n"
