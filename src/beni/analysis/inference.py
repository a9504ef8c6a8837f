"""How sure a paired difference is, with two levels of chance: which seeds were trained and which pictures were asked.

- Every seed is asked the same pictures, so the two levels are crossed. The variance of the mean is that between seeds,
  plus that between pictures, without what both count (Cameron, Gelbach and Miller 2011, multiway clustering; the
  components are those of a two-way analysis of variance). Its degrees of freedom are Satterthwaite's.
- The bootstrap draws seeds, then pictures (Owen 2007, "The pigeonhole bootstrap", arXiv 0712.1111), and gives BCa
  limits (Efron 1987). Over six seeds these are too narrow: they are stretched about the mean by the t quantile and the
  unbiased standard error, which is the correction of Hesterberg 2015 ("What teachers should know about the bootstrap",
  arXiv 1411.5279) applied to both levels. Measured in benchmarks/study_statistics.py.
- The test flips the signs of the per-seed means, which speaks of the pictures that were asked; where arms are good at
  different pictures it finds that. So its p is never below that of a t-test with the standard error of both levels.
- For several arms the signs of a seed are flipped together, and the largest statistic of the arms that are left is what
  each must beat (Westfall and Young 1993, step-down; Romano and Wolf 2005). Unlike Holm's correction that needs no more
  seeds the more arms there are. Any statistic keeps the error rate; with that of ``extremeness`` an arm that lacks
  seeds costs the others little, and nothing where it has too few to be supported itself. The t-tests are corrected by
  Holm; the larger of both p counts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist
from typing import Any

import numpy as np

DRAWS = 2000
"""Bootstrap samples of an interval."""
MOST_EXACT = 16
"""Seeds up to which all sign flips are tried; beyond, ``FLIPS`` random ones."""
FLIPS = 20_000
LEVEL = 0.05
FEWEST = math.ceil(math.log2(2 / LEVEL))
"""Seeds with which a sign-flip test can reach ``LEVEL``, of one arm or of many."""
EQUAL = 1e-9
"""Relative difference below which rounding is what sets two sums apart."""


@dataclass(frozen=True)
class Spread:
    """Uncertainty of a mean over seeds and pictures.

    Args:
        se: standard error for new seeds and new pictures.
        freedom: its degrees of freedom.
    """

    se: float
    freedom: float


def spread(sums: np.ndarray, counts: np.ndarray) -> Spread | None:
    """(seeds, pictures) -> the standard error of the mean over all pairs.

    Args:
        sums: of the differences of each seed and picture.
        counts: how many differences each sum holds.

    Returns:
        ``None`` with one seed and one picture, of which nothing varies.
    """
    seeds, pictures = sums.shape
    by_seed, by_picture, both = variances(sums, counts)
    if by_seed is None or by_picture is None:
        known = by_seed if by_seed is not None else by_picture
        return None if known is None else Spread(math.sqrt(known), max(seeds, pictures) - 1)
    if by_picture <= both:
        return Spread(math.sqrt(by_seed), seeds - 1)
    variance = by_seed + by_picture - both
    crossed = both**2 / ((seeds - 1) * (pictures - 1))
    terms = by_seed**2 / (seeds - 1) + by_picture**2 / (pictures - 1) + crossed
    return Spread(math.sqrt(variance), max(1.0, variance**2 / terms))


def variances(sums: np.ndarray, counts: np.ndarray) -> tuple[float | None, float | None, float]:
    """(seeds, pictures) -> the variance of the mean between seeds, that between pictures, and what both of them count;
    ``None`` where there is one seed, and one picture.
    """
    seeds, pictures = sums.shape
    total = counts.sum()
    left = sums - sums.sum() / total * counts
    by_seed, by_picture = _between(left.sum(1), total), _between(left.sum(0), total)
    if by_seed is None or by_picture is None:
        return by_seed, by_picture, 0.0
    centred = left - left.mean(0) - left.mean(1, keepdims=True) + left.mean()
    freedom = (seeds - 1) * (pictures - 1)
    return by_seed, by_picture, seeds * pictures / freedom * float((centred**2).sum()) / float(total) ** 2


def interval(sums: np.ndarray, counts: np.ndarray) -> tuple[float, float] | None:
    """(seeds, pictures) -> both ends of the 95 % interval of the mean, the same at every call; see ``spread``."""
    known = spread(sums, counts)
    if known is None:
        return None
    mean = float(sums.sum() / counts.sum())
    drawn = _drawn(sums, counts)
    deviation = float(drawn.std())
    if deviation == 0 or known.se == 0:
        return mean, mean
    low, high = bca(drawn, mean, _acceleration(sums, counts), LEVEL)
    stretch = known.se / deviation * t_quantile(1 - LEVEL / 2, known.freedom) / NormalDist().inv_cdf(1 - LEVEL / 2)
    return mean + stretch * (low - mean), mean + stretch * (high - mean)


def bca(drawn: np.ndarray, value: float, acceleration: float, level: float) -> tuple[float, float]:
    """Bias-corrected and accelerated limits (Efron 1987, equation 2.3), as in ``scipy.stats.bootstrap``.

    Args:
        drawn: values of the bootstrap samples.
        value: that of the data.
        acceleration: sixth of the skewness of the influences.
        level: probability outside of the limits, both sides together.
    """
    normal = NormalDist()
    below = float(np.mean(drawn < value) + np.mean(drawn <= value)) / 2
    bias = normal.inv_cdf(min(max(below, 0.5 / drawn.size), 1 - 0.5 / drawn.size))
    shares = []
    for z in (normal.inv_cdf(level / 2), normal.inv_cdf(1 - level / 2)):
        shares.append(normal.cdf(bias + (bias + z) / (1 - acceleration * (bias + z))))
    low, high = np.quantile(drawn, shares)
    return float(low), float(high)


def sign_flip(means: Sequence[float]) -> float | None:
    """Two-sided p of the differences of each seed under random signs (Fisher 1935); ``None`` with fewer than two.

    Exact up to 16 seeds; the smallest p is 2 / 2^seeds.
    """
    values = np.asarray(means, dtype=float)
    if values.size < 2:
        return None
    return float(np.mean(np.abs(flips(values.size) @ values) >= abs(values.sum()) * (1 - EQUAL) - 1e-12))


def t_test(sums: np.ndarray, counts: np.ndarray) -> float | None:
    """(seeds, pictures) -> two-sided p of the mean for new seeds and new pictures, see ``spread``.

    Args:
        sums: of the differences of each seed and picture.
        counts: how many differences each sum holds.

    Returns:
        ``None`` where nothing varies.
    """
    known = spread(sums, counts)
    if known is None or known.se == 0:
        return None
    return 2 * t_above(abs(float(sums.sum() / counts.sum())) / known.se, known.freedom)


def largest(*ps: float | None) -> float | None:
    """The largest p of those that are known."""
    return max((p for p in ps if p is not None), default=None)


def step_down(differences: Sequence[Mapping[Any, float]]) -> list[float | None]:
    """p of the sign-flip tests of several arms, adjusted for all of them (Westfall and Young 1993, step-down).

    Args:
        differences: seed -> difference, for each arm. An arm may lack seeds that others have.

    Returns:
        ``None`` for an arm with fewer than two seeds; for a single arm, what ``sign_flip`` gives.
    """
    tested = [i for i, one in enumerate(differences) if len(one) > 1]
    adjusted: list[float | None] = [None] * len(differences)
    if not tested:
        return adjusted
    seeds = list(dict.fromkeys(seed for i in tested for seed in differences[i]))
    signs = flips(len(seeds))
    extremes = np.empty((len(tested), len(signs)))
    for row, i in enumerate(tested):
        own = np.array([differences[i].get(seed, 0.0) for seed in seeds])  # a seed that is lacking changes no sum
        extremes[row] = extremeness(signs @ own, float((own**2).sum()), len(differences[i]))
    order = np.argsort(-extremes[:, 0], kind="stable")
    greatest = np.full(len(signs), -np.inf)
    found = np.empty(len(tested))
    for row in order[::-1]:  # from the least: what is left beside each arm is what comes after it
        greatest = np.maximum(greatest, extremes[row])
        found[row] = np.mean(greatest >= extremes[row, 0] * (1 - EQUAL) - 1e-12)
    for row, p in zip(order, np.maximum.accumulate(found[order]), strict=True):
        adjusted[tested[row]] = float(p)
    return adjusted


def extremeness(sums: Any, squares: Any, seeds: int) -> Any:
    """How far from 0 sums of differences are, comparable between arms with unequal numbers of seeds: the square of the
    normal deviate that is as likely as their t (Wallace 1959, approximately).

    An arm whose seeds are too few to reach ``LEVEL`` comes after all others: a large t of three equal signs is chance
    in one of four studies.

    Args:
        sums: of the differences, under some signs.
        squares: sum of the squares of the differences.
        seeds: how many differences there are, two or more.
    """
    freedom = seeds - 1
    explained = np.minimum(sums**2 / (seeds * np.where(squares > 0, squares, 1.0)), 1 - 1e-15)
    deviate = ((8 * freedom + 1) / (8 * freedom + 3)) ** 2 * freedom * -np.log1p(-explained)
    return 1 + deviate if seeds >= FEWEST else deviate / (1 + deviate)


@lru_cache(maxsize=16)
def flips(size: int) -> np.ndarray:
    """(flips, size) of +1 and -1, the first without -1: half of all there are, since their opposites make the same
    sums but for the sign; or that one and random ones.
    """
    if size <= MOST_EXACT:
        bits = np.arange(2 ** (size - 1))[:, None] >> np.arange(size) & 1
        return 1.0 - 2.0 * bits
    drawn = 1.0 - 2.0 * np.random.default_rng([2024, size]).integers(0, 2, (FLIPS, size))
    return np.concatenate([np.ones((1, size)), drawn])


def flip_ranks(sums: np.ndarray, values: np.ndarray, seeds: int) -> np.ndarray:
    """(flips) sums of one arm -> of each, how many are as far from 0, less the share of the squares that its mean
    explains: that is at most 1, and decides between flips of arms whose p is equal as t would.
    """
    sizes = np.abs(sums)
    ascending = np.sort(sizes)
    counts = sizes.size - np.searchsorted(ascending, sizes * (1 - EQUAL) - 1e-12)
    squares = seeds * float((values**2).sum())
    return counts - (sizes**2 / squares if squares > 0 else np.zeros_like(sizes))


def holm(ps: Sequence[float | None]) -> list[float | None]:
    """p-values adjusted for all that are known (Holm 1979); ``None`` stays, and does not count."""
    order = sorted((i for i, p in enumerate(ps) if p is not None), key=lambda i: ps[i] or 0.0)
    adjusted: list[float | None] = [None] * len(ps)
    largest = 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * (ps[index] or 0.0)))
        adjusted[index] = largest
    return adjusted


@lru_cache(maxsize=4096)
def t_quantile(share: float, freedom: float) -> float:
    """Student's t below which a share of 0.5 to 1 lies, with any positive degrees of freedom."""
    low, high = 0.0, math.pi / 2
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if _below(middle, freedom) < share else (low, middle)
    return math.sqrt(freedom) * math.tan(low)


def t_above(value: float, freedom: float) -> float:
    """Probability that Student's t lies above a value."""
    tail = max(0.0, 1 - _below(math.atan(abs(value) / math.sqrt(freedom)), freedom))
    return tail if value >= 0 else 1 - tail


def _below(angle: float, freedom: float) -> float:
    """P(t < sqrt(freedom) tan(angle)): t's density in the angle is proportional to cos(angle)^(freedom - 1)."""
    nodes, weights = _legendre()
    inner = np.cos((nodes + 1) * angle / 2) ** (freedom - 1)
    scale = math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2) - math.log(math.pi) / 2
    return 0.5 + math.exp(scale) * angle / 2 * float(weights @ inner)


@lru_cache(maxsize=1)
def _legendre() -> tuple[np.ndarray, np.ndarray]:
    return np.polynomial.legendre.leggauss(96)


def _between(sums: np.ndarray, total: float) -> float | None:
    """Cluster-robust variance of a mean whose residuals have these sums in the clusters (Miller 2024, arXiv
    2411.00640), with the factor for few clusters.
    """
    n = sums.size
    return None if n < 2 else n / (n - 1) * float((sums**2).sum()) / float(total) ** 2


def _drawn(sums: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Means of samples of seeds, and of pictures, with replacement."""
    seeds, pictures = sums.shape
    of_seeds, of_pictures = _times(seeds, 0), _times(pictures, 1)
    above = ((of_pictures @ sums.T) * of_seeds).sum(1)
    if (counts == counts[0, 0]).all():
        return above / counts.sum()
    below = ((of_pictures @ counts.T) * of_seeds).sum(1)
    return above[below > 0] / below[below > 0]


@lru_cache(maxsize=8)
def _times(size: int, stream: int) -> np.ndarray:
    """(draws, size): how often each of ``size`` is drawn."""
    return np.random.default_rng([2024, stream, size]).multinomial(size, np.full(size, 1 / size), DRAWS).astype(float)


def _acceleration(sums: np.ndarray, counts: np.ndarray) -> float:
    """From the jackknife over seeds and over pictures, as for two samples (Efron and Tibshirani 1993, chapter 14)."""
    cubes = squares = 0.0
    for axis in (0, 1):
        n = sums.shape[1 - axis]
        kept = counts.sum() - counts.sum(axis)
        if n < 2 or (kept <= 0).any():
            continue
        left_out = (sums.sum() - sums.sum(axis)) / kept
        influence = (n - 1) * (left_out.mean() - left_out) / n
        cubes += float((influence**3).sum())
        squares += float((influence**2).sum())
    return cubes / (6 * squares**1.5) if squares > 0 else 0.0
