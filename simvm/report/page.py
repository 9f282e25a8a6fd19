"""The HTML page of a run directory: one file, no network.

The charting scripts are part of the page, its charts are data in it, and its content
security policy lets nothing be fetched. Text from results is escaped where it enters
HTML and JSON.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import vl_convert

from simvm.columns import COLUMNS
from simvm.report.charts import Figure, overview
from simvm.report.labels import METRICS, NOT_APPLICABLE, count, duration
from simvm.report.tables import (
    CAUSE_HEADS,
    PHASE_HEADS,
    PRESSURE_HEADS,
    REGION_HEADS,
    cause_rows,
    phase_rows,
    pressure_rows,
    region_rows,
)
from simvm.results import RunResult, comparison

_STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.5 "Liberation Sans", Arial, Helvetica, sans-serif; color: #222;
       background: #fff; margin: 0 auto; max-width: 1180px; padding: 24px; }
h1 { margin: 0 0 4px; font-size: 26px; }
h2 { margin: 40px 0 4px; font-size: 19px; }
p { margin: 4px 0 12px; max-width: 110ch; }
.question { font-size: 17px; color: #444; }
.partial { background: #FFF3CD; border: 1px solid #E69F00; padding: 8px 12px; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 14px; }
th, td { padding: 4px 12px; text-align: right; border-bottom: 1px solid #e6e6e6;
         white-space: nowrap; }
thead th { border-bottom: 2px solid #888; vertical-align: bottom; }
th:first-child, td.text, th.text { text-align: left; font-weight: normal; }
thead th { font-weight: 600 !important; }
td.best { font-weight: 700; background: #E8F4FA; }
td.na { color: #888; }
td.wrap { white-space: normal; text-align: left; }
tr.section th { padding-top: 14px; font-weight: 600; color: #555; }
#overview { position: sticky; top: 0; z-index: 5; background: #fffffff0;
            border-bottom: 1px solid #ddd; padding: 6px 0 2px; }
#overview .hint { font-size: 12px; color: #555; margin: 0; max-width: none; }
#overview button { font: inherit; margin-left: 8px; }
.views { display: grid; gap: 12px 20px; }
.view { min-width: 0; width: 100%; }
details { margin: 10px 0; }
summary { cursor: pointer; font-weight: 600; }
.swatch { display: inline-block; width: 11px; height: 11px; margin-right: 6px; }
@media (max-width: 800px) { .views { grid-template-columns: 1fr !important; } }
#vg-tooltip-element { font-size: 13px; font-variant-numeric: tabular-nums; }
"""

# Every time chart has a bound interval selection, whose signal `zoom_t` is the shown range
# of time; the overview has a brush. Whichever the reader moves, the others follow.
_SCRIPT = """
(() => {
  "use strict";
  const specs = JSON.parse(document.getElementById("specs").textContent);
  const options = { actions: false, renderer: "svg", ast: true };
  const followers = [];
  let brushView = null, shown = null, wanted = null, running = false, setting = false;

  const same = (a, b) => (!a && !b) || (a && b && a[0] === b[0] && a[1] === b[1]);

  async function share(range, source) {
    if (setting || same(range, shown)) return;
    shown = range && [...range];
    wanted = { range: shown, source };
    if (running) return;
    running = true;
    while (wanted) {
      const { range, source } = wanted;
      wanted = null;
      setting = true;
      const views = followers.filter((view) => view !== source);
      await Promise.all(views.map((view) => view.signal("zoom_t", range).runAsync()));
      if (brushView && brushView !== source) {
        const x = brushView.scale("x");
        const width = brushView.signal("width");
        const pixel = (t) => Math.min(width, Math.max(0, x(t)));
        await brushView.signal("brush_x", range ? range.map(pixel) : [0, 0]).runAsync();
      }
      setting = false;
    }
    running = false;
    document.documentElement.dataset.shown = shown ? shown.join(" ") : "";
  }

  async function draw() {
    for (const [index, { id, spec, timed }] of specs.entries()) {
      const { view } = await vegaEmbed("#" + id, spec, options);
      if (index === 0) {
        brushView = view;
        view.addSignalListener("brush", (_, value) => share(value.t || null, view));
      } else if (timed) {
        followers.push(view);
        view.addSignalListener("zoom_t", (_, value) => share(value || null, view));
      }
    }
    document.getElementById("reset").addEventListener("click", () => share(null, null));
    document.documentElement.dataset.drawn = specs.length;
  }
  draw().catch((error) => {
    const note = document.createElement("p");
    note.className = "partial";
    note.textContent = "The charts could not be drawn: " + error;
    document.body.prepend(note);
    throw error;
  });
})();
"""

_EXPORTS = "window.vegaEmbed = vegaEmbed;"

_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:"
)


def render(
    runs: Mapping[str, RunResult], drawn: Sequence[Figure], *, complete: bool = True
) -> str:
    """The whole page.

    Parameters
    ----------
    runs
        By variant, in the order of the table.
    drawn
        The charts of these runs.
    complete
        Whether these are all that were to be run.
    """
    compared = comparison(runs, complete=complete)
    views: list[dict[str, Any]] = [{"id": "view-0", "spec": overview(runs), "timed": True}]
    sections = []
    for figure in drawn:
        places = []
        for spec in figure.page_views():
            view = f"view-{len(views)}"
            places.append(f'<div class="view" id="{view}"></div>')
            views.append({"id": view, "spec": spec, "timed": figure.over_time})
        sections.append(_section(figure, places))
    title = escape(str(compared["name"]))
    return "\n".join(
        [
            "<!DOCTYPE html>",
            '<html lang="en"><head><meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{title}</title><style>{_STYLE}</style></head><body>",
            f'<h1>{title}</h1><p class="question">{escape(str(compared["question"]))}</p>',
            _partial_note(runs, complete),
            _headline_table(compared, runs),
            '<div id="overview"><p class="hint">Backed host memory. Drag here to choose a span '
            "of time for the charts over time; in those, scroll to zoom and drag to move."
            '<button id="reset" type="button">whole run</button></p>'
            '<div class="view" id="view-0"></div></div>',
            *sections,
            "<h2>Each run in detail</h2>",
            *(_run_details(name, run) for name, run in runs.items()),
            "<h2>What the columns mean</h2>",
            _glossary(),
            f'<script type="application/json" id="specs">{_embedded(views)}</script>',
            f"<script>{_libraries()}</script>",
            f"<script>{_SCRIPT}</script>",
            "</body></html>\n",
        ]
    )


@functools.cache
def _libraries() -> str:
    """The charting scripts, bundled: seconds of work, the same for every page."""
    return vl_convert.javascript_bundle(_EXPORTS)


def _embedded(value: object) -> str:
    """JSON that cannot end the script element it stands in."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _section(figure: Figure, places: Sequence[str]) -> str:
    columns = min(figure.columns, len(places))
    return (
        f'<section id="{figure.name}"><h2>{escape(figure.title)}</h2>'
        f"<p>{escape(figure.caption)}</p>"
        f'<div class="views" style="grid-template-columns: repeat({columns}, minmax(0, 1fr))">'
        f"{''.join(places)}</div></section>"
    )


def _partial_note(runs: Mapping[str, RunResult], complete: bool) -> str:
    cut = [name for name, run in runs.items() if run.partial]
    if not cut:
        return "" if complete else '<p class="partial">Partial: not all variants were run.</p>'
    reached = ", ".join(
        f"{name} up to {duration(runs[name].up_to_ns)} ({runs[name].manifest['exit_reason']})"
        for name in cut
    )
    return (
        f'<p class="partial">Partial: {escape(reached)}. Figures and charts cover what was run '
        "and written until then.</p>"
    )


def _headline_table(compared: Mapping[str, Any], runs: Mapping[str, RunResult]) -> str:
    names = list(runs)
    rows = [compared["variants"][name] for name in names]
    heads = "".join(f'<th scope="col">{escape(name)}</th>' for name in names)
    marked = "The best of a row is marked; " if len(rows) > 1 else ""
    lines = []
    for metric in METRICS:
        cells = "".join(
            _cell(metric.text(row), best)
            for row, best in zip(rows, metric.best(rows), strict=True)
        )
        lines.append(
            f'<tr title="{escape(metric.meaning)}"><th scope="row">{escape(metric.label)}</th>'
            f"{cells}</tr>"
        )
    return (
        f'<div class="scroll"><table id="headline"><thead><tr><th></th>{heads}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
        f"<p>All guests of the host together. {marked}n/a is what does not apply to a variant or "
        "was not recorded.</p>"
    )


def _cell(text: str, best: bool = False) -> str:
    kind = "best" if best else "na" if text == NOT_APPLICABLE else ""
    return f'<td class="{kind}">{escape(text)}</td>' if kind else f"<td>{escape(text)}</td>"


def _run_details(name: str, run: RunResult) -> str:
    scenario = run.summary["scenario"]
    facts = (
        f"Seed {scenario['seed']}, {duration(scenario['simulated_ns'])} simulated, "
        f"scenario {str(scenario['digest'])[:12]}, simvm {run.manifest['versions']['simvm']}."
    )
    return (
        f"<details><summary>{escape(name)}</summary><p>{escape(facts)}</p>"
        f"{_table(PHASE_HEADS, phase_rows(run.summary), texts=4)}"
        "<p>Where the vCPU time of the whole run went, and what stalled it:</p>"
        f"{_table(CAUSE_HEADS, cause_rows(run.summary), texts=2)}"
        f"<p>Memory pressure. {escape(_reclaim(run.summary['host']['totals']))}</p>"
        f"{_table(PRESSURE_HEADS, pressure_rows(run.summary), texts=1)}"
        "<p>Named regions at the end of the run:</p>"
        f"{_table(REGION_HEADS, region_rows(run.summary), texts=3)}</details>"
    )


def _reclaim(totals: Mapping[str, Any]) -> str:
    return (
        f"kswapd took {duration(totals.get('kswapd_ns', 0))} of host CPU time; reclaim looked at "
        f"{count(totals.get('folios_scanned', 0))} folios and freed "
        f"{count(totals.get('folios_reclaimed', 0))}."
    )


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]], texts: int) -> str:
    def row(cells: Sequence[str], tag: str) -> str:
        inner = "".join(
            f'<{tag} class="text">{escape(cell)}</{tag}>' if index < texts
            else f"<{tag}>{escape(cell)}</{tag}>"
            for index, cell in enumerate(cells)
        )  # fmt: skip
        return f"<tr>{inner}</tr>"

    body = "".join(row(cells, "td") for cells in rows)
    return (
        f'<div class="scroll"><table><thead>{row(heads, "th")}</thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _glossary() -> str:
    headline = "".join(
        f'<tr><td class="text">{escape(metric.label)}</td>'
        f'<td class="wrap">{escape(metric.meaning)}</td></tr>'
        for metric in METRICS
    )
    timeline = "".join(
        f'<tr><td class="text"><code>{column.name}</code></td>'
        f'<td class="text">{column.kind}</td><td class="text">{column.unit}</td>'
        f'<td class="wrap">{escape(column.meaning)}</td></tr>'
        for column in COLUMNS
    )
    return (
        "<details><summary>The table above</summary>"
        f'<div class="scroll"><table><tbody>{headline}</tbody></table></div></details>'
        "<details><summary>The files timeline.parquet</summary><p>A gauge is what holds at the "
        "sample, a counter what happened since the start, a ratio belongs to the interval that "
        "the sample ends.</p>"
        f'<div class="scroll"><table><tbody>{timeline}</tbody></table></div></details>'
    )
