"""What a record has and nobody reads: refused where it would be missed, counted where it would not."""

import json

import pytest

from beni.config.build import build
from beni.config.compose import compose
from beni.data.formats.unread import medium
from beni.errors import DataError
from support.hostile import encoded, noise

HEARD = [{"from": "human", "value": "What colour?"}, {"from": "gpt", "value": "Red."}]
SAID = [{"role": "user", "content": "What colour?"}, {"role": "assistant", "content": "Red."}]
WHOLE = {
    "llava_instruct": {"conversations": HEARD},
    "chat": {"messages": SAID},
    "cauldron": {"images": ["0.png"], "texts": [{"user": "What colour?", "assistant": "Red."}]},
    "vqa": {"image": "0.png", "question": "What colour?", "answer": "red"},
    "captions": {"image": "0.png", "text": "Red."},
    "text_rows": {"text": "Red."},
}
"""A record of each format that is read to its last field."""


@pytest.fixture
def made(tmp_path, monkeypatch):
    """made("chat", records, *overrides) -> the source as a run builds it."""
    monkeypatch.setenv("BENI_CACHE", str(tmp_path / "cache"))
    for i in range(3):
        (tmp_path / f"{i}.png").write_bytes(encoded(noise(i)))

    def make(option, records, *overrides):
        (tmp_path / "d.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
        where = [f"data.path={tmp_path}/d.jsonl", "data.heldout=1"]
        where += [] if option == "text_rows" else [f"data.images={tmp_path}"]
        where += ["data.subset=null"] if option == "cauldron" else []
        return build(compose([f"data={option}", *where, *overrides])["data"], 0)

    return make


def told(source):
    """What a source says of fields that are not read."""
    return [notice for notice in source.notices if "not read" in notice]


def message(**more):
    return {"messages": [SAID[0], SAID[1] | more]}


def turn(**more):
    return {"conversations": [HEARD[0], HEARD[1] | more]}


def part(**more):
    return {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"} | more]}, SAID[1]]}


@pytest.mark.parametrize("option", WHOLE)
def test_a_record_that_is_read_to_its_last_field_leaves_no_notice(made, option):
    known = {"id": "7.png", "source": "somewhere", "metadata": {"a": 1}, "split": "train", "image2": None, "video": ""}
    assert told(made(option, [WHOLE[option] | known] * 3)) == []


MEDIA = ["Image", "picture", "img", "pixel_values", "jpg", "video", "videos", "audio", "videoPath", "frames"]


@pytest.mark.parametrize(
    ("option", "name"),
    [
        *(("chat", name) for name in (*MEDIA, "image", "image_path", "image_url")),
        *((option, name) for option in WHOLE for name in ("image2", "video")),
        *(("llava_instruct", name) for name in ("images", "Image", "image_path", "videos")),
    ],
)
def test_a_picture_video_or_audio_that_is_not_read_is_an_error_with_file_row_field_and_fix(made, option, name):
    with pytest.raises(DataError) as raised:
        made(option, [WHOLE[option]] * 2 + [WHOLE[option] | {name: ["0.png"]}])
    assert "d.jsonl, record 2: the field " in str(raised.value)
    assert f"{name!r} (['0.png']) looks like " in str(raised.value)
    fix = f"'data.ignore=[{name}]'"
    assert fix in str(raised.value)
    left = made(option, [WHOLE[option] | {name: ["0.png"]}] * 2, fix.strip("'"))
    assert told(left) == []


@pytest.mark.parametrize(("option", "name"), [("llava_instruct", "images"), ("chat", "image")])
def test_a_column_of_pictures_of_another_name_is_read_once_the_fix_is_followed(made, option, name):
    record = json.loads(json.dumps(WHOLE[option]).replace("What", "<image>What"))
    with pytest.raises(DataError) as raised:
        made(option, [record | {name: "0.png"}] * 2)
    slot = "image" if option == "llava_instruct" else "images"
    fix = f"data.columns.{slot}={name}"
    assert f"fix: set {fix}, or" in str(raised.value)
    source = made(option, [record | {name: "0.png"}] * 2, fix)
    assert [image.key.rpartition("/")[2] for image in source.train(0, 0).images] == ["0.png"]


@pytest.mark.parametrize(
    ("option", "override"),
    [("chat", "data.columns.images=pictures"), ("llava_instruct", "data.columns.image=pictures")],
)
def test_a_column_of_pictures_that_no_record_has_is_an_error(made, option, override):
    with pytest.raises(
        DataError, match=rf"{override.replace('.', '[.]')}: no record of .*d\.jsonl has it; the first has"
    ):
        made(option, [WHOLE[option]] * 3, override)
    late = [WHOLE[option]] * 70 + [WHOLE[option] | {"pictures": []}]
    assert len(made(option, late, override)) == 70


@pytest.mark.parametrize(
    ("option", "record", "says"),
    [
        ("chat", WHOLE["chat"] | {"imgaes": ["a"]}, "unknown field 'imgaes'\n  fix: did you mean 'images'"),
        ("chat", message(trian=False), "message 1: unknown message field 'trian'\n  fix: did you mean 'train'"),
        ("chat", message(wieght=0), "did you mean 'weight'"),
        ("llava_instruct", WHOLE["llava_instruct"] | {"imaeg": "a"}, "did you mean 'image'"),
        ("llava_instruct", turn(Weight=0), "turn 1: unknown turn field 'Weight'\n  fix: did you mean 'weight'"),
        ("chat", message(tool_calls=[{"id": "1"}]), "message 1: the message field 'tool_calls' is [{'id': '1'}]"),
        ("chat", message(reasoning_content="hm"), "the message field 'reasoning_content' is 'hm'"),
        ("chat", message(name="Ann"), "the message field 'name' is 'Ann'"),
        ("chat", message(audio={"id": "x"}), "the message field 'audio' ({'id': 'x'}) looks like audio"),
        ("chat", message(images=["0.png"]), "the message field 'images' (['0.png']) looks like an image"),
        ("chat", WHOLE["chat"] | {"tools": [{"a": 1}]}, "the field 'tools' is"),
        ("chat", WHOLE["chat"] | {"system": "Be brief."}, "the field 'system' is 'Be brief.'"),
        ("chat", part(image="0.png"), "the part field 'image' ('0.png') looks like an image"),
        ("llava_instruct", turn(image="0.png"), "the turn field 'image' ('0.png') looks like an image"),
        ("llava_instruct", WHOLE["llava_instruct"] | {"system": "Be brief."}, "the field 'system'"),
        ("cauldron", {"images": [], "texts": [{"user": "a", "assistant": "b", "weight": 0}]}, "turn 0: the turn field"),
    ],
)
def test_what_would_change_the_training_and_is_not_read_is_refused(made, option, record, says):
    with pytest.raises(DataError) as raised:
        made(option, [WHOLE[option], record])
    assert "d.jsonl, record 1" in str(raised.value)
    assert says in str(raised.value)
    assert "data.ignore=[" in str(raised.value)


@pytest.mark.parametrize(
    ("field", "trained"),
    [
        ({"weight": 0}, False),
        ({"weight": 1}, True),
        ({"weight": None}, True),
        ({"loss": False}, False),
        ({"loss": True}, True),
        ({"train": False, "weight": 0}, False),
    ],
)
@pytest.mark.parametrize("option", ["chat", "llava_instruct"])
def test_a_message_says_by_the_field_of_its_format_whether_it_is_trained_on(made, option, field, trained):
    record = message(**field) if option == "chat" else turn(**field)
    assert made(option, [record] * 2).train(0, 0).messages[1].supervised is trained


@pytest.mark.parametrize(
    ("index", "field", "says"),
    [
        (1, {"weight": 0.5}, "'weight' is 0.5, expected 0 or 1"),
        (1, {"weight": True}, "'weight' is True, expected 0 or 1"),
        (1, {"loss": 0}, "'loss' is 0, expected true or false"),
        (1, {"train": True, "weight": 0}, "train and weight disagree"),
        (0, {"weight": 1}, "'weight' is 1 in a message of the user"),
        (0, {"loss": True}, "'loss' is True in a message of the user"),
    ],
)
def test_a_weight_that_cannot_be_obeyed_is_an_error(made, index, field, says):
    record = {"messages": [one | field if i == index else one for i, one in enumerate(SAID)]}
    with pytest.raises(DataError, match=rf"record \d, message {index}: {says}"):
        made("chat", [record] * 2).train(0, 0)


def test_an_image_part_with_an_index_is_that_picture(made):
    parts = [{"type": "image", "index": 1, "text": None}, {"type": "text", "text": "or", "index": None}]
    record = {"messages": [{"role": "user", "content": [*parts, {"type": "image", "index": 0}]}, SAID[1]]}
    sample = made("chat", [record | {"images": ["0.png", "1.png"]}] * 2).train(0, 0)
    assert [image.key.rpartition("/")[2] for image in sample.images] == ["1.png", "0.png"]
    with pytest.raises(DataError, match="an image part with the index 1, expected a number below 1"):
        made("chat", [record | {"images": ["0.png"]}] * 2).train(0, 0)
    parts[0]["index"] = 0
    with pytest.raises(DataError, match="2 images but fewer"):
        made("chat", [record | {"images": ["0.png", "1.png"]}] * 2).train(0, 0)


def test_a_text_within_an_image_part_is_refused(made):
    record = {"messages": [{"role": "user", "content": [{"type": "image", "path": "0.png", "text": "a"}]}, SAID[1]]}
    with pytest.raises(DataError, match="the part field 'text' is 'a': an image part cannot hold text"):
        made("chat", [record] * 2)


def test_all_other_fields_are_told_once_with_how_many_records_have_them(made):
    records = [WHOLE["vqa"] | ({"topic": "x"} if i % 2 else {"topic": None, "grade": i}) for i in range(200)]
    (said,) = told(made("vqa", records))
    assert said.endswith(
        "d.jsonl: fields that are not read (records with it, of the first 64 of 200 records): "
        "'grade' (32), 'topic' (32)"
    )
    (said,) = told(made("chat", [message(score=1)] * 3))
    assert said.endswith("of the 3 records): 'message score' (3)")


def test_a_mixture_tells_what_its_sources_do(made, tmp_path):
    made("vqa", [WHOLE["vqa"] | {"topic": "x"}] * 3)
    node = compose(["data=vqa", f"data.path={tmp_path}/d.jsonl", "data.heldout=1"])["data"] | {"_partial_": True}
    mixture = compose(["data=mixture"])["data"] | {"sources": {"mine": node}, "score": []}
    (said,) = told(build(mixture, 0))
    assert said.startswith("mine: ")
    assert "'topic' (3)" in said


def test_fields_of_records_behind_the_first_are_checked_when_they_are_read(made):
    records = [WHOLE["chat"]] * 100 + [WHOLE["chat"] | {"image": "0.png"}]
    source = made("chat", records, "data.heldout=1")
    with pytest.raises(DataError, match="record 100: the field 'image'"):
        [*(source.train(i, 0) for i in range(100)), *source.heldout()]


def test_a_faulty_record_among_the_first_is_told_when_it_is_drawn(made):
    source = made("chat", [WHOLE["chat"]] * 3 + [{"messages": []}])
    assert len(source) == 3


@pytest.mark.parametrize(
    ("name", "value", "kind"),
    [
        ("depth", "a/b.png", "picture"),
        ("depth", "http://a.b/c.JPG?d=e", "picture"),
        ("clip", ["a.mp4"], "video"),
        ("speech", {"bytes": b"ID3 ", "path": None}, "audio"),
        ("speech", {"array": [0.0], "sampling_rate": 8000, "path": "x"}, "audio"),
        ("depth", {"bytes": b"\x89PNG", "path": None}, "picture"),
        ("depth", b"\xff\xd8\xff\xe0", "picture"),
        ("depth", "data:image/png;base64,AAAA", "picture"),
        ("image_id", "coco-7", None),
        ("image_width", 640, None),
        ("has_image", True, None),
        ("image_embedding", [0.5, 1.5], None),
        ("image_caption", "A red bus.", None),
        ("format", "png", None),
        ("question", "What is in bus.png", None),
        ("n", b"\0\1", None),
    ],
)
def test_what_looks_like_a_medium(name, value, kind):
    assert medium(name, value) == kind


def test_a_name_or_url_beside_the_picture_that_is_read_is_no_other_picture():
    assert medium("filename", "a.jpg") == "picture"
    assert medium("filename", "a.jpg", shown=True) is None
    assert medium("depth", "a.jpg", shown=True) == "picture"
