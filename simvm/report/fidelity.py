"""The chart of `simvm validate --fidelity`: the curves of both fidelities, by scenario.

`exact` is a band from the least to the most of one seed, with the mean of all as a thin line in
it; the mean of `sampled` is dashed on top. Where they agree, the dashes lie in the band.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import altair as alt

from simvm.report.charts import BLUE, ORANGE, Figure, Panel, Rows, Width
from simvm.report.series import byte_unit, time_unit

_COLOURS: Final = {"backed_bytes": BLUE, "swapped_bytes": ORANGE}
"""By gauge, those that are shown."""

_POINTS: Final = 130
"""Of a curve; a panel is not much wider in pixels."""


def figure(data: Mapping[str, Any]) -> Figure:
    """The chart of what `simvm.validation.fidelity.run` returns."""
    datasets: dict[str, Rows] = {}
    panels = tuple(_panel(described, datasets) for described in data["scenarios"])
    return Figure(
        "fidelity",
        "Both fidelities over time",
        f"Host memory of all guests: backed (blue), swapped (orange). Bands: the seeds of exact, "
        f"1 to {data['seeds']}, and their mean. Dashed: the mean of sampled.",
        panels,
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


def _panel(described: Mapping[str, Any], datasets: dict[str, Rows]) -> Panel:
    times, curves = described["time_ns"], described["curves"]
    time = time_unit(times[-1])
    unit = byte_unit(max(max(curves[name]["exact"]["most"]) for name in curves))
    every = -(-len(times) // _POINTS)
    layers: list[alt.Chart] = []
    for gauge in _COLOURS:
        if gauge not in curves:
            continue
        exact, sampled = curves[gauge]["exact"], curves[gauge]["sampled"]
        name = f"{described['name']}_{gauge}"
        datasets[name] = [
            {
                "t": times[i] / time.size,
                **{key: exact[key][i] / unit.size for key in ("mean", "least", "most")},
                "sampled": sampled["mean"][i] / unit.size,
            }
            for i in range(0, len(times), every)
        ]
        layers += _layers(alt.Chart(alt.NamedData(name=name)), gauge, time.name, unit.name)

    def panel(width: Width) -> alt.LayerChart:
        chart: alt.LayerChart = alt.layer(*layers)
        return chart.properties(width=width, height=170, title=described["name"])

    return panel


def _layers(chart: alt.Chart, gauge: str, time: str, unit: str) -> list[alt.Chart]:
    colour = _COLOURS[gauge]
    x = alt.X("t:Q", title=f"simulated time ({time})", axis=alt.Axis(tickCount=6))
    y = alt.Y("least:Q", title=f"host memory ({unit})")
    return [
        chart.mark_area(color=colour, opacity=0.3).encode(x=x, y=y, y2="most:Q"),
        chart.mark_line(color=colour, strokeWidth=1).encode(x=x, y="mean:Q"),
        chart.mark_line(color=colour, strokeWidth=2.5, strokeDash=[5, 4]).encode(
            x=x, y="sampled:Q"
        ),
    ]
