"""The journal of an evaluation keeps whole groups, whatever a killed process has left behind them."""

from __future__ import annotations

import pytest

from beni.errors import ResumeError
from beni.evals.journal import Journal
from beni.runs.files import JOURNAL, PROGRESS

SETTINGS = {"task": "exact", "fields": {"new_tokens": 3}, "batch": (1, 2)}


def test_a_journal_goes_on_behind_the_last_whole_group(tmp_path):
    journal = Journal(tmp_path, SETTINGS)
    journal.add([{"id": "a", "score": 0.1}, {"id": "b", "score": None}])
    journal.add([])
    with (tmp_path / JOURNAL).open("a") as file:
        file.write('{"id": "torn", "sco')
    again = Journal(tmp_path, SETTINGS)
    assert (again.groups, again.rows) == (2, [{"id": "a", "score": 0.1}, {"id": "b", "score": None}])
    again.add([{"id": "c ü\u2028", "score": 1.0}])
    last = Journal(tmp_path, SETTINGS)
    assert [row["id"] for row in last.rows] == ["a", "b", "c ü\u2028"]
    assert last.groups == 3


def test_rows_of_another_evaluation_are_not_gone_on_with(tmp_path):
    Journal(tmp_path, SETTINGS).add([{"id": "a"}])
    with pytest.raises(ResumeError, match=r"another evaluation: fields, task differ"):
        Journal(tmp_path, SETTINGS | {"task": "vqa", "fields": {}})


def test_lost_rows_and_damaged_progress_are_named(tmp_path):
    Journal(tmp_path, SETTINGS).add([{"id": "a"}])
    (tmp_path / JOURNAL).write_text("")
    with pytest.raises(ResumeError, match="has lost rows"):
        Journal(tmp_path, SETTINGS)
    (tmp_path / PROGRESS).write_text("{")
    with pytest.raises(ResumeError, match="not complete JSON"):
        Journal(tmp_path, SETTINGS)


def test_a_closed_journal_leaves_scores_and_a_summary_only(tmp_path):
    journal = Journal(tmp_path, SETTINGS)
    journal.add([{"id": "a"}])
    journal.close([{"id": "a", "score": 1.0}], {"values": {}})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["scores.jsonl", "summary.json"]
