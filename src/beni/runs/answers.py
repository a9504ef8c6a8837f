"""The rows of scores.jsonl as columns: thousands of runs with thousands of rows each are compared in seconds.

A file whose rows are all as they should be is parsed at once; of any other, the rows are judged one by one
(runs/files.py), so what is said of damage is the same.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from operator import itemgetter
from pathlib import Path
from sys import intern
from typing import Any

import numpy as np

from beni.runs import shape
from beni.runs.files import read_jsonl

_OPEN, _CLOSED = b"{}"
_COLUMNS = ("step", "id", "variant", "cluster", "kind", "prediction", "score", "loss")


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
    columns: dict[str, list[Any]] = {key: [row.get(key) for row in rows] for key in _COLUMNS}
    places: dict[str, list[int]] = {}
    for place, variant in enumerate(columns["variant"]):
        places.setdefault(variant, []).append(place)
    found = {variant: _answers(columns, own) for variant, own in places.items()}
    return Scores(found, Counter(columns["step"]), problem)


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
    if isinstance(kind, shape.Must):
        try:
            found = set(map(type, map(itemgetter(key), rows)))
        except KeyError:
            return False
        kind = kind.shape
    else:
        found = {type(row.get(key)) for row in rows} - {type(None)}
    return found <= set(kind if isinstance(kind, tuple) else (kind,))


def _answers(columns: Mapping[str, list[Any]], places: list[int]) -> Answers:
    """The columns of one variant; of two rows with one id the later counts."""
    steps = columns["step"]
    last = max(steps[place] for place in places)
    places = [place for place in places if steps[place] == last]
    order, ids = _sorted(tuple(columns["id"][place] for place in places))

    def column(key: str) -> list[Any]:
        own = columns[key]
        return [own[places[at]] for at in order]

    clusters, kinds = column("cluster"), column("kind")
    if None in clusters:
        clusters = [one if cluster is None else cluster for one, cluster in zip(ids, clusters, strict=True)]
    return Answers(
        step=last,
        ids=ids,
        clusters=_shared(tuple(map(str, clusters))),
        kinds=_shared(tuple(kinds)) if set(map(type, kinds)) <= {str} else tuple(kinds),
        predictions=tuple(intern(one) if type(one) is str else one for one in column("prediction")),
        score=_numbers(column("score")),
        loss=_numbers(column("loss")),
    )


@lru_cache(maxsize=64)
def _sorted(ids: tuple[str, ...]) -> tuple[list[int], tuple[str, ...]]:
    """Places of ids in their order, of equal ones the last, and the ids; the same examples are asked in all runs."""
    at = {one: place for place, one in enumerate(ids)}
    names = tuple(sorted(at))
    return [at[one] for one in names], names


@lru_cache(maxsize=64)
def _shared(texts: tuple[str, ...]) -> tuple[str, ...]:
    """Equal columns of all runs as one object, which takes less memory and no comparing."""
    return texts


def _numbers(values: list[Any]) -> np.ndarray:
    if not set(map(type, values)) <= {int, float}:
        values = [value if type(value) in (int, float) else math.nan for value in values]
    return np.array(values, dtype=float)
