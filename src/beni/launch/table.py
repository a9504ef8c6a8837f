"""The table of ``beni.launch status``: a row a run, as much of it as the terminal is wide."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from rich.table import Table

from beni.launch.names import Name
from beni.launch.states import State

Rows = dict[str, list[str]]
"""Column -> a cell for each run."""
NARROWEST = {"arm": 24, "reason": 40}
"""Characters that a column must have whose cells may take several lines."""
GAP = 2
MOST_NAMED = 3
"""Runs of one reason that are named."""


def render(names: Sequence[Name], states: Sequence[State], width: int) -> tuple[Table, list[str]]:
    """The table, and lines beneath it: the reasons, where there is no room beside the rest.

    Args:
        states: of the same runs.
        width: characters of the terminal. Where it does not take all, columns without content go first, then the
            folder's name but for the hash at its end, the reasons, the node where it is the same for all, and the hash.
    """
    rows = columns(names, states)
    for fewer in _narrower(rows):
        rows = fewer
        if _width(rows) <= width:
            break
    made = Table(box=None, pad_edge=False, padding=(0, GAP, 0, 0))
    for column in rows:
        made.add_column(column, overflow="fold", no_wrap=column not in NARROWEST)
    for cells in zip(*rows.values(), strict=True):
        made.add_row(*cells)
    return made, [] if "reason" in rows else _reasons(names, states)


def columns(names: Sequence[Name], states: Sequence[State]) -> Rows:
    """All that is known of each run."""
    return {
        "arm": [name.arm for name in names],
        "seed": ["" if name.seed is None else str(name.seed) for name in names],
        "state": [state.state for state in states],
        "step": [f"{state.step}/{state.steps}" if state.steps else "" for state in states],
        "left": [_duration(state.seconds_left()) for state in states],
        "job": [state.job for state in states],
        "node": [state.node for state in states],
        "reason": [state.reason for state in states],
        "run": [name.folder.name for name in names],
    }


def _narrower(rows: Rows) -> Iterator[Rows]:
    """The table with less and less in it."""
    yield rows
    kept = {column: cells for column, cells in rows.items() if any(cells)}
    yield kept
    kept = kept | {"run": [cell.rpartition("-")[2] for cell in kept["run"]]}
    yield kept
    yield (kept := {column: cells for column, cells in kept.items() if column != "reason"})
    if len(set(kept.get("node", ()))) == 1:
        yield (kept := {column: cells for column, cells in kept.items() if column != "node"})
    yield {column: cells for column, cells in kept.items() if column != "run"}


def _width(rows: Rows) -> int:
    widest = {column: max(map(len, [column, *cells])) for column, cells in rows.items()}
    return sum(min(size, NARROWEST.get(column, size)) + GAP for column, size in widest.items()) - GAP


def _reasons(names: Sequence[Name], states: Sequence[State]) -> list[str]:
    """``resampler=perceiver s0: row 3 has no image``; many runs of one reason on one line."""
    alike: dict[str, list[str]] = {}
    for name, state in zip(names, states, strict=True):
        if state.reason:
            alike.setdefault(state.reason, []).append(str(name))
    return [
        ", ".join(runs[:MOST_NAMED])
        + (f" and {len(runs) - MOST_NAMED} more" if len(runs) > MOST_NAMED else "")
        + f": {reason}"
        for reason, runs in alike.items()
    ]


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return ""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


def summary(states: Sequence[State]) -> str:
    """``12 runs: 8 finished, 3 running, 1 failed``."""
    counts = Counter(state.state for state in states)
    total = "1 run" if len(states) == 1 else f"{len(states)} runs"
    return f"{total}: " + ", ".join(f"{count} {name}" for name, count in counts.most_common())
