"""Puts real numbers, tables and pictures into README.md and the pages of docs/.

    python -m docs.refresh              run the scenarios and `validate`, rewrite everything
    python -m docs.refresh --tables     the tables alone, without the scenarios

A block that this program owns stands between ``<!-- begin NAME -->`` and
``<!-- end NAME -->``. tests/test_docs.py and tests/test_scenarios.py render the same blocks
and compare, so a page cannot say what the program does not do.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from docs.findings import findings, worked_example
from simvm import validation
from simvm.columns import COUNTERS, GAUGES, KEYS, RATIOS, Column
from simvm.hardware.formats import FORMATS, leaf_bytes, root_bytes
from simvm.report import cost as cost_chart
from simvm.report import fidelity
from simvm.report.labels import METRICS
from simvm.results import Timeline, read_json
from simvm.scenario import json_schema
from simvm.units import format_bytes, format_ns
from simvm.validation import cost

ROOT = Path(__file__).resolve().parents[1]
LONG = ("fleet_day",)
"""Scenarios that take many minutes; tests/test_scenario_fleet.py runs a part of each."""

SCENARIOS = tuple(
    sorted({path.stem for path in (ROOT / "scenarios").glob("*.toml")}.difference(LONG))
)
IMAGES = {
    "passthrough-tradeoff": ("passthrough", "tradeoff"),
    "passthrough-footprint": ("passthrough", "footprint"),
    "overcommit-slowdown": ("overcommit", "slowdown"),
}
FIDELITIES = ROOT / "docs" / "fidelity.json"
"""What `python -m simvm validate --fidelity --jobs 2 --out docs/fidelity.json` has written."""

LARGEST_IMAGE = 300_000


# --- blocks -----------------------------------------------------------------------------


def block_pattern(name: str) -> re.Pattern[str]:
    """What finds the block of a name in a page."""
    return re.compile(rf"(<!-- begin {name} -->\n)(.*?)(<!-- end {name} -->)", re.DOTALL)


def block(text: str, name: str) -> str:
    """What stands in a block. KeyError when the page has none of that name."""
    found = block_pattern(name).search(text)
    if found is None:
        raise KeyError(name)
    return found[2]


def with_block(text: str, name: str, content: str) -> str:
    """The page with the block's content replaced."""
    block(text, name)
    return block_pattern(name).sub(lambda found: found[1] + content + found[3], text)


# --- runs -------------------------------------------------------------------------------


class Runs:
    """The results of the scenarios, in the run directories below one directory."""

    def __init__(self, directory: Path, answers: dict[str, str]) -> None:
        self.directory = directory
        self.answers = answers
        """What each command printed on stdout."""

    @functools.cache  # noqa: B019 (one object a process)
    def comparison(self, scenario: str) -> dict[str, dict[str, Any]]:
        """The headline of each variant."""
        variants: dict[str, dict[str, Any]] = read_json(
            self.directory / scenario / "summary.json"
        )["variants"]
        return variants

    @functools.cache  # noqa: B019
    def summary(self, scenario: str, variant: str) -> dict[str, Any]:
        """The summary of one run."""
        return read_json(self.directory / scenario / variant / "summary.json")

    @functools.cache  # noqa: B019
    def host(self, scenario: str, variant: str) -> Timeline:
        """The host's rows of one run."""
        path = self.directory / scenario / variant / "timeline.parquet"
        return Timeline.read(path).host()


def command(scenario: str, out: Path) -> list[str]:
    """The command that runs a scenario."""
    file = ROOT / "scenarios" / f"{scenario}.toml"
    return [sys.executable, "-m", "simvm", "scenario", str(file), "--out", str(out), "--quiet"]


def run_scenarios(directory: Path, names: Sequence[str] = SCENARIOS) -> Runs:
    """Run the scenarios as a user does, two at a time."""

    def run(name: str) -> str:
        done = subprocess.run(
            command(name, directory / name), capture_output=True, text=True, check=False,
            cwd=directory, env=os.environ | {"PYTHONPATH": str(ROOT), "NO_COLOR": "1"},
        )  # fmt: skip
        if done.returncode:
            raise RuntimeError(f"{name} ended with {done.returncode}: {done.stderr}")
        return done.stdout

    with ThreadPoolExecutor(2) as pool:
        return Runs(directory, dict(zip(names, pool.map(run, names), strict=True)))


# --- reference tables -------------------------------------------------------------------


def column_tables() -> str:
    """The columns of a timeline."""
    parts = []
    for title, columns in (
        ("Keys", KEYS), ("Gauges: what holds at the sample", GAUGES),
        ("Counters: what has happened since the start", COUNTERS),
        ("Ratios: of the interval that the sample ends", RATIOS),
    ):  # fmt: skip
        rows = [(f"`{c.name}`", c.unit, _scopes(c), c.meaning) for c in columns]
        parts.append(f"**{title}**\n\n" + _table(("column", "unit", "scopes", "meaning"), rows))
    return "\n".join(parts)


def _scopes(column: Column) -> str:
    return "all" if len(column.scopes) == 3 else ", ".join(column.scopes)


def headline_table() -> str:
    """The rows of the closing table."""
    return _table(("key", "row", "meaning"), [(f"`{m.key}`", m.label, m.meaning) for m in METRICS])


def key_tables() -> str:
    """Every key of a scenario: from the JSON Schema, which the models themselves write."""
    definitions = json_schema()["$defs"]
    tables = (
        ("[scenario]", "Meta"), ("[host]", "Host"), *_choices("host.reclaim", "policy", "Reclaim"),
        ("host.reclaim.proactive", "Proactive"), *_choices("host.swap", "device", "Swap"),
        ("host.ksm", "Ksm"), ("host.migration", "Migration"), ("host.hugetlb", "Hugetlb"),
        ("host.khugepaged", "Khugepaged"), ("host.fragmentation", "Fragmentation"),
        ("[guest.NAME]", "GuestClass"), ("guest.NAME.content", "Content"),
        ("guest.NAME.memcg", "Memcg"), ("guest.NAME.page_cache", "GuestPageCache"),
        ("guest.NAME.reclaim", "GuestWatermarks"), ("guest.NAME.khugepaged", "GuestKhugepaged"),
        ("guest.NAME.hugetlb", "GuestHugetlb"), ("guest.NAME.fragmentation", "GuestFragmentation"),
        ("guest.NAME.short_processes", "GuestShortProcesses"),
        *_choices("guest.NAME.arrivals", "kind", "Arrivals"), ("guest.NAME.lifetime", "Lifetime"),
        ("guest.NAME.migrate_in", "MigrateIn"), ("guest.NAME.migrate_out", "MigrateOut"),
        *_choices("guest.NAME.channel", "kind", "ChannelSettings"),
        ("[[guest.NAME.workload]]", "Phase"), *_choices("pattern", "kind", "Pattern"),
        *_choices("usage", "kind", "Usage"),
    )  # fmt: skip
    return "\n".join(_keys(title, definitions[name]) for title, name in tables)


def shipped_table() -> str:
    """The scenarios that come with the program, and what each asks."""
    rows = [
        (f"`{file.name}`", tomllib.loads(file.read_text("utf-8"))["scenario"]["question"])
        for file in sorted((ROOT / "scenarios").glob("*.toml"))
    ]
    return _table(("scenario", "question"), rows)


def _choices(table: str, key: str, suffix: str) -> Iterator[tuple[str, str]]:
    """Of a table whose keys depend on a word: a title for each word, and its model."""
    for name, definition in json_schema()["$defs"].items():
        if name.endswith(suffix):
            yield f'{table}, {key} = "{definition["properties"][key]["const"]}"', name


def check_table() -> str:
    """What `simvm validate` compares, and with what."""
    rows = [
        (f"`{name}`", check["about"], check["source"])
        for name, check in validation.published().items()
    ]
    return _table(("check", "compares", "with"), rows)


def format_table() -> str:
    """The named formats of page tables."""
    rows = []
    for name, named in FORMATS.items():
        form = named.form
        sizes = leaf_bytes(form.granule_shift, form.levels)
        rows.append((
            f"`{name}`", " and ".join(map(str, named.stages)), str(form.levels),
            str(form.address_bits), format_bytes(root_bytes(form)),
            ", ".join(map(format_bytes, sizes)), named.source,
        ))  # fmt: skip
    return _table(("format", "stage", "levels", "bits", "root", "leaves", "source"), rows)


def walk_cache_table() -> str:
    """Loads per walk with walk caches on: the rows of `simvm validate`, and their notes."""
    found = validation.run(["walk_caches"])
    notes = list(dict.fromkeys(row["note"] for row in found))
    rows = [
        (
            row["target"].removeprefix("loads per walk, "), f"{row['published']}",
            f"{row['simulated']:.2f}", f"{row['error']:+.0%}", "yes" if row["within"] else "no",
            f"{notes.index(row['note']) + 1}",
        )
        for row in found
    ]  # fmt: skip
    heads = ("loads per walk", "published", "simulated", "error", "within 10 %", "note")
    listed = "".join(f"{number}. {note}.\n" for number, note in enumerate(notes, 1))
    return f"{_table(heads, rows)}\n{listed}"


def fidelity_tables(data: dict[str, Any]) -> str:
    """What the comparison of the two fidelities came to."""

    def percent(share: float | None) -> str:
        return "" if share is None else f"{share:.2%}"

    rows = [
        (
            row["scenario"], row["figure"], f"{row['exact']:.5g}", f"{row['sampled']:.5g}",
            percent(row["error"]), f"{row['bias']:+.2%} ± {row['standard_error']:.2%}",
            percent(row["noise"]), percent(row["tolerance"]),
            {True: "yes", False: "no", None: ""}[row["within"]],
        )
        for row in data["rows"]
    ]  # fmt: skip
    heads = ("scenario", "figure", "exact", "sampled", "error", "bias", "noise", "tolerance",
             "within")  # fmt: skip
    times = [
        (each["name"], f"{each['accesses']['exact'] / 1e6:.1f} M",
         *(f"{seconds:.2f} s" for seconds in each["cpu_s"].values()),
         f"{each['cpu_s']['exact'] / each['cpu_s']['sampled']:.1f}")
        for each in data["scenarios"]
    ]  # fmt: skip
    took = ("scenario", "accesses", "CPU time, exact", "sampled", "times faster")
    return (
        f"{data['headline']}, means of {data['seeds']} seeds.\n\n{_table(heads, rows)}\n"
        f"{_table(took, times)}"
    )


def validation_block(found: list[dict[str, Any]]) -> str:
    """What `simvm validate` comes to, and the rows that whole simulations answer."""
    simulated = [row for row in found if any(i.startswith("scenario.") for i in row["inputs"])]
    return f"{validation.headline(found)}. Of whole simulations:\n\n{validation_rows(simulated)}"


def validation_rows(found: list[dict[str, Any]]) -> str:
    """Rows of `simvm validate`."""
    rows = []
    for row in found:
        figures = [row["published"], row["simulated"]]
        if row["measure"] == "relative":
            figures = [*(f"{figure:.4g}" for figure in figures), f"{row['error']:+.1%}"]
        else:
            figures.append(f"{row['error']} pairs")
        rows.append((row["target"], row["class"], *figures, "yes" if row["within"] else "no"))
    return _table(("target", "class", "published", "simulated", "error", "within"), rows)


MEANINGS = {
    "Meta.name": "Also the run directory: `runs/NAME`.",
    "Meta.question": "What the scenario is there to answer; shown in the report.",
    "Meta.seed": "Of every random draw.",
    "Meta.sample_interval": "Simulated time between two rows of the timeline.",
    "Host.cores": "Shared by vCPUs, kswapd and fault threads.",
    "Host.memory": "RAM, in whole blocks of 2 MiB; less than 8 TiB.",
    "Host.backing": "What backs guests; `memfd` differs from `anon` in that it deposits no "
    "tables, and in what hints do.",
    "Host.fault_path": "Who serves a SLAT fault.",
    "Host.reclaim": "See below.",
    "Host.swap": "See below.",
    "Host.ksm": "See below; without it nothing is merged.",
    "Host.migration": "See below.",
    "Ksm.sleep": "Between two looks at so many pages.",
    "Host.hugetlb": "See below; for `backing = \"hugetlb\"`.",
    "Host.khugepaged": "See below; without it no pages are joined.",
    "Host.fragmentation": "See below; without it, all free memory is in whole blocks.",
    "Khugepaged.scan_sleep": "Between two passes.",
    "GuestClass.content": "See below.",
    "GuestClass.memcg": "See below.",
    "Hugetlb.page_size": "That of `host.page_size`.",
    "Hugetlb.size": "Whole pages of the pool, taken from RAM.",
    "GuestClass.memory": "What each guest is promised.",
    "GuestClass.memory_max": "More than `memory` is unplugged at boot; `virtio_mem` plugs it.",
    "GuestClass.vcpus": "At least the threads of all tasks together.",
    "GuestClass.start": "When the first guest boots.",
    "GuestClass.page_size": "What the guest maps regions with; 2 MiB falls back to 4 KiB.",
    "GuestClass.channel": "See below.",
    "GuestClass.workload": "Phases, each in a table of its own.",
    "Phase.pattern": "Where the accesses go; without it the phase only allocates or frees.",
    "Phase.accesses_per_request": "Open loop: how many accesses serve one request.",
    "Phase.write_fraction": "Share of the accesses that write.",
    "Phase.repeat": "How many times the phase runs.",
    "PointerChasePattern.granule": "Distance between two nodes.",
    "StridedPattern.stride": "From one access to the next.",
    "ZipfPattern.exponent": "0.99 is usual; more is more skewed.",
    "HotColdPattern.hot_share": "Accesses to the hot part over all accesses.",
    "DriftingPattern.hot_fraction": "Hot bytes over all bytes of the region.",
    "DriftingPattern.hot_share": "Accesses to the hot part over all accesses.",
}
"""Of keys whose model says nothing, or what only makes sense inside the code."""

FILLED = {
    "Phase.name": "`region`", "GuestClass.memory_max": "`memory`",
    "Host.table_levels": "the CPU's", "GuestClass.table_levels": "the CPU's",
    "Phase.interval": "`1s`",
}  # fmt: skip
"""Defaults that depend on another key, or on the CPU."""


def _keys(title: str, definition: dict[str, Any]) -> str:
    rows = []
    for key, schema in definition["properties"].items():
        name = f"{definition['title']}.{key}"
        if "const" in schema and f"{key} = " in title:
            continue
        required = key in definition.get("required", ())
        default = FILLED.get(name) or ("required" if required else _default(schema))
        meaning = MEANINGS.get(name) or schema["description"]
        rows.append((f"`{key}`", _takes(schema), default, meaning))
    head = f"**`{title}`** {definition['description']}\n"
    if not rows:
        return head + "\nIt has no other keys.\n"
    return head + "\n" + _table(("key", "takes", "default", "meaning"), rows)


def _takes(schema: dict[str, Any]) -> str:
    """What a key takes, in words."""
    if "anyOf" in schema:
        options = [part for part in schema["anyOf"] if part.get("type") != "null"]
        if any("kMG" in part.get("pattern", "") for part in options):
            return "a count"
        return " or ".join(_takes(part) for part in options)
    if schema.get("type") == "array":
        words = schema["items"].get("enum")
        return "a list of " + ", ".join(f"`{word}`" for word in words) if words else "tables"
    if "$ref" in schema or "oneOf" in schema or schema.get("type") == "object":
        return "a table"
    if "const" in schema:
        return f"`{schema['const']}`"
    if "enum" in schema:
        return ", ".join(f"`{word}`" for word in schema["enum"])
    pattern = schema.get("pattern", "")
    if "KiB" in pattern:
        return "a size"
    if "ms" in pattern:
        return "a time"
    low, high = schema.get("minimum"), schema.get("maximum")
    if low is not None:
        return f"{low:,} to {high:,}" if high < 1 << 62 else f"{low:,} or more"
    if "exclusiveMinimum" in schema:
        return f"between {schema['exclusiveMinimum']} and {schema['exclusiveMaximum']}"
    if schema.get("type") == "boolean":
        return "`true` or `false`"
    if schema.get("examples"):
        return "such as " + ", ".join(f"`{word}`" for word in schema["examples"])
    return "a name" if pattern else "a text"


def _default(schema: dict[str, Any]) -> str:
    """A default as a scenario would write it."""
    value = schema.get("default")
    if isinstance(value, list) and value:
        return ", ".join(f"`{word}`" for word in value)
    if value is None or value == "" or isinstance(value, dict | list):
        return ""
    takes = _takes(schema)
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, int) and ("size" in takes or "KiB" in takes):
        return f"`{format_bytes(value)}`"
    if isinstance(value, int) and takes == "a time":
        return f"`{format_ns(value)}`"
    return f"`{value}`"


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return "\n".join(lines) + "\n"


# --- pages ------------------------------------------------------------------------------


def reference_blocks() -> dict[tuple[str, str], str]:
    """By page and block, what needs no simulation."""
    return {
        ("docs/scenario.md", "keys"): key_tables(),
        ("docs/scenario.md", "formats"): format_table(),
        ("docs/scenario.md", "shipped"): shipped_table(),
        ("docs/results.md", "columns"): column_tables(),
        ("docs/results.md", "headline"): headline_table(),
        ("docs/validation.md", "checks"): check_table(),
        ("docs/fidelity.md", "figures"): fidelity_tables(json.loads(FIDELITIES.read_text("utf-8"))),
    }


def validated_blocks() -> dict[tuple[str, str], str]:
    """By page and block, what some checks of `simvm validate` came to, in some seconds."""
    return {("docs/validation.md", "walk caches"): walk_cache_table()}


def measured_blocks(runs: Runs) -> dict[tuple[str, str], str]:
    """By page and block, what the scenarios came to."""
    return {
        ("README.md", "worked example"): worked_example(runs),
        ("README.md", "findings"): findings(runs),
    }


def write_blocks(blocks: dict[tuple[str, str], str]) -> None:
    """Put each block into its page."""
    for (page, name), content in blocks.items():
        path = ROOT / page
        path.write_text(with_block(path.read_text("utf-8"), name, content), "utf-8")


def copy_images(runs: Runs) -> None:
    """Take the pictures of the runs over."""
    for name, (scenario, chart) in IMAGES.items():
        source = runs.directory / scenario / "charts" / f"{chart}.svg"
        if source.stat().st_size > LARGEST_IMAGE:
            raise RuntimeError(f"{source} is larger than {LARGEST_IMAGE} bytes")
        shutil.copyfile(source, ROOT / "docs" / "images" / f"{name}.svg")


def main() -> None:
    """The program."""
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("--tables", action="store_true", help="run no scenario")
    tables_alone = options.parse_args().tables
    write_blocks(reference_blocks() | validated_blocks())
    picture = fidelity.svg(json.loads(FIDELITIES.read_text("utf-8")))
    (ROOT / "docs" / "images" / "fidelity.svg").write_text(picture, "utf-8")
    if tables_alone:
        return
    picture = cost_chart.svg(cost.run())
    (ROOT / "docs" / "images" / "cost.svg").write_text(picture, "utf-8")
    rows = validation_block(validation.run())
    write_blocks({("docs/validation.md", "rows"): rows})
    with tempfile.TemporaryDirectory() as directory:
        runs = run_scenarios(Path(directory))
        write_blocks(measured_blocks(runs))
        copy_images(runs)


if __name__ == "__main__":
    main()
