"""``data=shapes`` through the public interface of a source: what any run and any comparison relies on."""

from collections import Counter, defaultdict
from functools import cache

import numpy as np
import pytest

from beni.config.build import build
from beni.config.compose import compose
from beni.data.images import decode

HELDOUT = 6000


@cache
def node():
    return compose(["data=shapes"])["data"]


def make(seed=0, **changes):
    return build(node() | changes, seed)


@pytest.fixture(scope="module")
def heldout():
    return make(heldout=HELDOUT).heldout()


def texts(sample):
    return [part for message in sample.messages for part in message.content if isinstance(part, str)]


def pixels(sample):
    return [np.asarray(decode(image)).tobytes() for image in sample.images]


def test_a_training_sample_is_a_pure_function_of_seed_epoch_and_index():
    one, two = make(), make()
    for index in (5, 0, 8191):
        first, again = one.train(index, 2), two.train(index, 2)
        one.train(index + 1, 0)
        assert texts(first) == texts(again) == texts(one.train(index, 2))
        assert pixels(first) == pixels(again)
        assert first.id == again.id


def test_training_samples_differ_between_indices_epochs_and_seeds():
    sources = [make(seed) for seed in (0, 1)]
    seen = {
        (tuple(texts(sample)), *pixels(sample))
        for source in sources
        for epoch in (0, 1)
        for sample in (source.train(index, epoch) for index in range(10))
    }
    assert len(seen) == 40


def test_held_out_samples_are_the_same_for_every_seed_and_begin_alike_for_every_number():
    one, two = make(0, heldout=20).heldout(), make(7, heldout=30).heldout()
    assert [texts(s) for s in one] == [texts(s) for s in two[:20]]
    assert [pixels(s) for s in one] == [pixels(s) for s in two[:20]]
    assert (len(one), len(two)) == (20, 30)


def test_no_held_out_scene_is_trained_on():
    source = make(size=400, heldout=400, image_size=16)
    trained = {p for index in range(400) for p in pixels(source.train(index, 0))}
    held = [p for sample in source.heldout() for p in pixels(sample)]
    assert len(set(held)) == 400
    assert not trained & set(held)


def test_every_answer_is_among_its_choices_and_every_id_unique(heldout):
    assert all(sample.answer in sample.choices for sample in heldout)
    assert all(len(set(sample.choices)) == len(sample.choices) >= 2 for sample in heldout)
    assert len({sample.id for sample in heldout}) == len({sample.cluster for sample in heldout}) == HELDOUT


def test_a_question_has_the_same_choices_wherever_it_is_asked(heldout):
    choices = defaultdict(set)
    for sample in heldout:
        choices[sample.question].add(frozenset(sample.choices))
    assert all(len(different) == 1 for different in choices.values())


def test_answers_to_each_frequent_question_are_uniform_over_its_choices(heldout):
    answers = defaultdict(list)
    for sample in heldout:
        answers[sample.question, sample.choices].append(sample.answer)
    frequent = {key: said for key, said in answers.items() if len(said) >= 40}
    assert len(frequent) >= 10
    for (question, choices), said in frequent.items():
        chance, counts = 1 / len(choices), Counter(said)
        sigma = (len(said) * chance * (1 - chance)) ** 0.5
        for choice in choices:
            assert abs(counts[choice] - len(said) * chance) < 4 * sigma, (question, counts)


def test_answers_to_all_questions_with_the_same_choices_are_uniform_over_them(heldout):
    pooled = defaultdict(Counter)
    for sample in heldout:
        pooled[sample.choices][sample.answer] += 1
    for choices, counts in pooled.items():
        number, chance = counts.total(), 1 / len(choices)
        for choice in choices:
            assert abs(counts[choice] - number * chance) < 4 * (number * chance * (1 - chance)) ** 0.5, counts


def test_who_knows_only_the_questions_answers_no_better_than_chance(heldout):
    fitted, tested = heldout[::2], heldout[1::2]
    by_question, by_kind = defaultdict(Counter), defaultdict(Counter)
    for sample in fitted:
        by_question[sample.question][sample.answer] += 1
        by_kind[sample.kind][sample.answer] += 1

    def guess(sample):
        counts = by_question.get(sample.question) or by_kind[sample.kind]
        return max(sample.choices, key=lambda choice: counts[choice])

    right = sum(guess(sample) == sample.answer for sample in tested)
    chances = np.array([1 / len(sample.choices) for sample in tested])
    assert abs(right - chances.sum()) < 3 * np.sqrt((chances * (1 - chances)).sum())


def test_all_kinds_of_question_are_asked_equally_often(heldout):
    counts = Counter(sample.kind for sample in heldout)
    expected = HELDOUT / len(counts)
    assert len(counts) == 6
    assert all(abs(count - expected) < 4 * (expected * (1 - 1 / len(counts))) ** 0.5 for count in counts.values())


@pytest.mark.parametrize("size", [24, 48, 101])
def test_pictures_are_rgb_of_the_size_asked_for(size):
    source = make(image_size=size, heldout=3)
    for sample in (*source.heldout(), *(source.train(i, 0) for i in range(3))):
        for image in sample.images:
            assert decode(image).size == (size, size)
            assert decode(image).mode == "RGB"


def test_shares_of_two_pictures_and_of_none_are_as_asked_for():
    source = make(pictures_share=0.3, text_share=0.2)
    images = Counter(len(source.train(index, 0).images) for index in range(600))
    for number, share in ((2, 0.3), (0, 0.2), (1, 0.5)):
        assert abs(images[number] - 600 * share) < 4 * (600 * share * (1 - share)) ** 0.5


def test_a_described_picture_is_the_picture_in_words():
    shown, told = (
        make(pictures_share=0.0, text_share=0.0),
        make(pictures_share=0.0, text_share=0.0, described_share=1.0),
    )
    for index in range(50):
        picture, words = shown.train(index, 0), told.train(index, 0)
        assert (len(picture.images), len(words.images)) == (1, 0)
        description = picture.messages[-1].content[-1]  # the last answer of a conversation, data.describe=true
        (first,) = words.messages[0].content
        assert first == f"{description}. {picture.messages[0].content[-1]}"
        assert words.messages[1:] == picture.messages[1:]


def test_a_share_of_the_pictures_is_described():
    source = make(pictures_share=0.0, text_share=0.0, described_share=0.4)
    described = sum(not source.train(index, 0).images for index in range(600))
    assert abs(described - 240) < 4 * (600 * 0.4 * 0.6) ** 0.5


def test_a_training_conversation_shows_its_pictures_first_and_repeats_no_question():
    source = make(questions=8)
    for index in range(200):
        sample = source.train(index, 0)
        asked = [tuple(part for part in m.content if isinstance(part, str)) for m in sample.messages[::2]]
        assert [m.role for m in sample.messages] == ["user", "assistant"] * (len(sample.messages) // 2)
        assert 1 <= len(asked) == len(set(asked)) <= 8 + node()["describe"]  # a description comes last
        assert sample.messages[0].content[: len(sample.images)] == sample.images


def test_the_fingerprint_changes_with_everything_that_changes_the_samples():
    changes = ({}, {"size": 9}, {"heldout": 9}, {"image_size": 9}, {"questions": 3}, {"text_share": 0.5})
    changes = (*changes, {"described_share": 0.1})
    assert len({make(**change).fingerprint() for change in changes} | {make(1).fingerprint()}) == 8
    assert make().fingerprint() == make().fingerprint()
