"""report.html of a study: a single file without outside links, light or dark, readable on a phone."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from markupsafe import Markup

from beni.analysis.budgets import Budgets
from beni.analysis.comparison import Comparison, Row
from beni.analysis.pages import render
from beni.analysis.sections import headline, interval, sections
from beni.analysis.stats import lower_is_better
from beni.analysis.study_plots import Point, Whisker, pareto, whiskers


def study_page(comparison: Comparison, budgets: Budgets) -> str:
    """The page of a comparison."""
    return render("study.html.jinja", _values(comparison, budgets))


def _values(comparison: Comparison, budgets: Budgets) -> dict[str, Any]:
    said = headline(comparison, budgets)
    shown, drawn = sections(comparison, budgets), _plots(comparison, budgets)
    return {
        "name": comparison.folder.resolve().name,
        "headline": [line for line in said if not is_urgent(line)],
        "urgent": [*(line for line in said if is_urgent(line)), *(n for n in comparison.notes if is_urgent(n))],
        "notes": [note for note in comparison.notes if not is_urgent(note) and note not in said],
        "sections": shown,
        "plots": {section.title: [plot for name in section.plots if (plot := drawn.get(name))] for section in shown},
        "numbers": _numbers(comparison.rows),
    }


def is_urgent(note: str) -> bool:
    """Whether a note begins with a word in capitals, such as ``CONFOUNDED:``."""
    return note.split(":")[0].isupper()


def _plots(comparison: Comparison, budgets: Budgets) -> dict[str, Markup]:
    higher, numbers = not lower_is_better(comparison.metric), _numbers(comparison.rows)
    training = [amount["train_flops"] for amount in budgets.amounts]
    prefill = [row.cost.prefill_flops for row in comparison.rows]
    drawn = {
        name: pareto(_points(comparison.rows, costs, numbers), higher=higher, cost=cost, score=comparison.metric)
        for name, cost_of, cost, costs in (
            ("prefill", "prefill_flops", "prefill FLOPs of a sample", prefill),
            ("training", "train_flops", "training FLOPs", training),
        )
        if cost_of != budgets.match  # of a budget that all arms share there is nothing to be seen
    }
    shown = [
        Whisker(
            label=row.arm.label,
            text=f"{one.mean:+.3f}" + ("" if one.low is None else f" {interval(one.low, one.high)}"),
            mean=one.mean,
            low=one.low,
            high=one.high,
            seeds=tuple(one.per_seed.values()),
        )
        for row in comparison.rows
        if (one := row.difference) is not None
    ]
    return drawn | {"differences": whiskers(shown, label=f"Differences of {comparison.metric} to the baseline")}


def _points(rows: Iterable[Row], costs: Iterable[float | None], numbers: dict[str, int]) -> list[Point]:
    return [
        Point(numbers[row.arm.label], row.arm.label, cost, row.score.mean, row.score.sd)
        for row, cost in zip(rows, costs, strict=True)
        if cost is not None and row.score.mean is not None
    ]


def _numbers(rows: Iterable[Row]) -> dict[str, int]:
    """Label -> number of the arm, as plots show it."""
    return {row.arm.label: number for number, row in enumerate(rows, 1)}
