import pytest
from transformers import PreTrainedTokenizerFast

from beni.data.render.tokens import IMAGE, leading_bos, resolve_tokens
from beni.errors import DataError


def test_the_placeholder_is_added_once_behind_all_other_ids(tokenizer_of):
    tokenizer = tokenizer_of("bos")
    before = len(tokenizer)
    first, second = resolve_tokens(tokenizer), resolve_tokens(tokenizer)
    assert first == second
    assert first.image == before  # beyond the embedding table of an llm with as many embeddings as ids
    assert len(tokenizer) == before + 1
    assert tokenizer(f"a{IMAGE}b", add_special_tokens=False).input_ids.count(before) == 1


def test_adding_the_placeholder_keeps_the_other_special_tokens(tokenizer_of):
    tokenizer = tokenizer_of("embedded")
    before = set(tokenizer.all_special_tokens)
    resolve_tokens(tokenizer)
    assert set(tokenizer.all_special_tokens) == before | {IMAGE}


def test_a_tokenizer_that_has_a_placeholder_keeps_its_id_and_size(tokenizer_of):
    tokenizer = tokenizer_of("has_image")
    before, known = len(tokenizer), tokenizer.convert_tokens_to_ids(IMAGE)
    assert resolve_tokens(tokenizer).image == known
    assert len(tokenizer) == before


def test_a_placeholder_that_is_an_ordinary_entry_of_the_vocabulary_becomes_one_token(tokenizer_of):
    tokenizer = tokenizer_of("has_image")
    description = tokenizer.backend_tokenizer.to_str()
    plain = PreTrainedTokenizerFast(tokenizer_object=type(tokenizer.backend_tokenizer).from_str(description))
    ordinary = without_added(plain, IMAGE)
    assert len(ordinary("a<image>b", add_special_tokens=False).input_ids) > 3
    image = resolve_tokens(ordinary).image
    assert ordinary("a<image>b", add_special_tokens=False).input_ids.count(image) == 1
    assert image == tokenizer.convert_tokens_to_ids(IMAGE)


def without_added(tokenizer, token):
    import json

    description = json.loads(tokenizer.backend_tokenizer.to_str())
    description["added_tokens"] = [t for t in description["added_tokens"] if t["content"] != token]
    rebuilt = type(tokenizer.backend_tokenizer).from_str(json.dumps(description))
    return PreTrainedTokenizerFast(tokenizer_object=rebuilt, eos_token="</s>")


def test_without_a_pad_token_eos_fills(tokenizer_of):
    tokenizer = tokenizer_of("no_pad")
    assert tokenizer.pad_token is None
    assert resolve_tokens(tokenizer).pad == tokenizer.eos_token_id


def test_pad_may_equal_eos(tokenizer_of):
    tokens = resolve_tokens(tokenizer_of("pad_is_eos"))
    assert (tokens.pad,) == tokens.eos


@pytest.mark.parametrize(
    ("name", "adds"),
    [("bos", True), ("llama", True), ("llama_legacy", True), ("no_bos", False), ("gpt2", False), ("embedded", False)],
)
def test_bos_is_the_token_that_the_tokenizer_itself_puts_first(name, adds, tokenizer_of):
    tokenizer = tokenizer_of(name)
    assert leading_bos(tokenizer) == (tokenizer.bos_token_id if adds else None)


def test_a_tokenizer_without_eos_is_an_error_with_the_fix(tokenizer_of):
    tokenizer = tokenizer_of("bos")
    tokenizer.eos_token = None
    with pytest.raises(DataError, match=r"(?s)no eos token.*llm\.tokenizer"):
        resolve_tokens(tokenizer)


def test_a_tokenizer_without_offsets_is_an_error():
    class Slow:
        is_fast = False

    with pytest.raises(DataError, match="Slow gives no offsets"):
        resolve_tokens(Slow())
