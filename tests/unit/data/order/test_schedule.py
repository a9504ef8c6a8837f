from collections import Counter
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from beni.config.compose import compose
from beni.data.order.lengths import Loads
from beni.data.order.schedule import Schedule, epoch_order, needs_lengths
from beni.errors import ConfigError, DataError

seeds = st.integers(0, 2**31)
sizes = st.integers(1, 60)
batches = st.integers(1, 40)
SETTINGS = compose([])["schedule"]
PACKS = compose(["schedule=packs"])["schedule"]
CAPACITY = {"tokens": 100, "images": 5}


@dataclass
class Drawn:
    """Lengths of made-up samples; those of an epoch differ from those of the next where ``varies``."""

    seed: int
    size: int
    varies: bool = False
    text: float = 0.3

    def loads(self, epoch):
        rng = np.random.default_rng([self.seed, epoch if self.varies else 0])
        tokens = np.minimum(rng.integers(1, 60, self.size) + rng.integers(0, 2, self.size) * 40, 100)
        images = rng.integers(1, 4, self.size) * (rng.random(self.size) >= self.text)
        return Loads(tokens, tokens // 2, images, images * rng.choice([576, 2304], self.size))


def simple(seed, size, batch):
    return Schedule(seed, size, batch, SETTINGS)


def pairs(schedule, step):
    """(epoch, index) of the samples of a step, in order."""
    return [(epoch, int(index)) for epoch, unit in schedule.step(step) for index in unit]


@st.composite
def schedules(draw, **fixed):
    """Schedules of every kind that needs lengths."""
    cycle = draw(st.sampled_from([[], ["image", "text"], ["image", "image", "text"]]))
    chosen = {
        "unit": draw(st.sampled_from(["sample", "pack"])),
        "group": draw(st.sampled_from(["none", "length"])),
        "modality": "grouped" if cycle else draw(st.sampled_from(["mixed", "grouped"])),
        "cycle": cycle,
        "balance": True,
        "window": draw(st.integers(1, 40)),
    } | fixed
    lengths = Drawn(draw(seeds), draw(st.integers(12, 80)), draw(st.booleans()))
    if chosen["cycle"]:
        present = lengths.loads(0).images > 0
        assume(present.any() and not present.all())
    batch = draw(st.integers(1, 6)) * max(1, len(chosen["cycle"]))
    return Schedule(draw(seeds), lengths.size, batch, SETTINGS | CAPACITY | chosen, lengths)


@given(seed=seeds, size=sizes, batch=batches, epochs=st.integers(1, 4))
def test_every_sample_stands_exactly_once_in_an_epoch(seed, size, batch, epochs):
    schedule = simple(seed, size, batch)
    steps = -(-size * epochs // batch)
    stream = [pair for step in range(steps) for pair in pairs(schedule, step)][: size * epochs]
    assert Counter(stream) == Counter((epoch, index) for epoch in range(epochs) for index in range(size))
    assert [epoch for epoch, _ in stream] == sorted(epoch for epoch, _ in stream)


@settings(deadline=None)
@given(schedule=schedules())
def test_whatever_the_kind_every_sample_stands_exactly_once_in_an_epoch(schedule):
    seen, step = Counter(), 0
    while sum(epoch == 0 for epoch, _ in seen) < schedule.size:
        assert step < 3000, "epoch 0 is never complete"
        seen.update(pairs(schedule, step))
        step += 1
    assert {index for epoch, index in seen if epoch == 0} == set(range(schedule.size))
    assert set(seen.values()) == {1}


@settings(deadline=None)
@given(schedule=schedules(), step=st.integers(0, 60))
def test_a_step_is_a_pure_function_of_its_arguments(schedule, step):
    first = pairs(schedule, step)
    again = Schedule(schedule.seed, schedule.size, schedule.batch_size, schedule.settings, schedule.lengths)
    epoch_order.cache_clear()
    again.step(step + 7)
    assert pairs(again, step) == first
    assert len(again.step(step)) == schedule.batch_size
    assert again.step_hash(step) == schedule.step_hash(step)


@settings(deadline=None)
@given(
    schedule=schedules() | st.builds(simple, seeds, sizes, batches),
    step=st.integers(0, 50),
    world=st.integers(1, 8),
    accumulation=st.integers(1, 6),
)
def test_a_step_has_the_same_samples_for_any_world_and_accumulation(schedule, step, world, accumulation):
    accumulation *= max(1, len(schedule.cycle))
    assume(schedule.batch_size >= world * accumulation)
    ranks = schedule.parts(step, world, accumulation)
    assert [len(rank) for rank in ranks] == [accumulation] * world
    everything = [pair for rank in ranks for part in rank for pair in part]
    assert Counter(everything) == Counter(pairs(schedule, step))
    assert all(part for rank in ranks for part in rank)
    if schedule.settings["unit"] == "sample":
        sizes = [len(part) for rank in ranks for part in rank]
        assert max(sizes) - min(sizes) <= 1


@settings(deadline=None)
@given(schedule=schedules(unit="pack", group="none"), step=st.integers(0, 40))
def test_no_pack_exceeds_a_capacity(schedule, step):
    for epoch, samples in schedule.step(step):
        loads = schedule.loads(epoch)
        assert loads.tokens[samples].sum() <= CAPACITY["tokens"]
        assert loads.images[samples].sum() <= CAPACITY["images"]


@settings(deadline=None)
@given(schedule=schedules(cycle=[]), step=st.integers(0, 40), world=st.integers(1, 6))
def test_pixels_of_ranks_differ_by_no_more_than_those_of_the_largest_unit(schedule, step, world):
    assume(schedule.batch_size >= world)
    unit = max(int(schedule.loads(epoch).pixels[samples].sum()) for epoch, samples in schedule.step(step))
    pixels = [
        sum(int(schedule.loads(epoch).pixels[index]) for part in rank for epoch, index in part)
        for rank in schedule.parts(step, world, 1)
    ]
    assert max(pixels) - min(pixels) <= unit


@settings(deadline=None)
@given(schedule=schedules(modality="grouped"), step=st.integers(0, 40), world=st.integers(1, 3))
def test_all_ranks_have_the_same_modality_at_each_micro_batch(schedule, step, world):
    accumulation = max(1, len(schedule.cycle))
    assume(schedule.batch_size >= world * accumulation)
    ranks = schedule.parts(step, world, accumulation)
    for place in range(accumulation):
        pictured = {bool(schedule.loads(e).images[i]) for rank in ranks for e, i in rank[place]}
        assert len(pictured) == 1
        if schedule.cycle:
            assert pictured == {schedule.cycle[place] == "image"}


@settings(deadline=None)
@given(schedule=schedules(modality="grouped", cycle=[], unit="sample"))
def test_without_a_cycle_modalities_take_turns_in_their_shares(schedule):
    pictured = schedule.loads(0).images > 0
    assume(not schedule.lengths.varies)
    steps = 6 * schedule.size // schedule.batch_size
    turns = [bool(schedule.loads(epoch).images[unit[0]]) for epoch, unit in (schedule.step(k)[0] for k in range(steps))]
    # a stream is short of its share by less than a step, and an epoch's turns are shuffled
    assert abs(sum(turns) - steps * pictured.mean()) <= 2 + schedule.size / schedule.batch_size


@settings(deadline=None)
@given(schedule=schedules(group="length", unit="sample", cycle=[], modality="mixed", window=1000))
def test_within_a_window_steps_are_of_like_length(schedule):
    lengths = []
    for step in range(3 * schedule.size // schedule.batch_size):
        units = schedule.step(step)
        if len({epoch for epoch, _ in units}) == 1 == units[0][0] + 1:
            lengths.append([int(schedule.loads(0).tokens[unit[0]]) for _, unit in units])
    spans = sorted((min(step), max(step)) for step in lengths[: schedule.size // schedule.batch_size])
    assert all(one[1] <= two[0] for one, two in pairwise(spans))


@given(seed=seeds, batch=st.integers(1, 40), world=st.integers(2, 8))
def test_ranks_share_no_sample(seed, batch, world):
    assume(batch >= world)
    ranks = [{pair for part in rank for pair in part} for rank in simple(seed, 1000, batch).parts(0, world, 1)]
    assert sum(map(len, ranks)) == len(set.union(*ranks)) == batch


def test_a_batch_straddles_the_border_of_two_epochs():
    samples = pairs(simple(seed=3, size=6, batch=4), 1)
    assert [epoch for epoch, _ in samples] == [0, 0, 1, 1]
    assert [index for epoch, index in samples if epoch == 0] == epoch_order(3, 0, 6)[4:].tolist()
    assert [index for epoch, index in samples if epoch == 1] == epoch_order(3, 1, 6)[:2].tolist()


def test_a_batch_may_be_larger_than_the_data():
    assert Counter(pairs(simple(0, 3, 7), 0)) == Counter(
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


def test_the_samples_of_steps_are_counted():
    packs = Schedule(0, 50, 3, PACKS | CAPACITY, Drawn(0, 50))
    assert packs.samples(4) == sum(len(pairs(packs, step)) for step in range(4))
    assert simple(0, 50, 8).samples(4) == 32


def test_the_order_hash_differs_with_seed_length_and_batch_size():
    hashes = [simple(0, 20, 4).hash(5), simple(1, 20, 4).hash(5), simple(0, 20, 4).hash(6), simple(0, 20, 3).hash(5)]
    assert len(set(hashes)) == 4
    assert simple(0, 20, 4).hash(5) == hashes[0]


@given(batch=st.integers(1, 20), world=st.integers(1, 8), accumulation=st.integers(1, 8))
def test_a_batch_smaller_than_its_parts_is_an_error_with_the_fix(batch, world, accumulation):
    assume(batch < world * accumulation)
    with pytest.raises(ConfigError, match=f"set train.batch_size to at least {world * accumulation}"):
        simple(0, 100, batch).parts(0, world, accumulation)


def test_a_batch_or_accumulation_that_a_cycle_does_not_divide_is_an_error_with_the_fix():
    cycle = SETTINGS | {"modality": "grouped", "cycle": ["image", "image", "text"]}
    with pytest.raises(ConfigError, match=r"set train\.batch_size=9"):
        Schedule(0, 50, 8, cycle, Drawn(0, 50))
    with pytest.raises(ConfigError, match=r"set train\.accumulation=6"):
        Schedule(0, 50, 9, cycle, Drawn(0, 50)).parts(0, 1, 4)


def test_a_cycle_over_a_modality_that_the_data_lacks_is_an_error():
    cycle = SETTINGS | {"modality": "grouped", "cycle": ["image", "text"]}
    with pytest.raises(DataError, match="asks for text samples, but the data has none"):
        Schedule(0, 50, 8, cycle, Drawn(0, 50, text=0.0)).step(0)


def test_a_sample_that_no_pack_can_hold_is_an_error_with_the_fix():
    with pytest.raises(DataError, match=r"has \d+ tokens, a pack holds schedule\.tokens=9\n.*=\d+ or more"):
        Schedule(0, 50, 8, PACKS | {"tokens": 9}, Drawn(0, 50)).step(0)
    with pytest.raises(DataError, match=r"has 3 images, a pack holds schedule\.images=2\n.*=3 or more"):
        Schedule(0, 50, 8, PACKS | {"images": 2}, Drawn(0, 50)).step(0)


@pytest.mark.parametrize("changes", [{"unit": "pack"}, {"group": "length"}, {"modality": "grouped"}, {"balance": True}])
def test_only_what_needs_lengths_asks_for_them(changes):
    assert not needs_lengths(SETTINGS)
    assert needs_lengths(SETTINGS | changes)
