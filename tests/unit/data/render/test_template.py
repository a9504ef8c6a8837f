import itertools
import pickle

import numpy as np
import pytest

from beni.data.images import Image
from beni.data.render.template import Renderer
from beni.data.sample import Message, Sample
from beni.errors import DataError
from beni.types import IGNORE

TOKENIZERS = (
    "bos",
    "no_bos",
    "no_pad",
    "pad_is_eos",
    "gpt2",
    "llama",
    "llama_legacy",
    "llama3",
    "has_image",
    "embedded",
    "smollm2",
)
WITH_OWN_TEMPLATE = ("llama3", "embedded", "smollm2")
TEMPLATES = ("own", "plain", "chatml", "llava_v1", "gemma", "llama3")
END_OF_TURN = {
    "gemma": "<end_of_turn>",
    "llama3": "<|eot_id|>",
    ("own", "llama3"): "<|eot_id|>",
    ("own", "embedded"): "<|end|>",
}
PAIRS = [pair for pair in itertools.product(TOKENIZERS, TEMPLATES) if pair[1] != "own" or pair[0] in WITH_OWN_TEMPLATE]
DIALOGUES = {
    "caption": ("#", "a photograph of a small dog on the grass."),
    "question": ("#\nwhat colour is the star?", "red"),
    "unicode": ("#\nwas?", "ein café – 赤い星 🟥 звезда"),
    "lines": ("#\ndescribe it", "one line,\n\n  another; isn't it?\n\tend"),
    "two images": ("first # then #, which?", "the second"),
    "text": ("what is one plus one?", "two"),
    "turns": ("#\nwhat colour is the star?", "red", "and the shape of #?", "a square", "sure?", "yes."),
}


def runs(labels):
    """Supervised positions as runs of neighbours."""
    where = np.flatnonzero(labels != IGNORE)
    return np.split(where, np.flatnonzero(np.diff(where) > 1) + 1)


def said(renderer, labels):
    """The text of every supervised run; a space before a word belongs to its first token."""
    return [renderer.tokenizer.decode(labels[run]).lstrip(" ") for run in runs(labels)]


def end_of(renderer, tokenizer, template):
    return END_OF_TURN.get((template, tokenizer), END_OF_TURN.get(template, renderer.tokenizer.eos_token))


@pytest.fixture(scope="module", params=PAIRS, ids="-".join)
def pair(request, renderer_of):
    """(renderer, the token that ends its turns, samples by name) for a tokenizer and a template."""
    tokenizer, template = request.param
    renderer = renderer_of(tokenizer, template)
    return renderer, end_of(renderer, tokenizer, template), template


@pytest.fixture
def samples(pair, talk):
    """Plain has no roles, so it is used with one answer."""
    names = [name for name in DIALOGUES if pair[2] != "plain" or name != "turns"]
    return [talk(name, *DIALOGUES[name]) for name in names]


def test_labels_are_exactly_the_answers_and_their_end_tokens(pair, samples):
    renderer, end, _ = pair
    for sample in samples:
        answers = [m.content[0] + end for m in sample.messages if m.role == "assistant"]
        assert said(renderer, renderer.encode(sample).labels) == answers


def test_every_image_is_as_many_placeholders_as_visual_tokens_and_none_is_supervised(pair, samples):
    renderer, _, _ = pair
    for sample in samples:
        encoded = renderer.encode(sample)
        places = encoded.ids == renderer.tokens.image
        assert places.sum() == 3 * len(sample.images)
        assert (encoded.labels[places] == IGNORE).all()
        assert ((encoded.labels == encoded.ids) | (encoded.labels == IGNORE)).all()


def test_there_is_one_bos_where_tokenizer_or_template_have_one_and_it_comes_first(pair, samples):
    renderer, _, _ = pair
    bos, eos = renderer.tokenizer.bos_token_id, renderer.tokenizer.eos_token_id
    if bos in (None, eos) or renderer.tokenizer.bos_token == "<|im_start|>":  # none, or one that marks turns as well
        assert renderer.tokens.bos is None
        return
    written = "bos_token" in renderer.jinja or renderer.tokens.bos == bos
    for sample in samples:
        ids = renderer.encode(sample).ids
        assert (ids == bos).sum() == int(written)
        assert ids[0] == bos or not written


def test_the_prompt_is_the_sequence_up_to_the_first_label_of_the_last_answer(pair, samples):
    renderer, _, _ = pair
    for sample in samples:
        encoded, prompt = renderer.encode(sample), renderer.prompt(sample)
        begin = runs(encoded.labels)[-1][0]
        assert prompt.ids.tolist() == encoded.ids[:begin].tolist()
        assert (prompt.labels == IGNORE).all()
        assert len(prompt.labels) == len(prompt.ids)


def test_decoding_what_follows_the_prompt_gives_the_answer_up_to_any_end_token(pair, samples):
    renderer, end, _ = pair
    ends = {renderer.tokenizer.eos_token_id, renderer.tokenizer.convert_tokens_to_ids(end)}
    assert set(renderer.tokens.eos) == ends
    for sample in samples:
        continuation = renderer.encode(sample).ids[len(renderer.prompt(sample).ids) :].tolist()
        assert renderer.decode(continuation) == sample.answer
        for other in ends:
            assert renderer.decode([continuation[0], other, *continuation]) == renderer.decode(continuation[:1])


@pytest.mark.parametrize("template", [name for name in TEMPLATES if name != "own"])
def test_a_systems_message_is_read_and_not_supervised(template, renderer_of, talk):
    renderer = renderer_of("bos", template)
    sample = talk("s", "#\nwhat?", "red", system="speak like a pirate")
    encoded = renderer.encode(sample)
    assert "speak like a pirate" in renderer.tokenizer.decode(encoded.ids)
    assert said(renderer, encoded.labels) == ["red" + end_of(renderer, "bos", template)]
    assert "speak like a pirate" in renderer.tokenizer.decode(renderer.prompt(sample).ids)


def test_the_templates_system_message_is_used_where_a_sample_has_none(renderer_of, talk):
    renderer = renderer_of("bos", "chatml", system="be brief")
    own, without = talk("a", "q", "r", system="be long"), talk("b", "q", "r")
    assert "be brief" in renderer.tokenizer.decode(renderer.encode(without).ids)
    assert "be brief" not in renderer.tokenizer.decode(renderer.encode(own).ids)


def test_a_messages_train_flag_decides_over_its_role(renderer_of):
    renderer = renderer_of("bos", "chatml")
    messages = (
        Message("user", ("first question",), train=True),
        Message("assistant", ("first answer",), train=False),
        Message("user", ("second question",)),
        Message("assistant", ("second answer",)),
    )
    labels = renderer.encode(Sample("s", messages)).labels
    assert said(renderer, labels) == ["first question</s>", "second answer</s>"]


def test_an_image_in_a_supervised_message_is_not_supervised(renderer_of, talk):
    renderer = renderer_of("bos", "chatml")
    (user,) = talk("s", "see # here").messages
    labels = renderer.encode(Sample("s", (Message("user", user.content, train=True),))).labels
    assert renderer.tokens.image not in labels
    assert said(renderer, labels) == ["see ", "here</s>"]


def test_white_space_around_a_message_is_dropped_and_inside_it_is_kept(renderer_of, talk):
    renderer = renderer_of("bos", "chatml")
    labels = renderer.encode(talk("s", "  q\n", "\n a  b\n\nc \t")).labels
    assert said(renderer, labels) == ["a  b\n\nc</s>"]


@pytest.mark.parametrize("tokenizer", ["bos", "pad_is_eos", "gpt2", "llama", "llama_legacy", "llama3", "embedded"])
@pytest.mark.parametrize("text", ["a {} b", "{}", "{}{}", "x{}"])
def test_a_text_that_spells_a_control_token_stays_text(tokenizer, text, renderer_of, talk):
    renderer = renderer_of(tokenizer, "chatml")
    known = renderer.tokenizer
    for control in {known.bos_token, known.eos_token, known.pad_token} - {None}:
        spelled = text.replace("{}", control)
        encoded = renderer.encode(talk("s", f"say {spelled}", spelled, "again", "no"))
        plain = renderer.encode(talk("s", "say it", "it", "again", "no"))
        assert said(renderer, encoded.labels) == [spelled + known.eos_token, "no" + known.eos_token]
        for token in (known.bos_token_id, known.eos_token_id, known.pad_token_id):
            assert (encoded.ids == token).sum() == (plain.ids == token).sum()


def test_other_added_tokens_in_a_text_keep_their_meaning(renderer_of, tokenizer_of, settings_of, talk):
    tokenizer = tokenizer_of("bos")
    tokenizer.add_tokens(["<loc0001>"])
    renderer = Renderer(tokenizer, settings_of("chatml"), 1)
    encoded = renderer.encode(talk("s", "where?", "at <loc0001>"))
    assert tokenizer.convert_tokens_to_ids("<loc0001>") in encoded.labels


def test_markers_of_other_templates_are_ordinary_text(renderer_of, talk):
    renderer = renderer_of("bos", "chatml")
    strange = "{{ bos_token }} {% raw %} <|im_end|> [INST] \0 \ue000 <|eot_id|> </S>"
    assert said(renderer, renderer.encode(talk("s", strange, strange)).labels) == [strange + "</s>"]


def test_a_text_with_a_noncharacter_that_fences_are_made_of_is_an_error_with_the_samples_name(renderer_of, talk):
    for mark in "\ufdd0\ufdd1\ufdd2":
        with pytest.raises(DataError, match=r"sample odd.*U\+FDD0"):
            renderer_of("bos", "chatml").encode(talk("odd", f"a{mark}b", "c"))


@pytest.mark.parametrize("name", ["bos", "gpt2", "llama", "has_image"])
def test_the_word_of_the_placeholder_in_a_text_is_no_image(renderer_of, name):
    renderer = renderer_of(name, "chatml")
    image = Image(lambda: pytest.fail("rendering needs no pixels"), "a")
    asked = Message("user", (image, "what does <ima", "ge> mean?"))
    encoded = renderer.encode(Sample("typed", (asked, Message("assistant", ("<image> is a tag",)))))
    assert (encoded.ids == renderer.tokens.image).sum() == 3  # of the one picture
    assert "what does <image> mean?" in renderer.tokenizer.decode(encoded.ids[encoded.ids != renderer.tokens.image])
    assert renderer.tokens.image not in encoded.labels
    assert said(renderer, encoded.labels)[0].startswith("<image> is a tag")


def test_a_template_that_drops_a_message_with_an_image_is_an_error_with_the_samples_name(renderer_of, talk):
    jinja = "{% for m in messages if m.role == 'assistant' %}{{ m.content }}{{ eos_token }}{% endfor %}"
    with pytest.raises(DataError, match=r"sample lost: the text has 0 <image> placeholders for 1 images"):
        renderer_of("bos", "chatml", jinja=jinja).encode(talk("lost", "#", "a"))


@pytest.mark.parametrize("tokenizer", ["bos", "embedded"])
def test_a_sample_without_a_supervised_token_is_an_error_with_its_name(tokenizer, renderer_of, talk):
    renderer = renderer_of(tokenizer, "chatml")
    silent = Sample("mute", (Message("user", ("q",)), Message("assistant", ("a",), train=False)))
    for sample in (talk("mute", "only a question"), silent):
        with pytest.raises(DataError, match=r"sample mute: no token is supervised.*user"):
            renderer.encode(sample)


def test_a_sample_that_is_too_long_is_an_error_with_its_name_and_both_numbers(renderer_of, talk):
    renderer = renderer_of("bos", "chatml", visual_tokens=30, max_length=40)
    length = len(renderer_of("bos", "chatml", visual_tokens=30).encode(talk("long", "#what?", "a b c")).ids)
    with pytest.raises(DataError, match=rf"sample long has {length} tokens, template.max_length is 40"):
        renderer.encode(talk("long", "#what?", "a b c"))


def test_truncation_keeps_the_beginning_and_counts_what_it_cut(renderer_of, talk):
    sample = talk("long", "#what?", " ".join(["word"] * 60))
    whole = renderer_of("bos", "chatml").encode(sample)
    cut = renderer_of("bos", "chatml", max_length=50, overlong="truncate").encode(sample)
    assert cut.ids.tolist() == whole.ids[:50].tolist()
    assert cut.labels.tolist() == whole.labels[:50].tolist()
    assert (whole.truncated, cut.truncated) == (0, len(whole.ids) - 50)


def test_truncation_never_cuts_an_image_or_every_label(renderer_of, talk):
    renderer = renderer_of("bos", "chatml", max_length=40, overlong="truncate")
    late = talk("late", "q", "an answer", "word " * 20 + "#", "a")
    deep = talk("deep", "word " * 60, "a")
    for sample in (late, deep):
        with pytest.raises(DataError, match=f"sample {sample.id} has .* would remove an image or every label"):
            renderer.encode(sample)


def test_what_is_scored_is_never_cut(renderer_of, talk):
    renderer = renderer_of("bos", "chatml", overlong="truncate", max_length=40)
    sample = talk("long", "which?", "word " * 40)
    assert renderer.encode(sample).truncated > 0
    with pytest.raises(
        DataError, match=r"with the answer 'word .*\.\.\.', .* is 40, and held-out answers are never cut"
    ):
        renderer.whole(sample)
    short = talk("short", "a", "b")
    roomy = renderer_of("bos", "chatml", overlong="truncate", max_length=200)
    assert roomy.whole(short).ids.tolist() == roomy.encode(short).ids.tolist()


def test_a_tokenizer_without_chat_template_is_an_error_that_names_the_other_templates(renderer_of):
    with pytest.raises(DataError, match=r"(?s)no chat template.*template=chatml"):
        renderer_of("gpt2", "own")


def test_of_several_chat_templates_of_a_tokenizer_the_default_one_is_used(tokenizer_of, settings_of):
    tokenizer = tokenizer_of("bos")
    tokenizer.chat_template = {"default": settings_of("chatml")["jinja"], "tool_use": "nothing"}
    assert Renderer(tokenizer, settings_of("own"), 1).jinja == settings_of("chatml")["jinja"]


def test_a_template_that_ends_no_answer_is_an_error_with_the_fix(renderer_of):
    jinja = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    with pytest.raises(DataError, match=r"(?s)no end token.*template=chatml"):
        renderer_of("bos", "chatml", jinja=jinja)


@pytest.mark.parametrize(
    "body",
    [
        "{{ m.content | upper }}",
        "{{ m.content[:7] }}",
        "{{ m.content }}{{ m.content }}",
        "{{ m.content | replace(' ', '_') }}",
        "{{ m.role }}",
    ],
)
def test_a_template_that_changes_loses_or_repeats_an_answer_is_an_error_with_the_fix(body, renderer_of):
    jinja = "{% for m in messages %}" + body + "{{ eos_token }}{% endfor %}"
    with pytest.raises(DataError, match=r"(?s)loses or changes.*template=chatml"):
        renderer_of("bos", "chatml", jinja=jinja)


def test_a_template_that_changes_only_some_answers_is_an_error_with_the_samples_name(renderer_of, talk):
    # as Qwen3's does with earlier turns: what stands before </think> goes, and the fence with it
    jinja = (
        "{% for m in messages %}{{ m.role }}\n"
        "{{ m.content if loop.last else m.content.split('</think>')[-1] }}{{ eos_token }}{% endfor %}"
    )
    renderer = renderer_of("bos", "chatml", jinja=jinja)
    renderer.encode(talk("fine", "q", "<think>so</think>red"))
    with pytest.raises(DataError, match=r"sample thinking: .*loses or changes"):
        renderer.encode(talk("thinking", "q", "<think>so</think>red", "sure?", "yes"))


def test_a_template_that_refuses_roles_is_an_error_with_the_samples_name_and_the_roles(renderer_of, talk):
    sample = Sample("twice", (Message("user", ("a",)), Message("user", ("b",)), Message("assistant", ("c",))))
    with pytest.raises(
        DataError, match=r"sample twice: template=gemma refuses the roles user, user, assistant: .*alter"
    ):
        renderer_of("bos", "gemma").encode(sample)


def test_white_space_before_the_end_token_belongs_to_the_answer(renderer_of, talk):
    # as Llama-2's own template writes it
    jinja = (
        "{% for m in messages %}{% if m.role == 'user' %}{{ bos_token + '[INST] ' + m.content + ' [/INST]' }}"
        "{% else %}{{ ' ' + m.content + ' ' + eos_token }}{% endif %}{% endfor %}"
    )
    renderer = renderer_of("llama", "chatml", jinja=jinja)
    labels = renderer.encode(talk("s", "q", "a word", "r", "b")).labels
    assert said(renderer, labels) == ["a word </s>", "b </s>"]


def test_the_hash_changes_with_system_message_template_and_vocabulary_and_with_nothing_else(renderer_of, tokenizer_of):
    same = [renderer_of("bos", "chatml").hash(), renderer_of("bos", "chatml", max_length=77).hash()]
    other = [
        renderer_of("bos", "chatml", system="be brief").hash(),
        renderer_of("bos", "llava_v1").hash(),
        renderer_of("no_bos", "chatml").hash(),
    ]
    assert len(set(same)) == 1
    assert len({*same, *other}) == 4


def test_two_tokenizers_of_equal_size_have_different_hashes(tokenizer_of, settings_of):
    one, two = tokenizer_of("no_bos"), tokenizer_of("no_bos")
    one.add_tokens(["<one>"])
    two.add_tokens(["<two>"])
    assert len(one) == len(two)
    assert Renderer(one, settings_of("chatml"), 1).hash() != Renderer(two, settings_of("chatml"), 1).hash()


def test_an_image_becomes_what_its_markup_says(tokenizer_of, settings_of):
    renderer = Renderer(tokenizer_of("bos"), settings_of("chatml"))
    images = [Image(lambda: pytest.fail("not decoded"), str(n)) for n in (2, 5)]
    sample = Sample("s", (Message("user", (images[0], "and", images[1])), Message("assistant", ("a",))))
    encoded = renderer.encode(sample, [(2,), (3, "tile", 2)])
    places = np.flatnonzero(encoded.ids == renderer.tokens.image)
    assert len(places) == 7
    assert np.flatnonzero(np.diff(places) > 1).tolist() == [1, 4]
    between = encoded.ids[places[4] + 1 : places[5]]
    assert renderer.tokenizer.decode(between) == "tile"
    assert (encoded.labels[: places[-1] + 1] == -100).all()
    prompt = renderer.prompt(sample, [(2,), (3, "tile", 2)]).ids
    assert encoded.ids[: len(prompt)].tolist() == prompt.tolist()


def test_markups_and_images_that_disagree_are_an_error(renderer_of, talk):
    with pytest.raises(DataError, match="2 markups for 1 images"):
        renderer_of("bos", "chatml").encode(talk("s", "#q", "a"), [(1,), (1,)])


def test_a_prompt_holds_only_the_images_before_the_answer(renderer_of, talk):
    renderer = renderer_of("bos", "chatml")
    sample = Sample("s", (*talk("s", "#q", "a").messages, *talk("t", "#later").messages))
    assert (renderer.prompt(sample).ids == renderer.tokens.image).sum() == 3


def test_a_conversation_without_an_answer_is_prompted_as_a_whole(renderer_of, talk):
    renderer = renderer_of("bos", "chatml")
    asked, answered = talk("s", "#what?"), talk("s", "#what?", "red")
    assert renderer.prompt(asked).ids.tolist() == renderer.prompt(answered).ids.tolist()


def test_a_text_without_a_question_is_prompted_by_bos_alone(renderer_of):
    sample = Sample("s", (Message("assistant", ("once upon a time",)),))
    assert renderer_of("bos", "plain").prompt(sample).ids.tolist() == [renderer_of("bos", "plain").tokens.bos]
    assert renderer_of("no_bos", "plain").prompt(sample).ids.tolist() == []


def test_a_renderer_survives_pickling_for_loader_processes_that_are_spawned(renderer_of, talk):
    renderer = renderer_of("embedded", "own")
    sample = talk("s", "#what?", "red")
    assert pickle.loads(pickle.dumps(renderer)).encode(sample).ids.tolist() == renderer.encode(sample).ids.tolist()


@pytest.mark.parametrize(
    ("jinja", "words"),
    [
        ("{{ raise_exception('no users here') }}", "refuses the roles user, assistant: no users here"),
        ("{{ messages[0].content + 1 }}", "fails at the roles user, assistant: TypeError: "),
        ("{% for m in messages %}{{ m.content }}", "is no Jinja template: Unexpected end of template"),
        ("{{ messages[0].content | nonsense }}", "is no Jinja template: No filter named 'nonsense'"),
        ("{{ 1 // 0 }}", "ZeroDivisionError: "),
    ],
)
def test_whatever_a_template_raises_is_an_error_with_its_name_and_what_it_said(renderer_of, jinja, words):
    with pytest.raises(DataError) as caught:
        renderer_of("llama", "plain", jinja=jinja)
    assert "template=plain" in str(caught.value)
    assert words in str(caught.value)
    assert "\n  fix: " in str(caught.value)
