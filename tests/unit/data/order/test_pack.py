from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from beni.data.order.pack import Capacity, Units, pack

lots = st.lists(st.tuples(st.integers(1, 100), st.integers(0, 4)), max_size=120)


def mixed(count, seed=0):
    """Text, conversations about one to four pictures of 64 to 576 tokens each: (tokens, images)."""
    rng = np.random.default_rng(seed)
    images = rng.integers(1, 5, count) * (rng.random(count) < 0.6)
    text = np.clip(rng.lognormal(5.3, 0.9, count), 12, 4000).astype(int)
    return np.minimum(text + images * rng.choice([64, 256, 576], count), 8192), images


@given(lot=lots, window=st.integers(1, 50), seed=st.integers(0, 99))
def test_every_sample_is_in_exactly_one_pack_and_no_pack_exceeds_a_capacity(lot, window, seed):
    tokens, images = np.array(lot, dtype=np.int64).reshape(-1, 2).T
    order = np.random.default_rng(seed).permutation(len(lot))
    packs = pack(order, tokens, images, Capacity(100, 5), window)
    assert Counter(packs.samples.tolist()) == Counter(range(len(lot)))
    for i in range(len(packs)):
        assert len(packs[i]) > 0
        assert tokens[packs[i]].sum() <= 100
        assert images[packs[i]].sum() <= 5


def test_mixed_data_fills_packs_of_8192_to_98_percent():
    tokens, images = mixed(20_000)
    packs = pack(np.arange(20_000), tokens, images, Capacity(8192, 64), 1024)
    assert tokens.sum() / (8192 * len(packs)) >= 0.98


def test_a_window_bounds_how_far_a_sample_travels():
    tokens, images = mixed(8000)
    packs = pack(np.arange(8000), tokens, images, Capacity(8192, 64), 256)
    spans = [int(packs[i].max() - packs[i].min()) for i in range(len(packs))]
    assert np.median(spans) < 2 * 256


def test_pictures_fill_packs_as_well_as_tokens():
    tokens, images = np.full(100, 10), np.full(100, 2)
    packs = pack(np.arange(100), tokens, images, Capacity(8192, 8), 16)
    assert [len(packs[i]) for i in range(len(packs))] == [4] * 25


def test_a_sample_that_fits_no_pack_is_refused():
    with pytest.raises(ValueError, match="exceeds"):
        pack(np.arange(1), np.array([101]), np.array([0]), Capacity(100, 5), 8)


@given(groups=st.lists(st.lists(st.integers(0, 9), max_size=4), max_size=8), seed=st.integers(0, 9))
def test_units_can_be_taken_in_any_order(groups, seed):
    units = Units.of(groups)
    order = np.random.default_rng(seed).permutation(len(groups))
    taken = units.take(order)
    assert [taken[i].tolist() for i in range(len(taken))] == [groups[i] for i in order]
