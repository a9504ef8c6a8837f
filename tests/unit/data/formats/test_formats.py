"""What a row means in each format, and what is said of one that means nothing."""

import base64
import json

import numpy as np
import pytest

from beni.data.formats.captions import Captions
from beni.data.formats.cauldron import Cauldron
from beni.data.formats.chat import Chat
from beni.data.formats.text_rows import TextRows
from beni.data.formats.vqa import Vqa
from beni.data.images import Image, decode
from beni.data.metric import BestChoice, ExactAnswer
from beni.errors import DataError
from support.hostile import encoded, noise

COMMON = {
    "subset": None,
    "split": "train",
    "heldout_path": None,
    "rows": None,
    "images": None,
    "ignore": [],
    "heldout": 0,
    "augment": {},
}
KEYS = {
    Chat: {"columns": {}},
    Cauldron: {"columns": {}},
    Vqa: {"columns": {}, "suffix": ""},
    Captions: {"columns": {}, "prompts": []},
    TextRows: {"column": "text"},
}


@pytest.fixture
def source(tmp_path, monkeypatch):
    """source(Chat, records, **keys)."""
    monkeypatch.setenv("BENI_CACHE", str(tmp_path / "cache"))
    for i in range(3):
        (tmp_path / f"{i}.png").write_bytes(encoded(noise(i)))

    def make(form, records, seed=0, **changes):
        (tmp_path / "rows.jsonl").write_text("\n".join(json.dumps(record) for record in records))
        keys = COMMON | {"path": str(tmp_path / "rows.jsonl"), "images": str(tmp_path)} | KEYS[form]
        if form is TextRows:
            keys = {name: value for name, value in keys.items() if name not in ("images", "augment")}
        return form(seed, **keys | changes)

    return make


def shape(sample):
    """(role, content) of each message; a picture by the number it shows."""
    return [(m.role, *(_number(p) if isinstance(p, Image) else p for p in m.content)) for m in sample.messages]


def _number(image):
    if image.url is not None:
        return image.url
    pixels = np.asarray(decode(image))
    return next(i for i in range(3) if np.array_equal(pixels, np.asarray(noise(i))))


def say(role, content):
    return {"role": role, "content": content}


DATA_URL = "data:image/png;base64," + base64.b64encode(encoded(noise(2))).decode()


@pytest.mark.parametrize(
    ("messages", "images", "expected"),
    [
        (
            [say("system", "be brief"), say("user", "hi"), say("assistant", "hello")],
            None,
            [("system", "be brief"), ("user", "hi"), ("assistant", "hello")],
        ),
        (
            [{"role": "user", "content": "a <image> b <image>"}, {"role": "assistant", "content": "c"}],
            ["1.png", "0.png"],
            [("user", "a ", 1, " b ", 0), ("assistant", "c")],
        ),
        (
            [
                say("user", [{"type": "image"}, {"type": "text", "text": "what?"}, {"type": "image"}]),
                say("assistant", [{"type": "text", "text": "that"}]),
            ],
            ["0.png", "2.png"],
            [("user", 0, "what?", 2), ("assistant", "that")],
        ),
        (
            [
                say("user", [{"type": "image_url", "image_url": {"url": DATA_URL}}]),
                say("assistant", "two"),
            ],
            None,
            [("user", 2), ("assistant", "two")],
        ),
        (
            [
                say("user", [{"type": "image_url", "image_url": "http://a.b/c.png"}]),
                say("assistant", "c"),
            ],
            None,
            [("user", "http://a.b/c.png"), ("assistant", "c")],
        ),
        (
            [{"role": "user", "content": [{"type": "image", "path": "1.png"}]}, {"role": "assistant", "content": "1"}],
            None,
            [("user", 1), ("assistant", "1")],
        ),
    ],
)
def test_chat_messages(source, messages, images, expected):
    sample = source(Chat, [{"messages": messages, "images": images}]).train(0, 0)
    assert shape(sample) == expected
    assert "rows.jsonl, record 0" in sample.where


def test_a_chat_message_says_whether_it_is_supervised(source):
    turns = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b", "train": False},
        {"role": "user", "content": "c"},
        {"role": "assistant", "content": "d"},
    ]
    sample = source(Chat, [{"messages": turns}]).train(0, 0)
    assert [m.supervised for m in sample.messages] == [False, False, False, True]


def test_cauldron_records_show_all_pictures_and_then_talk(source):
    texts = [{"user": "a?", "assistant": "b", "source": "x"}, {"user": "c?", "assistant": "d", "source": "x"}]
    sample = source(Cauldron, [{"images": ["2.png", "0.png"], "texts": texts}]).train(0, 0)
    assert shape(sample) == [("user", 2, 0, "a?"), ("assistant", "b"), ("user", "c?"), ("assistant", "d")]


def test_a_cauldron_record_without_pictures_is_text(source):
    sample = source(Cauldron, [{"images": [], "texts": [{"user": "a?", "assistant": "b"}]}]).train(0, 0)
    assert shape(sample) == [("user", "a?"), ("assistant", "b")]


def test_vqa_takes_the_most_frequent_answer_and_of_equals_the_first(source):
    records = [
        {"image": "0.png", "question": "a?", "answer": ["no", "yes", "yes"]},
        {"image": "1.png", "question": "b?", "answer": ["left", "right"]},
        {"image": ["1.png", "2.png"], "question": "c?", "answer": "plain "},
    ]
    made = source(Vqa, records, suffix="In one word.")
    assert made.metric == ExactAnswer()
    assert [made.train(i, 0).answer for i in range(3)] == ["yes", "left", "plain"]
    assert shape(made.train(2, 0))[0] == ("user", 1, 2, "c?\nIn one word.")


def test_vqa_keeps_what_everyone_answered_and_counts_each_as_right(source):
    record = {"image": "0.png", "question": "a?", "answer": ["sofa", "couch ", "couch", "settee"]}
    sample = source(Vqa, [record]).train(0, 0)
    assert sample.references == ("sofa", "couch", "couch", "settee")
    assert sample.right_answers == ("couch", "sofa", "settee")


def test_vqa_with_choices_is_scored_by_choosing(source):
    record = {"image": "0.png", "q": "a?", "answer": "red", "options": ["blue", "red"]}
    made = source(Vqa, [record], columns={"question": "q", "choices": "options"})
    assert made.metric == BestChoice()
    assert made.train(0, 0).choices == ("blue", "red")


def test_a_choice_may_be_named_by_its_number(source):
    records = [{"image": "0.png", "question": "a?", "answer": n, "choices": ["blue", "red"]} for n in (1, 0, 2)]
    made = source(Vqa, records, columns={"choices": "choices"})
    assert [made.train(i, 0).answer for i in range(2)] == ["red", "blue"]
    with pytest.raises(DataError, match="'answer' is 2, expected a text"):
        made.train(2, 0)


def test_a_column_may_be_a_field_of_each_element_of_a_list(source):
    answers = [{"answer": said, "confidence": "yes"} for said in ("cat", "dog", "dog")]
    record = {"image": "0.png", "question": "a?", "answers": answers}
    assert source(Vqa, [record], columns={"answer": "answers.answer"}).train(0, 0).answer == "dog"


@pytest.mark.parametrize("form", [Chat, Vqa, Captions])
def test_a_column_that_the_format_does_not_know_is_told_with_the_one_that_was_meant(source, form):
    right = "images" if form is Chat else "image"
    with pytest.raises(DataError, match=rf"data\.columns\.imagse=x: (?s:.*)did you mean data\.columns\.{right}\?"):
        source(form, [{}], columns={"imagse": "x"})


def test_captions_of_which_none_is_drawn_are_the_same_in_every_epoch(source):
    made = source(Captions, [{"image": "0.png", "caption": f"{i}"} for i in range(3)], prompts=["Look:"])
    assert not made.varies
    assert [shape(made.train(2, epoch)) for epoch in range(9)] == [[("user", 0, "Look:"), ("assistant", "2")]] * 9
    assert source(Captions, [{"image": "0.png", "caption": "a"}], prompts=["Look:", "See:"]).varies


def test_a_list_of_captions_where_the_first_record_has_a_text_is_an_error(source):
    records = [{"image": "0.png", "caption": "a"}, {"image": "1.png", "caption": ["b", "c"]}]
    with pytest.raises(DataError, match=r"record 1: 'caption' is .*but a text in the first record"):
        source(Captions, records).train(1, 0)


def test_captions_draw_prompt_and_caption_anew_in_each_epoch(source):
    record = {"image": "0.png", "caption": [f"caption {i}" for i in range(5)]}
    made = source(Captions, [record] * 4, prompts=["Look:", "See:"])
    seen = {(made.train(i, e).question, made.train(i, e).answer) for i in range(4) for e in range(8)}
    assert len(seen) > 6
    assert made.varies
    assert made.train(1, 2).answer == made.train(1, 2).answer
    held = source(Captions, [record] * 4, prompts=["Look:", "See:"], heldout=2).heldout()
    assert {(sample.question, sample.answer) for sample in held} == {("Look:", "caption 0")}


def test_captions_need_no_prompt_and_read_nested_columns(source):
    record = {"picture": "1.png", "sentences": {"raw": "it is one"}}
    made = source(Captions, [record], columns={"image": "picture", "caption": "sentences.raw"})
    assert shape(made.train(0, 0)) == [("user", 1), ("assistant", "it is one")]
    other = source(Captions, [{"png": "2.png", "caption": "two"}], columns={"image": "jpg;png"})
    assert shape(other.train(0, 0)) == [("user", 2), ("assistant", "two")]


def test_texts_are_supervised_as_a_whole(source):
    sample = source(TextRows, [{"text": "some words"}]).train(0, 0)
    assert [(m.role, m.content, m.supervised) for m in sample.messages] == [("assistant", ("some words",), True)]


@pytest.mark.parametrize("form", KEYS)
def test_training_and_held_out_rows_are_disjoint_and_the_same_for_every_seed(source, form):
    record = {
        **{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
        **{"texts": [{"user": "a", "assistant": "b"}], "text": "t", "question": "q", "answer": "a", "caption": "c"},
        **({"images": []} if form is Cauldron else {"image": "0.png"} if form in (Vqa, Captions) else {}),
    }
    made = [source(form, [record | {"id": i} for i in range(10)], seed=seed, heldout=3) for seed in (0, 1)]
    ids = [({s.id for s in one.heldout()}, {one.train(i, 0).id for i in range(7)}) for one in made]
    assert ids[0] == ids[1]
    held, train = ids[0]
    assert len(held) == 3
    assert len(held | train) == 10


BAD = {
    "chat: no messages": (Chat, {"conversations": []}, "no column 'messages'; there are 'conversations'"),
    "chat: near miss": (Chat, {"mesages": []}, "perhaps to mesages"),
    "chat: empty": (Chat, {"messages": []}, "'messages' is [], expected a list of messages"),
    "chat: tool": (
        Chat,
        {"messages": [{"role": "tool", "content": None}]},
        "unknown role 'tool', expected one of system",
    ),
    "chat: a picture too few": (
        Chat,
        {"messages": [{"role": "user", "content": "<image>"}]},
        "more <image> in the text",
    ),
    "chat: a picture too many": (
        Chat,
        {"messages": [{"role": "user", "content": "x"}], "images": ["0.png"]},
        "1 images but fewer <image> in the text",
    ),
    "chat: an image part too many": (
        Chat,
        {"messages": [{"role": "user", "content": [{"type": "image"}]}]},
        "more image parts than images",
    ),
    "chat: audio": (Chat, {"messages": [{"role": "user", "content": [{"type": "audio"}]}]}, "a part of type 'audio'"),
    "chat: a number": (Chat, {"messages": [{"role": "user", "content": 7}]}, "'content' is 7, expected a text"),
    "chat: nothing to learn": (Chat, {"messages": [say("user", "x"), say("assistant", " ")]}, "'content' is empty"),
    "chat: train": (Chat, {"messages": [{"role": "user", "content": "x", "train": 1}]}, "'train' is 1"),
    "chat: data URL": (
        Chat,
        {"messages": [{"role": "user", "content": [{"type": "image", "url": "data:image/png;base64,@"}]}]},
        "no valid data URL",
    ),
    "cauldron: no texts": (Cauldron, {"images": []}, "no column 'texts'"),
    "cauldron: no answer": (Cauldron, {"images": [], "texts": [{"user": "a"}]}, "'assistant' is None, expected a text"),
    "cauldron: empty answer": (Cauldron, {"images": [], "texts": [{"user": "a", "assistant": " "}]}, "is empty"),
    "cauldron: no turns": (Cauldron, {"images": [], "texts": "a"}, "'texts' is 'a', expected a list of turns"),
    "vqa: no answers": (Vqa, {"image": "0.png", "question": "a", "answer": []}, "'answer' is an empty list"),
    "vqa: a number": (Vqa, {"image": "0.png", "question": 3, "answer": "b"}, "'question' is 3, expected a text"),
    "captions: no picture": (Captions, {"image": None, "caption": "a"}, "'image' holds no image"),
    "captions: a number as picture": (Captions, {"image": 5, "caption": "a"}, "'image' is 5, expected a path"),
    "captions: empty": (Captions, {"image": "0.png", "caption": ""}, "'caption' is empty"),
    "captions: no caption": (Captions, {"image": "0.png", "caption": []}, "'caption' is an empty list"),
    "text: none": (TextRows, {"txt": "a"}, "no column 'text'; there are 'txt'"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_row_that_means_nothing_is_told_with_file_record_and_what_is_wrong(source, kind):
    form, bad, says = BAD[kind]
    with pytest.raises(DataError) as raised:
        source(form, [bad]).train(0, 0)
    assert "rows.jsonl, record 0" in str(raised.value)
    assert "fix: " in str(raised.value)
    assert says in str(raised.value)


def test_vqa_choices_must_hold_the_answer(source):
    record = {"image": "0.png", "question": "q", "answer": "x", "choices": ["a", "b"]}
    with pytest.raises(DataError, match="the answer 'x' is none of the choices a, b"):
        source(Vqa, [record], columns={"choices": "choices"}).train(0, 0)


@pytest.mark.parametrize("said", [True, False])
def test_true_and_false_are_no_numbers_of_choices(source, said):
    record = {"image": "0.png", "question": "q", "answer": said, "choices": ["yes", "no"]}
    with pytest.raises(DataError, match=rf"'answer' is {str(said).lower()}, expected one of the choices yes, no"):
        source(Vqa, [record], columns={"choices": "choices"}).train(0, 0)


def test_pictures_may_be_file_urls_and_other_schemes_are_refused(source, tmp_path):
    (tmp_path / "a b.png").write_bytes(encoded(noise(1)))
    for url in (f"file://{tmp_path}/a%20b.png", f"file://localhost{tmp_path}/a%20b.png"):
        assert shape(source(Captions, [{"image": url, "caption": "a"}]).train(0, 0))[0] == ("user", 1)
    assert source(Captions, [{"image": "HTTP://a.b/c", "caption": "a"}]).train(0, 0).images[0].url == "http://a.b/c"
    for url in ("s3://a/b.png", "file://elsewhere/b.png", "ftp://a/b.png"):
        with pytest.raises(DataError, match=r"'image' is .*expected a path or a URL of http://.*(?s:.)*fix: "):
            source(Captions, [{"image": url, "caption": "a"}]).train(0, 0)


def test_the_word_of_the_placeholder_is_written_with_a_backslash(source):
    talk = [
        say("user", r"<image> what is \<image>?"),
        say("assistant", [{"type": "text", "text": r"\<image> is a tag"}]),
    ]
    sample = source(Chat, [{"messages": talk, "images": ["0.png"]}]).train(0, 0)
    assert shape(sample) == [("user", 0, " what is <image>?"), ("assistant", "<image> is a tag")]
    made = source(Captions, [{"image": "0.png", "caption": r"a \<image>"}, {"image": "0.png", "caption": "a <image>"}])
    assert made.train(0, 0).answer == "a <image>"
    with pytest.raises(DataError, match="<image> in a text that cannot hold an image"):
        made.train(1, 0)


def test_the_fingerprint_knows_what_changes_a_sample(source):
    record = {"image": "0.png", "caption": "a", "text": "b"}
    prints = {
        source(Captions, [record]).fingerprint(),
        source(Captions, [record], prompts=["x"]).fingerprint(),
        source(Captions, [record], columns={"caption": "text"}).fingerprint(),
        source(Captions, [record | {"caption": "c"}]).fingerprint(),
    }
    assert len(prints) == 4
