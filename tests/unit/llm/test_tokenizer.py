import copy
import json
import random

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from beni.data.shapes import questions
from beni.data.shapes.scenes import Scene
from beni.errors import ConfigError, WeightsError
from beni.llm.make_tokenizer import SPECIAL, VOCABULARY, byte_tokenizer, make_tokenizer
from beni.llm.tokenizer import CARRIED, load_tokenizer

NODE = {"tokenizer": "auto", "name": None, "weights": "random", "architecture": {"vocab_size": VOCABULARY}}


@pytest.fixture(scope="module")
def embedded():
    return load_tokenizer(NODE)


@pytest.fixture(scope="module")
def remade():
    return make_tokenizer()


@pytest.mark.parametrize("name", CARRIED)
def test_making_a_carried_tokenizer_again_gives_the_shipped_files_byte_for_byte(name, remade, tmp_path):
    (remade if name == "embedded" else byte_tokenizer()).save_pretrained(tmp_path)
    folders = (CARRIED[name], tmp_path)
    shipped, made = ({path.name: path.read_bytes() for path in folder.iterdir()} for folder in folders)
    assert shipped.keys() == made.keys()
    assert [name for name in shipped if shipped[name] != made[name]] == []


@given(text=st.text())
@example(text="a  b\n\n\tc \r\n")
@example(text="\0\ue000\ufdd0\U0010ffff")
@example(text="<eos> <image><|end|>")
@example(text=" . , isn 't ' s")
def test_any_text_is_encoded_without_loss(text, embedded):
    ids = embedded(text, add_special_tokens=False).input_ids
    assert embedded.decode(ids) == text
    assert max(ids, default=0) < VOCABULARY


def test_there_is_a_token_for_every_marker_and_every_byte(embedded):
    assert [embedded.convert_ids_to_tokens(i) for i in range(len(SPECIAL))] == SPECIAL
    assert len(embedded) <= VOCABULARY
    assert all(len(embedded(chr(n), add_special_tokens=False).input_ids) == 1 for n in range(1, 128))


def test_every_word_of_the_main_jobs_questions_is_one_token(embedded):
    rng = random.Random(1)
    for _ in range(200):
        for question in questions.ask_several(Scene.draw(rng), rng, 8):
            for text in (question.text, question.answer):
                words = text.rstrip("?").split()
                assert len(embedded(text, add_special_tokens=False).input_ids) == len(words) + text.endswith("?")


def test_an_llm_with_random_weights_takes_the_embedded_tokenizer(embedded):
    assert embedded.get_vocab() == load_tokenizer(NODE | {"tokenizer": "embedded", "name": "some/llm"}).get_vocab()


def test_a_folder_may_be_named(remade, tmp_path):
    copied = copy.deepcopy(remade)
    copied.add_tokens(["<extra>"])
    copied.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    named = load_tokenizer(NODE | {"tokenizer": str(tmp_path), "architecture": None})
    assert named.convert_tokens_to_ids("<extra>") == len(remade)


def test_a_tokenizer_with_more_ids_than_the_llm_has_embeddings_is_an_error_with_the_fix(embedded):
    size = len(embedded)
    assert len(load_tokenizer(NODE | {"architecture": {"vocab_size": size}})) == size
    with pytest.raises(ConfigError, match=rf"(?s)has {size} ids, but the llm has {size - 1} embeddings.*vocab_size"):
        load_tokenizer(NODE | {"architecture": {"vocab_size": size - 1}})


def test_a_token_a_byte():
    tokenizer = load_tokenizer(NODE | {"tokenizer": "bytes"})
    text = "First Citizen:\nBefore we proceed, é"
    ids = tokenizer(text).input_ids
    assert len(ids) == len(text.encode())
    assert tokenizer.decode(ids) == text
    assert len(tokenizer) == 256 + len(SPECIAL)
    assert tokenizer("<eos>").input_ids == [tokenizer.eos_token_id]


def test_a_tokenizer_that_cannot_be_had_is_named_and_no_weights_are_blamed(monkeypatch):
    monkeypatch.setattr("beni.hub.reachable", lambda host: False)
    with pytest.raises(WeightsError, match=r"^llm\.tokenizer=nope is not (.|\n)*fix: set llm\.tokenizer=auto"):
        load_tokenizer(NODE | {"tokenizer": "nope"})
