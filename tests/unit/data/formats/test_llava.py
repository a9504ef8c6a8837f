import json

import pytest
from PIL import Image as PILImage

from beni.data.formats.llava import LlavaJson
from beni.data.images import Image, decode
from beni.errors import DataError

KEYS = {"subset": None, "split": "train", "rows": None, "heldout_path": None, "columns": {}, "images": None}
KEYS |= {"ignore": [], "heldout": 0, "augment": {}, "instructions": "keep"}


def record(index, images=1, text=None, **changes):
    names = [f"{index}-{i}.png" for i in range(images)]
    text = "<image>\n" * images + f"question {index}" if text is None else text
    turns = [{"from": "human", "value": text}, {"from": "gpt", "value": f"answer {index}"}]
    values = {"id": f"coco-{index}", "image": names[0] if images == 1 else names, "conversations": turns}
    return {k: v for k, v in (values | changes).items() if v is not None}


@pytest.fixture
def source(tmp_path):
    """source(records or text, name="data.json", seed=0, heldout=0) -> LlavaJson."""

    def make(content, name="data.json", seed=0, heldout=0, images=None, **more):
        path = tmp_path / name
        path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
        return LlavaJson(seed, path=str(path), **KEYS | {"images": images, "heldout": heldout} | more)

    return make


def only(records, source):
    return source(records).train(0, 0)


def shape(message):
    return [part if isinstance(part, str) else part.key.rsplit("/", 1)[-1] for part in message.content]


def test_a_record_is_a_conversation_with_its_image_where_the_placeholder_stood(source):
    sample = only([record(7)], source)
    assert [m.role for m in sample.messages] == ["user", "assistant"]
    assert shape(sample.messages[0]) == ["7-0.png", "\nquestion 7"]
    assert (sample.question, sample.answer, sample.cluster) == ("question 7", "answer 7", "7-0.png")


def test_several_images_stand_in_order_wherever_their_placeholders_are(source):
    turns = [
        {"from": "human", "value": "first <image> then <image>, which?"},
        {"from": "gpt", "value": "the first"},
        {"from": "human", "value": "and <image>"},
        {"from": "gpt", "value": "the third"},
    ]
    sample = only([record(0, images=3, conversations=turns)], source)
    assert shape(sample.messages[0]) == ["first ", "0-0.png", " then ", "0-1.png", ", which?"]
    assert shape(sample.messages[2]) == ["and ", "0-2.png"]
    assert len(sample.images) == 3


@pytest.mark.parametrize("image", [None, [], ""])
def test_a_record_without_image_is_text_only(image, source):
    sample = only([record(0, images=0, image=image)], source)
    assert sample.images == ()
    assert sample.question == "question 0"


def test_all_roles_of_the_format_are_read(source):
    roles = ("system", "human", "gpt", "user", "assistant")
    turns = [{"from": role, "value": role} for role in roles]
    sample = only([record(0, images=0, conversations=turns)], source)
    assert [m.role for m in sample.messages] == ["system", "user", "assistant", "user", "assistant"]


def test_pictures_lie_beside_the_json_file_or_in_the_folder_asked_for(source, tmp_path):
    (tmp_path / "pictures").mkdir()
    for folder, colour in ((tmp_path, (255, 0, 0)), (tmp_path / "pictures", (0, 255, 0))):
        PILImage.new("RGB", (2, 2), colour).save(folder / "0-0.png")
    beside = source([record(0)]).train(0, 0).images[0]
    apart = source([record(0)], images=str(tmp_path / "pictures")).train(0, 0).images[0]
    assert decode(beside).getpixel((0, 0)) == (255, 0, 0)
    assert decode(apart).getpixel((0, 0)) == (0, 255, 0)


def test_a_picture_may_lie_on_a_network_or_anywhere_on_the_disk(source):
    names = ["https://example.org/a.png?key=secret", "/elsewhere/b.png"]
    remote, local = only([record(0, images=2, image=names)], source).images
    assert remote.url == names[0]
    assert "secret" not in remote.key
    assert (local.url, local.key) == (None, names[1])


def test_json_lines_are_read_as_the_same_records_even_with_unusual_line_separators_in_a_text(source):
    records = [record(i, text=f"<image>a\u2028b\x85c {i}") for i in range(3)]
    lines = "\n".join(json.dumps(r, ensure_ascii=False) for r in records) + "\n\n"
    one, two = source(records), source(lines, "data.jsonl")
    for i in range(3):
        assert [shape(m) for m in one.train(i, 0).messages] == [shape(m) for m in two.train(i, 0).messages]


def test_ids_are_unique_even_where_the_records_ids_repeat(source):
    # in LLaVA-665K one picture's number is the id of several conversations about it
    made = source([record(0, id="000000033471") for _ in range(6)], heldout=2)
    samples = [*made.heldout(), *(made.train(i, 0) for i in range(len(made)))]
    assert len({sample.id for sample in samples}) == 6
    assert all("000000033471" in sample.id for sample in samples)


BAD_RECORDS = {
    "no conversations": (record(1, conversations=None), "no list of turns in 'conversations'.*id.*image"),
    "empty conversations": (record(1, conversations=[]), "no list of turns"),
    "conversations as text": (record(1, conversations="hello"), "no list of turns"),
    "a turn that is text": (record(1, conversations=["hello"]), "no list of turns"),
    "unknown role": (
        record(1, conversations=[{"from": "bot", "value": ""}]),
        "unknown role 'bot', expected one of human",
    ),
    "no role": (record(1, images=0, conversations=[{"value": "a"}]), "unknown role None"),
    "a text that is a number": (record(1, images=0, text=5), "'value' is 5, expected a text"),
    "no text": (record(1, images=0, conversations=[{"from": "human"}]), "'value' is None, expected a text"),
    "no answer": (record(1, images=0, conversations=[{"from": "gpt", "value": ""}]), "'value' is empty"),
    "too few images": (record(1, images=1, text="<image><image>"), "more <image> in the text than images"),
    "no image at all": (record(1, images=0, text="<image>"), "more <image> in the text than images"),
    "too many images": (record(1, images=3, text="<image>"), "3 images but fewer <image>"),
    "an image that is a number": (record(1, image=5), "'image' is 5, expected a path"),
    "an image that is an object": (record(1, image=[{"url": "x"}]), "'image' is .*expected a path"),
}


@pytest.mark.parametrize("kind", BAD_RECORDS)
def test_a_record_that_cannot_be_used_is_an_error_with_file_and_record(kind, source):
    bad, message = BAD_RECORDS[kind]
    made = source([record(0), bad])
    assert made.train(0, 0).answer == "answer 0"
    with pytest.raises(DataError, match=rf"data\.json, record 1: .*{message}"):
        made.train(1, 0)


@pytest.mark.parametrize(
    ("content", "name", "message"),
    [
        ("[{]", "data.json", "is not valid JSON"),
        ('{"a": 1}\n{"b"', "data.jsonl", "is not valid JSON"),
        ('{"a": 1}', "data.json", "holds a dict, expected a list"),
        ('["text"]', "data.json", 'record 0 is "text", expected an object'),
        ("[1]\n", "data.jsonl", "record 0 is .1., expected an object"),
        ("[]", "data.json", "holds no record"),
        ("", "data.jsonl", "holds no record"),
    ],
)
def test_a_file_in_another_format_is_an_error_with_its_name(content, name, message, source):
    with pytest.raises(DataError, match=rf"{name}.*{message}"):
        source(content, name)


def test_a_file_that_is_not_utf8_is_an_error_with_its_name(tmp_path):
    path = tmp_path / "latin.json"
    path.write_bytes('["café"]'.encode("latin-1"))
    with pytest.raises(DataError, match=r"latin\.json is not valid JSON: it is not UTF-8(.|\n)*iconv"):
        LlavaJson(0, path=str(path), **KEYS)


def test_a_path_that_is_null_or_missing_is_an_error_with_the_fix(tmp_path):
    with pytest.raises(DataError, match=r"set data\.path"):
        LlavaJson(0, path=None, **KEYS)
    with pytest.raises(DataError, match=r"data\.path=.*gone\.json does not exist"):
        LlavaJson(0, path=str(tmp_path / "gone.json"), **KEYS)


def test_training_and_held_out_records_are_disjoint_complete_and_the_same_for_every_seed(source):
    records = [record(i) for i in range(40)]
    splits = []
    for seed in (0, 1, 17):
        made = source(records, seed=seed, heldout=12)
        held = [sample.answer for sample in made.heldout()]
        trained = [made.train(i, epoch=3).answer for i in range(len(made))]
        assert sorted(held + trained) == sorted(f"answer {i}" for i in range(40))
        splits.append((held, trained))
    assert splits[0] == splits[1] == splits[2]
    assert len(splits[0][0]) == 12
    assert splits[0][0] != [f"answer {i}" for i in range(12)]  # drawn, not the beginning of the file


@pytest.mark.parametrize("held", [3, 4, -1])
def test_a_split_that_leaves_nothing_to_train_on_or_no_number_is_an_error(source, held):
    with pytest.raises(DataError, match=rf"has 3 records, data\.heldout={held}; .*\n.*fix: set data\.heldout=1$"):
        source([record(i) for i in range(3)], heldout=held)


def test_the_fingerprint_changes_with_the_content_only(source):
    first = source([record(0)]).fingerprint()
    assert source([record(0)], seed=5, name="copy.json").fingerprint() == first
    assert source([record(1)]).fingerprint() != first


def test_no_picture_is_opened_before_it_is_needed(source):
    made = source([record(i) for i in range(4)], heldout=2)  # none of these files exists
    assert all(isinstance(image, Image) for sample in made.heldout() for image in sample.images)
    with pytest.raises(DataError, match=r"\.png: FileNotFoundError"):
        decode(made.train(0, 0).images[0])


@pytest.mark.parametrize("place", ["<image>\nsay what this is", "say what this is\n<image>"])
@pytest.mark.parametrize("tokenizer", ["bos", "no_bos", "llama"])
def test_a_dropped_instruction_leaves_the_picture_and_the_caption(source, renderer_of, tokenizer, place):
    turns = [{"from": "human", "value": place}, {"from": "gpt", "value": "two dogs run"}]
    made = source([record(0, conversations=turns)], instructions="drop")
    renderer = renderer_of(tokenizer, "plain", visual_tokens=2)
    encoded, tokens = renderer.encode(made.train(0, 0)), renderer.tokens
    # LLaVA's preprocess_plain: bos, picture, caption, and a line break where beni has the end token
    caption = renderer.tokenizer("<image>two dogs run", add_special_tokens=False).input_ids[1:]
    bos, end = [] if tokens.bos is None else [tokens.bos], renderer.tokenizer.eos_token_id
    assert encoded.ids.tolist() == [*bos, tokens.image, tokens.image, *caption, end]
    assert encoded.labels.tolist() == [-100] * (len(bos) + 2) + [*caption, end]
    assert renderer.prompt(made.train(0, 0)).ids.tolist() == [*bos, tokens.image, tokens.image]
    assert ["instructions of the user are dropped" in notice for notice in made.notices] == [True]


def test_instructions_that_are_kept_are_read_under_the_plain_template_too(source, renderer_of):
    made = source([record(0)], instructions="keep")
    renderer = renderer_of("llama", "plain")
    assert "question 0 answer 0" in renderer.tokenizer.decode(renderer.encode(made.train(0, 0)).ids)
    assert made.notices == ()
    assert made.fingerprint() != source([record(0)], instructions="drop").fingerprint()


@pytest.mark.parametrize(
    "content",
    [
        record(0, images=2),
        record(0, image=None, text="no picture"),
        record(
            0, conversations=[{"from": role, "value": "a"} for role in ("human", "gpt", "human", "gpt")], image=None
        ),
    ],
    ids=["two pictures", "no picture", "a conversation"],
)
def test_of_what_is_no_caption_nothing_is_left_out(source, content):
    with pytest.raises(DataError, match=r"record 0: .*data.instructions=drop(.|\n)*fix: set data.instructions=keep"):
        source([content], instructions="drop").train(0, 0)
