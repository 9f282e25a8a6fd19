"""Reports: series, labels, tables, charts, and the page in a real browser."""

from __future__ import annotations

import html
import json
import os
import re
import shutil
import subprocess
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import vl_convert
from rich.console import Console
from rich.table import Table
from synthetic import GIB, GUESTS, POPULATE, SAMPLE_NS, SHAPES, write_run

from simvm.columns import ELAPSED_PARTS
from simvm.report import (
    comparison_table,
    guests_table,
    labels,
    phases_table,
    regions_table,
    write_report,
)
from simvm.report.charts import (
    FIGURE_NAMES,
    PALETTE,
    PART_COLOURS,
    figures,
    measured_parts,
)
from simvm.report.labels import PART_LABELS
from simvm.report.placing import place_labels
from simvm.report.series import Sampler, byte_unit, time_unit
from simvm.report.tables import CAUSE_HEADS, PRESSURE_HEADS, cause_rows, phase_rows, pressure_rows
from simvm.results import RunResult, canonical_json, load_runs, read_json

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
HOSTILE = "</script><img src=x onerror=document.title=1>&\"'"
HOSTILE_VARIANT = "<img src=x onerror=document.title=1>"


def rename(directory: Path, variant: str, new: str) -> None:
    """Give a variant another name, as if it had been written by other hands."""
    compared = read_json(directory / "summary.json")
    compared["variant_order"] = [new if n == variant else n for n in compared["variant_order"]]
    compared["variants"][new] = compared["variants"].pop(variant)
    (directory / "summary.json").write_text(canonical_json(compared))
    (directory / variant).rename(directory / new)


@pytest.fixture(scope="module")
def run_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reported comparison whose texts would like to be HTML."""
    directory = write_run(
        tmp_path_factory.mktemp("runs") / "run", samples=80, name=HOSTILE, question=HOSTILE
    )
    rename(directory, "thp", HOSTILE_VARIANT)
    for path in directory.glob("*/summary.json"):
        summary = read_json(path)
        for guest in summary["guests"]:
            guest["regions"][0]["name"] = HOSTILE
        path.write_text(canonical_json(summary))
    write_report(directory)
    return directory


@pytest.fixture(scope="module")
def runs(run_directory: Path) -> dict[str, RunResult]:
    return load_runs(run_directory)


@pytest.fixture(scope="module")
def page(run_directory: Path) -> str:
    return (run_directory / "report.html").read_text(encoding="utf-8")


# --- labels


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.00312, "0.00312"), (5.314, "5.31"), (9.999, "10.0"), (14.25, "14.2"),
     (99.96, "100"), (1234.5, "1,234"), (-5.314, "-5.31")],
)  # fmt: skip
def test_numbers_have_three_digits(value: float, text: str) -> None:
    assert labels.number(value) == text


def test_units_of_labels() -> None:
    assert labels.size(8 * GIB) == "8 GiB"
    assert labels.size(5.314 * GIB) == "5.31 GiB"
    assert labels.duration(1_250_000_000) == "1.25 s"
    assert labels.count(3_027_701) == "3,027,701"
    assert labels.times(1.2345) == "1.234×"


def test_best_is_what_reads_lowest() -> None:
    (metric,) = [metric for metric in labels.METRICS if metric.key == "slowdown"]
    rows = [{"slowdown": 1.20004}, {"slowdown": 1.3}, {"slowdown": None}, {"slowdown": 1.20001}]
    assert metric.best(rows) == [True, False, False, True]
    assert metric.best([{"slowdown": 1.2}, {"slowdown": 1.2}]) == [False, False]
    assert metric.best([{"slowdown": None}, {"slowdown": None}]) == [False, False]
    (settings,) = [metric for metric in labels.METRICS if metric.key == "channel"]
    assert settings.best([{"channel": "a"}, {"channel": "b"}]) == [False, False]


def test_axis_units() -> None:
    assert byte_unit(48 * GIB).name == "GiB"
    assert byte_unit(GIB).name == "MiB"
    assert byte_unit(0).name == "MiB"
    assert [time_unit(ns).name for ns in (5e3, 1.3e9, 60e9, 600e9, 1e14)] == [
        "µs", "ms", "s", "min", "h",
    ]  # fmt: skip


# --- series


def test_every_sample_is_a_point_while_there_is_room(runs: dict[str, RunResult]) -> None:
    sampler = Sampler(runs, most_points=400)
    host = runs["base"].timeline.host()
    series = sampler.gauge("base", "backed_bytes")
    assert sampler.bin_ns == SAMPLE_NS
    assert np.array_equal(series.time_ns, host.values("time_ns"))
    assert np.array_equal(series.value, host.values("backed_bytes"))


def test_bins_are_whole_intervals_and_lose_no_count(runs: dict[str, RunResult]) -> None:
    sampler = Sampler(runs, most_points=50)
    assert sampler.bin_ns % SAMPLE_NS == 0
    host = runs["base"].timeline.host()
    for name in runs:
        rate = sampler.rate(name, "slat_faults")
        assert rate.value.size <= 51
        assert np.isnan(rate.value[0])
        counted = np.nansum(rate.value[1:] * np.diff(rate.time_ns)) / 1e9
        faults = runs[name].timeline.host().values("slat_faults")
        assert counted == pytest.approx(faults[-1] - faults[0], rel=1e-12)
    last = sampler.gauge("base", "backed_bytes")
    assert last.value[-1] == host.values("backed_bytes")[-1]


def test_ratio_is_the_mean_of_known_intervals(runs: dict[str, RunResult]) -> None:
    sampler = Sampler(runs, most_points=50)
    per_bin = int(sampler.bin_ns // SAMPLE_NS)
    cells = runs["base"].timeline.host().values("slowdown")
    binned = sampler.ratio("base", "slowdown")
    first = POPULATE // per_bin
    assert np.isnan(binned.value[:first]).all()
    known = cells[POPULATE + 1 :]
    last = slice(len(cells) - 2 * per_bin, len(cells) - per_bin)
    assert np.nanmin(known) <= np.nanmin(binned.value)
    assert np.nanmax(binned.value) <= np.nanmax(known)
    if (len(cells) - 1) % per_bin == 0:
        assert binned.value[-2] == pytest.approx(cells[last].mean())


def test_bins_stand_side_by_side(runs: dict[str, RunResult]) -> None:
    sampler = Sampler(runs, most_points=50)
    assert sampler.variants == list(runs)
    assert set(sampler.bins("base")) <= set(sampler.bins("pages_4k"))
    assert sampler.bins("base") == sorted(set(sampler.bins("base")))


# --- tables


def printed(table: Table, width: int = 120) -> str:
    console = Console(width=width, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    with console.file:
        console.print(table)
    return console.export_text()


def test_comparison_table_fits_and_tells(tmp_path: Path) -> None:
    directory = write_run(tmp_path / "run", samples=60)
    text = printed(comparison_table(read_json(directory / "summary.json")))
    lines = text.splitlines()
    assert max(map(len, lines)) <= 120
    (heads,) = [line for line in lines if "pages_4k" in line]
    assert heads.split() == list(SHAPES)
    rows = {line[:26].strip(): line[26:].split() for line in lines}
    assert rows["guest pages"] == ["1GiB", "4KiB", "2MiB", "1GiB", "n/a"]
    assert rows["committed"] == ["32", "GiB"] * 5
    assert "…" not in text


def test_many_variants_stand_one_under_the_other(tmp_path: Path) -> None:
    directory = write_run(tmp_path / "run", ("base", "thp"), samples=41)
    compared = read_json(directory / "summary.json")
    names = [f"variant_{n}" for n in range(9)]
    compared["variants"] = dict.fromkeys(names, compared["variants"]["base"])
    compared["variant_order"] = names
    compared |= {"partial": True, "up_to_ns": {"variant_3": 3_200_000_000}}
    text = printed(comparison_table(compared))
    assert "synthetic (partial: variant_3 up to 3.20 s)" in text
    assert max(map(len, text.splitlines())) <= 120
    assert all(re.search(rf"^ *{name} ", text, re.MULTILINE) for name in names)


def test_table_text_is_no_markup(runs: dict[str, RunResult]) -> None:
    compared = {"name": "[red]x[/red]", "variants": {"[bold]v": {}}, "variant_order": []}
    text = printed(comparison_table(compared))
    assert "[red]x[/red]" in text
    assert "[bold]v" in text


def test_tables_of_one_run(runs: dict[str, RunResult]) -> None:
    summary = runs["base"].summary
    text = printed(guests_table(summary))
    assert [f"web.{n}" in text for n in range(GUESTS)] == [True] * GUESTS
    assert "killed" not in text
    summary = json.loads(json.dumps(summary))
    guest = summary["guests"][0]
    guest.update(killed=True, slowdown=None, slowdown_percentiles=None)
    assert "killed" in printed(guests_table(summary))
    text = printed(phases_table(summary))
    assert "populate" in text
    assert "latency" not in text
    assert "app" in printed(regions_table(summary))


def test_open_loop_phases_show_their_latency(runs: dict[str, RunResult]) -> None:
    summary = json.loads(json.dumps(runs["base"].summary))
    for n, guest in enumerate(summary["guests"]):
        phase = guest["phases"][1]
        phase.update(requests=n, latency_ns={"mean": 1000 * n, "p50": 900, "p99": 5000 + n})
        phase["end_ns"] = None  # killed, or cut short
    (row,) = [row for row in phase_rows(summary) if row[1] == "serve"]
    assert row[6:] == ("n/a", row[7], "2.33 us", "5.00 us")  # (1·1 + 2·2 + 3·3) / (1 + 2 + 3)


def test_the_time_of_a_run_is_told_by_cause(runs: dict[str, RunResult]) -> None:
    assert list(PART_COLOURS) == list(PART_LABELS) == list(ELAPSED_PARTS)
    summary = json.loads(json.dumps(runs["base"].summary))
    for guest in summary["guests"]:
        guest["elapsed"] = dict.fromkeys(ELAPSED_PARTS, 0) | {
            "compute_ns": 3_000_000, "swap_in_ns": 1_000_000,
        }  # fmt: skip
    rows = cause_rows(summary)
    assert {len(row) for row in rows} == {len(CAUSE_HEADS)}
    assert rows == [("web", "compute", "12 ms", "75.0 %"), ("web", "swap-in", "4 ms", "25.0 %")]


def test_the_pressure_of_a_run_is_told_for_host_and_classes(runs: dict[str, RunResult]) -> None:
    summary = json.loads(json.dumps(runs["base"].summary))
    summary["host"].update(psi_some=0.125, refault_distance={"mean_bytes": 4 << 20})
    summary["host"]["totals"].update(swap_ins=12, direct_reclaim_ns=2_500_000)
    host, web = pressure_rows(summary)
    assert len(host) == len(web) == len(PRESSURE_HEADS)
    assert host[:6] == ("host", "12.5 %", "n/a", "n/a", "n/a", "2.50 ms")
    assert (host[6], host[8]) == ("12", "4 MiB")
    assert web[:2] == ("web", "n/a")


# --- charts


def test_pictures_are_what_they_say(run_directory: Path) -> None:
    charts = run_directory / "charts"
    assert {path.name for path in charts.iterdir()} == {
        f"{name}.{suffix}" for name in FIGURE_NAMES for suffix in ("svg", "png")
    }
    for name in FIGURE_NAMES:
        root = ElementTree.parse(charts / f"{name}.svg").getroot()
        assert root.tag == "{http://www.w3.org/2000/svg}svg"
        texts = " ".join("".join(text.itertext()) for text in root.iter() if "text" in text.tag)
        assert "base" in texts
        assert (charts / f"{name}.png").read_bytes().startswith(b"\x89PNG\r\n")


@pytest.mark.parametrize(
    ("name", "units"),
    [("footprint", ["host memory (GiB)", "simulated time (ms)"]),
     ("slowdown", ["slowdown (×)", "simulated time (ms)"]),
     ("tradeoff", ["(GiB)", "(×)"]),
     ("time", ["vCPU time over ideal (×)", "swap-in"]),
     ("activity", ["SLAT faults / s", "pages swapped in / s", "pages swapped out / s"])],
)  # fmt: skip
def test_axes_have_units(run_directory: Path, name: str, units: list[str]) -> None:
    svg = (run_directory / "charts" / f"{name}.svg").read_text(encoding="utf-8")
    for unit in units:
        assert html.escape(unit) in svg


def test_lines_are_short_enough_to_draw(tmp_path: Path) -> None:
    runs = load_runs(write_run(tmp_path / "run", ("base", "pages_4k"), samples=1000))
    for figure in figures(runs):
        for name, rows in figure.picture()["datasets"].items():
            counted = {row.get("variant") for row in rows}
            assert len(rows) <= 402 * len(counted), (figure.name, name)


def test_a_variant_keeps_its_colour(runs: dict[str, RunResult]) -> None:
    text = json.dumps([figure.picture() for figure in figures(runs)])
    scales = set(re.findall(r'"domain": (\[[^]]*"base"[^]]*\]), "range": (\[[^]]*#[^]]*\])', text))
    assert scales == {(json.dumps(list(runs)), json.dumps(list(PALETTE[: len(runs)])))}


def test_bars_are_as_long_as_the_slowdown(runs: dict[str, RunResult]) -> None:
    (figure,) = [figure for figure in figures(runs) if figure.name == "time"]
    (rows,) = [rows for rows in figure.picture()["datasets"].values() if "of_ideal" in rows[0]]
    for name, run in runs.items():
        length = sum(row["of_ideal"] for row in rows if row["variant"] == name)
        assert length == pytest.approx(run.summary["host"]["slowdown"])
        ideal, parts = measured_parts(run.summary)
        assert sum(parts.values()) / ideal == pytest.approx(length)
    assert {row["part"] for row in rows} <= set(PART_LABELS.values())


def test_labels_do_not_cover_each_other() -> None:
    rows: list[dict[str, Any]] = [
        {"variant": f"variant_{n}", "x": 5 + 0.01 * n, "slow": 1.5 + 0.001 * n} for n in range(6)
    ]
    place_labels(rows, [0, 10], [1, 2], 760, 380)
    boxes = [(row["label_x"] * 76, -row["label_y"] * 380) for row in rows]
    for n, (x, y) in enumerate(boxes):
        for other_x, other_y in boxes[n + 1 :]:
            assert abs(x - other_x) > 60 or abs(y - other_y) > 14


def test_one_run_without_swap_or_measured_phase(tmp_path: Path) -> None:
    directory = write_run(tmp_path / "run", ("base",), samples=POPULATE)
    path = directory / "base" / "summary.json"
    summary = read_json(path)
    summary["host"]["slowdown"] = None
    for guest in summary["guests"]:
        for phase in guest["phases"]:
            phase.update(measure=False, slowdown=None)
    path.write_text(canonical_json(summary))
    (directory / "charts").mkdir()
    (directory / "charts" / "slowdown.svg").write_text("of an earlier report")
    page = write_report(directory)
    assert {path.stem for path in (directory / "charts").iterdir()} == {"footprint", "activity"}
    text = page.read_text(encoding="utf-8")
    assert "No page was swapped" in text
    assert 'id="slowdown"' not in text


def test_far_apart_rates_share_a_scale_in_powers_of_ten(runs: dict[str, RunResult]) -> None:
    (figure,) = [figure for figure in figures(runs) if figure.name == "activity"]
    faults, swapped, _ = (json.dumps(view) for view in figure.page_views())
    assert "symlog" in faults
    assert "symlog" not in swapped


# --- the page


def test_page_is_one_file_that_fetches_nothing(page: str) -> None:
    assert "default-src 'none'" in page
    tags = re.sub(r"<script\b.*?</script>", "", page, flags=re.DOTALL)
    assert not re.search(r"<(link|iframe|object|embed)\b|\bsrc=(?!x onerror)|@import|url\(", tags)
    assert not re.search(r"<script[^>]*\bsrc=", page)


def test_page_escapes_what_results_say(page: str) -> None:
    tags = re.sub(r"<script>.*?</script>", "", page, flags=re.DOTALL)
    assert "<img" not in tags
    assert page.count("</script>") == 3
    assert html.escape(HOSTILE) in page
    assert html.escape(HOSTILE_VARIANT) in page


def test_same_run_same_page(run_directory: Path, page: str) -> None:
    before = (run_directory / "charts" / "time.svg").read_bytes()
    assert write_report(run_directory).read_text(encoding="utf-8") == page
    assert (run_directory / "charts" / "time.svg").read_bytes() == before
    assert not [path for path in run_directory.rglob("*") if path.name.startswith(".")]


def test_page_of_a_partial_run_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The pictures are those of every report.
    monkeypatch.setattr(vl_convert, "vegalite_to_svg", lambda *_, **__: "<svg/>")
    monkeypatch.setattr(vl_convert, "svg_to_png", lambda *_, **__: b"")
    directory = write_run(tmp_path / "run", ("base",), samples=41, partial=True)
    assert "Partial: base up to 205 ms (interrupted)." in write_report(
        directory
    ).read_text(encoding="utf-8")


# Reads the page like a person: waits for the charts, hovers one, drags the brush, resets.
DRIVER = """
<script>
const root = document.documentElement, errors = [];
window.addEventListener("error", (e) => errors.push(String(e.message)));
window.addEventListener("unhandledrejection", (e) => errors.push(String(e.reason)));
document.addEventListener("securitypolicyviolation", (e) => errors.push(e.blockedURI));
const warn = console.warn, pause = (ms) => new Promise((done) => setTimeout(done, ms));
console.warn = (...words) => { errors.push(words.join(" ")); warn(...words); };
function point(type, x, y) {
  const target = document.elementFromPoint(x, y) || window;
  for (const kind of [type, type.replace("pointer", "mouse")]) {
    const Kind = kind === type ? PointerEvent : MouseEvent;
    target.dispatchEvent(new Kind(kind, { clientX: x, clientY: y, bubbles: true, view: window,
                                          button: 0, buttons: 1, pointerId: 1 }));
  }
}
const domainOf = (id) => [...document.querySelectorAll(`#${id} .role-axis-label text`)]
  .map((label) => label.textContent).sort().join(" ");
window.addEventListener("load", async () => {
  while (!root.dataset.drawn && !errors.length) await pause(20);
  const seen = { before: domainOf("view-1") };
  seen.views = [...document.querySelectorAll(".view")].map(
    (view) => view.querySelectorAll("svg .mark-line path, svg .mark-rect path," +
                                    "svg .mark-symbol path").length);
  const slow = document.querySelector("#slowdown svg").getBoundingClientRect();
  point("pointermove", slow.left + slow.width / 2, slow.top + slow.height / 2);
  point("pointerover", slow.left + slow.width / 2, slow.top + slow.height / 2);
  await pause(300);
  const tip = document.getElementById("vg-tooltip-element");
  seen.tooltip = tip ? tip.textContent : "";
  const box = document.querySelector("#view-0 svg").getBoundingClientRect();
  const y = box.top + 20, from = box.left + box.width * 0.4, to = box.left + box.width * 0.6;
  point("pointerdown", from, y);
  for (let x = from; x <= to; x += 10) { point("pointermove", x, y); await pause(5); }
  point("pointermove", to, y);
  point("pointerup", to, y);
  await pause(600);
  seen.shown = root.dataset.shown;
  seen.zoomed = domainOf("view-1");
  document.getElementById("reset").click();
  await pause(600);
  seen.reset = domainOf("view-1");
  seen.images = document.querySelectorAll("img").length;
  seen.title = document.title;
  seen.errors = errors;
  root.dataset.seen = JSON.stringify(seen);
});
</script>
"""


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
def test_page_in_a_browser(run_directory: Path, page: str, tmp_path: Path) -> None:
    assert CHROMIUM is not None
    copy, log = tmp_path / "report.html", tmp_path / "net.json"
    copy.write_text(page.replace("<h1>", DRIVER + "<h1>", 1), encoding="utf-8")
    done = subprocess.run(
        [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic",
         "--no-first-run", "--disable-background-networking", "--disable-component-update",
         "--disable-sync", "--host-resolver-rules=MAP * ~NOTFOUND",
         f"--user-data-dir={tmp_path / 'profile'}", f"--log-net-log={log}",
         "--window-size=1250,4500", "--virtual-time-budget=8000", "--dump-dom", copy.as_uri()],
        capture_output=True, timeout=120, check=True, text=True, encoding="utf-8",
    )  # fmt: skip
    found = re.search(r'data-seen="([^"]*)"', done.stdout)
    assert found, done.stderr[-2000:]
    seen = json.loads(html.unescape(found[1]))
    assert seen["errors"] == []
    # The overview, five footprints, slowdown, trade-off, parts, two of pressure, three rates.
    assert len(seen["views"]) == 14
    assert min(seen["views"]) > 0
    assert seen["images"] == 0
    assert seen["title"] == HOSTILE
    assert HOSTILE_VARIANT in seen["tooltip"]
    assert "time (ms)" in seen["tooltip"]
    start, end = map(float, seen["shown"].split())
    assert 150 < start < end < 650
    assert end - start < 300
    assert seen["zoomed"] != seen["before"]
    assert seen["reset"] == seen["before"]
    # Requests of the browser's own services are initiated by "not an origin".
    asked = re.findall(r'"initiator":"(?!not an origin)[^\n]*"url":"(?!file:|data:)([^"]*)"',
                       log.read_text(encoding="utf-8"))  # fmt: skip
    assert not asked
