"""Scores of an arm over its seeds, and paired differences between arms with their intervals and tests (inference.py).

- An observation of a pair is one example under one seed: the same id answered by both arms, trained with the same
  seed (hence the same data order and the same initial weights of what they share).
- Two levels of chance: which seed was drawn, and which examples were asked. With two seeds or more the standard error
  is clustered by seed and holds for the pictures that were asked, the interval for others too; with one seed nothing
  can be said about the first.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from beni.analysis.inference import LEVEL, holm, interval, largest, sign_flip, step_down, t_test
from beni.analysis.power import Noise, detectable, noise_of
from beni.runs.answers import Answers
from beni.runs.read import Arm, Run, number


@dataclass(frozen=True)
class Summary:
    """A metric of one arm.

    Args:
        values: seed -> value, finished runs only.
        mean: mean over seeds, ``None`` without a value.
        sd: standard deviation over seeds (divisor n - 1), ``None`` with fewer than two.
    """

    values: Mapping[int | None, float]
    mean: float | None
    sd: float | None


@dataclass(frozen=True)
class Difference:
    """Arm minus baseline, over pairs that share seed and example.

    Args:
        mean: mean over all pairs.
        se: standard error clustered by seed, ``None`` with fewer than two seeds.
        per_seed: seed -> mean difference of its pairs.
        pairs: number of (seed, example) pairs; 0 when the metric has no row per example and seeds alone are paired.
        examples: distinct example ids among the pairs.
        clusters: distinct pictures (the ``cluster`` of a row) among the pairs.
        sd_seeds: standard deviation of the per-seed means, ``None`` with one seed.
        sd_examples: standard deviation of the pairs around the mean of their seed, ``None`` without pairs.
        unpaired: seeds that finished in one of the two arms only.
        unmatched: examples, over the shared seeds, that were scored in one of the two arms only, and left out.
        low: lower end of the 95 % interval over seeds and pictures; ``None`` where nothing can be resampled.
        high: upper end of it.
        p: two-sided sign-flip permutation test of the per-seed means, or a t-test over seeds and pictures where its p
            is larger; ``None`` with one seed.
        p_t: of that t-test, ``None`` where there is none.
        p_adjusted: ``p`` after correction for all arms that are compared with the baseline: by step-down for the
            sign-flip tests, by Holm for the t-tests.
        noise: its components, ``None`` with one seed.
        mde: smallest true difference that as many seeds support with 80 % power (power.py), at this noise and for as
            many arms; ``None`` below six seeds, and where nothing was corrected.
        supported: whether the interval is clear of 0 and ``p_adjusted`` at most 0.05; ``None`` where one is unknown.
    """

    mean: float
    se: float | None
    per_seed: Mapping[int | None, float]
    pairs: int
    examples: int
    clusters: int
    sd_seeds: float | None
    sd_examples: float | None
    unpaired: tuple[int | None, ...] = ()
    unmatched: int = 0
    low: float | None = None
    high: float | None = None
    p: float | None = None
    p_t: float | None = None
    p_adjusted: float | None = None
    noise: Noise | None = None
    mde: float | None = None
    supported: bool | None = None

    def describe(self) -> str:
        """Both levels in words."""
        seeds = len(self.per_seed)
        if self.sd_seeds is None:
            first = "1 seed: variation between seeds unknown"
        else:
            first = f"{seeds} seeds, sd {self.sd_seeds:.3f} between seeds"
        if not self.pairs:
            second = "no per-example scores: whole runs are paired"
        else:
            second = f"{self.pairs} pairs ({self.examples} examples of {self.clusters} images)"
            second += f", sd {self.sd_examples:.3f} between examples" if self.sd_examples is not None else ""
            if self.unmatched:
                second += f"; {self.unmatched} examples scored in one arm only are left out"
        alone = ", ".join(str(seed) for seed in self.unpaired)
        return f"{first}; {second}" + (f"; unpaired seed {alone} is left out" if alone else "")


def metric_value(run: Run, metric: str) -> float | None:
    """A metric at the end of a run: from status.json, else the last line that has it, else from the example rows."""
    found = number(run.status.get(metric))
    if found is None:
        series = run.series(metric)
        found = series[-1][1] if series else None
    if found is None:
        rows = answered(run, metric)
        found = float(np.mean(rows[1])) if rows else None
    return found if found is not None and math.isfinite(found) else None


def variant_metric(metric: str, variant: str) -> str:
    """``eval/accuracy/color``, ``blank`` -> ``eval/accuracy_blank/color``: the same questions about other pictures."""
    head, slash, rest = metric.partition("/")
    name, kind_slash, kind = rest.partition("/")
    return f"{head}{slash}{name.partition('_')[0]}_{variant}{kind_slash}{kind}"


def answered(run: Run, metric: str) -> tuple[Answers, np.ndarray] | None:
    """Answers of the last evaluation and the value of an ``eval/`` metric for each, those without a finite one left
    out; ``None`` when the metric has no row per example.
    """
    head, _, rest = metric.partition("/")
    name, _, kind = rest.partition("/")
    base, _, variant = name.partition("_")
    if head != "eval" or base not in ("accuracy", "loss"):
        return None
    answers = run.answers(variant or "true")
    if answers is None:
        return None
    kept = np.isfinite(answers.score if base == "accuracy" else answers.loss)
    if kind:
        kept &= np.fromiter((one == kind for one in answers.kinds), dtype=bool, count=len(answers.kinds))
    answers = answers.only(np.flatnonzero(kept))
    return (answers, answers.score if base == "accuracy" else answers.loss) if answers.ids else None


def example_values(run: Run, metric: str) -> dict[str, float]:
    """example id -> value of an ``eval/`` metric in the last evaluation; empty when it has no row per example."""
    found = answered(run, metric)
    return {} if found is None else dict(zip(found[0].ids, found[1].tolist(), strict=True))


def summarize(arm: Arm, metric: str) -> Summary:
    """Mean and standard deviation of a metric over the finished seeds of an arm."""
    found = {seed: metric_value(run, metric) for seed, run in arm.finished.items()}
    values = {seed: value for seed, value in found.items() if value is not None}
    return Summary(values, *_mean_sd(list(values.values())))


@dataclass(frozen=True, eq=False)
class Pairs:
    """Paired differences of two arms.

    Args:
        per_seed: seed -> mean difference of its pairs.
        sums: (seeds, pictures) of the differences.
        counts: (seeds, pictures) how many each sum holds.
        squares: sum of the squares of all differences.
        examples: distinct ids.
        unmatched: examples, over the shared seeds, that were scored in one of the two arms only.
    """

    per_seed: Mapping[int | None, float]
    sums: np.ndarray
    counts: np.ndarray
    squares: float
    examples: int
    unmatched: int


def pairs_of(arm: Arm, baseline: Arm, metrics: tuple[str, str]) -> Pairs | None:
    """Differences over the seeds and example ids that two arms share; ``None`` without any.

    Args:
        metrics: of the one and of the other.
    """
    found: dict[int | None, tuple[Answers, np.ndarray]] = {}
    unmatched = 0
    for seed in arm.finished:
        if seed not in baseline.finished:
            continue
        mine, yours = answered(arm.finished[seed], metrics[0]), answered(baseline.finished[seed], metrics[1])
        if mine is None or yours is None:
            unmatched += sum(len(one[0].ids) for one in (mine, yours) if one is not None)
            continue
        (answers, ours), (others, theirs) = mine, yours
        if answers.ids != others.ids:
            shared, here, there = np.intersect1d(answers.ids, others.ids, assume_unique=True, return_indices=True)
            unmatched += len(answers.ids) + len(others.ids) - 2 * len(shared)
            answers, ours, theirs = answers.only(here), ours[here], theirs[there]
        if answers.ids:
            found[seed] = (answers, ours - theirs)
    if not found:
        return None
    per_seed = {seed: float(values.mean()) for seed, (_, values) in found.items()}
    squares = sum(float((values**2).sum()) for _, values in found.values())
    every = [answers.ids for answers, _ in found.values()]
    examples = len(every[0]) if all(one == every[0] for one in every) else len(set().union(*every))
    return Pairs(per_seed, *_sums(list(found.values())), squares, examples, unmatched)


def paired_difference(arm: Arm, baseline: Arm, metric: str, against: str | None = None) -> Difference | None:
    """Arm minus baseline over shared seeds and example ids; ``None`` when they share no finished seed.

    Args:
        against: metric of the baseline; None for the same one.
    """
    metrics = (metric, against or metric)
    unpaired = tuple(sorted(set(arm.finished) ^ set(baseline.finished), key=lambda seed: (seed is None, seed or 0)))
    pairs = pairs_of(arm, baseline, metrics)
    if pairs is None:
        return _whole_runs(arm, baseline, metrics, unpaired)
    sums, counts = pairs.sums, pairs.counts
    means, of_seed = list(pairs.per_seed.values()), counts.sum(1)
    total = int(counts.sum())
    mean = float(sums.sum() / total)
    ends = interval(sums, counts)
    p_t = t_test(sums, counts) if len(means) > 1 else None
    within = max(0.0, pairs.squares - float((np.square(means) * of_seed).sum()))
    return Difference(
        mean=mean,
        se=_clustered_se(sums.sum(1) - mean * of_seed, total),
        per_seed=pairs.per_seed,
        pairs=total,
        examples=pairs.examples,
        clusters=sums.shape[1],
        sd_seeds=_mean_sd(means)[1],
        sd_examples=math.sqrt(within / (total - len(means))) if total > len(means) else None,
        unpaired=unpaired,
        unmatched=pairs.unmatched,
        low=None if ends is None else ends[0],
        high=None if ends is None else ends[1],
        p=largest(sign_flip(means), p_t),
        p_t=p_t,
        noise=noise_of(sums, counts),
    )


def corrected(differences: Sequence[Difference | None]) -> list[Difference | None]:
    """Differences of several arms to one baseline -> the same with ``p_adjusted``, ``supported`` and ``mde``."""
    flips = step_down([{} if one is None else one.per_seed for one in differences])
    ts = holm([None if one is None else one.p_t for one in differences])
    arms = sum(one is not None and one.p is not None for one in differences)
    made: list[Difference | None] = []
    for one, p in zip(differences, map(largest, flips, ts), strict=True):
        if one is None or one.low is None or one.high is None or p is None:
            made.append(one)
        else:
            mde = None if one.noise is None else detectable(one.noise, len(one.per_seed), arms)
            supported = not one.low <= 0 <= one.high and p <= LEVEL
            made.append(replace(one, p_adjusted=p, supported=supported, mde=mde))
    return made


def lower_is_better(metric: str) -> bool:
    """Whether a metric is a loss, and not a score."""
    return any(part.startswith("loss") for part in metric.split("/"))


def _sums(found: Sequence[tuple[Answers, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """(seeds, pictures) sums of differences and how many each holds."""
    first = found[0][0]
    if all(answers.clusters == first.clusters for answers, _ in found):
        codes, width = first.codes
        sums = np.stack([np.bincount(codes, values, width) for _, values in found])
        return sums, np.tile(np.bincount(codes, minlength=width).astype(float), (len(found), 1))
    columns = {one: i for i, one in enumerate(dict.fromkeys(one for answers, _ in found for one in answers.clusters))}
    sums, counts = np.zeros((2, len(found), len(columns)))
    for row, (answers, values) in enumerate(found):
        codes = [columns[one] for one in answers.clusters]
        np.add.at(sums[row], codes, values)
        np.add.at(counts[row], codes, 1)
    return sums, counts


def whole_differences(arm: Arm, baseline: Arm, metrics: tuple[str, str]) -> dict[int | None, float]:
    """Seed -> difference of a metric that exists once a run, over the seeds for which both have it."""
    sides = tuple(zip((arm, baseline), metrics, strict=True))
    seeds = [seed for seed in arm.finished if seed in baseline.finished]
    ends = {seed: [metric_value(side.finished[seed], one) for side, one in sides] for seed in seeds}
    return {seed: ours - theirs for seed, (ours, theirs) in ends.items() if ours is not None and theirs is not None}


def _whole_runs(
    arm: Arm, baseline: Arm, metrics: tuple[str, str], unpaired: tuple[int | None, ...]
) -> Difference | None:
    """The difference where a metric exists only once a run (for instance ``train/loss``)."""
    per_seed = whole_differences(arm, baseline, metrics)
    mean, sd = _mean_sd(list(per_seed.values()))
    if mean is None:
        return None
    se = None if sd is None else sd / math.sqrt(len(per_seed))
    values = np.array(list(per_seed.values()))[:, None]
    low, high = interval(values, np.ones_like(values)) or (None, None)
    noise, p = noise_of(values, np.ones_like(values)), sign_flip(list(per_seed.values()))
    return Difference(mean, se, per_seed, 0, 0, 0, sd, None, unpaired, low=low, high=high, p=p, noise=noise)


def _clustered_se(residuals: np.ndarray, total: int) -> float | None:
    """Cluster-robust standard error of a mean, one group a seed: sqrt(S/(S-1) * sum_s (sum_i d_si - mean)^2) / n.

    With equally many pairs a seed it is the standard deviation of the per-seed means over sqrt(S).

    Args:
        residuals: (seeds) sums of the differences, less the mean of each.
        total: pairs over all seeds.
    """
    seeds = residuals.size
    return None if seeds < 2 else math.sqrt(seeds / (seeds - 1) * float((residuals**2).sum())) / total


def _mean_sd(values: list[float]) -> tuple[float | None, float | None]:
    if not values:
        return None, None
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else None
