"""What stands in for a sample whose picture is bad."""

import numpy as np
import pytest
from PIL import Image as PILImage

from beni.data.batch.usable import HOPELESS, Drawer
from beni.data.images import Image
from beni.data.metric import LossOnly
from beni.data.order.lengths import Loads
from beni.data.sample import Message, Sample
from beni.data.source import SingleSource
from beni.errors import DataError


class Album(SingleSource):
    """Sample i shows two pictures; those in ``bad`` cannot be decoded."""

    metric = LossOnly()
    varies = False
    error: Exception = OSError("truncated")

    def __init__(self, bad=(), size=40):
        self.bad, self.size = set(bad), size

    def __len__(self):
        return self.size

    def train(self, index, epoch):
        images = tuple(Image(lambda k=k: self._open(f"{index}.{k}"), f"{index}.{k}") for k in range(2))
        messages = (Message("user", (*images, "what?")), Message("assistant", (f"number {index}",)))
        return Sample(f"s{index}", messages, where=f"album.json, record {index}")

    def _open(self, key):
        if key in self.bad:
            raise self.error
        return PILImage.new("RGB", (4, 4), (int(float(key)), 0, 0))

    def heldout(self):
        return []

    def fingerprint(self):
        return ""


class Sizes:
    """Sample i has i + 10 tokens; the last ten have one picture only."""

    def loads(self, epoch):
        tokens = np.arange(10, 50)
        images = np.where(np.arange(40) < 30, 2, 1)
        return Loads(tokens, tokens, images, images)


@pytest.fixture
def draw(schedule_of):
    def make(source, index, on_bad="replace", lengths=None, seed=0, epoch=0):
        return Drawer(source, schedule_of(seed, len(source), 4, lengths), on_bad).draw(epoch, index)

    return make


def red(drawn):
    return [picture.getpixel((0, 0))[0] for picture in drawn.pictures]


def test_a_good_sample_comes_as_it_is(draw):
    drawn = draw(Album(bad=("4.0",)), 5)
    assert (drawn.sample.id, red(drawn), drawn.faults) == ("s5", [5, 5], ())


def test_a_sample_with_a_bad_picture_is_replaced_by_one_that_seed_and_place_draw(draw):
    source = Album(bad=("5.1",))
    drawn = draw(source, 5)
    assert drawn.sample.id != "s5"
    assert len(drawn.pictures) == 2
    assert draw(source, 5).sample.id == drawn.sample.id
    others = {draw(source, 5, seed=seed, epoch=epoch).sample.id for seed in range(3) for epoch in range(3)}
    assert len(others) > 3
    fault = drawn.faults[0]
    assert (fault.sample, fault.where, fault.image, fault.action, fault.by) == (
        "s5",
        "album.json, record 5",
        "5.1",
        "replaced",
        drawn.sample.id,
    )
    assert "truncated" in fault.reason


def test_a_stand_in_that_is_bad_itself_is_replaced_too_and_both_are_named(draw):
    source = Album(bad=("5.1",))
    source.bad.add(f"{draw(source, 5).sample.id[1:]}.0")
    drawn = draw(source, 5)
    assert len({fault.sample for fault in drawn.faults}) == 2
    assert {fault.by for fault in drawn.faults} == {drawn.sample.id}


def test_with_lengths_no_stand_in_is_longer_or_has_more_pictures(draw):
    for index in (20, 29, 35):
        drawn = draw(Album(bad=(f"{index}.0",)), index, lengths=Sizes())
        stand_in = int(drawn.sample.id[1:])
        loads = Sizes().loads(0)
        assert loads.tokens[stand_in] <= loads.tokens[index]
        assert loads.images[stand_in] <= loads.images[index]
        assert loads.tokens[stand_in] >= loads.tokens[index] - 8  # of 64 drawn, the longest that fits


def test_where_nothing_shorter_exists_the_bad_picture_is_left_out(draw):
    drawn = draw(Album(bad=("0.1",)), 0, lengths=Sizes())
    assert (drawn.sample.id, red(drawn), len(drawn.sample.images)) == ("s0", [0], 1)
    assert [(fault.action, fault.by) for fault in drawn.faults] == [("skipped", "s0")]


def test_skipping_keeps_the_sample_and_its_good_pictures(draw):
    drawn = draw(Album(bad=("5.0",)), 5, on_bad="skip_image")
    assert (drawn.sample.id, red(drawn)) == ("s5", [5])
    assert drawn.sample.images[0].key == "5.1"
    assert drawn.sample.messages[0].content[-1] == "what?"
    assert drawn.faults[0].action == "skipped"


def test_failing_names_the_place_the_reason_and_the_fix(draw):
    with pytest.raises(DataError, match=r"(?s)album.json, record 5.*truncated.*set images.on_bad=replace"):
        draw(Album(bad=("5.0",)), 5, on_bad="fail")


def test_where_every_picture_is_bad_the_run_ends(draw):
    source = Album(bad=[f"{i}.{k}" for i in range(40) for k in range(2)])
    with pytest.raises(
        DataError, match=rf"(?s)truncated.*and {HOPELESS}.* replacements drawn for it|and \d+ replacements"
    ):
        draw(source, 5)


def test_what_is_not_the_pictures_fault_ends_the_run_with_its_fix(draw):
    source = Album(bad=("5.0",))
    source.error = DataError("drawings need a package\n  fix: pip install it")
    with pytest.raises(DataError, match="drawings need a package"):
        draw(source, 5)
