"""Ablations as functions: what they keep of a picture, and who is shown whose."""

from __future__ import annotations

from collections import Counter
from typing import get_args, get_type_hints

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image as PILImage

from beni.config.sections.results import Eval
from beni.data.images import Image
from beni.data.sample import Message, Sample
from beni.evals.ablations import FURTHER, Place, noise, partners, shuffled, swapped

SIDES = st.integers(1, 40)


def picture(width, height, seed=0, mode="RGB"):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return PILImage.fromarray(pixels).convert(mode)


def colours(picture):
    return sorted(map(tuple, np.asarray(picture.convert("RGB")).reshape(-1, 3).tolist()))


def sample(i, cluster, keys):
    images = [Image(lambda key=key: picture(8, 6, int(key)), key) for key in keys]
    return Sample(f"s{i}", (Message("user", (*images, "?")), Message("assistant", ("a",))), cluster=cluster)


def test_the_ablations_that_can_be_asked_for_are_those_that_there_are():
    (literal,) = get_args(get_type_hints(Eval)["ablations"])
    assert get_args(literal) == tuple(FURTHER)


@given(SIDES, SIDES, st.sampled_from(["RGB", "L"]))
def test_a_shuffled_picture_has_the_size_and_the_pixels_of_the_true_one(width, height, mode):
    one = picture(width, height, mode=mode)
    mixed = shuffled(one, Place("s", 0))
    assert mixed.size == one.size
    assert colours(mixed) == colours(one)
    assert mixed.tobytes() == shuffled(one, Place("s", 0)).tobytes()


def test_every_tile_moves_and_another_picture_is_shuffled_otherwise():
    numbers = np.arange(16, dtype=np.uint8).reshape(4, 4).repeat(5, 0).repeat(7, 1)
    one = PILImage.fromarray(np.stack([numbers] * 3, -1))
    mixed = [np.asarray(shuffled(one, Place("s", i)))[..., 0] for i in range(2)]
    assert not (mixed[0] == numbers).any()
    assert (mixed[0] != mixed[1]).any()
    assert all(
        len(set(tile.flatten().tolist())) == 1 for rows in np.split(mixed[0], 4) for tile in np.split(rows, 4, 1)
    )


@given(SIDES, SIDES)
def test_noise_has_the_size_and_nothing_else_of_the_picture(width, height):
    place = Place("s", 1)
    drawn = noise(picture(width, height, 1), place)
    assert drawn.size == (width, height)
    assert drawn.tobytes() == noise(picture(width, height, 2), place).tobytes()
    assert noise(picture(9, 9), place).tobytes() != noise(picture(9, 9), Place("t", 1)).tobytes()


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 3)), max_size=12))
def test_each_picture_is_shown_once_and_never_to_its_own_place_nor_cluster_where_that_can_be(shape):
    samples = [sample(i, f"c{cluster}", [f"{i}{k}" for k in range(count)]) for i, (cluster, count) in enumerate(shape)]
    places = [Place(f"s{i}", k) for i, (_, count) in enumerate(shape) for k in range(count)]
    found = partners(samples)
    assert found == partners(samples)
    if len(places) < 2:
        assert found == {}
        return
    assert sorted(found, key=places.index) == places
    shown = [Place(f"s{i}", k) for i, k in found.values()]
    assert sorted(shown, key=places.index) == places
    assert all(own != other for own, other in zip(found, shown, strict=True))
    clusters = {place: shape[int(place.sample[1:])][0] for place in places}
    largest = max(Counter(clusters.values()).values())
    same = sum(clusters[own] == clusters[other] for own, other in zip(found, shown, strict=True))
    assert same == max(0, 2 * largest - len(places))  # the fewest that there can be


def test_without_clusters_two_questions_about_one_picture_do_not_swap_it():
    samples = [sample(0, "", ["1"]), sample(1, "", ["1"]), sample(2, "", ["2"]), sample(3, "", ["3"])]
    found = partners(samples)
    assert {found[Place("s0", 0)][0], found[Place("s1", 0)][0]} == {2, 3}


def test_a_swapped_picture_is_another_one_in_the_size_of_the_own():
    ablation = swapped([sample(0, "", ["1"]), sample(1, "", ["2"])])
    (shown,) = ablation.of(sample(0, "", ["1"]), [picture(16, 12)])
    assert shown.size == (16, 12)
    assert shown.tobytes() == picture(8, 6, 2).resize((16, 12), PILImage.Resampling.BICUBIC).tobytes()
    alone = sample(0, "", ["1"])
    assert swapped([alone]).of(alone, [picture(16, 12)]) is None


@pytest.mark.parametrize("name", [*FURTHER])
def test_a_sample_without_a_picture_stays_as_it_is(name):
    some = [sample(0, "", []), sample(1, "", ["1"])]
    assert FURTHER[name](some).of(some[0], []) == []
