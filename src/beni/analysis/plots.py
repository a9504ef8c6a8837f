"""Curves for the report: small inline SVG that follows the page's light or dark theme and fits any width.

Drawn by hand instead of with matplotlib: colours come from the page's CSS, labels are HTML text that keeps its size on
a phone (the SVG stretches, its strokes do not), and the report needs no second of import time.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from markupsafe import Markup, escape

Points = Sequence[tuple[float, float]]

_WIDTH, _HEIGHT = 1000.0, 400.0  # the SVG's own units; both axes stretch to the frame
_MOST_POINTS = 800


@dataclass(frozen=True)
class Curve:
    """One line of a plot.

    Args:
        name: as the legend shows it.
        points: (x, y), sorted by x, finite.
        css: colour class of the page: ``c1``, ``c2``, ``c3``.
        style: ``line`` | ``faint`` (raw values behind a smoothed line) | ``dots`` (evaluations) | ``dashed``.
    """

    name: str
    points: Points
    css: str
    style: Literal["line", "faint", "dots", "dashed"] = "line"


def plot(curves: Sequence[Curve], *, label: str, y_range: tuple[float, float] | None = None) -> Markup:
    """Curves over training steps -> an HTML fragment. Empty when there is no point to draw.

    Args:
        curves: drawn in this order, so the last lies on top.
        label: what a screen reader says.
        y_range: fixed limits of the y axis; default: those of the points.
    """
    drawn = [curve for curve in curves if curve.points]
    if not drawn:
        return Markup("")
    xs = [x for curve in drawn for x, _ in curve.points]
    ys = [y for curve in drawn for _, y in curve.points]
    low_x, high_x = min(0.0, *xs), max(xs)  # from step 0, so that plots of one run line up
    low_y, high_y = y_range or _padded(min(ys), max(ys))

    def place(x: float, y: float) -> tuple[float, float]:
        across = (x - low_x) / (high_x - low_x) if high_x > low_x else 0.5
        up = (y - low_y) / (high_y - low_y)
        return across * _WIDTH, (1 - min(max(up, 0.0), 1.0)) * _HEIGHT

    y_ticks, x_ticks = ticks(low_y, high_y, 5), [x for x in ticks(low_x, high_x, 5) if float(x).is_integer()]
    svg = [f'<path class="grid" d="M0 {place(low_x, y)[1]:.1f}H{_WIDTH:.0f}"/>' for y in y_ticks]
    for curve in drawn:
        svg.append(_path(curve, [place(x, y) for x, y in thin(curve.points)]))
    labels = [f'<span class="y" style="top:{place(low_x, y)[1] / _HEIGHT:.2%}">{_tick(y)}</span>' for y in y_ticks]
    labels += [f'<span class="x" style="left:{place(x, low_y)[0] / _WIDTH:.2%}">{_tick(x)}</span>' for x in x_ticks]
    legend = "".join(
        f'<li><svg class="key" viewBox="0 0 24 10" aria-hidden="true">{_path(curve, _key(curve))}</svg>'
        f"{escape(curve.name)}</li>"
        for curve in drawn
        if curve.style != "faint"
    )
    return Markup(
        f'<figure class="plot" role="img" aria-label="{escape(label)}"><ul class="legend">{legend}</ul>'
        f'<div class="frame"><svg viewBox="0 0 {_WIDTH:.0f} {_HEIGHT:.0f}" preserveAspectRatio="none" '
        f'aria-hidden="true">{"".join(svg)}</svg>{"".join(labels)}</div>'
        "<figcaption>training step</figcaption></figure>"
    )


def smooth(points: Points, share: float = 0.02) -> list[tuple[float, float]]:
    """Running mean over a centred window that holds ``share`` of the points (at least 5); ends use what they have."""
    half = max(2, round(len(points) * share / 2))
    sums = [0.0]
    for _, y in points:
        sums.append(sums[-1] + y)
    result = []
    for index, (x, _) in enumerate(points):
        reach = min(half, index, len(points) - 1 - index)  # symmetric, so that the ends are not pulled sideways
        first, last = index - reach, index + reach + 1
        result.append((x, (sums[last] - sums[first]) / (last - first)))
    return result


def thin(points: Points, most: int = _MOST_POINTS) -> list[tuple[float, float]]:
    """At most about ``most`` points that keep every spike: the lowest and the highest of each stretch."""
    if len(points) <= most:
        return list(points)
    size = math.ceil(2 * len(points) / most)
    kept: list[tuple[float, float]] = []
    for start in range(0, len(points), size):
        stretch = points[start : start + size]
        ends = {min(stretch, key=lambda point: point[1]), max(stretch, key=lambda point: point[1])}
        kept += sorted(ends)
    return kept


def ticks(low: float, high: float, most: int) -> list[float]:
    """Round numbers (1, 2, 2.5, 5 times a power of ten) within [low, high]; at most ``most`` + 1 of them."""
    if not high > low:
        return [low]
    raw = (high - low) / most
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1.0, 2.0, 2.5, 5.0, 10.0) if factor * power >= raw * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(index * step, 12) for index in range(first, last + 1)]


def _padded(low: float, high: float) -> tuple[float, float]:
    room = 0.05 * (high - low) or max(abs(high) * 0.05, 0.05)
    return (0.0 if 0 <= low < 0.3 * high else low - room), high + room


def _key(curve: Curve) -> list[tuple[float, float]]:
    return [(12.0, 5.0)] if curve.style == "dots" else [(0.0, 5.0), (24.0, 5.0)]


def _path(curve: Curve, points: list[tuple[float, float]]) -> str:
    # A dot is a line of length 0 with round caps: it stays round although the axes stretch differently.
    lines = [points] if curve.style != "dots" or len(points) > 1 else []
    drawn = "".join("M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in line) for line in lines if len(line) > 1)
    dots = "".join(f"M{x:.1f} {y:.1f}h0" for x, y in points) if curve.style == "dots" or len(points) == 1 else ""
    parts = f'<path class="{curve.css} {curve.style}" d="{drawn}"/>' if drawn else ""
    return parts + (f'<path class="{curve.css} dot" d="{dots}"/>' if dots else "")


def _tick(value: float) -> str:
    if abs(value) >= 10_000:
        return f"{value / 1000:g}k"
    return f"{value:g}"
