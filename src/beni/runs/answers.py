"""The rows of scores.jsonl as columns: thousands of runs with thousands of rows each are compared in seconds.

A file whose rows are all as they should be is parsed at once; of any other, the rows are judged one by one
(runs/files.py), so what is said of damage is the same.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from sys import intern
from typing import Any

import numpy as np

from beni.runs import shape
from beni.runs.files import read_jsonl

_OPEN, _CLOSED = b"{}"


@dataclass(frozen=True, eq=False)
class Answers:
    """What a run has answered under one variant, in the last evaluation that scored it; sorted by id.

    Args:
        step: of that evaluation.
        ids: of the examples.
        clusters: the picture of each; its id where it has none.
        kinds: of the questions, None where it has none.
        predictions: the answers, None where none was written.
        score: (examples), NaN where there is no number.
        loss: (examples), NaN where there is no number.
    """

    step: int
    ids: tuple[str, ...]
    clusters: tuple[str, ...]
    kinds: tuple[Any, ...]
    predictions: tuple[Any, ...]
    score: np.ndarray
    loss: np.ndarray

    @cached_property
    def codes(self) -> tuple[np.ndarray, int]:
        """(examples) number of the picture of each, in the order in which they come, and how many there are."""
        numbers = {cluster: number for number, cluster in enumerate(dict.fromkeys(self.clusters))}
        return np.array([numbers[cluster] for cluster in self.clusters], dtype=int), len(numbers)

    def only(self, kept: np.ndarray) -> Answers:
        """Those at some places."""
        if len(kept) == len(self.ids):
            return self
        columns = ([column[i] for i in kept] for column in (self.ids, self.clusters, self.kinds, self.predictions))
        return Answers(self.step, *map(tuple, columns), self.score[kept], self.loss[kept])


@dataclass(frozen=True, eq=False)
class Scores:
    """A scores.jsonl.

    Args:
        variants: name -> answers, in the order of the file.
        rows: step -> how many rows there are of it.
        problem: the sentence that says what could not be read.
    """

    variants: Mapping[str, Answers]
    rows: Mapping[int, int]
    problem: str | None


def read_scores(path: Path) -> Scores:
    """The rows of a scores.jsonl; none where there is no such file."""
    rows, problem = _at_once(path), None
    if rows is None:
        rows, problem = read_jsonl(path, shape.OF_SCORES_ROW)
    by_variant: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        by_variant.setdefault(row["variant"], []).append(row)
    found = {variant: _answers(own) for variant, own in by_variant.items()}
    return Scores(found, Counter(row["step"] for row in rows), problem)


def _at_once(path: Path) -> list[dict[str, Any]] | None:
    """All rows of a file in which every line is a row of the right shape; None for any other file."""
    try:
        lines = [line for line in path.read_bytes().split(b"\n") if line]
        if any(line[0] != _OPEN or line[-1] != _CLOSED for line in lines):  # else two halves could make a row
            return None
        rows = json.loads(b"[" + b",".join(lines) + b"]")
    except (OSError, ValueError, RecursionError):
        return None
    if len(rows) != len(lines) or not set(map(type, rows)) <= {dict}:
        return None
    return rows if all(_fits(rows, key, kind) for key, kind in shape.OF_SCORES_ROW.items()) else None


def _fits(rows: Sequence[dict[str, Any]], key: str, kind: Any) -> bool:
    must = isinstance(kind, shape.Must)
    kinds = kind.shape if must else kind
    if must and not all(key in row for row in rows):
        return False
    return {type(row.get(key)) for row in rows} <= set(kinds if isinstance(kinds, tuple) else (kinds,)) | _absent(must)


def _absent(must: bool) -> set[type]:
    return set() if must else {type(None)}


def _answers(rows: Iterable[dict[str, Any]]) -> Answers:
    """Rows of one variant; of two with one id the later counts."""
    last = max(row["step"] for row in rows)
    by_id = {row["id"]: row for row in rows if row["step"] == last}
    ordered = [by_id[key] for key in sorted(by_id)]
    ids = tuple(intern(row["id"]) for row in ordered)
    return Answers(
        step=last,
        ids=ids,
        clusters=tuple(_shared(row.get("cluster", row["id"])) for row in ordered),
        kinds=tuple(map(_known, (row.get("kind") for row in ordered))),
        predictions=tuple(map(_known, (row.get("prediction") for row in ordered))),
        score=_column(ordered, "score"),
        loss=_column(ordered, "loss"),
    )


def _shared(value: Any) -> str:
    return intern(str(value))


def _known(value: Any) -> Any:
    """Texts once for all runs: equal ones are then the same object, which takes less memory and no comparing."""
    return intern(value) if type(value) is str else value


def _column(rows: Sequence[dict[str, Any]], key: str) -> np.ndarray:
    values = [row.get(key) for row in rows]
    if not set(map(type, values)) <= {int, float}:
        values = [value if type(value) in (int, float) else math.nan for value in values]
    return np.array(values, dtype=float)
