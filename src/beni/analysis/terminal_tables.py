"""Tables for people at a terminal: the end of a run, and a comparison of arms."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from beni.analysis import formats
from beni.analysis.comparison import Comparison
from beni.analysis.stats import metric_value
from beni.analysis.tables import (
    COST_HEADER,
    SCORE_HEADER,
    cost_cells,
    damaged_lines,
    details,
    score_cells,
    unfinished_lines,
)
from beni.runs.files import DATA_ERRORS, REPORT
from beni.runs.read import Run, number

_COLORS = {"yes": "green", "confounded": "red", "unknown": "yellow", "finished": "green", "failed": "red"}


def run_table(run: Run) -> Table:
    """The end of one run: state, headline scores and what it took."""
    table = Table(title=Text(run.name), title_justify="left", box=box.SIMPLE_HEAD, show_header=False, pad_edge=False)
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    status = run.status
    state = f"{run.state} at step {status.get('step', '?')} of {status.get('steps', '?')}"
    rows: list[tuple[str, Text | str]] = [("state", Text(state, style=_COLORS.get(run.state, "")))]
    if run.reason:
        rows.append(("reason", Text(run.reason, style="red")))
    accuracy, blank, chance = (metric_value(run, f"eval/{key}") for key in ("accuracy", "accuracy_blank", "chance"))
    rows += [
        ("accuracy with the image", Text(formats.score(accuracy), style="bold")),
        ("accuracy with a blank image", formats.score(blank)),
        ("chance", formats.score(chance)),
        ("held-out loss", formats.score(metric_value(run, "eval/loss"))),
        ("replaced images", _replaced(run)),
        ("scored weights", formats.MISSING if run.ema is None else f"EMA (train.ema={run.ema:g})"),
        ("trainable parameters", formats.count(run.trained_parameters())),
        ("time", formats.duration(number(status.get("seconds")))),
        ("samples/s", formats.count(run.samples_per_s())),
        ("MFU", formats.share(number(status.get("mfu")))),
        ("HFU", formats.share(number(status.get("hfu")))),
        ("goodput", formats.share(number(status.get("goodput/compute")))),
        ("peak memory", formats.gib(number(status.get("peak_memory_gib")))),
        ("run folder", Text(str(run.folder))),
    ]
    if (run.folder / REPORT).is_file():
        rows.append(("report", Text(str(run.folder / REPORT))))
    for name, value in rows:
        if str(value) != formats.MISSING:
            table.add_row(name, value)
    return table


def _replaced(run: Run) -> str:
    """How many images could not be used, with what became of their samples; a dash where all could."""
    if not run.faults:
        return formats.MISSING
    actions: dict[str, int] = {}
    for fault in run.faults:
        action = str(fault.get("action") or "left out")
        actions[action] = actions.get(action, 0) + 1
    told = ", ".join(f"{count} {action}" for action, count in actions.items())
    return f"{len(run.faults)} images were unusable: {told} ({DATA_ERRORS})"


def compare_table(comparison: Comparison) -> RenderableType:
    """Notes, scores, pairs, cost and unfinished runs of a comparison, one below the other."""
    parts: list[RenderableType] = [
        Text(note, style="red" if note.split(":")[0].isupper() else "") for note in comparison.notes
    ]
    title = f"{comparison.folder.resolve().name}: {comparison.metric}"
    parts.append(_table(title, _short(SCORE_HEADER), (_short(score_cells(row)) for row in comparison.rows)))
    parts += _list("pairs", details(comparison))
    parts.append(
        _table("cost (mean over seeds, FLOPs per sample)", COST_HEADER, (cost_cells(row) for row in comparison.rows))
    )
    parts += _list("damaged", damaged_lines(comparison))
    parts += _list("not finished", unfinished_lines(comparison))
    return Group(*parts)


def _table(title: str, header: Iterable[str], rows: Iterable[list[str]]) -> Table:
    table = Table(title=Text(title, style="bold"), title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for index, name in enumerate(header):
        # Only the arm's label may wrap: a number on two lines is hard to read.
        if index == 0:
            table.add_column(name, overflow="fold")
        else:
            table.add_column(name.replace(" ", "\n"), justify="right", no_wrap=True)
    for row in rows:
        table.add_row(*(Text(cell, style=_COLORS.get(cell, "")) for cell in row))
    return table


def _short(cells: Sequence[str]) -> list[str]:
    """Without the number of pairs, which the lines below the table tell with more detail."""
    return [cell for index, cell in enumerate(cells) if SCORE_HEADER[index] != "pairs"]


def _list(title: str, lines: list[str]) -> list[RenderableType]:
    if not lines:
        return []
    return [Text(title, style="bold"), *(Text(f"  {line}", overflow="fold") for line in lines), Text("")]
