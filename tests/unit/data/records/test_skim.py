"""One pass over rows, with long bytes cut short."""

from __future__ import annotations

import io
import json
import tarfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from beni.data.records.base import First
from beni.data.records.open import open_rows
from beni.data.records.skim import TAIL, skim


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("BENI_CACHE", str(tmp_path / "cache"))


def test_rows_of_tables_are_as_they_are_but_for_long_bytes(tmp_path):
    rows = [
        {"a": 1, "image": {"bytes": b"x" * 500 + b"y", "path": None}, "many": [{"bytes": b"z" * 300}, {"bytes": None}]},
        {"a": None, "image": None, "many": None},
        {"a": 3, "image": {"bytes": b"short", "path": "p"}, "many": []},
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "t.parquet")
    first, *others = skim(open_rows(str(tmp_path / "t.parquet")))
    assert first == {
        "a": 1,
        "image": {"bytes": b"501 " + b"x" * (TAIL - 1) + b"y", "path": None},
        "many": [{"bytes": b"300 " + b"z" * TAIL}, {"bytes": None}],
    }
    assert others == [rows[1], {"a": 3, "image": {"bytes": b"5 short", "path": "p"}, "many": []}]


def test_files_are_joined_and_cut_to_their_first_rows(tmp_path):
    for name in "ab":
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps({"n": f"{name}{i}"}) + "\n" for i in range(3)))
    rows = open_rows(str(tmp_path / "*.jsonl"))
    assert [row["n"] for row in skim(rows)] == ["a0", "a1", "a2", "b0", "b1", "b2"]
    assert [row["n"] for row in skim(First(rows, 4))] == ["a0", "a1", "a2", "b0"]


def test_a_row_that_cannot_be_read_is_none(tmp_path):
    for name, text in (("a", "{}"), ("b", "no json"), ("c", "{}")):
        (tmp_path / f"{name}.png").write_bytes(b"")
        (tmp_path / f"{name}.json").write_text(text)
    assert [row is None for row in skim(open_rows(str(tmp_path)))] == [False, True, False]


def test_tars_would_have_to_be_read_whole(tmp_path):
    with tarfile.open(tmp_path / "t.tar", "w") as tar:
        member = tarfile.TarInfo("0.txt")
        member.size = 1
        tar.addfile(member, io.BytesIO(b"a"))
    assert skim(open_rows(str(tmp_path / "t.tar"))) is None
