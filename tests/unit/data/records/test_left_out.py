"""Splits, subsets, folders and shards: what is asked for is read, and what is left out is told."""

import json
import os

import datasets
import pytest

from beni.data.records.folder import FolderRows
from beni.data.records.open import open_rows
from beni.data.records.splits import split_of
from beni.errors import DataError
from support.hostile import encoded, noise


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("BENI_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".jsonl":
        path.write_text(json.dumps({"text": text}) + "\n")
    elif path.suffix == ".json":
        path.write_text(json.dumps([{"text": text}]))
    elif path.suffix == ".csv":
        path.write_text(f"text\n{text}\n")
    elif path.suffix == ".tar":
        write_tar(path, {"a.text": text.encode()})
    elif path.suffix == ".parquet":
        datasets.Dataset.from_list([{"text": text}]).to_parquet(str(path))
    return path


def write_tar(path, members):
    import io
    import tarfile

    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


def picture(path, text=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encoded(noise(0)))
    if text is not None:
        path.with_suffix(".txt").write_text(text)


def texts(rows):
    return [rows[i]["text"] for i in range(len(rows))]


READERS = ["json", "jsonl", "csv", "parquet", "tar"]
LAYOUTS = ["data/{}-00000-of-00001", "{}/0000", "deep/{}/more/0000", "my_{}_set"]


@pytest.mark.parametrize("rows", [None, 5])
@pytest.mark.parametrize("ending", READERS)
def test_files_of_other_splits_are_left_out_and_told(tmp_path, ending, rows):
    for split in ("train", "validation", "test"):
        write(tmp_path / f"copy/data/{split}-00000-of-00001.{ending}", split)
    pattern = f"{tmp_path}/copy/**/*.{ending}"
    for split in ("train", "validation", "val", "test"):
        opened = open_rows(pattern, split=split, rows=rows)
        assert texts(opened) == [{"val": "validation"}.get(split, split)]
        assert all(": 1 file of the split " in said for said in opened.notices)
        assert len(opened.notices) == 2
    assert texts(open_rows(pattern, split=None, rows=rows)) == ["test", "train", "validation"]
    with pytest.raises(DataError, match=r"data\.split=dev2: .* has the splits test, train, validation\n  fix: set"):
        open_rows(pattern, split="dev2", rows=rows)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_split_is_named_by_files_or_by_folders_that_a_pattern_finds(tmp_path, layout):
    for split in ("train", "test"):
        write(tmp_path / "copy" / f"{layout.format(split)}.jsonl", split)
    assert texts(open_rows(f"{tmp_path}/copy/**/*.jsonl", split="test")) == ["test"]


@pytest.mark.parametrize("ending", READERS)
def test_a_split_that_files_do_not_have_is_refused_in_every_reader(tmp_path, ending):
    plain = write(tmp_path / f"plain.{ending}", "a")
    assert texts(open_rows(str(plain))) == ["a"]
    with pytest.raises(DataError, match=r"data\.split=test: data\.path=.* names no splits\n.*data\.split=train"):
        open_rows(str(plain), split="test")
    named = write(tmp_path / f"test.{ending}", "b")
    with pytest.raises(DataError, match=r"data\.split=train: .* has the split test\n  fix: set data\.split=test, or"):
        open_rows(str(named))
    assert texts(open_rows(str(named), split="test")) == texts(open_rows(str(named), split=None)) == ["b"]
    with pytest.raises(DataError, match="1 file whose names give no split, beside files of test"):
        open_rows(f"{tmp_path}/*.{ending}")


@pytest.mark.parametrize("ending", READERS)
def test_a_subset_is_a_folder_or_refused_in_every_reader(tmp_path, ending):
    for subset in ("ai2d", "vqa"):
        write(tmp_path / f"copy/{subset}/train-0.{ending}", subset)
    pattern = f"{tmp_path}/copy/**/*.{ending}"
    assert texts(open_rows(pattern, subset="vqa")) == ["vqa"]
    assert texts(open_rows(f"{tmp_path}/copy/ai2d/*.{ending}", subset="ai2d")) == ["ai2d"]
    with pytest.raises(DataError, match=r"data\.subset=docs: no file of .*\n  fix: set data\.subset=null"):
        open_rows(pattern, subset="docs")


def test_a_saved_set_obeys_or_refuses_split_and_subset(tmp_path):
    datasets.Dataset.from_list([{"text": "a"}]).save_to_disk(str(tmp_path / "plain"))
    datasets.Dataset.from_list([{"text": "b"}], split="test").save_to_disk(str(tmp_path / "saved"))
    assert texts(open_rows(str(tmp_path / "plain"))) == ["a"]
    assert texts(open_rows(str(tmp_path / "saved"), split="test")) == ["b"]
    for name, split in (("plain", "test"), ("saved", "train")):
        with pytest.raises(DataError, match=rf"data\.split={split}"):
            open_rows(str(tmp_path / name), split=split)
    with pytest.raises(DataError, match=r"data\.subset=x: .* is a folder, which has none"):
        open_rows(str(tmp_path / "plain"), subset="x")


def test_a_picture_folder_obeys_or_refuses_split_and_subset(tmp_path):
    for split in ("train", "val"):
        picture(tmp_path / "p" / split / "a.png", split)
    opened = open_rows(str(tmp_path / "p"))
    assert texts(opened) == ["train"]
    assert [said.rpartition(": ")[0].rpartition(": ")[2] for said in opened.notices] == [
        "1 file left out (of the split validation)"
    ]
    assert texts(open_rows(str(tmp_path / "p"), split="validation")) == ["val"]
    assert texts(open_rows(str(tmp_path / "p"), split=None)) == ["train", "val"]
    with pytest.raises(DataError, match=r"data\.split=test: .* has the splits train, validation"):
        open_rows(str(tmp_path / "p"), split="test")
    with pytest.raises(DataError, match="is a folder, which has none"):
        open_rows(str(tmp_path / "p"), subset="x")
    picture(tmp_path / "p" / "bus" / "a.png", "bus")  # folders of kinds, one of them trains
    with pytest.raises(DataError, match=r"whose names give no split, beside files of train.*(?s:.)*data\.split=null"):
        open_rows(str(tmp_path / "p"))


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train-00000-of-00004.parquet", "train"),
        ("train_sft-00000-of-00004.parquet", "train_sft"),
        ("data-00000-of-00004.arrow", None),
        ("ai2d-00000-of-00004.parquet", None),
        ("captions_val2014.json", None),
        ("captions-val-2014.json", "validation"),
        ("train_val_images.json", None),
        ("dev/a.json", "validation"),
        ("00000.tar", None),
        ("brain.json", None),
    ],
)
def test_which_split_a_name_says(name, split):
    assert split_of(name) == split


def test_a_missing_shard_is_an_error(tmp_path):
    for number in (0, 1, 3):
        write(tmp_path / f"s-{number:02d}.jsonl", str(number))
    with pytest.raises(DataError, match=r"1 of 4 are not there: .*s-02\.jsonl\n  fix: fetch them"):
        open_rows(f"{tmp_path}/s-{{00..03}}.jsonl")
    assert texts(open_rows(f"{tmp_path}/s-*.jsonl")) == ["0", "1", "3"]


def test_a_folder_reads_links_and_endings_in_either_case_and_says_what_it_leaves_out(tmp_path):
    folder = tmp_path / "p"
    picture(folder / "a.png", "a")
    picture(folder / "b.jfif", "b")
    picture(folder / "up.PNG")
    (folder / "up.TXT").write_text("up")
    picture(folder / "alone.png")
    picture(folder / "c.heic", "c")
    picture(tmp_path / "other" / "black.png", "black")
    (folder / "more").symlink_to(tmp_path / "other", target_is_directory=True)
    (folder / "loop").symlink_to(folder, target_is_directory=True)
    (folder / "two.caption").write_text("x")
    picture(folder / "two.png", "two")
    rows = FolderRows(folder, "train")
    assert texts(rows) == ["a", "b", "black", "two", "up"]
    said = "\n".join(rows.notices)
    for expected in (
        r"1 file left out (with no text of the same name (.txt, .caption, .json)): alone.png",
        r"1 file left out (beni cannot decode .heic): c.heic",
        r"1 file left out (with no image of the same name): c.txt",
        r"1 file left out (beside a .txt of the same name): two.caption",
        r"1 file left out (in a link to a folder that was already read): ",
    ):
        assert expected in said
    assert len(rows.notices) == 5


def test_a_folder_of_which_nothing_is_left_out_says_nothing(tmp_path):
    picture(tmp_path / "p/a.png", "a")
    assert list(FolderRows(tmp_path / "p", "train").notices) == []


def test_a_name_that_is_not_utf8_does_not_stop_a_folder(tmp_path):
    picture(tmp_path / "p/a.png", "a")
    strange = os.fsencode(tmp_path / "p") + b"/caf\xe9.png"
    with open(strange, "wb") as file:
        file.write(encoded(noise(0)))
    rows = FolderRows(tmp_path / "p", "train")
    assert texts(rows) == ["a"]
    assert rows.notices[0].endswith(r"p: 1 file left out (whose names are not UTF-8): caf\udce9.png")
    assert rows.fingerprint()


def test_fields_and_text_beside_a_picture_are_both_read_and_may_not_contradict_it(tmp_path):
    picture(tmp_path / "p/a.png", "a")
    sidecar = tmp_path / "p/a.json"
    sidecar.write_text(json.dumps({"image": "far/a.png", "text": "a", "topic": "x"}))
    expected = {"image": str(tmp_path / "p/a.png"), "text": "a", "topic": "x"}
    assert FolderRows(tmp_path / "p", "train")[0] == expected
    for name, value in (("image", "b.png"), ("text", "b")):
        sidecar.write_text(json.dumps({name: value}))
        with pytest.raises(DataError, match=rf"a\.json: its field '{name}' is '{value}', but the file beside it says"):
            FolderRows(tmp_path / "p", "train")[0]


def test_byte_order_marks_are_no_part_of_a_text(tmp_path):
    mark = b"\xef\xbb\xbf"
    picture(tmp_path / "p/a.png")
    (tmp_path / "p/a.txt").write_bytes(mark + b"one")
    picture(tmp_path / "p/b.png")
    (tmp_path / "p/b.json").write_bytes(mark + b'{"text": "two"}')
    assert texts(open_rows(str(tmp_path / "p"))) == ["one", "two"]
    write_tar(tmp_path / "a.tar", {"1.text": mark + b"three", "2.json": mark + b'{"text": "four"}'})
    rows = open_rows(str(tmp_path / "a.tar"))
    assert (rows[0]["text"], rows[1]["json"]) == ("three", {"text": "four"})
    (tmp_path / "a.csv").write_bytes(mark + b"text\nfive\n")
    assert texts(open_rows(str(tmp_path / "a.csv"))) == ["five"]


@pytest.mark.parametrize("rows", [None, 9])
def test_cells_of_a_csv_file_are_the_texts_that_stand_there(tmp_path, rows):
    cells = ["3", "007", "1.50", "True", "", "NA", "null", "None", "nan", "yes"]
    for name, some in (("a", cells[:9]), ("b", cells[9:])):
        lines = [f"{i}.png,{cell}\n" for i, cell in enumerate(some)]
        (tmp_path / f"{name}.csv").write_text("image,text\n" + "".join(lines))
    assert texts(open_rows(f"{tmp_path}/*.csv", rows=rows)) == cells[:rows]


def test_a_csv_file_that_cannot_be_read_says_why(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes("image,text\na.png,caf\xe9\n".encode("latin-1"))
    with pytest.raises(
        DataError, match=r"a\.csv, line 2 is not UTF-8 \(the byte 0xe9 at column 10\)\n.*iconv -f LATIN1"
    ):
        open_rows(str(path))
    path.write_text("text,text\na,b\n")
    with pytest.raises(DataError, match="has the column 'text' twice"):
        open_rows(str(path))
    path.write_text("")
    with pytest.raises(DataError, match=r"a\.csv has the columns none.*\n  fix: "):
        open_rows(str(path))
    path.write_text("text\na\n")
    (tmp_path / "b.csv").write_text("said\na\n")
    with pytest.raises(DataError, match=r"b\.csv has the columns said, expected those of .*a\.csv"):
        open_rows(f"{tmp_path}/*.csv")


@pytest.mark.parametrize("rows", [None, 2])
def test_labels_are_written_by_their_names(tmp_path, rows):
    kind = datasets.ClassLabel(names=["no", "yes"])
    features = datasets.Features({"text": kind, "many": datasets.List(kind), "n": datasets.Value("int64")})
    table = datasets.Dataset.from_dict({"text": [1, 0, None], "many": [[0, 1], [], None], "n": [1, 2, 3]}, features)
    table.to_parquet(str(tmp_path / "a.parquet"))
    opened = open_rows(str(tmp_path / "a.parquet"), rows=rows)
    expected = [
        {"text": "yes", "many": ["no", "yes"], "n": 1},
        {"text": "no", "many": [], "n": 2},
        {"text": None, "many": None, "n": 3},
    ]
    assert [opened[i] for i in range(len(opened))] == expected[:rows]


@pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
def test_a_file_without_a_record_is_an_error(tmp_path, name):
    (tmp_path / name).write_text("[]" if name == "a.json" else "\n")
    with pytest.raises(DataError, match=rf"data\.path=.*{name} holds no record\n  fix: "):
        open_rows(str(tmp_path / name))
