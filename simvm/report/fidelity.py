"""The chart of `simvm validate --fidelity`: the curves of both fidelities, by scenario.

On the left `exact` is a band from the least to the most of one seed, with the mean of all as a thin
line in it; the mean of `sampled` is dashed on top. On the right is how far the two means are apart,
between the lines of the tolerance.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import altair as alt

from simvm.report.charts import BLUE, ORANGE, Figure, Panel, Rows, Width
from simvm.report.series import byte_unit, time_unit

_COLOURS: Final = {"backed_bytes": BLUE, "swapped_bytes": ORANGE}
"""By gauge, those that are shown."""

_POINTS: Final = 130
"""Of a curve; a panel is not much wider in pixels."""

_WIDEST: Final = 0.06
"""Difference at which a panel ends."""


def figure(data: Mapping[str, Any]) -> Figure:
    """The chart of what `simvm.validation.fidelity.run` returns."""
    datasets: dict[str, Rows] = {}
    panels: list[Panel] = []
    for described in data["scenarios"]:
        panels += _panels(described, data["rows"], datasets)
    return Figure(
        "fidelity",
        "Both fidelities over time",
        "Left: host memory of all guests, backed (blue) and swapped (orange). Bands: exact, seeds "
        f"1 to {data['seeds']}, and their mean; dashed: the mean of sampled. Right: sampled less "
        "exact, of the mean over time; grey: the tolerance.",
        tuple(panels),
        datasets,
        over_time=True,
        columns=2,
        width=340,
    )


def svg(data: Mapping[str, Any]) -> str:
    """The chart as a picture."""
    import vl_convert

    picture: str = vl_convert.vegalite_to_svg(figure(data).picture(), allowed_base_urls=[])
    return picture


def _panels(
    described: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], datasets: dict[str, Rows]
) -> list[Panel]:
    """The curves of a scenario, and their differences."""
    times, curves = described["time_ns"], described["curves"]
    time = time_unit(times[-1])
    unit = byte_unit(max(max(curves[gauge]["exact"]["most"]) for gauge in curves))
    tolerance = {
        row["figure"]: row["tolerance"] for row in rows if row["scenario"] == described["name"]
    }
    left: list[alt.Chart] = []
    right: list[alt.Chart] = []
    for gauge, colour in _COLOURS.items():
        if gauge not in curves:
            continue
        exact, sampled = curves[gauge]["exact"], curves[gauge]["sampled"]["mean"]
        whole = sum(exact["mean"]) / len(times) or 1.0
        data = f"{described['name']}_{gauge}"
        datasets[data] = [
            {
                "t": times[i] / time.size,
                **{key: round(exact[key][i] / unit.size, 4) for key in ("mean", "least", "most")},
                "sampled": round(sampled[i] / unit.size, 4),
                "apart": round((sampled[i] - exact["mean"][i]) / whole, 6),
                "limit": tolerance[gauge],
            }
            for i in range(0, len(times), -(-len(times) // _POINTS))
        ]
        chart = alt.Chart(alt.NamedData(name=data)).encode(
            x=alt.X("t:Q", title=f"simulated time ({time.name})", axis=alt.Axis(tickCount=6))
        )
        left += _curves(chart, colour, unit.name)
        right += _difference(chart, colour)

    def panel(layers: list[alt.Chart], title: str) -> Panel:
        def drawn(width: Width) -> alt.LayerChart:
            return alt.LayerChart(layer=layers).properties(width=width, height=120, title=title)

        return drawn

    name = described["name"]
    return [panel(left, name), panel(right, f"{name}: sampled less exact")]


def _curves(chart: alt.Chart, colour: str, unit: str) -> list[alt.Chart]:
    line = chart.mark_line(color=colour, strokeWidth=1)
    y = alt.Y("least:Q", title=f"host memory ({unit})")
    return [
        chart.mark_area(color=colour, opacity=0.3).encode(y=y, y2="most:Q"),
        line.encode(y="mean:Q"),
        chart.mark_line(color=colour, strokeWidth=2.5, strokeDash=[5, 4]).encode(y="sampled:Q"),
    ]


def _difference(chart: alt.Chart, colour: str) -> list[alt.Chart]:
    scale, axis = alt.Scale(domain=[-_WIDEST, _WIDEST]), alt.Axis(format="+.0%", tickCount=5)
    limit = chart.mark_line(color="#999", strokeWidth=1, strokeDash=[2, 2], clip=True)
    return [
        limit.encode(y=alt.Y("limit:Q", title="of the mean", scale=scale, axis=axis)),
        limit.transform_calculate(below="-datum.limit").encode(y="below:Q"),
        chart.mark_line(color=colour, strokeWidth=1.5, clip=True).encode(y="apart:Q"),
    ]
