from beni.data.metric import LossOnly
from beni.data.sample import Message, Sample
from beni.data.source import SingleSource


class Numbers(SingleSource):
    metric = LossOnly()
    varies = False

    def __len__(self):
        return 7

    def train(self, index, epoch):
        return Sample(f"{epoch}-{index}", (Message("assistant", ("it",)),))

    def heldout(self):
        return []

    def fingerprint(self):
        return "numbers"


def test_a_source_that_is_not_made_of_others_is_one_part_without_a_name():
    made = Numbers()
    assert (made.names, made.shares(), made.counts) == (("",), {}, {"": 7})
    assert [made.siblings(index) for index in (0, 6)] == [range(7)] * 2
    (part,) = made.parts(3)
    assert part.source is made
    drawn = [part.source.train(i, epoch).id for i, epoch in zip(part.indices, part.epochs, strict=True)]
    assert drawn == [f"3-{i}" for i in range(7)]


def test_a_source_that_is_not_made_of_others_need_not_be_measured():
    def measured(source):
        raise AssertionError("an index was built for nothing")

    Numbers().measure(measured)
