"""The chart of `simvm.validation.cost`: operations of a sampled run, of those of its first one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import altair as alt

from simvm.report.charts import Figure, Panel, Rows, Width

KINDS: Final = ("pieces", "pages", "events", "window_accesses", "quanta", "simpy_events")
"""Of `Simulation.operations`, those that are shown."""

_PANELS: Final = {
    "guests": "guests",
    "rate": "accesses a second of each guest",
    "memory": "memory of each guest (GiB)",
}
"""By what varies, the title of its axis."""


def figure(data: Mapping[str, Sequence[Mapping[str, Any]]]) -> Figure:
    """The chart of what `simvm.validation.cost.run` returns."""
    datasets: dict[str, Rows] = {}
    for varied, runs in data.items():
        datasets[varied] = [
            {"x": run["x"], "kind": kind, "times": round(run[kind] / runs[0][kind], 4)}
            for kind in KINDS for run in runs
        ]  # fmt: skip
    return Figure(
        "cost",
        "What a sampled run does",
        "Operations of each kind, of those of the leftmost run.",
        tuple(_panel(varied) for varied in data),
        datasets,
        over_time=False,
        columns=3,
        width=220,
    )


def svg(data: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """The chart as a picture."""
    import vl_convert

    picture: str = vl_convert.vegalite_to_svg(figure(data).picture(), allowed_base_urls=[])
    return picture


def _panel(varied: str) -> Panel:
    def drawn(width: Width) -> alt.LayerChart:
        lines = alt.Chart(alt.NamedData(name=varied)).mark_line(point=True).encode(
            x=alt.X("x:Q", title=_PANELS[varied], axis=alt.Axis(format="~s", tickCount=3),
                    scale=alt.Scale(type="log", base=2 if varied != "rate" else 10)),
            y=alt.Y("times:Q", title="times the first",
                    scale=alt.Scale(type="log", base=2, domain=[0.5, 8])),
            color=alt.Color("kind:N", title=None, sort=list(KINDS)),
        )  # fmt: skip
        return alt.LayerChart(layer=[lines]).properties(width=width, height=200)

    return drawn
