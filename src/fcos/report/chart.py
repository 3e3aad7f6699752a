"""The geometry of line charts (lines, points, ticks), for the SVG of a page."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from fcos.data.splits import spread

WIDTH, HEIGHT = 560, 250
LEFT, RIGHT, TOP, BOTTOM = 54, 20, 12, 34  # margins for the tick labels
MAX_POINTS = 200  # of a line; more cannot be told apart at this width
FEW_POINTS = 60  # are drawn as dots too


@dataclass(frozen=True)
class Dot:
    """A value of a curve: its position in the SVG, and its tooltip."""

    x: float
    y: float
    text: str
    is_best: bool


@dataclass(frozen=True)
class Line:
    """A curve. `path` is SVG path data, with gaps at non-finite values."""

    name: str
    path: str
    dots: tuple[Dot, ...]


@dataclass(frozen=True)
class Chart:
    """A whole line chart.

    Attributes:
        x_ticks, y_ticks: positions along the axis, in SVG units, and their labels.
    """

    title: str
    x_name: str
    lines: tuple[Line, ...]
    x_ticks: Mapping[float, str]
    y_ticks: Mapping[float, str]
    show_dots: bool
    width: int = WIDTH
    height: int = HEIGHT
    left: int = LEFT
    right: int = WIDTH - RIGHT
    top: int = TOP
    bottom: int = HEIGHT - BOTTOM


def line_chart(
    title: str,
    x_name: str,
    curves: Mapping[str, NDArray[np.float64]],
    *,
    mark_best: bool = False,
    whole_x: bool = True,
) -> Chart | None:
    """A chart of curves, each `(N, 2)` x and y; None if there is nothing to draw.

    Args:
        curves: by name; y of NaN makes a gap.
        mark_best: mark the maximum of the first curve.
        whole_x: x is a count: ticks only at integers.
    """
    curves = {name: points[spread(len(points), MAX_POINTS)] for name, points in curves.items()}
    finite = [points[np.isfinite(points).all(axis=1)] for points in curves.values()]
    drawn = np.concatenate(finite) if finite else np.zeros((0, 2))
    if not len(drawn):
        return None
    lowest, highest = float(drawn[:, 0].min()), float(drawn[:, 0].max())
    is_single = lowest == highest  # drawn in the middle, with its own tick
    x_ticks = [lowest] if is_single else _ticks(drawn[:, 0], integer=whole_x)
    y_ticks = _ticks(np.append(drawn[:, 1], 0.0))
    x_range = min(lowest, x_ticks[0]) - is_single, max(highest, x_ticks[-1]) + is_single
    y_range = y_ticks[0], max(drawn[:, 1].max(), y_ticks[-1])

    def x_place(x: float) -> float:
        return round(float(np.interp(x, x_range, (LEFT, WIDTH - RIGHT))), 1)

    def y_place(y: float) -> float:
        return round(float(np.interp(y, y_range, (HEIGHT - BOTTOM, TOP))), 1)

    lines: list[Line] = []
    for name, points in curves.items():
        values = np.where(np.isfinite(points[:, 1]), points[:, 1], -np.inf)
        best = int(values.argmax()) if mark_best and not lines and len(values) else -1
        path, pen_is_down, dots = "", False, []
        for i, (x, y) in enumerate(points.tolist()):
            if np.isfinite(y):
                path += f"{'L' if pen_is_down else 'M'}{x_place(x)} {y_place(y)}"
                text = f"{name}, {x_name} {x:g}: {y:.4g}" + (", the best" if i == best else "")
                dots.append(Dot(x_place(x), y_place(y), text, i == best))
            pen_is_down = bool(np.isfinite(y))
        lines.append(Line(name, path, tuple(dots)))
    return Chart(
        title=title,
        x_name=x_name,
        lines=tuple(lines),
        x_ticks={x_place(x): f"{x:g}" for x in x_ticks if x_range[0] <= x <= x_range[1]},
        y_ticks={y_place(y): _short(y) for y in y_ticks},
        show_dots=max(len(points) for points in curves.values()) <= FEW_POINTS,
    )


def _short(value: float) -> str:
    """A number in a few characters: 0.006, 5e-5."""
    return f"{value:.4g}".replace("e-0", "e-")


def _ticks(values: NDArray[np.float64], *, integer: bool = False) -> list[float]:
    locator = MaxNLocator(nbins=6, integer=integer, min_n_ticks=1)
    low, high = float(values.min()), float(values.max())
    ticks = locator.tick_values(low, high if high > low else low + 1)
    return [float(tick) for tick in ticks if tick >= low - 1e-12]
