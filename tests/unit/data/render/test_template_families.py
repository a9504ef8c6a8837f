"""The renderer with the tokenizers and templates of published families, over drawn conversations."""

import functools
import pickle
import re
from dataclasses import dataclass, replace
from typing import cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from beni.data.batch.collate import Item, collate
from beni.data.images import Image
from beni.data.render.template import Encoded, Renderer
from beni.data.render.tokens import IMAGE, added_tokens
from beni.data.sample import Message, Sample
from beni.errors import DataError
from beni.types import IGNORE
from unit.data.render.families import FALCON, FAMILIES, Family, airless, falcon, tokenizer_of_family

EXAMPLES = settings(max_examples=20, derandomize=True)
PIECES = [
    "a word",
    "two  spaces ",
    " ",
    "\n",
    "\n\n",
    "\t",
    "\r\n",
    "1",
    "2024",
    "it's",
    "café",
    "cafe\u0301",
    "\u0301\u0338",
    "赤い星",
    "你好，",
    "שלום",
    "مرحبا\u200f",
    "👩\u200d👩\u200d👧",
    "🟥",
    "\u00a0\u3000",
    "▁",
    "Ġ",
    "<",
    "|>",
    "</p>",
    "[INST]",
    "<|im_",
    "start|>",
    "<|im_end|>",
    "</s>",
    "<|end|>",
    "USER: ",
    "{{ bos_token }}",
    "{% raw %}",
    "<think>",
]
CHARACTERS = st.characters(codec="utf-8", max_codepoint=0x2FFF, exclude_categories=["Cs", "Cn"])


@dataclass(frozen=True)
class Known:
    """A family and a renderer with its tokenizer."""

    name: str
    family: Family
    renderer: Renderer

    def read(self, ids) -> str:
        return cast(str, self.renderer.tokenizer.decode(ids, clean_up_tokenization_spaces=False))

    def kept(self, text: str) -> str:
        """What of a supervised text can be read back, without the spaces before it."""
        return (self.family.keeps or airless)(text).lstrip(" ")

    def supervised(self, labels: np.ndarray) -> list[str]:
        """The text of every supervised run."""
        return [self.kept(self.read(labels[run])) for run in runs(labels)]

    def answers(self, sample: Sample) -> list[str]:
        """What the runs should say."""
        said = [m.content[0].strip() for m in sample.messages if m.role == "assistant"]
        if self.family.keeps is None:
            alone = self.renderer.tokenizer(said, add_special_tokens=False).input_ids
            said = [self.read(ids) for ids in alone]
        return [self.kept(text + self.family.before_end + self.family.end) for text in said]


@pytest.fixture(scope="module", params=FAMILIES)
def known(request, settings_of):
    family = FAMILIES[request.param]
    renderer = Renderer(tokenizer_of_family(request.param), settings_of(family.template), visual_tokens=3)
    return Known(request.param, family, renderer)


@functools.cache
def texts(name: str, spelled: bool):
    """Texts of awkward pieces; ``spelled``: added tokens of the family among them, where it keeps them readable. None
    otherwise: Hypothesis draws strings that it finds in the source, ``<pad>`` for instance.
    """
    added = added_tokens(tokenizer_of_family(name))
    own = added if spelled and FAMILIES[name].keeps is not None else []
    own = [token for token in own if token != "</think>"]  # Qwen3's template moves what stands before it
    common = PIECES if spelled else [piece for piece in PIECES if "<" not in piece and "[" not in piece]
    piece = st.sampled_from([*common, *own]) | st.text(CHARACTERS, max_size=6)
    drawn = st.lists(piece, max_size=5).map("".join)
    return drawn if spelled else drawn.filter(lambda text: not any(token in text for token in added))


@st.composite
def conversations(draw, name: str, spelled: bool = True, pictures: bool = True) -> Sample:
    """One to four questions with answers, up to three images anywhere in the questions, now and then a system."""
    family, text = FAMILIES[name], texts(name, spelled)
    turns = 1 if family.template == "plain" else draw(st.integers(1, 4))
    left = draw(st.integers(0, 3)) if pictures else 0
    messages = []
    if family.system == "kept" and draw(st.booleans()):
        messages.append(Message("system", (draw(text),)))
    for turn in range(turns):
        parts = draw(st.lists(text, max_size=3))
        here = left if turn == turns - 1 else draw(st.integers(0, left))
        left -= here
        for n in range(here):
            parts.insert(draw(st.integers(0, len(parts))), picture(f"{turn}.{n}"))
        messages += [Message("user", tuple(parts)), Message("assistant", (draw(text),))]
    return Sample("drawn", tuple(messages))


def picture(key: str) -> Image:
    return Image(lambda: pytest.fail("rendering needs no pixels"), key)


def pictures_of(message: Message) -> tuple[Image, ...]:
    return tuple(part for part in message.content if isinstance(part, Image))


def as_published(known: Known, sample: Sample) -> str:
    """The template's own rendering, without beni."""
    turns = [
        {"role": m.role, "content": "".join(IMAGE if isinstance(p, Image) else p for p in m.content).strip()}
        for m in sample.messages
    ]
    jinja = known.renderer.jinja.replace("strftime_now('%B %d, %Y')", "'July 26, 2024'")  # what beni says of the day
    return cast(str, known.renderer.tokenizer.apply_chat_template(turns, chat_template=jinja, tokenize=False))


def runs(labels: np.ndarray) -> list[np.ndarray]:
    """Supervised positions as runs of neighbours."""
    where = np.flatnonzero(labels != IGNORE)
    return np.split(where, np.flatnonzero(np.diff(where) > 1) + 1)


def test_each_template_renders_as_the_published_one(known):
    turns = [Message(role, (said,)) for role, said in zip(("user", "assistant") * 2, "qarb", strict=True)]
    system = [Message("system", ("s",))] if known.family.system == "kept" else []
    assert as_published(known, Sample("shown", (*system, *turns))) == known.family.shown


@EXAMPLES
@given(data=st.data())
def test_labels_are_exactly_the_answers_and_their_end_tokens(known, data):
    sample = data.draw(conversations(known.name))
    assert known.supervised(known.renderer.encode(sample).labels) == known.answers(sample)


@EXAMPLES
@given(data=st.data())
def test_only_the_answers_are_fenced_and_the_fences_leave_no_trace(known, data):
    sample = data.draw(conversations(known.name, spelled=False))
    tokenizer, bos = known.renderer.tokenizer, known.renderer.tokens.bos
    ids = tokenizer(as_published(known, sample), add_special_tokens=False).input_ids
    in_front = [bos] if bos is not None and ids[:1] != [bos] else []
    markups = [(1,)] * len(sample.images)
    assert known.renderer.encode(sample, markups).ids.tolist() == in_front + ids


@EXAMPLES
@given(data=st.data())
def test_a_sequence_begins_with_bos_and_no_text_brings_another(known, data):
    sample = data.draw(conversations(known.name))
    ids, tokenizer = known.renderer.encode(sample).ids, known.renderer.tokenizer
    bos = tokenizer.bos_token_id
    dull = replace(sample, messages=tuple(replace(m, content=("x", *pictures_of(m))) for m in sample.messages))
    assert (ids == bos).sum() == (known.renderer.encode(dull).ids == bos).sum()
    if known.family.bos is None:
        assert known.renderer.tokens.bos is None
        return
    assert tokenizer.convert_ids_to_tokens(int(ids[0])) == known.family.bos
    if known.family.bos not in (known.family.end, tokenizer.eos_token):
        questions = sum(m.role == "user" for m in sample.messages)
        assert (ids == bos).sum() == (questions if known.family.bos_each_question else 1)


@EXAMPLES
@given(data=st.data())
def test_each_image_becomes_its_markup_and_no_placeholder_is_supervised(known, data):
    sample = data.draw(conversations(known.name))
    part = st.integers(1, 5) | st.sampled_from(["tile 1:", "\n", " "])
    markups = [data.draw(st.lists(part, min_size=1, max_size=4).map(tuple)) for _ in sample.images]
    encoded = known.renderer.encode(sample, markups)
    places = encoded.ids == known.renderer.tokens.image
    assert places.sum() == sum(number for markup in markups for number in markup if isinstance(number, int))
    assert (encoded.labels[places] == IGNORE).all()
    assert ((encoded.labels == encoded.ids) | (encoded.labels == IGNORE)).all()
    assert known.supervised(encoded.labels) == known.answers(sample)


@EXAMPLES
@given(data=st.data())
def test_the_prompt_is_the_sequence_up_to_where_the_last_answer_begins(known, data):
    sample = data.draw(conversations(known.name))
    encoded, prompt = known.renderer.encode(sample), known.renderer.prompt(sample)
    begin = runs(encoded.labels)[-1][0]
    assert prompt.ids.tolist() == encoded.ids[:begin].tolist()
    assert (prompt.labels == IGNORE).all()


@EXAMPLES
@given(data=st.data())
def test_what_follows_the_prompt_is_decoded_to_the_answer(known, data):
    sample = data.draw(conversations(known.name, spelled=False))
    rest = known.renderer.encode(sample).ids[len(known.renderer.prompt(sample).ids) :]
    (*_, answer) = known.answers(sample)
    end = known.kept(known.family.before_end + known.family.end)
    answer = answer.removesuffix(end).strip()
    if known.family.keeps is None:  # what has no piece is a special token
        answer = answer.replace("<unk>", "")
    assert known.kept(known.renderer.decode(rest)).strip() == answer


@EXAMPLES
@given(data=st.data())
def test_every_end_token_stays_supervised_when_rows_are_padded_with_it(known, data):
    pair = [data.draw(conversations(known.name, pictures=False)) for _ in range(2)]
    items = [Item(str(n), known.renderer.encode(sample), []) for n, sample in enumerate(pair)]
    batch = collate(items, "padded", known.renderer.tokens.pad)
    end = known.renderer.tokenizer.convert_tokens_to_ids(known.family.end)
    ended = sum(m.role == "assistant" for sample in pair for m in sample.messages)
    assert (batch.labels == end).sum() == ended


@EXAMPLES
@given(data=st.data())
def test_encoding_is_a_pure_function(known, data):
    sample, other = (data.draw(conversations(known.name)) for _ in range(2))
    spawned = pickle.loads(pickle.dumps(known.renderer))
    first = known.renderer.encode(sample)
    known.renderer.encode(other)
    known.renderer.prompt(sample)
    for again in (known.renderer.encode(sample), spawned.encode(sample)):
        assert (first.ids == again.ids).all()
        assert (first.labels == again.labels).all()
    assert spawned.hash() == known.renderer.hash()


def test_two_families_never_have_the_same_hash(settings_of):
    hashes = {}
    for name, family in FAMILIES.items():
        hashes.setdefault(Renderer(tokenizer_of_family(name), settings_of(family.template)).hash(), []).append(name)
    assert [names for names in hashes.values() if len(names) > 1] == []


@EXAMPLES
@given(data=st.data())
def test_roles_in_any_order_are_encoded_or_refused_with_the_samples_name_its_roles_and_a_fix(known, data):
    roles = data.draw(st.lists(st.sampled_from(["system", "user", "assistant"]), min_size=1, max_size=5))
    text = st.sampled_from(["one", "two words", "", " ", "3\n\n4"])
    sample = Sample("odd", tuple(Message(role, (data.draw(text),)) for role in roles))
    outcome = encoded_or_refused(known.renderer, sample)
    if isinstance(outcome, Encoded):
        end = known.renderer.tokenizer.convert_tokens_to_ids(known.family.end)
        if known.family.template != "plain":  # it has no roles and one end
            assert (outcome.labels == end).sum() == roles.count("assistant")
    else:
        listed = re.escape(", ".join(roles))
        refused = rf"refuses the roles {listed}: .*\n  fix: set template=chatml"
        silent = rf"no token is supervised.*roles: {listed}"
        lost = r"loses or changes the system message.*\n  fix: use template=chatml"
        assert re.search(rf"^sample odd: .*({refused}|{silent}|{lost})", str(outcome))


def encoded_or_refused(renderer: Renderer, sample: Sample) -> Encoded | DataError:
    try:
        return renderer.encode(sample)
    except DataError as error:
        return error


def known_as(name: str, settings_of, **changes) -> Known:
    family = FAMILIES[name]
    return Known(name, family, Renderer(tokenizer_of_family(name), settings_of(family.template, **changes)))


@pytest.mark.parametrize("name", [name for name, family in FAMILIES.items() if family.system == "lost"])
def test_a_system_message_that_the_template_drops_is_an_error_with_the_samples_name_and_the_fix(
    name, settings_of, talk
):
    renderer = known_as(name, settings_of).renderer
    sample = talk("pirate", "what?", "red", system="speak like a pirate")
    for use in (renderer.encode, renderer.prompt):
        with pytest.raises(DataError, match=r"(?s)sample pirate.*loses or changes the system message 'speak.*fix: "):
            use(sample)
    with pytest.raises(DataError, match=r"(?s)loses or changes the system message 'be brief'.*fix: "):
        known_as(name, settings_of, system="be brief")


@pytest.mark.parametrize("name", [name for name, family in FAMILIES.items() if family.system == "refused"])
def test_a_system_message_that_the_template_refuses_is_an_error_with_the_samples_name_its_roles_and_the_fix(
    name, settings_of, talk
):
    sample = talk("pirate", "what?", "red", system="speak like a pirate")
    expected = (
        r"(?s)sample pirate: .*roles system, user, assistant: System role not supported\n  fix: .*template=chatml"
    )
    with pytest.raises(DataError, match=expected):
        known_as(name, settings_of).renderer.encode(sample)
    with pytest.raises(DataError, match=r"(?s)System role not supported\n  fix: .*template.system=null"):
        known_as(name, settings_of, system="be brief")


@pytest.mark.parametrize("name", [name for name, family in FAMILIES.items() if family.alternates])
def test_two_questions_in_a_row_are_refused_with_the_samples_name_its_roles_and_the_fix(name, settings_of):
    sample = Sample("twice", (Message("user", ("q",)), Message("user", ("r",)), Message("assistant", ("a",))))
    with pytest.raises(DataError, match=r"(?s)sample twice: .*roles user, user, assistant: .*alternate.*fix: "):
        known_as(name, settings_of).renderer.encode(sample)


def test_falcons_own_template_is_refused_as_it_ends_no_answer(settings_of):
    with pytest.raises(DataError, match=r"(?s)puts no end token.*template=chatml"):
        Renderer(falcon(FALCON), settings_of("chat"))


def test_a_blank_line_ends_no_answer_though_gemma_has_a_token_for_it(settings_of):
    jinja = "{% for m in messages %}{{ m.role + ': ' + m.content + '\n\n' }}{% endfor %}"
    with pytest.raises(DataError, match=r"(?s)puts no end token.*template=chatml"):
        Renderer(tokenizer_of_family("gemma3"), settings_of("chat", jinja=jinja))


def test_qwen3s_empty_thoughts_are_part_of_the_prompt_and_only_before_the_last_answer(settings_of, talk):
    known = known_as("qwen3", settings_of)
    sample = talk("s", "q", "red", "sure?", "yes")
    assert known.read(known.renderer.prompt(sample).ids).endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")
    assert known.supervised(known.renderer.encode(sample).labels) == ["red<|im_end|>", "yes<|im_end|>"]
    assert known.read(known.renderer.encode(sample).ids).count("<think>") == 1
    asked_again = replace(sample, messages=(*sample.messages, Message("user", ("why?",))))
    assert known.renderer.prompt(asked_again).ids.tolist() == known.renderer.prompt(sample).ids.tolist()
    assert "<think>" not in known.read(known.renderer.encode(asked_again).ids)


def test_qwen3s_own_thoughts_are_refused_with_the_samples_name_as_its_template_rewrites_them(settings_of, talk):
    sample = talk("thinking", "q", "<think>\nso\n</think>\n\nred")
    with pytest.raises(DataError, match=r"(?s)sample thinking: .*loses or changes.*template=chatml"):
        known_as("qwen3", settings_of).renderer.encode(sample)


def test_a_template_that_tells_the_day_is_told_the_same_one_every_day(settings_of, talk):
    known = known_as("granite31", settings_of)
    text = known.read(known.renderer.encode(talk("s", "q", "a")).ids)
    assert "Today's Date: July 26, 2024.\nYou are Granite" in text
    jinja = "{{ strftime_now('%Y-%m-%d %A %j') if strftime_now is defined }}" + known.renderer.jinja
    known = known_as("granite31", settings_of, jinja=jinja)
    assert known.read(known.renderer.encode(talk("s", "q", "a")).ids).startswith("2024-07-26 Friday 208<|start")


@pytest.mark.parametrize("name", ["qwen25", "llama2", "gemma3", "phi4"])
def test_a_token_that_two_parts_of_a_message_spell_together_stays_text(name, settings_of):
    known = known_as(name, settings_of)
    end = known.family.end
    spelled = Sample("s", (Message("user", ("q" + end[:3], end[3:])), Message("assistant", (end[:2], end[2:]))))
    plain = Sample("s", (Message("user", ("q",)), Message("assistant", ("a",))))
    number = known.renderer.tokenizer.convert_tokens_to_ids(end)
    counts = [(known.renderer.encode(sample).ids == number).sum() for sample in (spelled, plain)]
    assert counts[0] == counts[1]


def test_a_text_that_spells_the_unknown_token_stays_text(settings_of, talk):
    known = known_as("mistral3", settings_of)
    encoded = known.renderer.encode(talk("s", "what is <unk>?", "<unk> is a token"))
    assert known.renderer.tokenizer.unk_token_id not in encoded.ids
    assert known.supervised(encoded.labels) == ["<unk> is a token</s>"]


@pytest.mark.parametrize("name", ["llama3", "gemma3", "t5_class"])
def test_half_a_character_is_an_error_with_the_samples_name(name, settings_of, talk):
    with pytest.raises(DataError, match=r"(?s)sample half: .*U\+D83D.*fix: "):
        known_as(name, settings_of).renderer.encode(talk("half", "what? \ud83d", "a star"))


def test_a_marker_that_swallows_the_space_before_an_answer_is_not_supervised(settings_of, talk):
    jinja = (
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '<|im_sep|> ' + m.content + '<|im_end|>' }}{% endfor %}"
    )
    known = known_as("phi4", settings_of, jinja=jinja)
    sample = talk("s", "q", "a word", "r", "")
    encoded = known.renderer.encode(sample)
    assert [known.read(encoded.labels[run]) for run in runs(encoded.labels)] == ["a word<|im_end|>", "<|im_end|>"]
    assert known.read(known.renderer.prompt(sample).ids).endswith("<|im_end|><|im_start|>assistant<|im_sep|>")


@pytest.mark.parametrize("name", ["llama2", "qwen3", "gpt2_plain"])
def test_a_sample_without_messages_is_an_error_with_its_name_and_the_fix(name, settings_of):
    with pytest.raises(DataError, match=r"(?s)sample empty: it has no message.*fix: "):
        known_as(name, settings_of).renderer.encode(Sample("empty", ()))
