"""Whether the statistics of a comparison are what they say: error rates, coverage, power and wrongly dropped arms, over
simulated studies.

A study has seeds, pictures that every seed is asked about, and four questions a picture with answers that are right or
wrong. Arms have noise of their own for every seed, and an arm may be better at some pictures than at others.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence

import numpy as np

from beni.analysis.elimination import eliminate
from beni.analysis.inference import holm, interval, largest, sign_flip, step_down, t_test
from beni.analysis.power import detectable, noise_of, pooled
from harness import write_result

PICTURES, QUESTIONS = 120, 4
MDES = (
    (1, 6, 0.02, 0.0, 6),
    (5, 6, 0.02, 0.0, 6),
    (1, 6, 0.005, 0.05, 6),
    (3, 8, 0.05, 0.05, 8),
    (5, 8, 0.02, 0.0, 8),
    (1, 10, 0.02, 0.0, 10),
    (5, 10, 0.02, 0.0, 10),
    (5, 10, 0.02, 0.1, 10),
    (9, 16, 0.02, 0.0, 16),
    (5, 6, 0.02, 0.0, 3),
    (5, 10, 0.02, 0.05, 3),
)
"""Arms, seeds, deviations of seeds and pictures, and the seeds that the noise is known from."""
Draw = Callable[[np.random.Generator, int, int], tuple[np.ndarray, np.ndarray]]


def differences(
    rng: np.random.Generator, effects: Sequence[float], seeds: int, sd_seed: float, sd_picture: float
) -> np.ndarray:
    """(arms, seeds, pictures) sums of right answers, those of one baseline taken off; an arm for each effect."""
    difficulty = 0.12 * rng.normal(size=PICTURES)

    def right(level: float, own: np.ndarray) -> np.ndarray:
        chance = level + own + difficulty + sd_seed * rng.normal(size=(seeds, 1))
        return rng.binomial(QUESTIONS, np.clip(chance, 0, 1)).astype(float)

    baseline = right(0.5, np.zeros(PICTURES))
    return np.stack([right(0.5 + effect, sd_picture * rng.normal(size=PICTURES)) - baseline for effect in effects])


def coverage(studies: int, seeds: int, effect: float, sd_seed: float, sd_picture: float) -> tuple[float, float]:
    """Shares of studies whose interval holds the true difference, and whose test finds one."""
    rng = np.random.default_rng(seeds)
    held = found = 0
    for _ in range(studies):
        sums = differences(rng, [effect], seeds, sd_seed, sd_picture)[0]
        counts = np.full(sums.shape, float(QUESTIONS))
        low, high = interval(sums, counts) or (0.0, 0.0)
        held += low <= effect <= high
        p = largest(sign_flip(sums.mean(1).tolist()), t_test(sums, counts)) or 1.0
        found += p <= 0.05 and not low <= 0 <= high
    return held / studies, found / studies


def tested(sums: Sequence[np.ndarray] | np.ndarray) -> tuple[list[float], list[float]]:
    """(seeds, pictures) of each arm -> p of each arm alone, and corrected for all."""
    per_seed = [dict(enumerate(one.mean(1).tolist())) for one in sums]
    ts = [t_test(one, np.full(one.shape, float(QUESTIONS))) for one in sums]
    alone = [largest(sign_flip(list(means.values())), t) or 1.0 for means, t in zip(per_seed, ts, strict=True)]
    return alone, [largest(*both) or 1.0 for both in zip(step_down(per_seed), holm(ts), strict=True)]


def power(studies: int, arms: int, seeds: int, effects: Sequence[float]) -> tuple[float, float]:
    """Shares of studies that support the first arm's effect, and that support any arm without one; the first arms have
    effects.
    """
    rng = np.random.default_rng(seeds)
    found = wrong = 0
    for _ in range(studies):
        adjusted = tested(differences(rng, [*effects, *[0.0] * (arms - len(effects))], seeds, 0.02, 0.0))[1]
        found += adjusted[0] <= 0.05
        wrong += min(adjusted[len(effects) :]) <= 0.05
    return found / studies, wrong / studies


def null(studies: int, arms: int, seeds: int, sd_picture: float) -> tuple[float, float]:
    """Shares of studies without any difference where a test finds one: of the first arm alone, and of any after
    correction.
    """
    rng = np.random.default_rng(arms)
    first = family = 0
    for _ in range(studies):
        sums = differences(rng, [0.0] * arms, seeds, 0.02, sd_picture)
        alone, adjusted = tested(sums)
        first += alone[0] <= 0.05
        family += min(adjusted) <= 0.05
    return first / studies, family / studies


def power_at_mde(
    studies: int, arms: int, seeds: int, sd_seed: float, sd_picture: float, known_from: int
) -> tuple[float, float]:
    """The smallest difference that a report calls detectable, at the mean noise of 100 studies with ``known_from``
    seeds, and the share of studies that support it.
    """
    rng = np.random.default_rng(seeds)
    counts = np.full((known_from, PICTURES), float(QUESTIONS))
    noises = [noise_of(differences(rng, [0.0], known_from, sd_seed, sd_picture)[0], counts) for _ in range(100)]
    noise = pooled([one for one in noises if one is not None])
    effect = (detectable(noise, seeds, arms) if noise else None) or 0.0
    counts = np.full((seeds, PICTURES), float(QUESTIONS))
    found = 0
    for _ in range(studies):
        sums = differences(rng, [effect, *[0.0] * (arms - 1)], seeds, sd_seed, sd_picture)
        low, high = interval(sums[0], counts) or (0.0, 0.0)
        found += tested(sums)[1][0] <= 0.05 and not low <= 0 <= high
    return effect, found / studies


def lacking(studies: int, kept: Sequence[int], effect: float) -> tuple[float, float]:
    """Shares of studies whose arms lack seeds that support the first arm's effect, and that support any other arm.

    Args:
        kept: how many seeds each arm has.
    """
    rng = np.random.default_rng(max(kept))
    found = wrong = 0
    for _ in range(studies):
        sums = differences(rng, [effect, *[0.0] * (len(kept) - 1)], max(kept), 0.02, 0.0)
        adjusted = tested([one[:n] for one, n in zip(sums, kept, strict=True)])[1]
        found += adjusted[0] <= 0.05
        wrong += min(adjusted[1:]) <= 0.05
    return found / studies, wrong / studies


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
    for seeds in (6, 10):
        for effects in ((0.04,), (0.06,), (0.1,), (0.1, 0.1)):
            found, wrong = power(studies, 5, seeds, effects)
            what = f"five arms, {seeds} seeds, of which {len(effects)} with an effect of {effects[0]}"
            rows.append((what, f"{found:.3f}", f"{wrong:.3f}"))
    for kept in ((8, 8, 8), (8, 8, 3), (8, 7, 3), (8, 6, 6), (6, 8, 8), (10, 10, 8, 7, 3), (7, 10, 10, 10, 10)):
        for effect in (0.0, 0.06):
            found, wrong = lacking(studies, kept, effect)
            what = f"lacking: arms with {', '.join(map(str, kept))} seeds, the first with an effect of {effect}"
            rows.append((what, f"{found:.3f}", f"{wrong:.3f}"))
    for arms, seeds, sd_seed, sd_picture, known_from in MDES:
        effect, found = power_at_mde(studies, arms, seeds, sd_seed, sd_picture, known_from)
        what = (
            f"MDE: {arms} arms, {seeds} seeds, sd of seeds {sd_seed}, of pictures {sd_picture}, noise of {known_from}"
        )
        rows.append((f"{what} seeds", f"{effect:.3f}", f"{found:.3f}"))
    noises = [(0.0, 0.02, 0.0), (0.005, 0.02, 0.5), (0.02, 0.02, 0.8), (0.1, 0.02, 0.0), (0.05, 0.05, 0.5)]
    draws = {f"gap {gap}, sd {sd}, shared {shared}": normal(gap, sd, shared) for gap, sd, shared in noises}
    for name, draw in (draws | {"heavy tails": heavy, "best arm fails under 20 % of seeds": failing}).items():
        wrong, saved = dropping(studies, draw)
        rows.append((f"dropping: 6 arms, 10 seeds, {name}", f"{wrong:.3f}", f"{saved:.3f}"))
    write_result(
        "study_statistics",
        f"Do the statistics of beni.compare and study.stop hold what they promise, over {studies} simulated studies?",
        ("simulation", "p <= 0.05; covered; found; MDE; best dropped", "any arm; found; wrongly found; runs saved"),
        rows,
        [
            "null: share with p <= 0.05 of one arm, and of any of the arms after correction; "
            "120 pictures with four questions each.",
            "coverage and power: share of 95 % intervals that hold the true difference, and share of studies in which "
            "p <= 0.05 (one arm, nothing corrected) and the interval is clear of 0.",
            "five arms: share of studies in which the first arm's corrected p is at most 0.05, and in which that of an "
            "arm without an effect is.",
            "lacking: the same for arms that lack seeds, for instance since runs failed.",
            "MDE: the difference that a report says is found with 80 % power, at the mean noise of 100 studies, and "
            "the share of studies that support it when it is true of one arm; corrected p and interval as in a report.",
            "dropping: share of studies that drop the best arm at study.stop=0.01, and share of runs that are saved.",
        ],
    )


if __name__ == "__main__":
    main()
