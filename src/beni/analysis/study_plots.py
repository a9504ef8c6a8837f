"""Plots of a study: differences with their intervals, and score against cost with the Pareto front.

As in plots.py: inline SVG without text, whose colours are the page's, beneath HTML labels that keep their size.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from beni.analysis import formats
from beni.analysis.plots import ticks

_WIDTH, _HEIGHT = 1000.0, 400.0
_PHONE = (270.0, 208.0)  # pixels of a frame on a narrow phone: labels that do not collide there collide nowhere
_LABEL = (17.0, 15.0)
_DOT = 5.0


@dataclass(frozen=True)
class Whisker:
    """A difference: its label, the text beside it, its mean, its interval where known, and each seed's difference."""

    label: str
    text: str
    mean: float
    low: float | None
    high: float | None
    seeds: tuple[float, ...] = ()


@dataclass(frozen=True)
class Point:
    """An arm of a scatter plot: its number and label, a cost above 0, a score, and sd of the score where known."""

    number: int
    label: str
    cost: float
    score: float
    sd: float | None = None


def whiskers(rows: Sequence[Whisker], *, label: str) -> Markup:
    """One strip a difference, on a common axis with a line at 0. Empty without rows."""
    if not rows:
        return Markup("")
    values = [v for r in rows for v in (r.mean, r.low, r.high, *r.seeds) if v is not None and math.isfinite(v)]
    low, high = min(0.0, *values), max(0.0, *values)
    room = 0.06 * (high - low) or 0.05
    low, high = low - room, high + room

    def place(value: float) -> float:
        return (min(max(value, low), high) - low) / (high - low) * _WIDTH

    marks = ticks(low, high, 4)
    grid = "".join(f"M{place(mark):.1f} 0V24" for mark in marks)
    zero = f"M{place(0):.1f} 0V24"
    parts = []
    for row in rows:
        seeds = "".join(f"M{place(value):.1f} 12h0" for value in row.seeds)
        ends = None if row.low is None or row.high is None else (place(row.low), place(row.high))
        line = "" if ends is None else f"M{ends[0]:.1f} 12H{ends[1]:.1f}M{ends[0]:.1f} 6V18M{ends[1]:.1f} 6V18"
        parts.append(
            f'<div class="whisker"><span class="name">{escape(row.label)}</span>'
            f'<svg viewBox="0 0 {_WIDTH:.0f} 24" preserveAspectRatio="none" aria-hidden="true">'
            f'<path class="grid" d="{grid}"/><path class="zero" d="{zero}"/>'
            f'<path class="c2 dot seed" d="{seeds}"/><path class="c1" d="{line}"/>'
            f'<path class="c1 dot" d="M{place(row.mean):.1f} 12h0"/></svg>'
            f'<span class="value">{escape(row.text)}</span></div>'
        )
    axis = "".join(
        f'<span style="left:{place(mark) / _WIDTH:.2%}">{f"{mark:+g}" if mark else 0}</span>' for mark in marks
    )
    return Markup(
        f'<figure class="whiskers" role="img" aria-label="{escape(label)}">{"".join(parts)}'
        f'<div class="whisker axis"><span class="name"></span><div>{axis}</div><span class="value"></span></div>'
        "</figure>"
    )


def front(points: Sequence[Point], *, higher: bool) -> list[Point]:
    """The points that no other one beats at lower or equal cost, by cost; ``higher``: whether a high score is good."""
    best: list[Point] = []
    for point in sorted(points, key=lambda one: (one.cost, -one.score if higher else one.score)):
        if not best or (point.score > best[-1].score if higher else point.score < best[-1].score):
            best.append(point)
    return best


def pareto(points: Sequence[Point], *, higher: bool, cost: str, score: str) -> Markup:
    """Score against cost with numbered dots and the front as steps; a logarithmic axis of costs that span more than ten
    times. Empty without points.
    """
    points = [point for point in points if point.cost > 0]
    if not points:
        return Markup("")
    low_x, high_x, x_marks = _costs([point.cost for point in points])
    logarithmic = max(point.cost for point in points) > 10 * min(point.cost for point in points)
    scale = math.log10 if logarithmic else float
    ends = [p.score + sign * (p.sd or 0.0) for p in points for sign in (-1, 1)]
    room = 0.1 * (max(ends) - min(ends)) or 0.05
    low_y, high_y = min(ends) - room, max(ends) + room

    def place(x: float, y: float) -> tuple[float, float]:
        across = (scale(x) - scale(low_x)) / (scale(high_x) - scale(low_x))
        return across * _WIDTH, (high_y - y) / (high_y - low_y) * _HEIGHT

    y_marks = ticks(low_y, high_y, 5)
    placed = [place(point.cost, point.score) for point in points]
    svg = ['<path class="grid" d="{}"/>'.format("".join(f"M0 {place(low_x, y)[1]:.1f}H1000" for y in y_marks))]
    steps = [place(point.cost, point.score) for point in front(points, higher=higher)]
    line = f"M{steps[0][0]:.1f} {steps[0][1]:.1f}" + "".join(f"H{x:.1f}V{y:.1f}" for x, y in steps[1:]) + "H1000"
    svg.append(f'<path class="c3 dashed" d="{line}"/>')
    bars = ((place(p.cost, p.score - p.sd), place(p.cost, p.score + p.sd)) for p in points if p.sd)
    svg.append('<path class="c1 faint" d="{}"/>'.format("".join(f"M{a[0]:.1f} {a[1]:.1f}V{b[1]:.1f}" for a, b in bars)))
    svg.append('<path class="c1 dot" d="{}"/>'.format("".join(f"M{x:.1f} {y:.1f}h0" for x, y in placed)))
    labels = [f'<span class="y" style="top:{place(low_x, y)[1] / _HEIGHT:.2%}">{y:g}</span>' for y in y_marks]
    labels += [
        f'<span class="x" style="left:{place(x, low_y)[0] / _WIDTH:.2%}">{formats.count(x)}</span>' for x in x_marks
    ]
    at = [(x / _WIDTH, y / _HEIGHT) for x, y in placed]
    labels += [
        f'<span class="number" style="left:calc({x:.2%} + {dx:.0f}px);top:calc({y:.2%} + {dy:.0f}px)">'
        f"{point.number}</span>"
        for point, (x, y), shift in zip(points, at, shifts(at), strict=True)
        if shift is not None
        for dx, dy in [shift]
    ]
    told = f"{score} against {cost}" + (", logarithmic" if logarithmic else "")
    return Markup(
        f'<figure class="plot pareto" role="img" aria-label="{escape(told)}"><div class="frame">'
        f'<svg viewBox="0 0 {_WIDTH:.0f} {_HEIGHT:.0f}" preserveAspectRatio="none" aria-hidden="true">'
        f"{''.join(svg)}</svg>"
        f"{''.join(labels)}</div><figcaption>{escape(told)}; dashed: the Pareto front</figcaption></figure>"
    )


def shifts(at: Sequence[tuple[float, float]]) -> list[tuple[float, float] | None]:
    """Where the label of each dot stands, in pixels from it, such that none covers another one or a dot.

    Args:
        at: dots, as shares of the frame's width and height.

    Returns:
        a shift for each; None where there is no room, so that the legend alone tells.
    """
    dots = [(x * _PHONE[0], y * _PHONE[1]) for x, y in at]
    taken = [(x, y, _DOT, _DOT) for x, y in dots]
    found: list[tuple[float, float] | None] = []
    for x, y in dots:
        free = None
        for reach in (13.0, 20.0, 28.0):
            around = [(math.cos(turn) * reach, math.sin(turn) * reach) for turn in (-math.pi / 4 * k for k in range(8))]
            fits = (one for one in around if not any(_touch((x + one[0], y + one[1]), box) for box in taken))
            free = next(fits, None)
            if free is not None:
                taken.append((x + free[0], y + free[1], _LABEL[0], _LABEL[1]))
                break
        found.append(free)
    return found


def _touch(label: tuple[float, float], box: tuple[float, float, float, float]) -> bool:
    x, y, width, height = box
    return abs(label[0] - x) < (_LABEL[0] + width) / 2 and abs(label[1] - y) < (_LABEL[1] + height) / 2


def _costs(values: Sequence[float]) -> tuple[float, float, list[float]]:
    """Limits of the cost axis and its marks, powers of ten where it is logarithmic."""
    low, high = min(values), max(values)
    if high > 10 * low:
        low, high = low / 1.3, high * 1.3
        powers = range(math.ceil(math.log10(low)), math.floor(math.log10(high)) + 1)
        return low, high, [10.0**power for power in powers]
    room = 0.1 * (high - low) or 0.1 * high
    return low - room, high + room, ticks(low - room, high + room, 4)
