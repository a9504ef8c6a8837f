"""What a study can find: the true difference that the rule of a report supports with 80 % power.

Simulated studies have normal noise with the components of a paired difference: between seeds, and between pictures that
all seeds share. One arm has an effect and the others have none; the noise of the baseline is in the difference of every
arm. The rule is that of ``stats.corrected``: the sign-flip test, corrected by step-down, and the t-test, corrected for
as many arms; the interval is that of the t-test, but for the skewness that normal noise does not have. The power at
these differences, by the report's own functions over right and wrong answers, is measured in
benchmarks/study_statistics.py.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from beni.analysis.inference import EQUAL, FEWEST, LEVEL, MOST_EXACT, flips, t_quantile, variances

POWER = 0.8
STUDIES = 400
"""Simulated studies: what is found with 80 % power is found with 76 to 84 %."""
FLIPS = 512
"""Sign flips that are tried of each: all there are with up to ten seeds."""
MOST_OTHERS = 20
"""Arms without an effect that are simulated; the t-tests are corrected for all that there are."""
GRID = 20
"""Shares of the variance between which squares of what is detectable are interpolated."""
STEPS = 10


@dataclass(frozen=True)
class Noise:
    """Variances of a paired difference.

    Args:
        seed: of the mean difference of one seed, at the pictures that were asked.
        shared: of the mean, which no number of seeds makes smaller: other pictures could have been asked.
        pictures: how many were asked; 1 where whole runs are paired.
        within: the part of ``seed`` that other pictures change.
    """

    seed: float
    shared: float = 0.0
    pictures: int = 1
    within: float = 0.0


def noise_of(sums: np.ndarray, counts: np.ndarray) -> Noise | None:
    """(seeds, pictures) sums of differences, and how many each holds -> their noise; None with one seed."""
    by_seed, by_picture, both = variances(sums, counts)
    seeds, pictures = sums.shape
    if by_seed is None:
        return None
    if by_picture is None:
        return Noise(seeds * by_seed)
    return Noise(seeds * by_seed, max(0.0, by_picture - both), pictures, seeds * both)


def pooled(noises: Sequence[Noise]) -> Noise | None:
    """The mean of the noise of several arms; None without any."""
    if not noises:
        return None
    seed, shared, within = (float(np.mean([getattr(one, key) for one in noises])) for key in _VARIANCES)
    return Noise(seed, shared, round(float(np.mean([one.pictures for one in noises]))), within)


def detectable(noise: Noise, seeds: int, arms: int) -> float | None:
    """The smallest true difference of one arm that a study with so many seeds supports with 80 % power.

    Args:
        seeds: of each arm.
        arms: that are compared with the baseline, this one among them.

    Returns:
        ``None`` below six seeds, with which no difference can be supported however large it is.
    """
    total = noise.seed + noise.shared
    if seeds < FEWEST:
        return None
    if total <= 0:
        return 0.0
    within = round(min(noise.within, noise.seed) / total, 1)
    place = noise.shared / total * GRID
    ends = [
        _in_deviations(seeds, arms, min(GRID, math.floor(place) + i) / GRID, noise.pictures, within) for i in (0, 1)
    ]
    return math.sqrt(total * float(np.interp(place % 1, (0, 1), np.square(ends))))


@lru_cache(maxsize=4096)
def _in_deviations(seeds: int, arms: int, shared: float, pictures: int, within: float) -> float:
    """What ``detectable`` finds for a variance of 1, of which pictures make a share."""
    baseline, _ = _others(seeds, arms)
    rng = np.random.default_rng([2025, seeds])
    own = (baseline + rng.normal(size=baseline.shape)) / math.sqrt(2)
    means = math.sqrt(1 - shared) * own + math.sqrt(shared) * rng.normal(size=(STUDIES, 1))
    least = _t_limits(means, pictures, within / seeds, shared, 1 if pictures == 1 else arms)
    low, high = 0.0, 1.0
    while _power(means + high, least, arms) < POWER:
        low, high = high, 2 * high
    for _ in range(STEPS):
        middle = (low + high) / 2
        low, high = (middle, high) if _power(means + middle, least, arms) < POWER else (low, middle)
    return high


def _power(means: np.ndarray, least: np.ndarray, arms: int) -> float:
    """Share of studies that support an arm with these (studies, seeds) differences."""
    seeds = means.shape[1]
    explained = _explained(means)
    own = explained >= explained[:, :1] * (1 - EQUAL)
    beaten = own | (_others(seeds, arms)[1] >= explained[:, :1])
    return float(np.mean((beaten.mean(1) <= LEVEL) & (np.abs(means.mean(1)) >= least)))


def _t_limits(means: np.ndarray, pictures: int, both: float, shared: float, tests: int) -> np.ndarray:
    """(studies) the mean difference from which on the t-test supports it; see ``inference.spread``.

    Args:
        means: (studies, seeds) differences.
        both: variance of the mean that seeds and pictures have together.
        shared: variance of the mean by the pictures that were asked.
        tests: for how many the t-test is corrected.
    """
    studies, seeds = means.shape
    by_seed = means.var(1, ddof=1) / seeds
    variance, freedom = by_seed, np.full(studies, seeds - 1.0)
    if pictures > 1:
        rng, crossed = np.random.default_rng([2026, seeds]), (seeds - 1) * (pictures - 1)
        by_picture = (shared + both) * rng.chisquare(pictures - 1, studies) / (pictures - 1)
        together = both * rng.chisquare(crossed, studies) / crossed
        sums = by_seed + by_picture - together
        terms = by_seed**2 / (seeds - 1) + by_picture**2 / (pictures - 1) + together**2 / crossed
        more = by_picture > together
        variance = np.where(more, sums, by_seed)
        freedom = np.where(more, np.maximum(1.0, sums**2 / np.maximum(terms, 1e-300)), freedom)
    grid = np.geomspace(1.0, max(2.0, freedom.max()), 40)
    quantiles = [t_quantile(1 - LEVEL / 2 / tests, float(one)) for one in grid]
    return np.sqrt(variance) * np.exp(np.interp(np.log(freedom), np.log(grid), np.log(quantiles)))


@lru_cache(maxsize=32)
def _others(seeds: int, arms: int) -> tuple[np.ndarray, np.ndarray]:
    """(studies, seeds) noise of the baseline, and (studies, flips) the largest statistic of arms without an effect."""
    rng = np.random.default_rng([2024, seeds])
    baseline = rng.normal(size=(STUDIES, seeds))
    greatest = np.zeros((STUDIES, len(_few_flips(seeds))))
    for _ in range(min(arms - 1, MOST_OTHERS)):
        greatest = np.maximum(greatest, _explained(baseline + rng.normal(size=baseline.shape)))
    return baseline, greatest


def _explained(means: np.ndarray) -> np.ndarray:
    """(studies, seeds) differences -> (studies, flips) share of their squares that the mean of each flip explains; with
    equally many seeds that orders flips as ``inference.extremeness`` does.
    """
    squares = means.shape[1] * (means**2).sum(1, keepdims=True)
    return (means @ _few_flips(means.shape[1]).T) ** 2 / np.maximum(squares, 1e-300)


@lru_cache(maxsize=32)
def _few_flips(seeds: int) -> np.ndarray:
    every = flips(seeds) if seeds <= MOST_EXACT else None
    if every is not None and len(every) <= FLIPS:
        return every
    drawn = 1.0 - 2.0 * np.random.default_rng([2024, seeds]).integers(0, 2, (FLIPS - 1, seeds))
    return np.concatenate([np.ones((1, seeds)), drawn])


_VARIANCES = ("seed", "shared", "within")
