"""Whatever is wrong with a sample, the error says in which file it stands, in which row, and what to do."""

import json
import re

import pytest

from beni.data.formats.chat import Chat
from beni.data.formats.llava import LlavaJson
from beni.data.formats.vqa import Vqa
from beni.errors import DataError

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
LLAVA = COMMON | {"columns": {}, "instructions": "keep"}
USER = {"role": "user", "content": "what?"}
VQA = {"columns": {}, "suffix": ""}


def chat(*messages, **more):
    return Chat, COMMON | {"columns": {}}, {"messages": list(messages), **more}


def llava(*turns, **more):
    turns = [{"from": role, "value": text} for role, text in turns]
    return LlavaJson, LLAVA, {"conversations": turns, **more}


KINDS = {
    "no assistant": chat(USER),
    "nothing supervised": chat(USER, {"role": "assistant", "content": "a", "train": False}),
    "a placeholder in the picture's place": chat(
        {"role": "user", "content": [{"type": "text", "text": "<image>"}]}, USER
    ),
    "unknown role": llava(("human", "a"), ("bot", "b")),
    "an image tag without an image": llava(("human", "<image> a"), ("gpt", "b")),
    "an image without a tag": llava(("human", "a"), ("gpt", "b"), image="x.png"),
    "a missing column": (Vqa, COMMON | VQA, {"picture": "x.png", "question": "a", "answer": "b"}),
    "a message that is no text": (Chat, COMMON | {"columns": {}}, {"messages": [{"role": "user", "content": 5}]}),
    "conversations missing": (LlavaJson, LLAVA, {"messages": []}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_bad_sample_is_told_with_file_row_and_fix(kind, renderer_of, tmp_path, monkeypatch):
    monkeypatch.setenv("BENI_CACHE", str(tmp_path / "cache"))
    form, keys, record = KINDS[kind]
    path = tmp_path / "records.jsonl"
    good = {"messages": [USER, {"role": "assistant", "content": "that"}]}
    path.write_text(f"{json.dumps(good)}\n\n{json.dumps(record)}\n")
    renderer = renderer_of("bos", "chatml")
    with pytest.raises(DataError) as raised:  # fields that are not read are told of the first records at once
        renderer.encode(form(0, path=str(path), **keys).train(1, 0))
    said = str(raised.value)
    assert "records.jsonl, record 1" in said
    assert re.search(r"\n  fix: \w+", said)


def test_wrong_json_is_told_with_file_record_and_byte(tmp_path, monkeypatch):
    monkeypatch.setenv("BENI_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "records.jsonl"
    path.write_text('{"a": 1}\n{"a": \n')
    with pytest.raises(DataError, match=r"records\.jsonl.*record 1.*byte 9"):
        LlavaJson(0, path=str(path), **LLAVA)
