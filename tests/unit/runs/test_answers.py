"""scores.jsonl as columns: read at once or row by row, the same comes of it."""

import json
import math

import numpy as np
import pytest

from beni.runs import answers, shape
from beni.runs.answers import read_scores
from beni.runs.files import read_jsonl


def row(example, **values):
    return {
        "step": 5,
        "id": example,
        "variant": "true",
        "kind": "color",
        "cluster": "p",
        "score": 1,
        "loss": 0.5,
    } | values


def lines(rows):
    return "".join(json.dumps(one) + "\n" for one in rows)


def test_columns_are_sorted_by_id_and_hold_the_last_evaluation_of_each_variant(tmp_path):
    rows = [
        row("b", prediction="red", score=0.25),
        row("a", score=None, loss=2, cluster=7),
        row("a", step=4, score=0),
        row("c", variant="blank", step=4),
        row("b", prediction="blue", score=0),
    ]
    (tmp_path / "scores.jsonl").write_text(lines(rows))
    found = read_scores(tmp_path / "scores.jsonl")
    assert (list(found.variants), found.rows, found.problem) == (["true", "blank"], {5: 3, 4: 2}, None)
    true = found.variants["true"]
    assert (true.step, true.ids, true.clusters, true.predictions) == (5, ("a", "b"), ("7", "p"), (None, "blue"))
    assert np.array_equal(true.score, [math.nan, 0], equal_nan=True)
    assert true.only(np.array([1])).ids == ("b",)
    assert true.codes[1] == 2


@pytest.mark.parametrize(
    "text",
    [
        lines([row("a"), row("b")]) + '{"step": 5, "id": "c", "var',
        lines([row("a")]) + "\n   \n" + lines([row("b", score="1")]),
        lines([row("a"), row("b", step=True), {"step": 5}]),
        lines([row("a"), row("b", loss=True), row("c", score=True)]),
        lines([row("a")]) + "[1]\n7\nnot json\n",
        '{"step": 5, "x": [{"a": 1}\n{"b": 2}], "id": "a", "variant": "true"}\n',
        '{"step": 5, "id": "a"\n"variant": "true"}\n',
        lines([row("a")]).replace("0.5", "NaN"),
        "",
    ],
)
def test_what_is_read_at_once_is_what_is_read_row_by_row(tmp_path, monkeypatch, text):
    path = tmp_path / "scores.jsonl"
    path.write_text(text)
    kept, problem = read_jsonl(path, shape.OF_SCORES_ROW)
    found = read_scores(path)
    assert (sum(found.rows.values()), found.problem) == (len(kept), problem)
    monkeypatch.setattr(answers, "_at_once", lambda _: None)
    slow = read_scores(path)
    assert found.rows == slow.rows
    for variant, own in found.variants.items():
        other = slow.variants[variant]
        assert (own.ids, own.kinds) == (other.ids, other.kinds)
        assert np.array_equal(own.score, other.score, equal_nan=True)
        assert np.array_equal(own.loss, other.loss, equal_nan=True)


def test_without_a_file_there_are_no_answers(tmp_path):
    found = read_scores(tmp_path / "scores.jsonl")
    assert (found.variants, found.rows, found.problem) == ({}, {}, None)
