"""The charts of a comparison, as Altair specifications.

A figure is a title, a caption and panels. Each panel is one plain view: the page embeds
panels one by one and links their time axes, a picture lays them out together. Colours
are those of Okabe and Ito, "Color Universal Design" (2008), told apart by readers with
any common colour blindness; a variant keeps its colour, its dash and its point's shape
in every chart.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import altair as alt

from simvm.columns import ELAPSED_PARTS
from simvm.report.labels import PART_LABELS
from simvm.report.placing import place_labels
from simvm.report.series import Sampler, Series, Unit, byte_unit, time_unit
from simvm.results import RunResult

BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY, YELLOW, BLACK = (
    "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442", "#000000",
)  # fmt: skip
PALETTE: Final = (BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY, BLACK)
_DASHES: Final = ([1, 0], [10, 2], [6, 3], [3, 3], [9, 3, 2, 3])
_SHAPES: Final = ("circle", "square", "triangle-up", "diamond")

PART_COLOURS: Final[dict[str, str]] = {
    "compute_ns": "#D9D9D9",
    "think_ns": "#A6A6A6",
    "translation_ns": BLUE,
    "guest_fault_ns": SKY,
    "guest_reclaim_ns": "#44AA99",
    "guest_swap_in_ns": "#117733",
    "page_table_trap_ns": "#882255",
    "fault_wait_ns": YELLOW,
    "fault_service_ns": ORANGE,
    "swap_in_ns": VERMILLION,
    "tier_ns": "#332288",
    "shootdown_ns": PURPLE,
    "hint_ns": GREEN,
    "core_wait_ns": BLACK,
}

FIGURE_NAMES: Final = frozenset(
    {"footprint", "slowdown", "tradeoff", "time", "pressure", "activity"}
)

Width = int | Literal["container"]
Rows = list[dict[str, Any]]
Panel = Callable[[Width], alt.LayerChart]
"""Draws one view at a width in pixels, or interactive and as wide as its container."""

CONFIG: Final[dict[str, Any]] = {
    "background": "white",
    "font": "Liberation Sans, Arial, Helvetica, sans-serif",
    "view": {"stroke": None},
    "axis": {
        "labelFontSize": 11,
        "titleFontSize": 12,
        "titleFontWeight": "normal",
        "labelColor": "#333",
        "titleColor": "#222",
        "gridColor": "#e6e6e6",
        "domainColor": "#888",
        "tickColor": "#888",
    },
    "legend": {"labelFontSize": 12, "titleFontSize": 12, "orient": "top", "symbolStrokeWidth": 3},
    "title": {"anchor": "start", "fontSize": 13, "fontWeight": 600, "subtitleColor": "#555"},
}


@dataclass(frozen=True)
class Figure:
    """One chart of the report.

    `over_time` figures follow the page's time brush. `columns` is how many panels stand
    side by side, `width` and `height` the size of one in a picture, in pixels.
    """

    name: str
    title: str
    caption: str
    panels: tuple[Panel, ...]
    datasets: Mapping[str, Rows]
    over_time: bool
    columns: int = 1
    width: int = 760

    def picture(self) -> dict[str, Any]:
        """The whole figure as one Vega-Lite specification without interaction."""
        drawn = [panel(self.width) for panel in self.panels]
        whole: Any = drawn[0] if len(drawn) == 1 else alt.concat(
            *drawn, columns=self.columns, spacing=24
        )
        whole = whole.properties(
            title=alt.TitleParams(text=self.title, subtitle=_wrap(self.caption), fontSize=16,
                                  offset=12, subtitleFontSize=12),
            config=CONFIG,
            padding=16,
        )
        return _spec(whole, self.datasets)

    def page_views(self) -> list[dict[str, Any]]:
        """One specification per panel, as wide as the page gives it."""
        views = []
        for panel in self.panels:
            chart = panel("container")
            if self.over_time:
                chart = chart.add_params(
                    alt.selection_interval(name="zoom", encodings=["x"], bind="scales")
                )
            views.append(_spec(chart.properties(config=CONFIG), self.datasets))
        return views


def figures(runs: Mapping[str, RunResult]) -> list[Figure]:
    """Every chart of a comparison; a single run is one of one."""
    return _Charts(runs).all()


def overview(runs: Mapping[str, RunResult]) -> dict[str, Any]:
    """The small chart that carries the page's time brush."""
    charts = _Charts(runs)
    return _spec(charts.overview(), charts.datasets)


class _Charts:
    def __init__(self, runs: Mapping[str, RunResult]) -> None:
        self.runs = runs
        self.sampler = Sampler(runs)
        self.names = list(runs)
        self.datasets: dict[str, Rows] = {}
        self.one_row = self._data([{}])
        self.time = time_unit(self.sampler.end_ns)
        self.colours = [PALETTE[i % len(PALETTE)] for i in range(len(runs))]
        self.dashes = [_DASHES[i % len(_DASHES)] for i in range(len(runs))]
        # Later lines go over earlier ones: thinner and dashed, so that equal ones all show.
        last = len(runs) - 1
        self.widths = [3.6 - 1.6 * i / last for i in range(len(runs))] if last else [2.0]
        self.shapes = [_SHAPES[i % len(_SHAPES)] for i in range(len(runs))]

    def all(self) -> list[Figure]:
        made = [
            self.footprint(), self.slowdown(), self.trade(), self.parts(), self.pressure(),
            self.activity(),
        ]  # fmt: skip
        return [figure for figure in made if figure is not None]

    # --- footprint over time

    def footprint(self) -> Figure:
        columns = ("backed_bytes", "touched_bytes", "committed_bytes")
        series = {
            name: [self.sampler.gauge(name, column) for column in columns] for name in self.names
        }
        most = max((_most(one) for each in series.values() for one in each), default=1.0) or 1.0
        unit = byte_unit(most)
        panels = tuple(
            self._footprint_panel(name, series[name], unit, 1.04 * most / unit.size)
            for name in self.names
        )
        many = len(panels) > 1
        return Figure(
            "footprint",
            "Footprint over time",
            "Filled: memory the host backs. Black line: memory the guests touch. "
            "Dashed: memory they were promised. All guests together.",
            panels,
            self.datasets,
            over_time=True,
            columns=3 if len(panels) != 2 else 2,
            width=280 if many else 760,
        )

    def _footprint_panel(
        self, name: str, series: Sequence[Series], unit: Unit, top: float
    ) -> Panel:
        backed, touched, committed = series
        rows = [
            {"t": t / self.time.size, "b": _cell(b / unit.size), "u": _cell(u / unit.size),
             "c": _cell(c / unit.size)}
            for t, b, u, c in zip(backed.time_ns.tolist(), backed.value.tolist(),
                                  touched.value.tolist(), committed.value.tolist(), strict=True)
        ]  # fmt: skip
        colour = self.colours[self.names.index(name)]
        scale = alt.Scale(domain=[0, top], nice=False)
        data = self._data(rows)

        def panel(width: Width) -> alt.LayerChart:
            chart = alt.Chart(data)
            y = alt.Y("b:Q", title=f"host memory ({unit.name})", scale=scale)
            layers = [
                chart.mark_area(color=colour, opacity=0.35, clip=True, interpolate="step-after")
                .encode(y=y),
                chart.mark_line(color=colour, strokeWidth=2, clip=True, interpolate="step-after")
                .encode(y=y),
                chart.mark_line(color=BLACK, strokeWidth=1.5, clip=True, interpolate="step-after")
                .encode(y=alt.Y("u:Q", scale=scale)),
                chart.mark_line(color="#666", strokeWidth=1.5, strokeDash=[5, 3], clip=True)
                .encode(y=alt.Y("c:Q", scale=scale)),
            ]  # fmt: skip
            if width == "container":
                layers.append(self._hover(chart, [
                    alt.Tooltip("b:Q", title=f"backed ({unit.name})", format=",.3f"),
                    alt.Tooltip("u:Q", title=f"touched ({unit.name})", format=",.3f"),
                    alt.Tooltip("c:Q", title=f"committed ({unit.name})", format=",.3f"),
                ]))  # fmt: skip
            return (
                alt.LayerChart(layer=layers)
                .encode(x=self._time_axis())
                .properties(width=width, height=170, title=name)
            )

        return panel

    # --- lines by variant

    def slowdown(self) -> Figure | None:
        series = {name: self.sampler.ratio(name, "slowdown") for name in self.names}
        known = [v for one in series.values() for v in one.value.tolist() if not math.isnan(v)]
        if not known:
            return None
        wide = max(known) > 10 * min(known)
        scale = alt.Scale(type="log") if wide else alt.Scale(zero=False, nice=True)
        return Figure(
            "slowdown",
            "Slowdown over time",
            "Elapsed over ideal in each interval, measured phases alone; the grey line at 1 "
            "would be translation, faults and waiting for free.",
            (self._lines(series, "slowdown (×)", ",.3f", scale, height=260, ideal=True),),
            self.datasets,
            over_time=True,
        )

    def pressure(self) -> Figure | None:
        panels: list[Panel] = []
        for kind in ("some", "full"):
            series = {name: self.sampler.ratio(name, f"psi_{kind}") for name in self.names}
            if max(_most(one) for one in series.values()) > 0:
                scale, first = alt.Scale(zero=True), not panels
                panels.append(self._lines(series, kind, ".2%", scale, height=180, legend=first))
        if not panels:
            return None
        return Figure(
            "pressure",
            "Memory pressure over time",
            "Share of the host's threads that stalls on memory hit (some) and leave idle (full), "
            "in each interval: direct reclaim, kswapd, pages of the working set read back.",
            tuple(panels),
            self.datasets,
            over_time=True,
        )

    def activity(self) -> Figure | None:
        panels: list[Panel] = []
        for column in ("slat_faults", "swap_ins", "swap_outs"):
            series = {name: self.sampler.rate(name, column) for name in self.names}
            if max(_most(one) for one in series.values()) > 0:
                title = {"slat_faults": "SLAT faults / s",
                         "swap_ins": "pages swapped in / s",
                         "swap_outs": "pages swapped out / s"}[column]  # fmt: skip
                scale, ticks = _rate_scale(list(series.values()))
                panels.append(
                    self._lines(series, title, ",.0f", scale, height=180, ticks=ticks,
                                short_ticks=True, legend=not panels)
                )  # fmt: skip
        if not panels:
            return None
        swaps = "" if len(panels) > 1 else " No page was swapped in any variant."
        return Figure(
            "activity",
            "Faults and reclaim over time",
            "What the host does per simulated second, all guests together; swapped pages are "
            f"of 4 KiB.{swaps}",
            tuple(panels),
            self.datasets,
            over_time=True,
        )

    def _lines(
        self,
        series: Mapping[str, Series],
        title: str,
        value_format: str,
        scale: alt.Scale,
        *,
        height: int,
        short_ticks: bool = False,
        ticks: list[float] | None = None,
        ideal: bool = False,
        legend: bool = True,
    ) -> Panel:
        long: list[dict[str, Any]] = []
        side: dict[int, dict[str, Any]] = {}
        for index, (name, one) in enumerate(series.items()):
            bins = self.sampler.bins(name)
            for n, t, v in zip(bins, one.time_ns.tolist(), one.value.tolist(), strict=True):
                at = t / self.time.size
                long.append({"t": at, "variant": name, "v": _cell(v)})
                side.setdefault(n, {"t": at})[f"v{index}"] = _cell(v)
        lines_data = self._data(long)
        hover_data = self._data([side[n] for n in sorted(side)])

        def panel(width: Width) -> alt.LayerChart:
            axis = alt.Axis(
                # One format for each tick: a shared one writes 0 as 0k.
                labelExpr="format(datum.value, '~s')" if short_ticks else alt.Undefined,
                values=ticks or alt.Undefined,
                tickCount=6,
            )
            lines = (
                alt.Chart(lines_data)
                .mark_line(clip=True)
                .encode(
                    y=alt.Y("v:Q", title=title, scale=scale, axis=axis),
                    color=self._by_variant(alt.Color, self.colours, legend=legend),
                    strokeDash=self._by_variant(alt.StrokeDash, self.dashes, legend=legend),
                    strokeWidth=self._by_variant(alt.StrokeWidth, self.widths, legend=legend),
                )
            )
            layers: list[alt.Chart] = [lines.encode(x=self._time_axis())]
            if width == "container":
                tips = [
                    alt.Tooltip(f"v{index}:Q", title=name, format=value_format)
                    for index, name in enumerate(series)
                ]
                hover = self._hover(alt.Chart(hover_data), tips)
                layers.append(hover.encode(x=self._time_axis()))
            if ideal:
                layers.append(
                    alt.Chart(self.one_row)
                    .mark_rule(color="#888", strokeWidth=1, clip=True)
                    .encode(y=alt.YDatum(1))
                )
            return alt.LayerChart(layer=layers).properties(width=width, height=height)

        return panel

    def overview(self) -> alt.Chart:
        series = {name: self.sampler.gauge(name, "backed_bytes") for name in self.names}
        unit = byte_unit(max((_most(one) for one in series.values()), default=1.0))
        rows = [
            {"t": t / self.time.size, "variant": name, "v": _cell(v / unit.size)}
            for name, one in series.items()
            for t, v in zip(one.time_ns.tolist(), one.value.tolist(), strict=True)
        ]
        brush = alt.selection_interval(
            name="brush", encodings=["x"],
            mark=alt.BrushConfig(fill="#555", fillOpacity=0.15, stroke="#333"),
        )  # fmt: skip
        chart: alt.Chart = (
            alt.Chart(self._data(rows))
            .mark_line(strokeWidth=1.2, interpolate="step-after")
            .encode(
                x=self._time_axis(),
                y=alt.Y("v:Q", title=unit.name, axis=alt.Axis(tickCount=2)),
                color=self._by_variant(alt.Color, self.colours),
            )
            .add_params(brush)
            .properties(width="container", height=48, config=CONFIG)
        )
        return chart

    # --- footprint against slowdown

    def trade(self) -> Figure | None:
        rows: list[dict[str, Any]] = []
        for name, run in self.runs.items():
            host = run.summary["host"]
            if host["slowdown"] is not None:
                rows.append({"variant": name, "bytes": host["peaks"]["backed_bytes"],
                             "slow": host["slowdown"]})  # fmt: skip
        if not rows:
            return None
        unit = byte_unit(max(row["bytes"] for row in rows))
        for row in rows:
            row["x"] = row["bytes"] / unit.size
        x_domain = [0.0, 1.3 * max(row["x"] for row in rows) or 1.0]
        slow = [row["slow"] for row in rows]
        room = 0.12 * (max(slow) - min(slow)) or 0.05 * max(slow)
        y_domain = [min(slow) - room, max(slow) + room]
        width, height = 760, 380
        place_labels(rows, x_domain, y_domain, width, height)
        data = self._data(rows)
        led_data = self._data([row for row in rows if row["led"]])

        def panel(width: Width) -> alt.LayerChart:
            chart = alt.Chart(data)
            x = alt.X("x:Q", title=f"peak of backed host memory ({unit.name})",
                      axis=alt.Axis(tickCount=10),
                      scale=alt.Scale(domain=x_domain, nice=False))  # fmt: skip
            y = alt.Y("slow:Q", title="slowdown of measured phases (×)",
                      scale=alt.Scale(domain=y_domain, nice=False, zero=False))  # fmt: skip
            label_x = alt.X("label_x:Q", scale=alt.Scale(domain=x_domain, nice=False))
            label_y = alt.Y("label_y:Q", scale=alt.Scale(domain=y_domain, nice=False, zero=False))
            tip = [
                alt.Tooltip("variant:N", title="variant"),
                alt.Tooltip("x:Q", title=f"peak backed ({unit.name})", format=",.3f"),
                alt.Tooltip("slow:Q", title="slowdown (×)", format=",.3f"),
            ]
            leaders = (
                alt.Chart(led_data)
                .mark_rule(color="#999", strokeWidth=1)
                .encode(x=x, y=y, x2="lead_x:Q", y2="label_y:Q")
            )
            points = chart.mark_point(size=130, filled=True, opacity=1).encode(
                x=x,
                y=y,
                tooltip=tip,
                color=self._by_variant(alt.Color, self.colours),
                shape=self._by_variant(alt.Shape, self.shapes),
            )
            labels = chart.mark_text(align="left", baseline="middle", dx=4, fontSize=12).encode(
                x=label_x, y=label_y, text="variant:N"
            )
            layers = [leaders, points, labels]
            return alt.LayerChart(layer=layers).properties(width=width, height=height)

        return Figure(
            "tradeoff",
            "Footprint against slowdown",
            "Lower left is better: less host memory at its peak, less slowdown in the "
            "measured phases.",
            (panel,),
            self.datasets,
            over_time=False,
        )

    # --- where the time went

    def parts(self) -> Figure | None:
        spent = {name: measured_parts(run.summary) for name, run in self.runs.items()}
        rows: list[dict[str, Any]] = []
        for name, (ideal, parts) in spent.items():
            for order, (part, ns) in enumerate(parts.items()):
                if ns and ideal:
                    rows.append({"variant": name, "part": PART_LABELS[part], "order": order,
                                 "of_ideal": ns / ideal, "s": ns / 1e9,
                                 "share": ns / sum(parts.values())})  # fmt: skip
        if not rows:
            return None
        shown = {row["part"] for row in rows}
        data = self._data(rows)
        legend = [
            (PART_LABELS[part], colour) for part, colour in PART_COLOURS.items()
            if PART_LABELS[part] in shown
        ]  # fmt: skip

        def panel(width: Width) -> alt.LayerChart:
            y = alt.Y("variant:N", sort=self.names, title=None,
                      axis=alt.Axis(labelFontSize=12, labelLimit=220))  # fmt: skip
            bars = (
                alt.Chart(data)
                .mark_bar(stroke="white", strokeWidth=0.6)
                .encode(
                    y=y,
                    x=alt.X("of_ideal:Q", stack="zero", title="vCPU time over ideal (×)",
                            axis=alt.Axis(tickCount=10)),
                    order=alt.Order("order:Q"),
                    color=alt.Color(
                        "part:N",
                        sort=[label for label, _ in legend],
                        scale=alt.Scale(domain=[label for label, _ in legend],
                                        range=[colour for _, colour in legend]),
                        legend=alt.Legend(title=None, columns=5, symbolType="square"),
                    ),
                    tooltip=[
                        alt.Tooltip("variant:N", title="variant"),
                        alt.Tooltip("part:N", title="part"),
                        alt.Tooltip("of_ideal:Q", title="of ideal (×)", format=",.4f"),
                        alt.Tooltip("share:Q", title="of elapsed", format=".2%"),
                        alt.Tooltip("s:Q", title="vCPU time (s)", format=",.6f"),
                    ],
                )
            )  # fmt: skip
            ideal = (
                alt.Chart(self.one_row)
                .mark_rule(color="#333", strokeDash=[4, 3])
                .encode(x=alt.XDatum(1))
            )
            height = max(60, 34 * len(self.names))
            return alt.LayerChart(layer=[bars, ideal]).properties(width=width, height=height)

        return Figure(
            "time",
            "Where the time went",
            "vCPU time of the measured phases, over what it would ideally be (dashed): "
            "a bar's length is the slowdown.",
            (panel,),
            self.datasets,
            over_time=False,
        )

    # --- shared pieces

    def _data(self, rows: Rows) -> alt.NamedData:
        """A name for `rows`, which Altair would check one by one on every step."""
        name = f"rows_{len(self.datasets)}"
        self.datasets[name] = rows
        return alt.NamedData(name=name)

    def _time_axis(self) -> alt.X:
        return alt.X(
            "t:Q",
            title=f"simulated time ({self.time.name})",
            axis=alt.Axis(tickCount=8, labelFlush=False),
            scale=alt.Scale(domain=[0, self.sampler.end_ns / self.time.size], nice=False),
        )

    def _by_variant(self, channel: Any, values: Sequence[Any], *, legend: bool = False) -> Any:
        """`channel` encoding the variant as one of `values`; channels share one legend."""
        shown = legend and len(self.names) > 1
        return channel(
            "variant:N",
            sort=self.names,
            scale=alt.Scale(type="ordinal", domain=self.names, range=values),
            legend=alt.Legend(title=None, columns=7, labelLimit=220, symbolSize=300)
            if shown else None,
        )  # fmt: skip

    def _hover(self, chart: alt.Chart, tips: list[alt.Tooltip]) -> alt.Chart:
        nearest = alt.selection_point(
            name="hover", on="pointerover", clear="pointerout", nearest=True, fields=["t"],
            empty=False,
        )  # fmt: skip
        time = alt.Tooltip("t:Q", title=f"time ({self.time.name})", format=",.4f")
        rule: alt.Chart = (
            chart.mark_rule(color="#444", strokeWidth=1, clip=True)
            .encode(
                opacity=alt.condition(nearest, alt.value(0.6), alt.value(0)),
                tooltip=[time, *tips],
            )
            .add_params(nearest)
        )
        return rule


def measured_parts(summary: Mapping[str, Any]) -> tuple[int, dict[str, int]]:
    """Ideal vCPU time of all measured phases, and the parts of their elapsed time, in ns."""
    ideal = 0
    parts = dict.fromkeys(ELAPSED_PARTS, 0)
    for guest in summary["guests"]:
        for phase in guest["phases"]:
            if phase["measure"]:
                ideal += phase["ideal_ns"]
                for part in parts:
                    parts[part] += phase["parts"].get(part, 0)
    return ideal, parts


def _cell(value: float) -> float | None:
    """A value of a chart's data; six digits are more than a pixel shows."""
    return None if math.isnan(value) else float(f"{value:.6g}")


def _most(series: Series) -> float:
    return max((v for v in series.value.tolist() if not math.isnan(v)), default=0.0)


def _rate_scale(series: Sequence[Series]) -> tuple[alt.Scale, list[float] | None]:
    """A scale for rates, with its ticks: in powers of ten when variants lie far apart."""
    peaks = [peak for peak in map(_most, series) if peak > 0]
    if max(peaks) < 30 * min(peaks):
        return alt.Scale(zero=True), None
    linear_below = 10.0 ** max(0, math.floor(math.log10(min(peaks))) - 2)
    decades = math.floor(math.log10(max(peaks) / linear_below))
    ticks = [0.0, *(linear_below * 10**n for n in range(decades + 1))]
    domain = [0, 1.5 * max(peaks)]
    return alt.Scale(type="symlog", constant=linear_below, domain=domain, nice=False), ticks


def _wrap(text: str) -> list[str]:
    return textwrap.wrap(text, 110)


def _spec(chart: Any, datasets: Mapping[str, Rows]) -> dict[str, Any]:
    """The specification of `chart` with the rows that it names."""
    made: dict[str, Any] = chart.to_dict(validate=False)
    made["datasets"] = {name: datasets[name] for name in sorted(_named(made))}
    return made


def _named(spec: Any) -> set[str]:
    if isinstance(spec, list):
        return set().union(*map(_named, spec))
    if not isinstance(spec, dict):
        return set()
    own = {spec["data"]["name"]} if "data" in spec and "name" in spec["data"] else set()
    return own.union(*map(_named, spec.values()))
