"""Every reader of rows: the same records in any order, from any process, with errors that name their place."""

import io
import json
import pickle
import random
import tarfile
import tracemalloc

import datasets
import pytest

import beni.data.rows_json as rows_json
from beni.data.rows import Joined, expand, open_rows
from beni.data.rows_json import JsonRows
from beni.errors import DataError
from hostile import encoded, noise

RECORDS = [
    {"id": 1, "text": "one"},
    {"id": "zwei", "text": "café 赤い星 🟥", "more": [1, {"a": ']}\\"'}]},
    {"id": None, "text": 'quotes " and \\ and \n lines'},
    {"id": 4, "text": "", "deep": {"x": {"y": -1.5e-3}}},
]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("BENI_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")
    return tmp_path / "cache"


def write(path, records=RECORDS):
    """Records in the form of the file's ending."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".jsonl":
        path.write_text("\n\n".join(json.dumps(r, ensure_ascii=False) for r in records) + "\n", encoding="utf-8")
    elif path.suffix == ".json":
        path.write_text(json.dumps(records, ensure_ascii=False, indent=1), encoding="utf-8")
    else:
        table = datasets.Dataset.from_list(records)
        {".parquet": table.to_parquet, ".csv": table.to_csv}[path.suffix](str(path))
    return path


def read(rows):
    return [rows[i] for i in range(len(rows))]


@pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
@pytest.mark.parametrize("piece", [1, 7, 1 << 20])
def test_json_records_are_found_whatever_the_pieces_it_is_read_in(tmp_path, monkeypatch, name, piece):
    monkeypatch.setattr(rows_json, "PIECE", piece)
    rows = JsonRows(write(tmp_path / name))
    assert read(rows) == RECORDS
    assert rows[2] == RECORDS[2]


def test_where_records_begin_is_found_once(tmp_path, monkeypatch):
    path = write(tmp_path / "a.json")
    first = JsonRows(path)

    def again(path):
        pytest.fail("read again")

    monkeypatch.setattr(rows_json, "_spans", again)
    second = JsonRows(path)
    assert read(second) == RECORDS
    assert second.fingerprint() == first.fingerprint()


def test_a_changed_file_is_read_again(tmp_path):
    before = JsonRows(write(tmp_path / "a.json"))
    after = JsonRows(write(tmp_path / "a.json", RECORDS[:2]))
    assert len(after) == 2
    assert before.fingerprint() != after.fingerprint()


def test_a_large_file_needs_little_memory(tmp_path):
    path = tmp_path / "large.json"
    with path.open("w") as file:
        file.write("[")
        for i in range(60_000):
            file.write(f'{"," if i else ""}{{"id": {i}, "text": "{"word " * 100}"}}')
        file.write("]")
    assert path.stat().st_size > 30 << 20
    tracemalloc.start()
    rows = JsonRows(path)
    assert rows[59_999]["id"] == 59_999
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 3 * path.stat().st_size
    assert peak < 110 << 20  # a few pieces of 16 MiB, and 16 bytes a record
    assert len(rows) == 60_000


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "it is empty"),
        ('[{"a": 1}', "record 1 .* does not end|record 1 .*comma"),
        ('[{"a": 1} {"b": 2}]', "record 1 .*byte 10.*comma"),
        ('[{"a": 1}, {"b" 2}]', "record 1 .byte 11.: Expecting ':'"),
        ('[{"a": "' + "x" * 50, "record 0"),
        ('[{"a": 1}] more', "something stands behind the list"),
        ("7", "holds a int, expected a list"),
        ('[{"a": 1}, 3]', "record 1: a int, expected an object"),
    ],
)
def test_a_damaged_file_is_told_with_record_and_byte(tmp_path, content, says):
    path = tmp_path / "bad.json"
    path.write_text(content)
    with pytest.raises(DataError, match=rf"bad\.json.*({says})"):
        JsonRows(path)


@pytest.fixture(params=["json", "jsonl", "parquet", "saved", "tar", "folder", "joined"])
def kind(request, tmp_path):
    """(path for open_rows, the rows' texts)."""
    texts = [f"text {i}" for i in range(9)]
    records = [
        {"text": text, "image": {"bytes": encoded(noise(i)), "path": f"{i}.png"}} for i, text in enumerate(texts)
    ]
    plain = [{"text": text, "image": f"{i}.png"} for i, text in enumerate(texts)]
    if request.param in ("json", "jsonl"):
        return str(write(tmp_path / f"a.{request.param}", plain)), texts
    if request.param == "joined":
        for i in range(3):
            write(tmp_path / f"part-{i}.jsonl", plain[3 * i : 3 * i + 3])
        return str(tmp_path / "part-{0..2}.jsonl"), texts
    if request.param == "tar":
        for shard in range(3):
            with tarfile.open(tmp_path / f"s-{shard:02d}.tar", "w") as tar:
                for i in range(3 * shard, 3 * shard + 3):
                    for name, data in ((f"d/{i:04d}.png", encoded(noise(i))), (f"d/{i:04d}.text", texts[i].encode())):
                        member = tarfile.TarInfo(name)
                        member.size = len(data)
                        tar.addfile(member, io.BytesIO(data))
        return str(tmp_path / "s-{00..02}.tar"), texts
    if request.param == "folder":
        (tmp_path / "f" / "inner").mkdir(parents=True)
        for i, text in enumerate(texts):
            (tmp_path / "f" / "inner" / f"{i}.png").write_bytes(encoded(noise(i)))
            (tmp_path / "f" / "inner" / f"{i}.txt").write_text(text)
        (tmp_path / "f" / "alone.png").write_bytes(b"")
        return str(tmp_path / "f"), texts
    table = datasets.Dataset.from_list(records).cast_column("image", datasets.Image())
    if request.param == "saved":
        table.save_to_disk(str(tmp_path / "saved"))
        return str(tmp_path / "saved"), texts
    table.to_parquet(str(tmp_path / "a.parquet"))
    return str(tmp_path / "a.parquet"), texts


def test_records_come_in_any_order_and_from_a_copy(kind):
    path, texts = kind
    rows = open_rows(path)
    order = list(range(9))
    random.Random(0).shuffle(order)
    assert [rows[i]["text"] for i in order] == [texts[i] for i in order]
    copy = pickle.loads(pickle.dumps(rows))
    assert [copy[i]["text"] for i in range(9)] == texts
    assert len({rows.where(i) for i in range(9)}) == 9
    assert open_rows(path).fingerprint() == rows.fingerprint()


def test_pictures_stay_encoded(kind):
    from beni.data.table import pictures_of

    path, _ = kind
    row = open_rows(path)[4]
    value = row.get("image", row.get("png"))
    if isinstance(value, dict):
        assert value["bytes"] == encoded(noise(4))
    elif isinstance(value, bytes):
        assert value == encoded(noise(4))
    else:
        assert value.endswith("4.png")
    assert len(pictures_of(value, __import__("pathlib").Path(), "image", "here")) == 1


def test_values_of_tar_members_are_what_their_endings_say(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        members = {"1.json": b'{"a": 1}', "1.cls": b"7", "1.seg.png": b"x", "1.JPG": b"y", "dir/.hidden": b""}
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    row = open_rows(str(tmp_path / "a.tar"))[0]
    assert row == {"__key__": "1", "json": {"a": 1}, "cls": 7, "seg.png": b"x", "jpg": b"y"}


def test_tar_members_of_a_record_that_stand_apart_are_an_error(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name in ("1.txt", "2.txt", "1.png"):
            tar.addfile(tarfile.TarInfo(name), io.BytesIO())
    with pytest.raises(DataError, match="members of 1 do not stand together"):
        open_rows(str(tmp_path / "a.tar"))
    (tmp_path / "b.tar").write_bytes(b"not a tar" * 100)
    with pytest.raises(DataError, match=r"b\.tar is no uncompressed tar"):
        open_rows(str(tmp_path / "b.tar"))


def test_the_first_rows_of_a_stream_are_kept_and_read_once(tmp_path, monkeypatch):
    records = [{"text": f"text {i}", "n": i} for i in range(2000)]
    path = write(tmp_path / "big.parquet", records)
    rows = open_rows(str(path), rows=700)
    assert [rows[i]["n"] for i in (0, 511, 512, 699)] == [0, 511, 512, 699]
    assert len(rows) == 700

    def streamed(*_):
        pytest.fail("streamed again")

    monkeypatch.setattr("beni.data.rows_table._tables", streamed)
    assert len(open_rows(str(path), rows=700)) == 700


def test_a_set_of_the_hub_without_a_network_says_what_to_do(monkeypatch):
    monkeypatch.setattr("beni.hub.reachable", lambda host: False)
    for rows in (None, 5):
        with pytest.raises(DataError, match=r"(?s)data\.path=hf://datasets/owner/name.*fix: run once where"):
            open_rows("hf://datasets/owner/name", rows=rows)


@pytest.mark.parametrize(
    ("path", "says"),
    [
        (None, r"data\.path is null"),
        ("nowhere.json", r"data\.path=.*nowhere.json does not exist"),
        ("a.txt", r"is a \.txt; expected \.json, .*\.tar, or a folder"),
        ("*.*", "files of several kinds: .json, .txt"),
        ("empty", "holds no picture"),
    ],
)
def test_what_cannot_be_read_is_told_with_what_can(tmp_path, path, says):
    (tmp_path / "a.txt").write_text("x")
    write(tmp_path / "b.json")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=says):
        open_rows(path and str(tmp_path / path))


def test_a_damaged_parquet_file_is_told_with_its_name(tmp_path):
    (tmp_path / "a.parquet").write_bytes(b"PAR1 but not really")
    with pytest.raises(DataError, match=r"a\.parquet cannot be read"):
        open_rows(str(tmp_path / "a.parquet"))


def test_patterns_are_expanded_as_webdataset_writes_them(tmp_path):
    for name in ("s-08.tar", "s-09.tar", "s-10.tar", "t-a.tar", "t-b.tar"):
        (tmp_path / name).touch()
    assert [p.name for p in expand(f"{tmp_path}/s-{{08..10}}.tar")] == ["s-08.tar", "s-09.tar", "s-10.tar"]
    assert [p.name for p in expand(f"{tmp_path}/t-{{b,a}}.tar")] == ["t-b.tar", "t-a.tar"]
    assert [p.name for p in expand(f"{tmp_path}/?-*.tar")] == ["s-08.tar", "s-09.tar", "s-10.tar", "t-a.tar", "t-b.tar"]


def test_joined_rows_know_which_file_a_record_is_in(tmp_path):
    parts = [JsonRows(write(tmp_path / f"{i}.jsonl", RECORDS[: i + 1])) for i in range(3)]
    rows = Joined(parts)
    assert [rows.where(i).rpartition("/")[2] for i in range(6)] == [
        "0.jsonl, record 0",
        "1.jsonl, record 0",
        "1.jsonl, record 1",
        *(f"2.jsonl, record {i}" for i in range(3)),
    ]
