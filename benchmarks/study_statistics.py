"""Whether the statistics of a comparison are what they say: error rates, coverage, power and wrongly dropped arms, over
simulated studies.

A study has seeds, pictures that every seed is asked about, and four questions a picture with answers that are right or
wrong. Arms have noise of their own for every seed, and an arm may be better at some pictures than at others.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import numpy as np

from beni.analysis.elimination import eliminate
from beni.analysis.inference import holm, interval, two_level_p
from harness import write_result

PICTURES, QUESTIONS = 120, 4
Draw = Callable[[np.random.Generator, int, int], tuple[np.ndarray, np.ndarray]]


def differences(
    rng: np.random.Generator, arms: int, seeds: int, effect: float, sd_seed: float, sd_picture: float
) -> np.ndarray:
    """(arms, seeds, pictures) sums of right answers, those of one baseline taken off."""
    difficulty = 0.12 * rng.normal(size=PICTURES)

    def right(level: float, own: np.ndarray) -> np.ndarray:
        chance = level + own + difficulty + sd_seed * rng.normal(size=(seeds, 1))
        return rng.binomial(QUESTIONS, np.clip(chance, 0, 1)).astype(float)

    baseline = right(0.5, np.zeros(PICTURES))
    return np.stack([right(0.5 + effect, sd_picture * rng.normal(size=PICTURES)) - baseline for _ in range(arms)])


def coverage(studies: int, seeds: int, effect: float, sd_seed: float, sd_picture: float) -> tuple[float, float]:
    """Shares of studies whose interval holds the true difference, and whose test finds one."""
    rng = np.random.default_rng(seeds)
    held = found = 0
    for _ in range(studies):
        sums = differences(rng, 1, seeds, effect, sd_seed, sd_picture)[0]
        counts = np.full(sums.shape, float(QUESTIONS))
        low, high = interval(sums, counts) or (0.0, 0.0)
        held += low <= effect <= high
        p = two_level_p(sums.mean(1).tolist(), sums, counts) or 1.0
        found += p <= 0.05 and not low <= 0 <= high
    return held / studies, found / studies


def null(studies: int, arms: int, seeds: int, sd_picture: float) -> tuple[float, float]:
    """Shares of studies without any difference where a test finds one: of the first arm alone, and of any after Holm's
    correction.
    """
    rng = np.random.default_rng(arms)
    first = family = 0
    for _ in range(studies):
        sums = differences(rng, arms, seeds, 0.0, 0.02, sd_picture)
        ps = [two_level_p(one.mean(1).tolist(), one, np.full(one.shape, float(QUESTIONS))) for one in sums]
        first += (ps[0] or 1.0) <= 0.05
        family += any(p is not None and p <= 0.05 for p in holm(ps))
    return first / studies, family / studies


def normal(gap: float, sd: float, shared: float) -> Draw:
    """Arms that are ``gap`` apart, with noise of which a share is common to the arms of a seed."""

    def draw(rng: np.random.Generator, arms: int, seeds: int) -> tuple[np.ndarray, np.ndarray]:
        means = 0.8 - gap * np.arange(arms)
        common, own = rng.normal(size=(seeds, 1)), rng.normal(size=(seeds, arms))
        return means, np.clip(means + sd * (shared**0.5 * common + (1 - shared) ** 0.5 * own), 0, 1)

    return draw


def heavy(rng: np.random.Generator, arms: int, seeds: int) -> tuple[np.ndarray, np.ndarray]:
    """Student's t with three degrees of freedom, and one arm that is slightly better."""
    means = np.array([0.61] + [0.6] * (arms - 1))
    return means, np.clip(means + 0.02 * rng.standard_t(3, size=(seeds, arms)), 0, 1)


def failing(rng: np.random.Generator, arms: int, seeds: int) -> tuple[np.ndarray, np.ndarray]:
    """The best arm fails to train under a fifth of the seeds."""
    means = np.array([0.8] + [0.75] * (arms - 1))
    scores = means + 0.01 * rng.normal(size=(seeds, arms))
    scores[:, 0] += np.where(rng.random(seeds) < 0.2, -0.4, 0.1)
    return means, scores


def dropping(studies: int, draw: Draw, arms: int = 6, seeds: int = 10) -> tuple[float, float]:
    """Shares of studies that drop the best arm, and of runs that are saved, with ``study.stop=0.01``."""
    rng = np.random.default_rng(0)
    names = [str(i) for i in range(arms)]
    wrong = saved = 0.0
    for _ in range(studies):
        means, scores = draw(rng, arms, seeds)
        dropped = eliminate(names, [dict(zip(names, row, strict=True)) for row in scores.tolist()], 0.01)
        wrong += all(names[i] in dropped for i in np.flatnonzero(means == means.max()))
        saved += sum(seeds - one.seeds for one in dropped.values()) / (arms * seeds)
    return wrong / studies, saved / studies


def main() -> None:
    """Simulates, and writes the table."""
    command = argparse.ArgumentParser(description=__doc__)
    command.add_argument("--studies", type=int, default=1000)
    studies = command.parse_args().studies
    rows: list[tuple[str, str, str]] = []
    for arms, seeds, sd in ((1, 6, 0.0), (5, 6, 0.0), (5, 8, 0.0), (5, 10, 0.0), (5, 10, 0.1)):
        one, any_of = null(studies, arms, seeds, sd)
        rows.append((f"null: {arms} arms, {seeds} seeds, sd of pictures {sd}", f"{one:.3f}", f"{any_of:.3f}"))
    for seeds in (3, 6, 10):
        for sd_seed, sd_picture in ((0.005, 0.0), (0.02, 0.0), (0.02, 0.1), (0.05, 0.05)):
            for effect in (0.0, 0.1):
                held, found = coverage(studies, seeds, effect, sd_seed, sd_picture)
                what = f"coverage: {seeds} seeds, sd of seeds {sd_seed}, of pictures {sd_picture}, effect {effect}"
                rows.append((what, f"{held:.3f}", f"{found:.3f}"))
    for effect in (0.01, 0.02, 0.03, 0.04, 0.06, 0.08):
        held, found = coverage(studies, 6, effect, 0.02, 0.0)
        rows.append((f"power: 6 seeds, sd of seeds 0.02, effect {effect}", f"{held:.3f}", f"{found:.3f}"))
    noises = [(0.0, 0.02, 0.0), (0.005, 0.02, 0.5), (0.02, 0.02, 0.8), (0.1, 0.02, 0.0), (0.05, 0.05, 0.5)]
    draws = {f"gap {gap}, sd {sd}, shared {shared}": normal(gap, sd, shared) for gap, sd, shared in noises}
    for name, draw in (draws | {"heavy tails": heavy, "best arm fails under 20 % of seeds": failing}).items():
        wrong, saved = dropping(studies, draw)
        rows.append((f"dropping: 6 arms, 10 seeds, {name}", f"{wrong:.3f}", f"{saved:.3f}"))
    write_result(
        "study_statistics",
        f"Do the statistics of beni.compare and study.stop hold what they promise, over {studies} simulated studies?",
        ("simulation", "p <= 0.05; covered; best dropped", "after Holm; found; runs saved"),
        rows,
        [
            "null: share with p <= 0.05 of one arm, and of any of the arms after Holm; "
            "120 pictures with four questions each.",
            "coverage and power: share of 95 % intervals that hold the true difference, and share of studies in which "
            "p <= 0.05 (one arm, nothing corrected) and the interval is clear of 0.",
            "dropping: share of studies that drop the best arm at study.stop=0.01, and share of runs that are saved.",
        ],
    )


if __name__ == "__main__":
    main()
