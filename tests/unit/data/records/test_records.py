"""Every reader of rows: the same records in any order, from any process, with errors that name their place."""

import io
import json
import os
import pickle
import random
import tarfile
import tracemalloc

import datasets
import pyarrow as pa
import pytest

import beni.data.records.json as rows_json
from beni.data.formats.fields import pictures_of
from beni.data.records.base import Joined
from beni.data.records.json import JsonRows
from beni.data.records.open import expand, open_rows
from beni.errors import DataError
from support.hostile import encoded, noise

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


@pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
def test_a_byte_order_mark_is_passed_over(tmp_path, name):
    path = write(tmp_path / name)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert read(JsonRows(path)) == RECORDS


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


def test_a_large_file_needs_little_memory_and_a_worker_none_of_it(tmp_path, monkeypatch):
    monkeypatch.setattr(rows_json, "PIECE", 1 << 18)
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
    assert peak < 5 << 20  # a few pieces of 256 KiB, and 16 bytes a record
    assert len(rows) == 60_000
    assert len(pickle.dumps(rows)) < 1000


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "it is empty"),
        ("\ufeff ", "it is empty"),
        ('[{"a": 1}', "record 1 .* does not end|record 1 .*comma"),
        ('[{"a": 1} {"b": 2}]', "record 1 .*byte 10.*comma"),
        ('[{"a": 1}, {"b" 2}]', "record 1 .byte 11.: Expecting ':'"),
        ('[{"a": "' + "x" * 50, "record 0"),
        ('[{"a": 1}] more', "something stands behind the list"),
        ("7", "holds a int, expected a list"),
        ('[{"a": 1}, 3]', "record 1 is 3, expected an object"),
    ],
)
def test_a_damaged_file_is_told_with_record_and_byte(tmp_path, content, says):
    path = tmp_path / "bad.json"
    path.write_text(content)
    with pytest.raises(DataError, match=rf"bad\.json.*({says})"):
        JsonRows(path)


TEXTS = [f"text {i}" for i in range(9)]
KINDS = ["json", "jsonl", "parquet", "arrow", "csv", "saved", "splits", "tar", "folder", "joined"]


def make_kind(name, tmp_path):
    """Path for ``open_rows`` of nine records with ``text`` and a picture."""
    plain = [{"text": text, "image": f"{i}.png"} for i, text in enumerate(TEXTS)]
    if name in ("json", "jsonl", "csv"):
        return str(write(tmp_path / f"a.{name}", plain))
    if name == "joined":
        for i in range(3):
            write(tmp_path / f"part-{i}.jsonl", plain[3 * i : 3 * i + 3])
        return str(tmp_path / "part-{0..2}.jsonl")
    if name == "tar":
        for shard in range(3):
            members = {}
            for i in range(3 * shard, 3 * shard + 3):
                members |= {f"d/{i:04d}.png": encoded(noise(i)), f"d/{i:04d}.text": TEXTS[i].encode()}
            write_tar(tmp_path / f"s-{shard:02d}.tar", members)
        return str(tmp_path / "s-{00..02}.tar")
    if name == "folder":
        inner = tmp_path / "f" / "inner"
        inner.mkdir(parents=True)
        for i in range(9):
            (inner / f"{i}.png").write_bytes(encoded(noise(i)))
            (inner / f"{i}.txt").write_text(TEXTS[i])
        (tmp_path / "f" / "alone.png").write_bytes(b"")
        return str(tmp_path / "f")
    pictures = [{"bytes": encoded(noise(i)), "path": "same.png"} for i in range(9)]
    table = datasets.Dataset.from_dict({"text": TEXTS, "image": pictures}).cast_column("image", datasets.Image())
    if name == "saved":
        table.save_to_disk(str(tmp_path / "saved"))
        return str(tmp_path / "saved")
    if name == "splits":
        parts = datasets.DatasetDict({"test": table.select(range(2)), "train": table})
        parts.save_to_disk(str(tmp_path / "splits"))
        return str(tmp_path / "splits")
    if name == "arrow":
        with pa.ipc.new_stream(tmp_path / "a.arrow", table.features.arrow_schema) as writer:
            writer.write_table(table.data.table)
        return str(tmp_path / "a.arrow")
    table.to_parquet(str(tmp_path / "a.parquet"))
    return str(tmp_path / "a.parquet")


def write_tar(path, members):
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


@pytest.fixture(params=KINDS)
def kind(request, tmp_path):
    return make_kind(request.param, tmp_path)


def test_records_come_in_any_order_and_from_a_copy(kind):
    rows = open_rows(kind)
    order = list(range(9))
    random.Random(0).shuffle(order)
    assert [rows[i]["text"] for i in order] == [TEXTS[i] for i in order]
    copy = pickle.loads(pickle.dumps(rows))
    assert [copy[i]["text"] for i in range(9)] == TEXTS
    assert len({rows.where(i) for i in range(9)}) == 9
    assert open_rows(kind).fingerprint() == rows.fingerprint()


def test_only_the_first_rows_are_taken_where_that_is_asked_for(kind):
    rows = open_rows(kind, rows=4)
    assert [row["text"] for row in read(rows)] == TEXTS[:4]
    assert [row["text"] for row in read(pickle.loads(pickle.dumps(rows)))] == TEXTS[:4]
    assert rows.fingerprint() != open_rows(kind).fingerprint()
    assert len(open_rows(kind, rows=100)) == 9


def test_pictures_stay_encoded_and_are_told_apart_by_what_they_hold(kind, tmp_path):
    rows = open_rows(kind)
    value = rows[4]["png" if "png" in rows[4] else "image"]
    if isinstance(value, dict):
        assert value["bytes"] == encoded(noise(4))
    elif isinstance(value, bytes):
        assert value == encoded(noise(4))
    else:
        assert value.endswith("4.png")
    keys = [pictures_of(row.get("image", row.get("png")), tmp_path, "image", "here")[0].key for row in read(rows)]
    assert len(set(keys)) == 9


def test_values_of_tar_members_are_what_their_endings_say(tmp_path):
    members = {"1.json": b'{"a": 1}', "1.cls": b"7", "1.seg.png": b"x", "1.JPG": b"y", "dir/.hidden": b""}
    write_tar(tmp_path / "a.tar", members)
    row = open_rows(str(tmp_path / "a.tar"))[0]
    assert row == {"__key__": "1", "json": {"a": 1}, "cls": 7, "seg.png": b"x", "jpg": b"y"}


def test_a_change_in_the_middle_of_a_file_is_seen(tmp_path):
    records = [{"text": f"text {i}", "n": "x" * 300} for i in range(1000)]
    before = open_rows(str(write(tmp_path / "a.csv", records))).fingerprint()
    records[500]["text"] = "TEXT 500"
    assert open_rows(str(write(tmp_path / "a.csv", records))).fingerprint() != before


def test_a_tar_file_whose_middle_has_changed_is_read_again(tmp_path, monkeypatch):
    monkeypatch.setattr("beni.data.records.base.WHOLE", 0)  # as if it were larger
    path = tmp_path / "a.tar"
    padding = {"0.txt": b"x" * (1 << 17), "9.txt": b"x" * (1 << 17)}
    write_tar(path, {"0.txt": padding["0.txt"], "1.txt": b"one", "1.cls": b"1", "9.txt": padding["9.txt"]})
    before = open_rows(str(path))
    assert before[1]["txt"] == "one"
    write_tar(path, {"0.txt": padding["0.txt"], "1.cls": b"1", "1.txt": b"one", "9.txt": padding["9.txt"]})
    os.utime(path, ns=(1, path.stat().st_mtime_ns + 1))
    after = open_rows(str(path))
    assert after.fingerprint() == before.fingerprint()  # neither name nor size, beginning or end tell
    assert after[1] == {"__key__": "1", "txt": "one", "cls": 1}


def test_tar_files_may_be_empty_but_not_all_of_them(tmp_path):
    write_tar(tmp_path / "0.tar", {})
    write_tar(tmp_path / "1.tar", {"a.txt": b"x"})
    assert read(open_rows(str(tmp_path / "{0..1}.tar"))) == [{"__key__": "a", "txt": "x"}]
    with pytest.raises(DataError, match=r"0\.tar holds no member"):
        open_rows(str(tmp_path / "0.tar"))


def test_a_damaged_member_of_a_tar_is_told_with_its_name(tmp_path):
    write_tar(tmp_path / "a.tar", {"1.json": b"{", "2.cls": b"x"})
    rows = open_rows(str(tmp_path / "a.tar"))
    for number, name in enumerate(["1.json", "2.cls"]):
        with pytest.raises(DataError, match=rf"a\.tar, {name}"):
            rows[number]


def test_texts_beside_pictures_may_be_captions_or_fields_and_change_the_fingerprint(tmp_path):
    folder = tmp_path / "f"
    (folder / "b").mkdir(parents=True)
    beside = {"b/1.JPG": ("b/1.caption", "one\n"), "a.png": ("a.json", '{"question": "q"}'), "c.webp": ("c.txt", "two")}
    for picture, (name, text) in beside.items():
        (folder / picture).write_bytes(b"x")
        (folder / name).write_text(text)
    rows = open_rows(str(folder))
    assert read(rows) == [
        {"image": str(folder / "a.png"), "question": "q"},
        {"image": str(folder / "b/1.JPG"), "text": "one"},
        {"image": str(folder / "c.webp"), "text": "two"},
    ]
    prints = {rows.fingerprint()}
    (folder / "c.txt").write_text("owt")
    prints.add(open_rows(str(folder)).fingerprint())
    (folder / "c.webp").write_bytes(b"xy")
    prints.add(open_rows(str(folder)).fingerprint())
    assert len(prints) == 3
    for damaged, says in (("[]", "a.json holds a list"), ("{", "a.json: ")):
        (folder / "a.json").write_text(damaged)
        with pytest.raises(DataError, match=says):
            rows[0]


def test_tar_members_of_a_record_that_stand_apart_are_an_error(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name in ("1.txt", "2.txt", "1.png"):
            tar.addfile(tarfile.TarInfo(name), io.BytesIO())
    with pytest.raises(DataError, match="members of 1 are not contiguous"):
        open_rows(str(tmp_path / "a.tar"))
    (tmp_path / "b.tar").write_bytes(b"not a tar" * 100)
    with pytest.raises(DataError, match=r"b\.tar is no uncompressed tar"):
        open_rows(str(tmp_path / "b.tar"))


def test_the_first_rows_of_a_stream_are_kept_and_read_once(tmp_path, monkeypatch):
    records = [{"text": f"text {i}" if i > 600 else None, "n": i} for i in range(2000)]
    path = write(tmp_path / "big.parquet", records)
    rows = open_rows(str(path), rows=700)
    assert read(rows) == records[:700]  # a first chunk without any text does not make the column one without type

    def streamed(*_):
        pytest.fail("streamed again")

    monkeypatch.setattr("beni.data.records.table._write", streamed)
    again = open_rows(str(path), rows=700)
    assert (len(again), again.fingerprint()) == (700, rows.fingerprint())


@pytest.fixture
def online(monkeypatch):
    """As if there were a hub; what it sends is up to the test."""
    monkeypatch.setattr("beni.hub.reachable", lambda host: True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)


@pytest.mark.usefixtures("online")
def test_a_stream_that_breaks_off_leaves_nothing_in_the_cache(monkeypatch, cache):
    def broken():
        yield from ({"n": i} for i in range(1000))
        raise ConnectionError("the network is gone")

    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: datasets.IterableDataset.from_generator(broken))
    with pytest.raises(DataError, match=r"hf://datasets/owner/name, train cannot be read: .*the network is gone"):
        open_rows("hf://datasets/owner/name", rows=2000)
    assert {path.suffix for path in (cache / "spool").iterdir()} <= {".lock"}
    assert len(open_rows("hf://datasets/owner/name", rows=900)) == 900


@pytest.mark.usefixtures("online")
def test_a_set_of_the_hub_is_asked_for_by_subset_and_split_and_known_by_its_content(tmp_path, monkeypatch):
    asked = []

    def load(path, **options):
        asked.append((path, options["name"], options["split"]))
        path = write(tmp_path / f"{len(asked)}" / "hub.parquet", [{"n": len(asked) > 2}])
        return datasets.Dataset.from_parquet(str(path), cache_dir=str(tmp_path / f"cache-{len(asked)}"))

    monkeypatch.setattr(datasets, "load_dataset", load)
    made = [open_rows("hf://datasets/owner/name", subset="small", split="test") for _ in range(3)]
    assert asked == [("owner/name", "small", "test")] * 3
    assert made[0].where(0) == "hf://datasets/owner/name, small, test, row 0"
    assert made[0].fingerprint() == made[1].fingerprint() != made[2].fingerprint()


def test_a_set_of_the_hub_without_a_network_says_what_to_do(monkeypatch):
    monkeypatch.setattr("beni.hub.reachable", lambda host: False)
    for rows in (None, 5):
        with pytest.raises(DataError, match=r"(?s)data\.path=hf://datasets/owner/name.*fix: run once with network"):
            open_rows("hf://datasets/owner/name", rows=rows)


@pytest.mark.parametrize(
    ("path", "says"),
    [
        (None, r"data\.path is null"),
        ("nowhere.json", r"data\.path=.*nowhere.json does not exist"),
        ("a.txt", r"is a \.txt; expected \.json, .*\.tar, or a folder"),
        ("*.*", r"files of several kinds: \.json, \.txt"),
        ("empty", "holds no image"),
    ],
)
def test_what_cannot_be_read_is_told_with_what_can(tmp_path, path, says):
    (tmp_path / "a.txt").write_text("x")
    write(tmp_path / "b.json")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=says):
        open_rows(path and str(tmp_path / path))


@pytest.mark.parametrize("rows", [0, -1])
def test_a_number_of_rows_below_one_is_an_error(tmp_path, rows):
    with pytest.raises(DataError, match=rf"data\.rows={rows}, expected at least 1"):
        open_rows(str(write(tmp_path / "b.json")), rows=rows)


def test_a_split_that_a_folder_lacks_is_told_with_those_it_has(tmp_path):
    with pytest.raises(DataError, match=r"data\.split=validation: .* has test, train"):
        open_rows(make_kind("splits", tmp_path), split="validation")


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
