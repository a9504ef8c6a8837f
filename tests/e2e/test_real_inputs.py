"""Inputs of users that once broke a run without a word, each in a folder of its own, made here.

Images are named by their colours. Every test looks at the same thing as the user did: a page of samples or a whole run.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from beni.config.compose import compose
from beni.errors import BeniError, DataError
from beni.look import main as look
from beni.run import train

COLOURS = ("red", "green", "blue", "white", "black", "yellow")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory: a folder with an image of each colour."""
    monkeypatch.chdir(tmp_path)
    for colour in COLOURS:
        Image.new("RGB", (64, 64), colour).save(f"{colour}.png")
    return tmp_path


@pytest.fixture
def values(tiny_values: list[str], here: Path) -> list[str]:
    """Overrides of the smallest run without its data."""
    own = [value for value in tiny_values if not value.startswith(("data.", "train.batch_size"))]
    return [*own, "template=chatml", "train.batch_size=4", f"paths.runs={here / 'runs'}"]


@pytest.fixture
def seen(values: list[str], capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """seen(*overrides): what ``beni.look --terminal`` prints, notices too, as one line of words."""

    def show(*overrides: str, fails: bool = False) -> str:
        assert (look([*values, *overrides, "--terminal"]) != 0) == fails
        shown = capsys.readouterr()
        return " ".join((shown.out + shown.err).split())

    return show


def write_rows(path: str, rows: list[dict[str, Any]]) -> None:
    Path(path).write_text("".join(json.dumps(row) + "\n" for row in rows))


def asked(i: int, **fields: Any) -> dict[str, Any]:
    colour = COLOURS[i % len(COLOURS)]
    return {"image": f"{colour}.png", "question": f"Which {i}?", "answer": colour, **fields}


def conversation(**fields: Any) -> dict[str, Any]:
    said = [
        {"from": "human", "value": "<image>\nWhat colour?" if "image" in fields else "What colour?"},
        {"from": "gpt", "value": "Red."},
    ]
    return {**fields, "conversations": said}


@pytest.mark.parametrize("field", ["images", "video", "videos", "Image", "image_path", "img", "pixel_values", "audio"])
def test_a_llava_record_whose_image_stands_in_another_field_is_refused(field, seen):
    write_rows("d.jsonl", [conversation(**{field: ["red.png"]})] * 6)
    said = seen("data=llava_instruct", "data.path=d.jsonl", "data.heldout=1", fails=True)
    assert f"'{field}'" in said
    assert "d.jsonl" in said
    assert "fix:" in said


@pytest.mark.parametrize("field", ["image", "picture", "imagess", "videos"])
def test_a_chat_record_whose_image_nobody_reads_is_refused(field, seen):
    said_by = [{"role": "user", "content": "What colour?"}, {"role": "assistant", "content": "Red."}]
    write_rows("d.jsonl", [{field: "red.png", "messages": said_by}] * 6)
    said = seen("data=chat", "data.path=d.jsonl", "data.heldout=1", fails=True)
    assert f"'{field}'" in said
    assert "fix:" in said


def test_a_column_that_no_record_has_is_refused(seen):
    write_rows("d.jsonl", [asked(i) for i in range(8)])
    options = ("data=vqa", "data.path=d.jsonl", "data.images=.", "data.heldout=1")
    said = seen(*options, "data.columns.answer=answers", fails=True)
    assert "no column 'answers'" in said
    assert "perhaps to answer" in said
    said = seen(*options, "data.columns.image=images", fails=True)
    assert "set data.columns.image=image" in said
    assert "fix:" in said


def test_other_fields_are_named_once_with_their_count(seen):
    write_rows("d.jsonl", [asked(i, annotator="ann", difficulty=i) for i in range(8)])
    said = seen("data=vqa", "data.path=d.jsonl", "data.images=.", "data.heldout=1")
    assert said.count("annotator") == 1
    assert said.count("difficulty") == 1


def test_a_downloaded_copy_of_a_hub_folder_trains_on_its_split_only(seen):
    Path("copy").mkdir()
    for split in ("train", "validation", "test"):
        rows = [asked(i) | {"question": f"{split} {i}?"} for i in range(12)]
        pq.write_table(pa.Table.from_pylist(rows), f"copy/{split}-00000-of-00001.parquet")
    options = ("data=vqa", "data.path=copy/**/*.parquet", "data.images=.", "data.heldout=1", "train.batch_size=8")
    said = seen(*options, "data.split=train")
    assert re.search(r"train \d+\?", said)
    assert not re.search(r"(validation|test) \d+\?", said)
    said = seen(*options, "data.split=trian", fails=True)
    assert "trian" in said
    assert "train" in said
    assert "fix:" in said


@pytest.mark.parametrize("change", ["replaced", "other folder", "arrives later"])
def test_sizes_follow_the_images_that_they_were_measured_on(change, seen):
    write_rows("d.jsonl", [conversation(id=i, image=f"{COLOURS[i % 4]}.png") for i in range(20)])
    packs = ("schedule=packs", "schedule.tokens=512", "train.batch_size=1", "data.heldout=1", "views.fill=false")
    options = ("data=llava_instruct", "data.path=d.jsonl", "views=native", *packs)
    large = Path("large")
    large.mkdir()
    for colour in COLOURS:
        Image.new("RGB", (256, 256), colour).save(large / f"{colour}.png")
    small = Path("small")
    small.mkdir()
    for colour in COLOURS[:4]:
        if change != "arrives later":
            Path(f"{colour}.png").rename(small / f"{colour}.png")
    first = seen(*options, "data.images=small", fails=change == "arrives later")
    assert ("64x64: views" in first) == (change != "arrives later")
    if change == "other folder":
        second = seen(*options, "data.images=large")
    else:
        for colour in COLOURS[:4]:
            (large / f"{colour}.png").replace(small / f"{colour}.png")
        second = seen(*options, "data.images=small")
    ends = [int(end) for end in re.findall(r"positions \d+ to (\d+)", second)]
    assert "256x256: views" in second
    assert ends
    assert max(ends) < 512


def test_scores_are_of_samples_spread_over_a_sorted_file(values, here):
    write_rows("d.jsonl", [asked(i, image=f"{i}.png", answer="red" if i < 320 else "blue") for i in range(480)])
    for i in range(480):
        Image.new("RGB", (8, 8), (i % 256, i // 256, 0)).save(f"{i}.png")
    data = ("data=vqa", "data.path=d.jsonl", "data.images=.", "data.heldout=128", "eval.examples=20")
    folder = train(compose([*values, *data]))
    scored = [json.loads(line) for line in next(folder.glob("**/scores.jsonl")).read_text().splitlines()]
    answers = {row["expected"] for row in scored}
    assert len(answers) == 2, answers


@pytest.mark.parametrize("right", [0, 2])
def test_choices_that_a_limit_would_make_equal_are_not_scored(values, right):
    choices = [f"the answer to this question that was asked here is {letter}" for letter in "ABC"]
    write_rows("d.jsonl", [asked(i, choices=choices, answer=right) for i in range(24)])
    data = ("data=vqa", "data.path=d.jsonl", "data.images=.", "data.heldout=4", "data.columns.choices=choices")
    with pytest.raises(BeniError, match=r"(?s)template.max_length is 70, and held-out answers are never cut.*fix:"):
        train(compose([*values, *data, "template.max_length=70", "template.overlong=truncate"]))


@pytest.mark.parametrize(
    ("text", "answers"),
    [
        ("red.png,Which?,0\ngreen.png,Which?,1\n", ("0", "1")),
        ("red.png,Which?,True\ngreen.png,Which?,False\n", ("True", "False")),
        ("red.png,Which?,None\ngreen.png,Which?,NA\n", ("None", "NA")),
        ("red.png,Which?,1e3\ngreen.png,Which?,007\n", ("1e3", "007")),
        ("red.png,Which?,nan\ngreen.png,Which?,2024-01-01\n", ("nan", "2024-01-01")),
        ('red.png,Which?,"a, b"\ngreen.png,Which?,"é"\n', ("a, b", "é")),
    ],
)
def test_cells_of_a_table_are_the_texts_that_stand_there(text, answers, seen):
    Path("d.csv").write_text("image,question,answer\n" + text * 3)
    said = seen("data=vqa", "data.path=d.csv", "data.images=.", "data.heldout=1", "train.batch_size=4")
    assert any(answer in said for answer in answers)


def test_an_empty_cell_and_another_encoding_are_named(seen):
    Path("empty.csv").write_text("image,question,answer\n" + "red.png,Which?,\n" * 6)
    said = seen("data=vqa", "data.path=empty.csv", "data.images=.", "data.heldout=1", fails=True)
    assert "empty.csv" in said
    assert "answer" in said
    assert "fix:" in said
    Path("latin.csv").write_bytes(("image,question,answer\n" + "red.png,Which?,ç\n" * 6).encode("latin-1"))
    said = seen("data=vqa", "data.path=latin.csv", "data.images=.", "data.heldout=1", fails=True)
    assert "latin.csv" in said
    assert "UTF-8" in said
    assert "fix:" in said


@pytest.mark.parametrize(
    "override",
    [
        "data.augment={flip: 0.5}",
        "data.augment.flip=0.5",
        "+data.augment.flip=0.5",
    ],
)
def test_an_empty_mapping_takes_new_keys(override):
    assert compose(["data=captions", override])["data"]["augment"] == {"flip": 0.5}


@pytest.mark.parametrize(
    ("override", "named"), [("data.augment.flop=0.5", "data.augment.flop"), ("data.augment={flop: 1}", "flop")]
)
def test_a_wrong_key_of_a_mapping_is_named(override, named):
    with pytest.raises(BeniError, match=rf"(?s){named}.*flip"):
        compose(["data=captions", override])


def test_weights_of_a_mixture_are_overridden_one_by_one_or_all_at_once():
    all_at_once = compose(["data=mixture", "data.weights={shapes: 0.9, texts: 0.1}"])["data"]["weights"]
    assert all_at_once == {"shapes": 0.9, "texts": 0.1}
    assert compose(["data=mixture", "data.weights.shapes=0.9"])["data"]["weights"]["shapes"] == 0.9


def test_a_folder_of_captions_is_read_whole_and_what_is_left_out_is_counted(seen):
    folder, other = Path("p"), Path("other")
    folder.mkdir()
    other.mkdir()
    for place, colours in ((folder, COLOURS[:4]), (other, COLOURS[4:5])):
        for colour in colours:
            Image.new("RGB", (64, 64), colour).save(place / f"{colour}.png")
            (place / f"{colour}.txt").write_text(f"A {colour} square.")
    (folder / "more").symlink_to(other.resolve())
    Image.new("RGB", (64, 64), "yellow").save(folder / "yellow.jfif", "JPEG")
    (folder / "yellow.txt").write_text("A yellow square.")
    Image.new("RGB", (64, 64), "red").save(folder / "up.png")
    (folder / "up.TXT").write_text("An upper-case ending.")
    Image.new("RGB", (64, 64), "red").save(folder / "notext.png")
    options = ("data=captions", "data.path=p", "template=plain", "data.heldout=1", "train.batch_size=3")
    said = seen(*options, "--steps", "2")
    assert "6 in an epoch" in said
    for text in ("yellow", "black", "upper-case"):
        assert text in said
    assert re.search(r"1 .*no text|1 .*without", said)


def test_a_bad_held_out_record_ends_a_run_before_its_first_step(values, here):
    write_rows("d.jsonl", [asked(i) | ({"answer": ""} if i == 2 else {}) for i in range(24)])
    data = ("data=vqa", "data.path=d.jsonl", "data.images=.", "data.heldout=20")
    with pytest.raises(DataError, match=r"(?s)held-out.*d.jsonl.*fix:"):
        train(compose([*values, *data]))
    assert not list(here.glob("runs/*/*/metrics.jsonl"))


@pytest.mark.parametrize("long", ["held out", "trained on"])
def test_a_record_that_is_too_long_ends_a_run_before_its_first_step(long, values, here):
    write_rows("d.jsonl", [asked(i) | ({"answer": "long " * 900} if i % 2 else {}) for i in range(24)])
    data = ("data=vqa", "data.path=d.jsonl", "data.images=.", "data.heldout=4", "template.max_length=200")
    with pytest.raises(BeniError, match=r"(?s)d.jsonl.*fix:"):
        train(compose([*values, *data]))
    assert not list(here.glob("runs/*/*/metrics.jsonl"))


def test_bad_records_are_skipped_and_told_and_mending_one_goes_on_from_the_checkpoint(values, here, capsys):
    rows = [asked(i) for i in range(60)]
    write_rows("d.jsonl", [row | {"answer": "" if i == 31 else row["answer"]} for i, row in enumerate(rows)])
    data = ("data=vqa", "data.path=d.jsonl", "data.images=.", "data.heldout=4")
    steps = ("train.steps=6", "checkpoint.every=2", "checkpoint.keep=9")
    run = [*values, *data, *steps]
    with pytest.raises(DataError, match=r"(?s)1 of \d+ training records.*records.on_bad=skip"):
        train(compose(run))
    folder = train(compose([*run, "records.on_bad=skip"]))
    assert "d.jsonl" in (folder / "notices.jsonl").read_text()
    assert json.loads((folder / "status.json").read_text())["state"] == "finished"
    cut(folder, 4)
    write_rows("d.jsonl", rows)
    with pytest.raises(BeniError, match="changed_data"):
        train(compose([*run, "records.on_bad=skip"]))
    capsys.readouterr()
    again = train(compose([*run, "records.on_bad=skip", "checkpoint.resume=changed_data"]))
    assert again == folder
    assert "step 4" in " ".join(capsys.readouterr().err.split())
    assert "changed" in (folder / "identity.json").read_text()


def cut(folder: Path, step: int) -> None:
    """As if the run had been killed after this step."""
    for path in (folder / "checkpoints").iterdir():
        if path.is_dir() and int(path.name.removeprefix("step_")) > step:
            shutil.rmtree(path)
    status = json.loads((folder / "status.json").read_text())
    (folder / "status.json").write_text(json.dumps(status | {"state": "running"}))


def test_a_raised_limit_of_bad_images_goes_on_from_the_checkpoint(values, capsys):
    images = ["missing.png" if i % 10 == 7 else f"{COLOURS[i % 6]}.png" for i in range(200)]
    write_rows("d.jsonl", [asked(i, image=image) for i, image in enumerate(images)])
    data = ("data=vqa", "data.path=d.jsonl", "data.images=.", "data.heldout=4", "eval.examples=1")
    run = [*values, *data, "train.steps=12", "checkpoint.every=2"]
    with pytest.raises(BeniError, match=r"images.max_bad"):
        train(compose([*run, "images.max_bad=0.02"]))
    capsys.readouterr()
    train(compose([*run, "images.max_bad=0.5"]))
    assert re.search(r"step (2|4|6|8|10)\b", " ".join(capsys.readouterr().err.split()))
