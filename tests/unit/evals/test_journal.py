"""The journals of an evaluation keep whole groups, whatever a killed process has left behind them."""

from __future__ import annotations

import pytest

from beni.errors import ResumeError
from beni.evals.journal import Journal, finish, read_journals
from beni.runs.files import journal_name
from beni.runs.lock import lock_of

SETTINGS = {"task": "exact", "fields": {"new_tokens": 3}}


def test_a_journal_goes_on_behind_the_last_whole_group(tmp_path):
    journal = Journal(tmp_path, SETTINGS, 0, {})
    journal.add(0, [{"id": "a", "score": 0.1}, {"id": "b", "score": None}])
    journal.add(1, [])
    with (tmp_path / journal_name(0)).open("a") as file:
        file.write('{"group": 2, "rows": [{"id": "torn", "sco')
    before = read_journals(tmp_path, SETTINGS)
    assert before == {0: [{"id": "a", "score": 0.1}, {"id": "b", "score": None}], 1: []}
    again = Journal(tmp_path, SETTINGS, 0, before)
    again.add(2, [{"id": "c \u00fc\u2028", "score": 1.0}])
    assert again.groups[2] == read_journals(tmp_path, SETTINGS)[2] == [{"id": "c \u00fc\u2028", "score": 1.0}]
    assert again.before == before


def test_what_any_process_has_written_is_read_and_each_goes_on_in_its_own_file(tmp_path):
    for rank in range(3):
        Journal(tmp_path, SETTINGS, rank, {}).add(rank, [{"id": f"of {rank}"}])
    with (tmp_path / journal_name(2)).open("a") as file:
        file.write('{"group"')
    before = read_journals(tmp_path, SETTINGS)
    assert {group: rows[0]["id"] for group, rows in before.items()} == {0: "of 0", 1: "of 1", 2: "of 2"}
    Journal(tmp_path, SETTINGS, 0, before).add(3, [])
    Journal(tmp_path, SETTINGS, 1, before).add(4, [])
    assert sorted(read_journals(tmp_path, SETTINGS)) == [0, 1, 2, 3, 4]


def test_a_journal_that_was_killed_before_its_first_line_was_whole_counts_nothing(tmp_path):
    (tmp_path / journal_name(0)).write_text('{"settings": {"ta')
    assert read_journals(tmp_path, SETTINGS) == {}
    Journal(tmp_path, SETTINGS, 0, {}).add(0, [{"id": "a"}])
    assert read_journals(tmp_path, SETTINGS) == {0: [{"id": "a"}]}


def test_rows_of_another_evaluation_are_not_gone_on_with(tmp_path):
    Journal(tmp_path, SETTINGS, 1, {}).add(0, [{"id": "a"}])
    with pytest.raises(ResumeError, match=r"another evaluation: fields, task differ"):
        read_journals(tmp_path, SETTINGS | {"task": "vqa", "fields": {}})


@pytest.mark.parametrize(
    ("line", "said"),
    [("{", "it is not JSON"), ('{"group": 1}', "rows"), ('{"group": "1", "rows": []}', "group"), ("[1]", "an object")],
)
def test_a_damaged_line_is_named(line, said, tmp_path):
    journal = Journal(tmp_path, SETTINGS, 0, {})
    journal.add(0, [{"id": "a"}])
    with (tmp_path / journal_name(0)).open("a") as file:
        file.write(line + "\n")
    journal.add(1, [{"id": "b"}])
    with pytest.raises(ResumeError, match=rf"journal.jsonl: line 3 is damaged: .*{said}"):
        read_journals(tmp_path, SETTINGS)


def test_a_finished_evaluation_leaves_scores_and_a_summary_only(tmp_path):
    for rank in range(2):
        with lock_of(tmp_path / journal_name(rank)):
            Journal(tmp_path, SETTINGS, rank, {}).add(rank, [{"id": "a"}])
    finish(tmp_path, [{"id": "a", "score": 1.0}], {"values": {}})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["scores.jsonl", "summary.json"]
