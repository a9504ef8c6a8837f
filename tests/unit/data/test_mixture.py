from collections import Counter
from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from beni.data.images import Augment
from beni.data.metric import ExactAnswer, LossOnly
from beni.data.mixture import Mixture
from beni.data.sample import Message, Sample
from beni.data.source import SingleSource
from beni.errors import DataError


class Numbers(SingleSource):
    """Sample i says i."""

    def __init__(self, seed, *, name, size, metric, varies=False):
        self.seed, self.name, self.size, self.metric, self.varies = seed, name, size, metric, varies
        self.augment = Augment(flip=size / 1000)

    def __len__(self):
        return self.size

    def train(self, index, epoch):
        messages = (Message("user", ("?",)), Message("assistant", (f"{self.name} {index} {epoch}",)))
        return Sample(f"{index}", messages, cluster=f"c{index}", augment=self.augment)

    def heldout(self):
        return [self.train(index, 0) for index in range(3)]

    def fingerprint(self):
        return f"{self.name} {self.size}"


def mixture(sizes, seed=0, metrics=(), **changes):
    metrics = dict(metrics)
    sources = {
        name: partial(Numbers, name=name, size=size, metric=metrics.get(name, LossOnly()))
        for name, size in sizes.items()
    }
    settings = {"weights": {}, "by": "samples", "temperature": 1.0, "most_epochs": None, "size": None, "score": []}
    return Mixture(seed, sources=sources, **settings | changes)


SIZES = {"large": 90, "small": 10}


def test_without_weights_an_epoch_is_every_sample_of_every_source_once():
    made = mixture(SIZES)
    for epoch in range(2):
        drawn = Counter(made.train(i, epoch).answer for i in range(len(made)))
        assert drawn == Counter(f"{name} {i} {epoch}" for name, size in SIZES.items() for i in range(size))


@pytest.mark.parametrize(
    ("changes", "counts"),
    [
        ({"weights": {"large": 1, "small": 1}}, {"large": 50, "small": 50}),
        ({"weights": {"large": 3, "small": 1}, "size": 40}, {"large": 30, "small": 10}),
        ({"temperature": 2.0}, {"large": 75, "small": 25}),  # sqrt(90) : sqrt(10) = 3 : 1
        ({"weights": {"large": 1, "small": 1}, "most_epochs": 2.0}, {"large": 80, "small": 20}),
        ({"by": "epochs", "weights": {"large": 0.5, "small": 3}}, {"large": 45, "small": 30}),
        ({"by": "epochs"}, {"large": 90, "small": 10}),
        ({"weights": {"large": 1, "small": 0}}, {"large": 100, "small": 0}),
    ],
)
def test_shares_are_as_declared(changes, counts):
    assert mixture(SIZES, **changes).counts == counts


def test_shares_of_tokens_give_a_source_of_long_samples_fewer_of_them():
    made = mixture(SIZES, by="tokens", weights={"large": 1, "small": 1}, size=100)
    with pytest.raises(DataError, match="have not been measured"):
        len(made)
    made.measure(lambda source: 300.0 if source.size == 90 else 100.0)
    assert made.counts == {"large": 25, "small": 75}


@given(
    sizes=st.lists(st.integers(1, 30), min_size=1, max_size=4),
    weights=st.lists(st.floats(0.1, 5), min_size=4, max_size=4),
    size=st.integers(4, 80),
)
def test_every_source_is_an_endless_stream_of_its_own_epochs(sizes, weights, size):
    named = {f"s{i}": n for i, n in enumerate(sizes)}
    made = mixture(named, weights=dict(zip(named, weights, strict=False)), size=size)
    drawn = [made.train(i, epoch).answer.split() for epoch in range(4) for i in range(len(made))]
    for name, count in named.items():
        stream = [(int(epoch), int(index)) for source, index, epoch in drawn if source == name]
        for epoch in range(len(stream) // count):
            part = stream[epoch * count : (epoch + 1) * count]
            assert sorted(part) == [(epoch, index) for index in range(count)]


def test_parts_say_where_each_sample_comes_from():
    made = mixture(SIZES, weights={"large": 1, "small": 1})
    for epoch in range(3):
        said = [
            f"{part.source.name} {index} {own}"
            for part in made.parts(epoch)
            for own, index in zip(part.epochs, part.indices, strict=True)
        ]
        assert said == [made.train(i, epoch).answer for i in range(len(made))]


def test_another_seed_is_another_order_and_the_same_seed_the_same():
    first, again, other = ([mixture(SIZES, seed=seed).train(i, 0).answer for i in range(100)] for seed in (0, 0, 1))
    assert first == again != other


def test_a_sample_knows_its_source_in_id_cluster_and_stand_ins():
    made = mixture(SIZES)
    sample = made.train(95, 0)
    assert (sample.source, sample.id.partition("/")[0], sample.cluster.partition("/")[0]) == ("small",) * 3
    assert made.siblings(95) == range(90, 100)
    assert made.train(95, 0).augment == Augment(flip=0.01)
    assert made.names == ("large", "small")
    assert made.shares() == {"large": 0.9, "small": 0.1}


def test_a_mixture_may_be_a_source_of_a_mixture():
    inner = partial(mixture, SIZES)
    settings = {"weights": {}, "by": "samples", "temperature": 1.0, "most_epochs": None, "size": None, "score": []}
    made = Mixture(
        0,
        sources={
            "mix": lambda seed: inner(seed=seed),
            "more": partial(Numbers, name="more", size=20, metric=LossOnly()),
        },
        **settings,
    )
    drawn = [made.train(i, 0) for i in range(len(made))]
    assert made.counts == {"mix": 100, "more": 20}
    assert Counter(sample.augment.flip for sample in drawn) == {0.09: 90, 0.01: 10, 0.02: 20}
    assert (made.siblings(99), made.siblings(100)) == (range(100), range(100, 120))


def test_held_out_samples_alternate_between_the_sources_that_are_scored():
    assert [s.source for s in mixture(SIZES).heldout()] == ["large", "small"] * 3
    assert [s.source for s in mixture(SIZES, score=["small"]).heldout()[:2]] == ["small"] * 2


def test_the_fingerprint_knows_content_and_shares():
    prints = {
        mixture(SIZES).fingerprint(),
        mixture(SIZES | {"small": 11}).fingerprint(),
        mixture(SIZES, weights={"large": 1, "small": 1}).fingerprint(),
        mixture(SIZES, score=["small"]).fingerprint(),
    }
    assert len(prints) == 4


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"weights": {"lrge": 1}}, "names lrge; data.sources has large, small"),
        ({"weights": {"large": 1}}, "lacks small"),
        ({"weights": {"large": 1, "small": -1}}, "small=-1, expected a finite number of 0 or more"),
        ({"weights": {"large": 0, "small": 0}}, "all 0"),
        ({"temperature": 0.0}, "temperature=0.0, expected a number above 0"),
        ({"most_epochs": 0.5, "size": 80}, "allows 50 samples an epoch, data.size=80"),
        ({"metrics": {"small": ExactAnswer()}}, "large by loss, small by answer\n  fix: set 'data.score="),
    ],
)
def test_what_cannot_be_is_refused_with_the_value(changes, says):
    with pytest.raises(DataError) as raised:
        mixture(SIZES, **changes)
    assert says in str(raised.value)


def test_sums_of_whole_numbers_are_kept():
    rng = np.random.default_rng(0)
    for _ in range(50):
        sizes = {f"s{i}": int(n) for i, n in enumerate(rng.integers(5, 100, 5))}
        weights = {name: float(rng.random() + 0.1) for name in sizes}
        assert sum(mixture(sizes, weights=weights, size=77).counts.values()) == 77
