"""Reports on a run directory: an HTML page, its charts as pictures, tables.

Reads results only. ``report.html`` is one file that opens without a network; the
pictures in ``charts/`` are the same charts standing still. The charting libraries are
imported when a report is written, so tables alone do not wait for them.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from simvm.report.tables import comparison_table, guests_table, phases_table, regions_table
from simvm.results import CHARTS_DIRECTORY, REPORT_FILE, is_complete, load_runs, write_text

__all__ = [
    "comparison_table",
    "guests_table",
    "phases_table",
    "regions_table",
    "write_report",
]

PNG_SCALE: Final = 1.5


def write_report(directory: Path | str, out: Path | str | None = None) -> Path:
    """Write ``report.html`` and ``charts/*.svg`` and ``*.png`` of a run directory.

    Parameters
    ----------
    out
        Where they go, made if it is missing; None: into the run directory itself.

    Returns
    -------
    The page's path.

    Raises
    ------
    simvm.results.ResultError
        There is no run in `directory`, or not one that this version reads.
    """
    import vl_convert

    from simvm.report.charts import FIGURE_NAMES, figures
    from simvm.report.page import render

    runs = load_runs(directory)
    drawn = figures(runs)
    place = Path(directory if out is None else out)
    charts = place / CHARTS_DIRECTORY
    charts.mkdir(parents=True, exist_ok=True)
    for figure in drawn:
        svg = vl_convert.vegalite_to_svg(figure.picture(), allowed_base_urls=[])
        write_text(charts / f"{figure.name}.svg", svg)
        png = vl_convert.svg_to_png(svg, scale=PNG_SCALE)
        temporary = charts / f".{figure.name}.png.part"
        temporary.write_bytes(png)
        os.replace(temporary, charts / f"{figure.name}.png")
    for name in FIGURE_NAMES - {figure.name for figure in drawn}:  # of an earlier report
        for suffix in ("svg", "png"):
            (charts / f"{name}.{suffix}").unlink(missing_ok=True)
    page = place / REPORT_FILE
    write_text(page, render(runs, drawn, complete=is_complete(directory)))
    return page
