from collections import Counter

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from beni.data.schedule import epoch_order, micro_batches, step_samples
from beni.errors import ConfigError

seeds = st.integers(0, 2**31)
sizes = st.integers(1, 60)
batches = st.integers(1, 40)


@given(seed=seeds, size=sizes, batch=batches, epochs=st.integers(1, 4))
def test_every_sample_stands_exactly_once_in_an_epoch(seed, size, batch, epochs):
    steps = -(-size * epochs // batch)
    stream = [pair for step in range(steps) for pair in step_samples(seed, step, size, batch)][: size * epochs]
    assert Counter(stream) == Counter((epoch, index) for epoch in range(epochs) for index in range(size))
    assert [epoch for epoch, _ in stream] == sorted(epoch for epoch, _ in stream)


@given(seed=seeds, step=st.integers(0, 1000), size=sizes, batch=batches)
def test_a_step_is_a_pure_function_of_its_arguments(seed, step, size, batch):
    first = step_samples(seed, step, size, batch)
    epoch_order.cache_clear()
    step_samples(seed + 1, step + 7, size, batch)
    assert step_samples(seed, step, size, batch) == first
    assert len(first) == batch


@given(
    seed=seeds,
    step=st.integers(0, 50),
    size=sizes,
    batch=batches,
    world=st.integers(1, 8),
    accumulation=st.integers(1, 5),
)
def test_a_step_has_the_same_samples_for_any_world_and_accumulation(seed, step, size, batch, world, accumulation):
    assume(batch >= world * accumulation)
    ranks = micro_batches(seed, step, size, batch, world, accumulation)
    assert [len(rank) for rank in ranks] == [accumulation] * world
    everything = [pair for rank in ranks for part in rank for pair in part]
    assert Counter(everything) == Counter(step_samples(seed, step, size, batch))
    sizes = [len(part) for rank in ranks for part in rank]
    assert max(sizes) - min(sizes) <= 1
    assert min(sizes) >= 1


@given(seed=seeds, batch=st.integers(1, 40), world=st.integers(2, 8))
def test_ranks_share_no_sample(seed, batch, world):
    assume(batch >= world)
    ranks = [{pair for part in rank for pair in part} for rank in micro_batches(seed, 0, 1000, batch, world, 1)]
    assert sum(map(len, ranks)) == len(set.union(*ranks)) == batch


def test_a_batch_straddles_the_border_of_two_epochs():
    samples = step_samples(seed=3, step=1, size=6, batch_size=4)
    assert [epoch for epoch, _ in samples] == [0, 0, 1, 1]
    assert [index for epoch, index in samples if epoch == 0] == epoch_order(3, 0, 6)[4:].tolist()
    assert [index for epoch, index in samples if epoch == 1] == epoch_order(3, 1, 6)[:2].tolist()


def test_a_batch_may_be_larger_than_the_data():
    assert Counter(step_samples(0, 0, 3, 7)) == Counter(
        [*((e, i) for e in (0, 1) for i in range(3)), (2, int(epoch_order(0, 2, 3)[0]))]
    )


def test_order_differs_between_epochs_and_between_seeds():
    orders = {tuple(epoch_order(seed, epoch, 50)) for seed in range(3) for epoch in range(3)}
    assert len(orders) == 9


def test_every_place_of_an_epoch_is_equally_likely_for_every_sample():
    places = np.array([epoch_order(seed, 0, 8) for seed in range(4000)])
    counts = np.array([np.bincount(column, minlength=8) for column in places.T])
    assert np.abs(counts - 500).max() < 5 * np.sqrt(500 * 7 / 8)


def test_the_cached_order_cannot_be_changed_by_who_reads_it():
    with pytest.raises(ValueError, match="read-only"):
        epoch_order(0, 0, 10)[0] = 5


@given(batch=st.integers(1, 20), world=st.integers(1, 8), accumulation=st.integers(1, 8))
def test_a_batch_smaller_than_its_parts_is_an_error_with_the_fix(batch, world, accumulation):
    assume(batch < world * accumulation)
    with pytest.raises(ConfigError, match=f"set train.batch_size to at least {world * accumulation}"):
        micro_batches(0, 0, 100, batch, world, accumulation)
