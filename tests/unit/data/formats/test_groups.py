"""Held-out records and training records share no image, where that can be."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import beni.data.formats.groups as groups_module
from beni.data.formats.cauldron import Cauldron
from beni.data.formats.groups import drawn_rows, whole_groups
from beni.data.formats.llava import LlavaJson
from beni.data.formats.vqa import Vqa
from beni.data.images import Image
from beni.errors import DataError

RECORDS = {
    "heldout_path": None,
    "subset": None,
    "split": "train",
    "rows": None,
    "columns": {},
    "images": None,
    "ignore": [],
    "augment": {},
}
VQA = RECORDS | {"suffix": ""}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("BENI_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def file(tmp_path):
    """file(rows) -> a .jsonl of them."""

    def write(rows):
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(path)

    return write


def asked(image, number):
    return {"image": image, "question": f"number {number}?", "answer": str(number)}


def sides(source):
    """Keys of the images that are held out, and of those that are trained on."""
    train = [source.train(i, 0) for i in range(len(source))]
    return ({image.key for s in some for image in s.images} for some in (source.heldout(), train))


def test_all_questions_about_an_image_are_on_one_side(file):
    path = file(asked(f"{i // 5}.png", i) for i in range(300))
    source = Vqa(0, path=path, heldout=30, **VQA)
    held, train = sides(source)
    assert (len(source.heldout()), len(held), len(train), held & train) == (30, 6, 54, set())
    assert source.notices == ()


def test_where_no_two_records_share_an_image_the_rows_are_those_that_are_drawn(file):
    source = Vqa(0, path=file(asked(f"{i}.png", i) for i in range(50)), heldout=7, **VQA)
    assert [int(s.id) for s in source.heldout()] == sorted(drawn_rows(50)[:7].tolist())


def test_records_of_several_images_belong_together_where_they_share_any(file, tmp_path):
    def record(*names):
        return {"images": [f"{name}.png" for name in names], "texts": [{"user": "a?", "assistant": "b"}]}

    rows = [record(3 * i, 3 * i + 1) for i in range(20)] + [record(3 * i + 1, 3 * i + 2) for i in range(20)]
    source = Cauldron(0, path=file(rows), heldout=6, **RECORDS)
    held, train = sides(source)
    assert (len(held), len(train), held & train) == (9, 51, set())


def test_llava_records_without_an_image_stand_alone(file):
    turns = [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "hello"}]
    rows = [{"id": i, "conversations": turns} for i in range(20)]
    assert len(LlavaJson(0, path=file(rows), heldout=7, instructions="keep", **RECORDS).heldout()) == 7


def test_images_in_a_table_are_told_apart_by_their_content(tmp_path, monkeypatch):
    def kept(number):
        return {"bytes": b"a header that all have " + bytes([number]) * 200, "path": "image.jpg"}

    rows = [{"image": kept(i // 4), "question": "q?", "answer": str(i)} for i in range(80)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "t.parquet")
    read = []
    made = Image.from_bytes
    monkeypatch.setattr(Image, "from_bytes", staticmethod(lambda data, key: read.append(len(data)) or made(data, key)))
    source = Vqa(0, path=str(tmp_path / "t.parquet"), heldout=8, **VQA)
    assert sum(size > 80 for size in read) <= 64  # those of the records whose fields are looked at
    assert sum(size < 80 for size in read) >= 80  # of an image no more than its end is looked at, to group it
    held, train = sides(source)
    assert (len(held), len(train), held & train) == (2, 18, set())


def test_where_images_have_too_many_records_single_ones_are_held_out_and_that_is_told(file):
    path = file(asked("red.png" if i < 50 else "blue.png", i) for i in range(100))
    source = Vqa(0, path=path, heldout=12, **VQA)
    assert [int(s.id) for s in source.heldout()] == sorted(drawn_rows(100)[:12].tolist())
    (said,) = source.notices
    assert "held-out records share images with training records: 100% of 100 records" in said
    assert "(up to 50 per image), too many to hold out whole images with data.heldout=12" in said


def test_fewer_records_than_wished_are_told(file):
    source = Vqa(0, path=file(asked(f"{i // 4}.png", i) for i in range(40)), heldout=6, **VQA)
    assert len(source.heldout()) == 4
    assert source.notices[0].endswith("4 records are held out, not 6: an image is held out with all its records")


def test_a_record_that_cannot_be_read_is_left_for_its_turn(file):
    rows = [asked(f"{i // 2}.png", i) for i in range(20)]
    rows[7] = {"image": "3.png", "question": "q?", "answer": ""}
    source = Vqa(0, path=file(rows), heldout=4, **VQA)
    assert len(source) + len(source.heldout()) == 20


def test_groups_are_found_once(file, monkeypatch):
    path = file(asked(f"{i // 5}.png", i) for i in range(100))
    first = [s.id for s in Vqa(0, path=path, heldout=10, **VQA).heldout()]
    monkeypatch.setattr(groups_module, "skim", lambda rows: pytest.fail("read again"))
    assert [s.id for s in Vqa(1, path=path, heldout=10, **VQA).heldout()] == first


@pytest.mark.parametrize(("count", "heldout", "fix"), [(10, -1, "heldout=1"), (10, 10, "heldout=1"), (1, 1, "more")])
def test_a_number_that_leaves_nothing_is_refused_with_one_that_works(file, count, heldout, fix):
    path = file(asked(f"{i}.png", i) for i in range(count))
    with pytest.raises(DataError, match=rf"data.heldout={heldout}[^0-9].*\n  fix: .*{fix}"):
        Vqa(0, path=path, heldout=heldout, **VQA)


@settings(deadline=None)
@given(st.lists(st.integers(0, 30), min_size=2, max_size=60), st.integers(1, 20))
def test_what_is_held_out_is_whole_and_never_too_much(labels, count):
    groups = np.unique(labels, return_inverse=True)[1]
    rows = whole_groups(groups, count)
    if rows is None:
        assert np.bincount(groups).max() > count
        return
    assert len(rows) <= count
    assert not set(groups[rows]) & set(np.delete(groups, rows))
    left = count - len(rows)
    others = set(groups) - set(groups[rows])
    assert all(np.sum(groups == one) > left for one in others)


def test_a_file_of_held_out_records_is_held_out_and_nothing_else_is(file, tmp_path):
    path = file(asked(f"{i}.png", i) for i in range(20))
    own = tmp_path / "test-00000-of-00001.jsonl"
    own.write_text("".join(json.dumps(row) + "\n" for row in asked_rows(6, shared=2)))
    source = Vqa(0, path=path, heldout=128, **VQA | {"heldout_path": str(own)})
    assert (len(source), len(source.heldout())) == (20, 6)
    assert {sample.where for sample in source.heldout()} == {f"{own}, record {i}" for i in range(6)}
    assert "2 of 6 held-out records share their image with training records" in source.notices
    fewer = Vqa(0, path=path, heldout=3, **VQA | {"heldout_path": str(own)})
    assert (len(fewer), len(fewer.heldout())) == (20, 3)
    assert "data.heldout=3 of the 6 records of data.heldout_path are held out" in fewer.notices
    assert len({source.fingerprint(), fewer.fingerprint(), Vqa(0, path=path, heldout=6, **VQA).fingerprint()}) == 3


def asked_rows(count, shared):
    """Records of images of their own, but for the first few."""
    names = [f"{i}.png" if i < shared else f"held{i}.png" for i in range(count)]
    return [{"image": name, "question": f"{name}?", "answer": "yes"} for name in names]


@pytest.mark.parametrize(
    ("held", "heldout", "says"),
    [
        ("nowhere.jsonl", 5, "data.heldout_path=nowhere.jsonl does not exist"),
        ("hf://datasets/a/b", 5, "is a set of the hub, expected a file"),
        ("OWN", 0, "holds out none of the 4 records of data.heldout_path"),
    ],
)
def test_a_held_out_file_that_cannot_be_is_refused_by_its_own_name(held, heldout, says, file, tmp_path):
    own = tmp_path / "own.jsonl"
    own.write_text("".join(json.dumps(row) + "\n" for row in asked_rows(4, shared=0)))
    path = file(asked(f"{i}.png", i) for i in range(20))
    with pytest.raises(DataError, match=rf"{says}(.|\n)*fix: "):
        Vqa(0, path=path, heldout=heldout, **VQA | {"heldout_path": str(own) if held == "OWN" else held})
