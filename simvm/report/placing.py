"""Places for the labels of a scatter chart, so that no label covers another or a point.

Greedy, in the order of the points, with the widths of a typical sans-serif font.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

Box = tuple[float, float, float, float]

_CHARACTER: Final = 6.6  # pixels, of a 12-pixel sans-serif font
_LINE: Final = 16.0
_POINT: Final = 8.0

_BESIDE: Final = (10, 0)
_PLACES: Final = tuple(
    (side * reach, turn * step * _LINE)
    for step in range(9)
    for reach in (10, 40)
    for turn in (1, -1)
    for side in (1, -1)
)
"""Offsets in pixels from a point to the near edge of its label, nearest first."""


def place_labels(
    rows: list[dict[str, Any]],
    x_domain: Sequence[float],
    y_domain: Sequence[float],
    width: int,
    height: int,
) -> None:
    """Give every row a ``label_x`` and ``label_y`` beside its point, clear of the others.

    Where the label is not right beside its point, ``led`` is true and a line goes from the
    point to ``lead_x``, ``label_y``. Places are tried nearest first; a point in a crowd whose
    places are all taken gets the last one tried.

    Parameters
    ----------
    rows
        Points at ``x``, ``slow`` with the label ``variant``.
    width, height
        Of the chart, in pixels.
    """

    def pixels(row: Mapping[str, Any]) -> tuple[float, float]:
        x = (row["x"] - x_domain[0]) / (x_domain[1] - x_domain[0]) * width
        y = (y_domain[1] - row["slow"]) / (y_domain[1] - y_domain[0]) * height
        return x, y

    taken: list[Box] = [
        (x - _POINT, y - _POINT, x + _POINT, y + _POINT) for x, y in map(pixels, rows)
    ]
    for row in rows:
        x, y = pixels(row)
        length = 4 + _CHARACTER * min(len(row["variant"]), 34)
        for right, down in _PLACES:
            left = x + right if right > 0 else x + right - length
            near = left if right > 0 else left + length
            box = (left, y + down - _LINE / 2, left + length, y + down + _LINE / 2)
            inside = box[0] >= 0 and box[2] <= width and box[1] >= 0 and box[3] <= height
            if inside and not any(_overlap(box, other) for other in taken):
                break
        taken.append(box)
        scale = (x_domain[1] - x_domain[0]) / width
        row["label_x"], row["lead_x"] = x_domain[0] + left * scale, x_domain[0] + near * scale
        row["label_y"] = y_domain[1] - (y + down) / height * (y_domain[1] - y_domain[0])
        row["led"] = (abs(right), down) != _BESIDE


def _overlap(one: Box, other: Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]
