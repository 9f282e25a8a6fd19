"""README and docs, executed: every command, program and file that they show.

A page is run from top to bottom in a directory of its own, which holds a copy of the shipped
scenarios: TOML that names a file in its first line is written there and checked, commands run
and print what the page shows, programs run. What the scenarios print is compared in
test_scenarios.py, from one run of each.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from scenario_runs import ROOT, refresh

import simvm
from simvm import cli, errors, scenario, validation
from simvm.model.channels import CHANNELS
from simvm.model.policies import POLICIES
from simvm.results import HEADLINE
from simvm.workload.usage_import import import_usage

PAGES = ("README.md", "docs/index.md", "docs/scenario.md", "docs/results.md", "docs/trace.md",
         "docs/usage.md", "docs/design.md", "docs/translation.md", "docs/validation.md",
         "CONTRIBUTING.md", "CHANGELOG.md")  # fmt: skip
SHIPPED = tuple(f"scenarios/{name}.toml" for name in refresh().SCENARIOS)
NEEDS = {"docs/results.md": ("docs/scenario.md",)}
"""Pages that use files of other pages."""


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    language: str
    text: str
    line: int


def read(page: str) -> str:
    return (ROOT / page).read_text("utf-8")


def blocks(page: str) -> list[Block]:
    text = read(page)
    return [
        Block(found[1], found[2], text.count("\n", 0, found.start()) + 1)
        for found in re.finditer(r"^```(\S+)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    ]


def commands(block: Block) -> Iterator[tuple[str, str]]:
    """Each command of a console block, and what the page shows as its output."""
    for part in re.split(r"^\$ ", block.text, flags=re.MULTILINE)[1:]:
        command, _, output = part.partition("\n")
        yield command, output


def write_files(page: str, where: Path) -> list[Path]:
    """The files that a page shows: TOML under its name, the recording of trace.md, and tables,
    which are imported at once, since TOML names what comes of that."""
    written = []
    for block in blocks(page):
        named = re.match(r"# ([\w.-]+\.toml)\n", block.text)
        if block.language == "toml" and named:
            written.append(where / named[1])
            written[-1].write_text(block.text)
        elif table := re.match(r"# ([\w.-]+\.csv)\n", block.text):
            (where / table[1]).write_text(block.text)
            import_usage(where / table[1], where)
        elif block.language == "text" and all(
            re.fullmatch(r" [LSM] [0-9a-f]+,\d+", line) for line in block.text.splitlines()
        ):
            (where / "recording.lackey").write_text(block.text)
    return written


def shell(command: str, where: Path) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    variables = {"PATH": path, "PYTHONPATH": str(ROOT), "NO_COLOR": "1"}
    return subprocess.run(
        command, shell=True, cwd=where, env=os.environ | variables, capture_output=True,
        text=True, check=False,
    )  # fmt: skip


# --- what the pages show is run ---------------------------------------------------------


def test_every_block_says_what_it_is() -> None:
    known = {"console", "python", "toml", "text", "sh", "{toctree}"}
    for page in PAGES:
        fences = re.findall(r"^```", read(page), re.MULTILINE)
        assert len(fences) == 2 * len(blocks(page)), page
        assert {block.language for block in blocks(page)} <= known, page


@pytest.mark.parametrize("page", PAGES)
def test_the_page_does_what_it_shows(page: str, tmp_path: Path) -> None:
    shutil.copytree(ROOT / "scenarios", tmp_path / "scenarios")
    for other in (*NEEDS.get(page, ()), page):
        write_files(other, tmp_path)
    for block in blocks(page):
        where = f"{page}:{block.line}"
        if block.language == "python":
            done = subprocess.run(
                [sys.executable, "-"], input=block.text, cwd=tmp_path, capture_output=True,
                text=True, check=False, env=os.environ | {"PYTHONPATH": str(ROOT)},
            )  # fmt: skip
            assert done.returncode == 0, f"{where}: {done.stderr}"
        elif block.language == "console":
            for command, output in commands(block):
                if command.startswith("make ") or any(name in command for name in SHIPPED):
                    continue  # the targets, and the runs, have tests of their own
                assert command.startswith("python -m simvm "), where
                done = shell(command, tmp_path)
                assert "Traceback" not in done.stderr, f"{where}: {done.stderr}"
                assert done.stdout.strip(), f"{where}: {command}: {done.stderr}"
                if output:
                    assert done.stdout == output, f"{where}: {command}"


@pytest.mark.parametrize("page", PAGES)
def test_the_scenarios_that_a_page_shows_have_no_mistakes(page: str, tmp_path: Path) -> None:
    for file in write_files(page, tmp_path):
        if "inherits" in file.read_text():
            cpu = simvm.hardware.load_cpu(file)
            assert {"narrow": 5, "sv39": 3}[file.stem] == cpu.host_tables.levels
            assert {"narrow": 0, "sv39": 11}[file.stem] == cpu.host_tables.root_bits
        else:
            assert scenario.check(file) == []


def test_no_toml_of_a_page_goes_unchecked(tmp_path: Path) -> None:
    shown = sum(block.language == "toml" for page in PAGES for block in blocks(page))
    written = [file for page in PAGES for file in write_files(page, tmp_path)]
    assert shown == len(written) == len(set(written)) == 7


# --- what the pages say is so -----------------------------------------------------------


@pytest.mark.parametrize(("page", "name"), list(refresh().reference_blocks()))
def test_reference_tables_are_those_of_the_program(page: str, name: str) -> None:
    """`python -m docs.refresh --tables` rewrites them."""
    rendered = refresh().reference_blocks()[page, name]
    assert len(rendered) > 500
    assert refresh().block(read(page), name) == rendered


def test_what_validate_came_to_is_what_the_page_says() -> None:
    """`python -m docs.refresh --tables` rewrites it."""
    for (page, name), rendered in refresh().validated_blocks().items():
        assert refresh().block(read(page), name) == rendered


@pytest.mark.long
def test_rows_of_simulations_are_those_of_validate(full_size: bool) -> None:
    """All of the block where tests run at full size, else the rows that take a second.
    `python -m docs.refresh` rewrites it."""
    shown = refresh().block(read("docs/validation.md"), "rows")
    if full_size:
        assert shown == refresh().validation_block(validation.run())
    quick = refresh().validation_rows(validation.run(["backing_time", "zeroing_once"]))
    assert len(quick.splitlines()) >= 7
    assert set(quick.splitlines()) <= set(shown.splitlines())


def test_meanings_are_of_keys_that_exist() -> None:
    definitions = scenario.json_schema()["$defs"]
    for name in (*refresh().MEANINGS, *refresh().FILLED):
        model, key = name.split(".")
        assert key in definitions[model]["properties"], name


def test_the_command_table_lists_every_verb() -> None:
    listed = set(re.findall(r"`(\w+)(?= |`)", "\n".join(
        line.split("|")[1] for line in read("README.md").splitlines()
        if line.startswith("| `") and "python -m" not in line
    )))  # fmt: skip
    (verbs,) = (
        action for action in cli.parser()._actions
        if isinstance(action, argparse._SubParsersAction)
    )  # fmt: skip
    assert listed == set(verbs.choices)


def test_the_model_names_every_file_of_the_core() -> None:
    _, _, section = read("docs/design.md").partition("### The compiled core")
    named = re.findall(r"`(\w+\.(?:pxd|pxi|h))`", section)
    held = [
        path.name
        for path in (ROOT / "simvm/core").iterdir()
        if path.suffix in (".pxd", ".pxi", ".h")
    ]
    assert sorted(named) == sorted(set(held) - {"__init__.pxd"})


def test_the_make_targets_exist() -> None:
    text = "\n".join(read(page) for page in PAGES)
    named = set(re.findall(r"^\$ make ([\w-]+)|`make ([\w-]+)`", text, re.MULTILINE))
    targets = set(re.findall(r"^([\w-]+):", read("Makefile"), re.MULTILINE))
    assert {one or other for one, other in named} <= targets
    assert {"demo", "test", "docs"} <= targets


def test_the_exit_codes_are_those_of_the_program() -> None:
    listed = {int(code) for code in re.findall(r"^\| (\d+) \|", read("docs/results.md"), re.M)}
    assert listed == {value for name, value in vars(errors).items() if name.startswith("EXIT_")}


def test_the_summary_keys_are_those_of_a_run() -> None:
    rows = dict(re.findall(r"^\| (.+?) \| (`.+) \|$", read("docs/results.md"), re.MULTILINE))
    names = {of: set(re.findall(r"`(\w+)`", text)) for of, text in rows.items()}
    summary = small_run().summary
    (web,) = summary["classes"].values()
    guest = summary["guests"][0]
    assert set(summary["scenario"]) == names["`scenario`"]
    assert set(summary["host"]) == names["host"] | names["all"]
    assert set(web) == names["a class"] | names["all"]
    assert set(guest) == names["a guest"] | names["all"]
    opened, paced = {"requests", "latency_ns", "service_ns"}, {"late_ns"}
    assert set(guest["phases"][0]) == names["a phase"] - opened - paced
    assert set(guest["phases"][1]) == names["a phase"] - paced
    assert set(guest["regions"][0]) == names["a region"]


def test_the_headline_table_has_every_row() -> None:
    table = refresh().block(read("docs/results.md"), "headline")
    assert set(re.findall(r"^\| `(\w+)`", table, re.MULTILINE)) == set(HEADLINE)


def test_links_and_pictures_lead_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", read(page)):
            if not target.startswith("https://"):
                assert ((ROOT / page).parent / target).exists(), f"{page}: {target}"
    for target in re.findall(r"`((?:model|core)/[\w.]+)`", read("docs/design.md")):
        assert (ROOT / "simvm" / target).exists(), target


def test_pictures_are_small_and_whole() -> None:
    shown = {f"docs/images/{name}.svg" for name in refresh().IMAGES}
    for name in shown:
        assert name.removeprefix("docs/") in read("README.md").replace("docs/images", "images")
    for name in ("fidelity", "cost"):
        shown.add(f"docs/images/{name}.svg")
        assert f"images/{name}.svg" in read("docs/fidelity.md")
    assert shown == {str(path.relative_to(ROOT)) for path in (ROOT / "docs/images").iterdir()}
    for name in shown:
        assert (ROOT / name).stat().st_size < refresh().LARGEST_IMAGE
        assert ElementTree.parse(ROOT / name).getroot().tag == "{http://www.w3.org/2000/svg}svg"


def test_the_readme_is_short() -> None:
    assert len(read("README.md").splitlines()) < 250


# --- the examples of extension work -----------------------------------------------------

SMALL: dict[str, Any] = {
    "schema": 1,
    "scenario": {"name": "small", "duration": "work"},
    "host": {"cpu": "zen4", "cores": 4, "memory": 1 << 30, "page_size": 2 << 20},
    "guest": {"web": {
        "memory": 256 << 20, "vcpus": 2, "page_size": 2 << 20, "channel": {"kind": "passthrough"},
        "workload": [
            {"region": "heap", "allocate": 64 << 20, "pattern": {"kind": "uniform"},
             "accesses": 20_000, "write_fraction": 0.5},
            {"region": "heap", "name": "ask", "pattern": {"kind": "uniform"}, "rate": 10_000,
             "accesses_per_request": 100, "duration": 2_000_000},
        ],
    }},
}  # fmt: skip
SWAP = {
    "scenario.seed": 1, "host.swap.device": "nvme", "host.swap.size": 1 << 30,
    "host.memory": 512 << 20, "guest.web.memory": 512 << 20, "guest.web.memory_max": 512 << 20,
    "guest.web.page_size": 4096,
    "host.page_size": 4096, "guest.web.workload.heap.allocate": 384 << 20,
    "guest.web.workload.heap.accesses": 200_000,
}  # fmt: skip


def small_run(**changes: Any) -> Any:
    return simvm.run(scenario.with_values(scenario.Scenario.model_validate(SMALL), changes))


def example(word: str) -> str:
    (found,) = (
        block.text for block in blocks("docs/design.md")
        if block.language == "python" and word in block.text
    )  # fmt: skip
    return found


@pytest.fixture
def large_ranges() -> Iterator[None]:
    """The channel of the page, for one test."""
    exec(example("register("), {"__name__": "example"})
    yield
    del CHANNELS["large_ranges"], scenario.ChannelSettings.kinds["large_ranges"]


@pytest.mark.usefixtures("large_ranges")
def test_the_channel_of_the_page_makes_fewer_calls() -> None:
    """Pages of 4 KiB, touched at random, lie one by one: all go back, or hardly any, or none.
    The 64 MiB in pages of 2 MiB are 32 ranges of the default size or more."""
    def calls(page: int, **least: int) -> tuple[int, int]:
        settings = {f"guest.web.channel.{key}": value for key, value in least.items()}
        totals = small_run(**{
            "guest.web.page_size": page, "guest.web.workload.ask.free": "all",
            "guest.web.channel.kind": "large_ranges", **settings,
        }).summary["host"]["totals"]  # fmt: skip
        return totals["hint_calls"], totals["hint_ns"]

    every, some = calls(4096, at_least=4096), calls(4096, at_least=8192)
    assert every[0] > 5000 > some[0] > 0
    assert every[1] > some[1] > 0
    assert calls(4096) == (0, 0)
    assert calls(2 << 20)[0] == 32


SIXTH = """
schema = 1
[scenario]
name = "sixth"
[host]
cpu = "zen4"
cores = 4
memory = "1GiB"
[guest.web]
memory = "256MiB"
channel = { kind = "large_ranges", at_least = "4MiB" }
[[guest.web.workload]]
region = "heap"
allocate = "64MiB"
pattern = { kind = "uniform" }
accesses = 1000
[variant.all]
"guest.web.channel.at_least" = "4KiB"
[variant.none]
"guest.web.channel.kind" = "none"
"""


@pytest.mark.usefixtures("large_ranges")
def test_scenarios_know_the_channel_of_the_page(tmp_path: Path) -> None:
    file = tmp_path / "sixth.toml"
    file.write_text(SIXTH)
    found = scenario.variants(file)
    settings = {name: run.guests["web"].channel for name, run in found.items()}
    assert settings["base"].model_dump() == {"kind": "large_ranges", "at_least": 4 << 20}
    assert settings["all"].model_dump() == {"kind": "large_ranges", "at_least": 4096}
    assert settings["none"].model_dump() == {"kind": "none"}
    shown = {path: (text, origin) for path, text, origin in scenario.show(file)}
    assert shown["guest.web.channel.at_least"] == ('"4MiB"', "file")
    again = tmp_path / "again.toml"
    again.write_text(scenario.to_toml(found["base"]))
    assert scenario.load(again) == found["base"]
    assert scenario.digest(scenario.load(again)) == scenario.digest(found["base"])
    assert scenario.digest(found["all"]) != scenario.digest(found["base"])
    model = scenario.json_schema()["$defs"]["LargeRangesSettings"]
    assert model["properties"]["at_least"]["default"] == 2 << 20
    file.write_text(SIXTH.replace("at_least = ", "at_leats = "))
    (wrong,) = scenario.check(file)
    assert (wrong.key, wrong.fix) == ("guest.web.channel.at_leats", "did you mean 'at_least'?")
    file.write_text(SIXTH.replace('"large_ranges"', '"large_range"'))
    (wrong,) = scenario.check(file)
    assert (wrong.key, wrong.fix) == ("guest.web.channel.kind", "did you mean 'large_ranges'?")


def test_the_policy_of_the_page_evicts_blindly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(POLICIES, "lru", POLICIES["lru"])
    before = small_run(**SWAP).summary["host"]["totals"]
    exec(example("POLICIES"), {"__name__": "example"})
    after = small_run(**SWAP).summary["host"]["totals"]
    assert min(before["swap_outs"], after["swap_outs"]) > 0
    assert after["folios_scanned"] == after["folios_reclaimed"]
    assert before["folios_scanned"] > before["folios_reclaimed"]
