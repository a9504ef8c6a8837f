"""Scores of an arm over its seeds, and paired differences between arms with their intervals and tests (inference.py).

- An observation of a pair is one example under one seed: the same id answered by both arms, trained with the same
  seed (hence the same data order and the same initial weights of what they share).
- Two levels of chance: which seed was drawn, and which examples were asked. With two seeds or more the standard error
  is clustered by seed and holds for the pictures that were asked, the interval for others too; with one seed nothing
  can be said about the first.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from beni.analysis.inference import FEWEST, LEVEL, detectable, holm, interval, largest, sign_flip, step_down, t_test
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
        mde: smallest true difference that as many seeds find with 80 % power at 5 % (two-sided), ``None`` with one
            seed.
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
        rows = example_values(run, metric)
        found = float(np.mean(list(rows.values()))) if rows else None
    return found if found is not None and math.isfinite(found) else None


def variant_metric(metric: str, variant: str) -> str:
    """``eval/accuracy/color``, ``blank`` -> ``eval/accuracy_blank/color``: the same questions about other pictures."""
    head, slash, rest = metric.partition("/")
    name, kind_slash, kind = rest.partition("/")
    return f"{head}{slash}{name.partition('_')[0]}_{variant}{kind_slash}{kind}"


def example_values(run: Run, metric: str) -> dict[str, float]:
    """example id -> value of an ``eval/`` metric in the last evaluation; empty when it has no row per example."""
    head, _, rest = metric.partition("/")
    name, _, kind = rest.partition("/")
    base, _, variant = name.partition("_")
    field = {"accuracy": "score", "loss": "loss"}.get(base)
    if head != "eval" or field is None:
        return {}
    rows = run.examples(variant or "true")
    values = {key: number(row.get(field)) for key, row in rows.items() if not kind or row.get("kind") == kind}
    return {key: value for key, value in values.items() if value is not None and math.isfinite(value)}


def summarize(arm: Arm, metric: str) -> Summary:
    """Mean and standard deviation of a metric over the finished seeds of an arm."""
    found = {seed: metric_value(run, metric) for seed, run in arm.finished.items()}
    values = {seed: value for seed, value in found.items() if value is not None}
    return Summary(values, *_mean_sd(list(values.values())))


def paired_difference(arm: Arm, baseline: Arm, metric: str, against: str | None = None) -> Difference | None:
    """Arm minus baseline over shared seeds and example ids; ``None`` when they share no finished seed.

    Args:
        against: metric of the baseline; None for the same one.
    """
    metrics = (metric, against or metric)
    seeds = [seed for seed in arm.finished if seed in baseline.finished]
    unpaired = tuple(sorted(set(arm.finished) ^ set(baseline.finished), key=lambda seed: (seed is None, seed or 0)))
    pairs: dict[int | None, np.ndarray] = {}
    pictures: dict[int | None, list[str]] = {}
    ids: set[str] = set()
    unmatched = 0
    for seed in seeds:
        sides = zip((arm, baseline), metrics, strict=True)
        ours, theirs = (example_values(side.finished[seed], one) for side, one in sides)
        shared = sorted(ours.keys() & theirs.keys())
        unmatched += len(ours.keys() ^ theirs.keys())
        if shared:
            pairs[seed] = np.array([ours[key] - theirs[key] for key in shared])
            rows = arm.finished[seed].examples("true")
            ids.update(shared)
            pictures[seed] = [str(rows.get(key, {}).get("cluster", key)) for key in shared]
    if not pairs:
        return _whole_runs(arm, baseline, metrics, seeds, unpaired)
    per_seed = {seed: float(values.mean()) for seed, values in pairs.items()}
    total = sum(values.size for values in pairs.values())
    mean = float(sum(values.sum() for values in pairs.values()) / total)
    sums = _sums(pairs, pictures)
    ends = interval(*sums)
    sd_seeds = _mean_sd(list(per_seed.values()))[1]
    p_t = t_test(*sums) if len(per_seed) > 1 else None
    spread = sum(float(((values - values.mean()) ** 2).sum()) for values in pairs.values())
    return Difference(
        mean=mean,
        se=_clustered_se(list(pairs.values()), mean),
        per_seed=per_seed,
        pairs=total,
        examples=len(ids),
        clusters=len({one for of_seed in pictures.values() for one in of_seed}),
        sd_seeds=sd_seeds,
        sd_examples=math.sqrt(spread / (total - len(pairs))) if total > len(pairs) else None,
        unpaired=unpaired,
        unmatched=unmatched,
        low=None if ends is None else ends[0],
        high=None if ends is None else ends[1],
        p=largest(sign_flip(list(per_seed.values())), p_t),
        p_t=p_t,
        mde=None if sd_seeds is None else detectable(sd_seeds, len(per_seed)),
    )


def corrected(differences: Sequence[Difference | None]) -> list[Difference | None]:
    """Differences of several arms to one baseline -> the same with ``p_adjusted`` and ``supported``."""
    flips = step_down([{} if one is None else one.per_seed for one in differences])
    ts = holm([None if one is None else one.p_t for one in differences])
    made: list[Difference | None] = []
    for one, p in zip(differences, map(largest, flips, ts), strict=True):
        if one is None or one.low is None or one.high is None or p is None:
            made.append(one)
        else:
            made.append(replace(one, p_adjusted=p, supported=not one.low <= 0 <= one.high and p <= LEVEL))
    return made


def ranked(arms: Sequence[Arm], metric: str) -> tuple[tuple[str, ...], ...] | None:
    """Labels in groups, the best first, of which any two of different groups differ, on the pictures that were asked,
    by the sign-flip test over shared seeds, corrected for all pairs by step-down; ``None`` where that is one group.
    """
    scores = [(arm.label, summarize(arm, metric)) for arm in arms]
    known = [(label, score) for label, score in scores if score.mean is not None]
    known.sort(key=lambda one: one[1].mean or 0.0, reverse=not lower_is_better(metric))
    pairs = [(i, j) for j in range(len(known)) for i in range(j)]
    longest = max((len(score.values) for _, score in known), default=0)
    if not pairs or longest < FEWEST:
        return None
    apart = np.ones((len(known), len(known)), dtype=bool)
    adjusted = step_down([_apart(known[i][1], known[j][1]) for i, j in pairs])
    for (i, j), p in zip(pairs, adjusted, strict=True):
        apart[i, j] = p is not None and p <= LEVEL
    cuts = [0, *(cut for cut in range(1, len(known)) if apart[:cut, cut:].all()), len(known)]
    if len(cuts) == 2:
        return None
    return tuple(tuple(label for label, _ in known[a:b]) for a, b in itertools.pairwise(cuts))


def lower_is_better(metric: str) -> bool:
    """Whether a metric is a loss, and not a score."""
    return any(part.startswith("loss") for part in metric.split("/"))


def _apart(one: Summary, other: Summary) -> dict[int | None, float]:
    return {seed: one.values[seed] - other.values[seed] for seed in one.values if seed in other.values}


def _sums(
    pairs: Mapping[int | None, np.ndarray], pictures: Mapping[int | None, list[str]]
) -> tuple[np.ndarray, np.ndarray]:
    """(seeds, pictures) sums of differences and how many each holds."""
    columns = {one: i for i, one in enumerate(dict.fromkeys(one for of_seed in pictures.values() for one in of_seed))}
    sums, counts = np.zeros((2, len(pairs), len(columns)))
    for row, (seed, values) in enumerate(pairs.items()):
        at = [columns[one] for one in pictures[seed]]
        np.add.at(sums[row], at, values)
        np.add.at(counts[row], at, 1)
    return sums, counts


def _whole_runs(
    arm: Arm, baseline: Arm, metrics: tuple[str, str], seeds: list[int | None], unpaired: tuple[int | None, ...]
) -> Difference | None:
    """The difference where a metric exists only once a run (for instance ``train/loss``)."""
    sides = tuple(zip((arm, baseline), metrics, strict=True))
    ends = {seed: [metric_value(side.finished[seed], one) for side, one in sides] for seed in seeds}
    per_seed = {seed: ours - theirs for seed, (ours, theirs) in ends.items() if None not in (ours, theirs)}
    mean, sd = _mean_sd(list(per_seed.values()))
    if mean is None:
        return None
    se = None if sd is None else sd / math.sqrt(len(per_seed))
    values = np.array(list(per_seed.values()))[:, None]
    low, high = interval(values, np.ones_like(values)) or (None, None)
    mde = None if sd is None else detectable(sd, len(per_seed))
    p = sign_flip(list(per_seed.values()))
    return Difference(mean, se, per_seed, 0, 0, 0, sd, None, unpaired, low=low, high=high, p=p, mde=mde)


def _clustered_se(groups: list[np.ndarray], mean: float) -> float | None:
    """Cluster-robust standard error of a mean, one group a seed: sqrt(S/(S-1) * sum_s (sum_i d_si - mean)^2) / n.

    With equally many pairs a seed it is the standard deviation of the per-seed means over sqrt(S).
    """
    seeds, total = len(groups), sum(values.size for values in groups)
    if seeds < 2:
        return None
    return math.sqrt(seeds / (seeds - 1) * sum(float((values - mean).sum()) ** 2 for values in groups)) / total


def _mean_sd(values: list[float]) -> tuple[float | None, float | None]:
    if not values:
        return None, None
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else None
