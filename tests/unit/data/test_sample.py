from dataclasses import replace

import pytest

from beni.data.images import Augment, Image
from beni.data.sample import Message, Sample

PICTURES = [Image(lambda: pytest.fail("not decoded"), str(i)) for i in range(3)]


def test_assistant_turns_are_supervised_unless_the_flag_says_otherwise():
    roles = ("system", "user", "assistant")
    assert [Message(role, ()).supervised for role in roles] == [False, False, True]
    assert [Message(role, (), train=True).supervised for role in roles] == [True] * 3
    assert not Message("assistant", (), train=False).supervised


def test_images_are_listed_in_reading_order_over_all_messages():
    one, two, three = PICTURES
    messages = (Message("user", (one, "a", two)), Message("assistant", ("b", three)))
    assert Sample("s", messages).images == (one, two, three)
    assert Sample("s", (Message("user", ("a",)),)).images == ()


def test_question_and_answer_are_the_text_of_the_last_turns():
    messages = (
        Message("user", ("first",)),
        Message("assistant", ("one",)),
        Message("user", (PICTURES[0], "\nsecond?")),
        Message("assistant", (" two\n",)),
    )
    sample = Sample("s", messages)
    assert (sample.question, sample.answer) == ("second?", "two")
    assert Sample("s", (Message("assistant", ("a",)),)).question == ""


def test_another_answer_changes_the_last_assistant_message_and_nothing_else():
    messages = tuple(
        Message(r, (t,)) for r, t in (("user", "q"), ("assistant", "a"), ("user", "r"), ("assistant", "b"))
    )
    sample = Sample("s", messages, "kind", ("b", "c"), "cluster")
    other = sample.with_answer("c")
    assert other.answer == "c"
    assert other.messages[:3] == messages[:3]
    assert other.with_answer("b") == sample


def test_a_sample_that_says_nothing_of_augmentation_is_not_augmented():
    assert Sample("s", ()).augment == Augment()


def test_what_counts_as_right_is_the_answer_that_is_trained_on_and_every_other_reference_once():
    sample = Sample("s", (Message("user", ("?",)), Message("assistant", ("couch",))))
    assert sample.right_answers == ("couch",)
    assert replace(sample, references=("sofa", "couch", "sofa")).right_answers == ("couch", "sofa")


def test_an_answer_is_about_the_images_in_front_of_it():
    one, two, three = PICTURES
    turns = (Message("user", (one, "a")), Message("assistant", ("b", two)), Message("user", (three, "c")))
    assert Sample("s", turns).asked_images == (one,)
    assert Sample("s", (*turns, Message("assistant", ("d",)))).asked_images == (one, two, three)
    assert Sample("s", turns[:1]).asked_images == (one,)
