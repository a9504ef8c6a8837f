"""Intervals and tests against scipy, published formulas, and small simulations; the long form is a benchmark."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from beni.analysis.inference import (
    FEWEST,
    bca,
    extremeness,
    holm,
    interval,
    sign_flip,
    spread,
    step_down,
    t_above,
    t_quantile,
)


@pytest.mark.parametrize("freedom", [1, 2.7, 5, 40, 1000])
def test_quantiles_of_student_are_those_of_scipy(freedom: float) -> None:
    assert t_quantile(0.975, freedom) == pytest.approx(stats.t.ppf(0.975, freedom), rel=1e-7)
    assert t_above(3.0, freedom) == pytest.approx(stats.t.sf(3.0, freedom), rel=1e-7)
    assert t_above(-1.0, freedom) == pytest.approx(stats.t.sf(-1.0, freedom), rel=1e-7)


@pytest.mark.parametrize("seeds", [2, 5, 6, 10])
def test_sign_flips_are_those_of_scipy(seeds: int) -> None:
    values = np.random.default_rng(seeds).normal(0.4, 1, seeds)
    theirs = stats.permutation_test(
        (values,), lambda x, axis: np.mean(x, axis=axis), permutation_type="samples", n_resamples=np.inf
    )
    assert sign_flip(values.tolist()) == pytest.approx(theirs.pvalue)


def test_the_smallest_p_is_two_of_all_flips_and_one_seed_has_none() -> None:
    assert sign_flip([0.1, 0.2, 0.3, 0.1, 0.2]) == 2 / 2**5
    assert sign_flip([0.1] * 6) == 2 / 2**6
    assert sign_flip([0.3]) is None
    assert sign_flip([1.0] * 20) == pytest.approx(1 / 20001, rel=2)


def test_holm_is_the_hand_computed_example_and_leaves_unknown_ones_out() -> None:
    assert holm([0.01, 0.04, None, 0.03, 0.005]) == pytest.approx([0.03, 0.06, None, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]


def by_hand(arms: list[dict[int, float]]) -> list[float]:
    """Westfall and Young 1993, algorithm 4.1, with Student's p of scipy and every flip of the signs."""
    seeds = sorted({seed for arm in arms for seed in arm})
    signs = np.array(list(itertools.product((1, -1), repeat=len(seeds))))
    drawn = []
    for arm in arms:
        own = signs[:, [seeds.index(seed) for seed in arm]] * np.array(list(arm.values()))
        drawn.append(-stats.ttest_1samp(own, 0, axis=1).pvalue - (len(arm) < FEWEST))
    observed = [one[0] for one in drawn]
    order = sorted(range(len(arms)), key=lambda i: -observed[i])
    adjusted, largest_yet = [0.0] * len(arms), 0.0
    for rank, i in enumerate(order):
        above = np.max([drawn[j] for j in order[rank:]], axis=0) >= observed[i] - 1e-12
        adjusted[i] = largest_yet = max(largest_yet, float(above.mean()))
    return adjusted


@pytest.mark.parametrize("draw", range(5))
@pytest.mark.parametrize("lost", [(), ((1, 2), (2, 0), (2, 5), (2, 7)), ((0, 1), (3, 1), (3, 2))])
def test_the_step_down_is_the_published_one(draw: int, lost: tuple[tuple[int, int], ...]) -> None:
    rng = np.random.default_rng(draw)
    shared = rng.normal(size=8)
    arms = [dict(enumerate((gap + shared + rng.normal(size=8)).tolist())) for gap in (0, 0.5, 1, 4)]
    for arm, seed in lost:  # one that was dropped, or of which runs failed
        del arms[arm][seed]
    assert step_down(arms) == pytest.approx(by_hand(arms))


@pytest.mark.parametrize("seeds", [6, 10, 20])
def test_arms_with_unequal_numbers_of_seeds_are_compared_by_how_likely_their_t_is(seeds: int) -> None:
    t = np.array([0.5, 1.0, 2.0, 4.0])
    explained = t**2 / (t**2 + seeds - 1)
    deviate = stats.norm.isf(stats.t.sf(t, seeds - 1))
    assert extremeness(np.sqrt(explained * seeds), 1.0, seeds) == pytest.approx(1 + deviate**2, rel=0.01)
    assert (extremeness(np.sqrt(explained * 5), 1.0, 5) < 1).all()


def test_an_arm_with_few_seeds_leaves_the_p_of_the_others_as_it_is() -> None:
    rng = np.random.default_rng(0)
    far = [dict(enumerate((gap + 0.01 * rng.normal(size=8)).tolist())) for gap in (0.05, 0.03, -0.4)]
    failed = {seed: far[2][seed] for seed in range(3)}
    assert step_down([far[0], failed]) == [2 / 2**8, 2 / 2**3]
    six = [{seed: one[seed] for seed in range(6)} for one in far]
    assert step_down(six) == [2 / 2**6] * 3
    assert step_down([*six[:2], {seed: far[2][seed] for seed in range(5)}]) == [2 / 2**6, 2 / 2**6, 2 / 2**5]
    beside_more = step_down([six[0], *({seed: 0.01 * rng.normal() for seed in range(8)} for _ in range(9))])
    assert beside_more[0] is not None
    assert beside_more[0] <= 0.05


def test_unequal_seeds_keep_the_error_rate() -> None:
    rng = np.random.default_rng(7)
    wrong = 0
    for _ in range(400):
        noise = rng.normal(size=(5, 8)) + rng.normal(size=8)  # of the baseline, which all share
        kept = (8, 8, 7, 6, 3)
        found = step_down([dict(enumerate(row[:n].tolist())) for row, n in zip(noise, kept, strict=True)])
        wrong += any(p is not None and p <= 0.05 for p in found)
    assert wrong / 400 <= 0.075


def test_six_seeds_suffice_however_many_arms_there_are() -> None:
    rng = np.random.default_rng(0)
    far = [dict(enumerate((gap + 0.01 * rng.normal(size=6)).tolist())) for gap in (1, -2, 3, 4, 5, 6, 7, 8)]
    assert step_down(far) == [2 / 2**6] * 8
    assert FEWEST == 6
    assert step_down(far[:1]) == [sign_flip(list(far[0].values()))]
    assert step_down([{}, far[0], {0: 1.0}, {0: 0.0, 1: 0.0}]) == [None, 2 / 2**6, None, 1.0]
    assert step_down([{}]) == [None]


def test_bca_limits_are_those_of_scipy() -> None:
    values = np.random.default_rng(3).exponential(size=30)
    theirs = stats.bootstrap((values,), np.mean, method="BCa", n_resamples=3000, rng=np.random.default_rng(0))
    left_out = (values.sum() - values) / 29
    influence = left_out.mean() - left_out
    acceleration = (influence**3).sum() / (6 * (influence**2).sum() ** 1.5)
    ours = bca(theirs.bootstrap_distribution, values.mean(), acceleration, 0.05)
    assert ours == pytest.approx(tuple(theirs.confidence_interval), rel=1e-9)


def test_with_one_seed_the_error_is_the_published_clustered_one() -> None:
    groups = [np.array([1.0, 0, 1]), np.array([0.0]), np.array([1.0, 1]), np.array([0.0, -1])]
    sums, counts = np.array([[g.sum() for g in groups]]), np.array([[float(g.size) for g in groups]])
    mean = sums.sum() / 8
    # Miller 2024, equation 4: all products of residuals within a cluster
    published = math.sqrt(sum((a - mean) * (b - mean) for g in groups for a in g for b in g)) / 8
    known = spread(sums, counts)
    assert known is not None
    assert known.se == pytest.approx(published * math.sqrt(4 / 3))
    assert known.freedom == 3


def test_seeds_alone_give_the_t_interval_where_the_draws_are_symmetric() -> None:
    values = np.array([[-2.0], [-1], [0], [0], [1], [2]])
    low, high = interval(values, np.ones_like(values)) or (0, 0)
    expected = stats.t.ppf(0.975, 5) * values.std(ddof=1) / math.sqrt(6)
    assert (low, high) == pytest.approx((-expected, expected), rel=0.08)
    assert interval(np.ones((1, 1)), np.ones((1, 1))) is None
    assert interval(np.ones((3, 2)), np.ones((3, 2))) == (1.0, 1.0)


def test_pictures_that_all_seeds_share_widen_the_error() -> None:
    pictures = np.random.default_rng(0).normal(size=50)
    shared = spread(np.tile(pictures, (6, 1)) + np.arange(6)[:, None] * 0.001, np.ones((6, 50)))
    assert shared is not None
    assert shared.se == pytest.approx(pictures.std(ddof=1) / math.sqrt(50), rel=0.01)


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    rng = np.random.default_rng(5)
    held = 0
    for _ in range(300):
        sums = 0.1 + 0.02 * rng.normal(size=(6, 1)) + 0.2 * rng.normal(size=40) + 0.3 * rng.normal(size=(6, 40))
        low, high = interval(sums, np.ones_like(sums)) or (0, 0)
        held += low <= 0.1 <= high
    assert 0.91 <= held / 300 <= 0.985
