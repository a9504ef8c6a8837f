from collections.abc import Sequence

import pytest

from beni.data.images import Augment, Image
from beni.data.sample import Message, Sample, Source

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


def test_a_source_that_says_nothing_of_augmentation_does_not_augment():
    class Plain(Source):
        task = "loss"

        def __len__(self) -> int:
            return 0

        def train(self, index: int, epoch: int) -> Sample:
            raise IndexError

        def heldout(self) -> Sequence[Sample]:
            return []

        def fingerprint(self) -> str:
            return ""

    assert Plain().augment == Augment()
