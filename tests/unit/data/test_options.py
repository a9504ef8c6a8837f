"""Every file in ``conf/data`` is built as a run builds it."""

import json
import re
from pathlib import Path

import datasets
import pytest

from beni.config.build import build
from beni.config.compose import compose
from beni.data.metric import Metric
from beni.data.source import Source
from beni.errors import DataError
from beni.paths import conf_dir

OPTIONS = sorted(path.stem for path in (conf_dir() / "data").glob("*.yaml"))


@pytest.fixture(autouse=True)
def no_hub(tmp_path, monkeypatch):
    """Whatever machine this is, there is no hub and no set in a cache."""
    monkeypatch.setenv("BENI_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("beni.hub.reachable", lambda host: False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")


def usable(source, renderer):
    assert isinstance(source, Source)
    assert len(source) > 0
    assert isinstance(source.metric, Metric)
    for sample in (source.train(0, 0), source.train(len(source) - 1, 1), source.heldout()[0]):
        encoded = renderer.encode(sample)
        assert (encoded.ids == renderer.tokens.image).sum() == 3 * len(sample.images)
    assert source.fingerprint() == source.fingerprint() != ""


@pytest.mark.parametrize("option", OPTIONS)
def test_an_option_builds_or_says_which_path_to_set(option, renderer_of):
    node = compose([f"data={option}"])["data"]
    absent = [key for key in ("path", "root") if key in node and not Path(node[key] or "/nowhere").exists()]
    if absent:
        with pytest.raises(DataError, match=rf"data\.{absent[0]}"):
            build(node, 0)
    else:
        usable(build(node, 0), renderer_of("embedded", "own", max_length=4096))


LLAVA = {"conversations": [{"from": "human", "value": "<image>\nwhat?"}, {"from": "gpt", "value": "that"}]}
CHAT = {"messages": [{"role": "user", "content": "<image>what?"}, {"role": "assistant", "content": "that"}]}
RECORDS = {
    "llava_pretrain": LLAVA | {"image": "a.png"},
    "llava_instruct": LLAVA | {"image": "a.png"},
    "sharegpt4v": LLAVA | {"image": "a.png"},
    "chat": CHAT | {"images": ["a.png"]},
    "cauldron": {"images": ["a.png"], "texts": [{"user": "what?", "assistant": "that"}]},
    "docvqa": {"image": "a.png", "question": "what?", "answers": ["that", "it"]},
    "vqa": {"image": "a.png", "question": "what?", "answer": "that"},
    "coco_captions": {"image": "a.png", "sentences": {"raw": "that"}},
    "captions": {"image": "a.png", "text": "that"},
    "webdataset": {"jpg": "a.png", "txt": "that"},
    "text_rows": {"text": "that"},
}
WHOLE = {"cauldron": ("data.subset=null",), "tiny_shakespeare": ("data.url=null", "data.sha256=null")}
"""Values that name another set than the one of the test."""
TEXTS = ("text", "tiny_shakespeare")


@pytest.mark.parametrize("option", RECORDS)
def test_an_option_builds_once_its_path_is_set(option, renderer_of, tmp_path):
    (tmp_path / "data.json").write_text(json.dumps([RECORDS[option] | {"id": i} for i in range(8)]))
    node = compose([f"data={option}", f"data.path={tmp_path}/data.json", "data.heldout=3", *WHOLE.get(option, ())])[
        "data"
    ]
    source = build(node, 0)
    usable(source, renderer_of("embedded", "plain"))
    assert source.train(0, 0).answer == "that"


@pytest.mark.parametrize("option", TEXTS)
def test_a_text_option_builds_once_its_path_is_set(option, renderer_of, tmp_path):
    (tmp_path / "text.txt").write_text("some words " * 100)
    own = WHOLE.get(option, ())
    node = compose([f"data={option}", f"data.path={tmp_path}/text.txt", "data.piece=64", *own])["data"]
    usable(build(node, 0), renderer_of("embedded", "plain"))


def test_every_option_that_needs_a_path_is_tried_with_one():
    needs = {option for option in OPTIONS if "path" in compose([f"data={option}"])["data"]}
    assert needs == {*RECORDS, *TEXTS}


PAGE = (Path(__file__).parents[3] / "docs" / "data_sources.md").read_text(encoding="utf-8")
EXAMPLES = dict(re.findall(r"^### (\w+)\n.*?```json\n(.*?)\n```", PAGE, re.M | re.S))


def test_the_page_on_sources_shows_every_format():
    assert set(EXAMPLES) == {"llava_instruct", "chat", "cauldron", "vqa", "captions", "text_rows"}
    assert set(OPTIONS) <= set(re.findall(r"\w+", PAGE))


@pytest.mark.parametrize("option", EXAMPLES)
def test_the_records_on_the_page_are_read_as_it_says(option, renderer_of, tmp_path):
    record = json.loads(EXAMPLES[option])
    (tmp_path / "records.jsonl").write_text(f"{json.dumps(record)}\n" * 2)
    node = compose([f"data={option}", f"data.path={tmp_path}/records.jsonl", "data.heldout=1", *WHOLE.get(option, ())])[
        "data"
    ]
    source = build(node, 0)
    usable(source, renderer_of("embedded", "plain"))
    said = json.dumps(record)
    sample = source.train(0, 0)
    assert json.dumps(sample.answer) in said
    assert [image.key.rpartition("/")[2] for image in sample.images] == re.findall(r"\d\.jpg", said)
