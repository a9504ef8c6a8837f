"""What is looked at before the first step."""

from __future__ import annotations

import pytest

from beni.data.batch.check import Check
from beni.data.batch.usable import Drawer
from beni.data.images import Image
from beni.data.metric import BestChoice, ExactAnswer, LossOnly
from beni.data.sample import Message, Sample, at_hand
from beni.data.source import SingleSource
from beni.errors import DataError
from beni.types import ImageLayout


class Plan:
    sized = False

    def plan(self, size):
        return ImageLayout(size, (size,))

    def markup(self, layout):
        return (3,)


class Some(SingleSource):
    """Sample i; those in ``unreadable`` cannot be read, those in ``endless`` are too long."""

    metric = LossOnly()
    varies = False

    def __init__(self, size=30, unreadable=(), endless=()):
        self.size, self.unreadable, self.endless = size, unreadable, endless

    def __len__(self):
        return self.size

    def train(self, index, epoch):
        if index in self.unreadable:
            raise DataError(f"rows.json, record {index}: no answer\n  fix: correct the record")
        return asked(index, "yes " * 9000 if index in self.endless else "yes")

    def heldout(self):
        return []

    def fingerprint(self):
        return ""


def asked(i, answer="yes", images=(), **fields):
    messages = (Message("user", (*images, "is it?")), Message("assistant", (answer,)))
    return Sample(f"s{i}", messages, where=f"rows.json, record {i}", **fields)


@pytest.fixture
def check(renderer_of):
    def make(max_bad=None, **settings):
        return Check(renderer_of("bos", "chatml", **settings), Plan(), at_hand, max_bad)

    return make


def test_a_bad_training_record_is_named_before_it_is_its_turn(check):
    with pytest.raises(DataError, match=r"(?s)2 of 30 training records .*record 7.*set records.on_bad=skip"):
        check().training(Some(unreadable=(7,), endless=(9,)))
    assert len(check(max_bad=0.1).training(Some(unreadable=(7,), endless=(9,)))) == 2
    assert check().training(Some()) == []


def test_more_bad_records_than_are_put_up_with_end_a_run_that_skips_them(check):
    bad = range(11)
    assert len(check(max_bad=0.5).training(Some(unreadable=bad))) == 11
    with pytest.raises(DataError, match=r"(?s)11 of 30 .*raise records.max_bad=0.05"):
        check(max_bad=0.05).training(Some(unreadable=bad))


def test_a_bad_held_out_record_fails_or_is_left_out(check):
    unlearnt = (Message("user", ("is it?",)), Message("assistant", ("yes",), train=False))
    silent = Sample("s1", unlearnt, where="rows.json, record 1")
    samples = [asked(0), silent, asked(2)]
    with pytest.raises(DataError, match=r"(?s)1 of 3 held-out records .*record 1"):
        check().heldout(samples, [0, 1, 2], ExactAnswer())
    assert list(check(max_bad=0.1).heldout(samples, [0, 1, 2], ExactAnswer())) == [1]
    assert check().heldout(samples, [0, 2], ExactAnswer()) == {}


@pytest.mark.parametrize("max_bad", [None, 1.0])
def test_a_choice_that_would_be_cut_is_an_error_whatever_is_put_up_with(check, max_bad):
    choices = ("yes", "yes " * 60)
    one = asked(0, choices=choices)
    with pytest.raises(DataError, match=r"record 0.*held-out answers are never cut"):
        check(max_bad, overlong="truncate", max_length=60).heldout([one], [0], BestChoice())


def test_held_out_images_that_are_all_missing_are_found(check, tmp_path):
    samples = [asked(i, images=(Image.from_path(tmp_path / f"{i}.png"),)) for i in range(3)]
    with pytest.raises(DataError, match=r"(?s)no held-out sample has readable images: image .*0\.png"):
        check().heldout(samples, [0, 1, 2], ExactAnswer())
    assert check().heldout([*samples, asked(3)], [0, 1, 2, 3], ExactAnswer()) == {}


def test_nothing_held_out_is_found(check):
    with pytest.raises(DataError, match=r"hold out no records, so nothing can be scored\n  fix: set data\.heldout"):
        check().heldout([], [], ExactAnswer())


def test_a_bad_record_is_stood_in_for_by_one_that_seed_and_place_draw_and_is_told(schedule_of):
    source = Some(unreadable=(5,))
    schedule = schedule_of(0, 30, 4, None)
    with pytest.raises(DataError, match="record 5"):
        Drawer(source, schedule, "replace").draw(0, 5)
    drawn, again = (Drawer(source, schedule, "replace", on_bad_record="skip").draw(0, 5) for _ in range(2))
    assert drawn.sample.id == again.sample.id != "s5"
    (fault,) = drawn.faults
    assert (fault.image, fault.action, fault.by) == ("", "replaced", drawn.sample.id)
    assert "record 5: no answer" in fault.reason


def test_where_every_record_is_bad_the_run_ends(schedule_of):
    source = Some(unreadable=range(30))
    with pytest.raises(DataError, match="replacements drawn for it are bad as well"):
        Drawer(source, schedule_of(0, 30, 4, None), "replace", on_bad_record="skip").draw(0, 5)
