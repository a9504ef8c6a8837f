"""Every file in ``conf/data`` is built as a run builds it."""

import json
from pathlib import Path

import pytest

from beni.config.build import build
from beni.config.compose import compose
from beni.data.sample import Source
from beni.errors import DataError
from beni.paths import conf_dir

OPTIONS = sorted(path.stem for path in (conf_dir() / "data").glob("*.yaml"))


def usable(source, renderer):
    assert isinstance(source, Source)
    assert len(source) > 0
    assert source.task in ("answer", "choice", "loss")
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


@pytest.mark.parametrize("option", ["llava_pretrain", "llava_instruct"])
def test_a_llava_option_builds_once_its_path_is_set(option, renderer_of, tmp_path):
    turns = [{"from": "human", "value": "<image>\nwhat?"}, {"from": "gpt", "value": "that"}]
    records = [{"id": str(i), "image": f"{i}.png", "conversations": turns} for i in range(8)]
    (tmp_path / "data.json").write_text(json.dumps(records))
    node = compose([f"data={option}", f"data.path={tmp_path}/data.json", "data.heldout=3"])["data"]
    usable(build(node, 0), renderer_of("embedded", "plain"))


def test_the_text_option_builds_once_its_path_is_set(renderer_of, tmp_path):
    (tmp_path / "text.txt").write_text("some words " * 100)
    node = compose(["data=text", f"data.path={tmp_path}/text.txt", "data.piece=64"])["data"]
    usable(build(node, 0), renderer_of("embedded", "plain"))
