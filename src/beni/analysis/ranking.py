"""An order of arms, where the noise supports one: by the rule that supports a difference to the baseline."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import cached_property

import numpy as np

from beni.analysis.inference import FEWEST, LEVEL, holm, interval, largest, step_down, t_test
from beni.analysis.stats import lower_is_better, pairs_of, summarize, whole_differences
from beni.runs.read import Arm


class _Pair:
    """Two arms; what is costly is computed when it is asked for."""

    def __init__(self, better: Arm, worse: Arm, metric: str) -> None:
        self._pairs = pairs_of(better, worse, (metric, metric))
        self._sign = -1 if lower_is_better(metric) else 1
        self.per_seed = self._pairs.per_seed if self._pairs else whole_differences(better, worse, (metric, metric))

    @property
    def p_t(self) -> float | None:
        """The p of the t-test over seeds and pictures; None where whole runs are paired, which have signs alone."""
        return t_test(*self._sums) if self._pairs and len(self.per_seed) > 1 else None

    @cached_property
    def clear(self) -> bool:
        """Whether the 95 % interval lies on the side of the better one."""
        ends = interval(*self._sums) if self.per_seed else None
        return ends is not None and min(self._sign * end for end in ends) > 0

    @property
    def _sums(self) -> tuple[np.ndarray, np.ndarray]:
        if self._pairs is not None:
            return self._pairs.sums, self._pairs.counts
        values = np.array(list(self.per_seed.values()))[:, None]
        return values, np.ones_like(values)


def ranked(arms: Sequence[Arm], metric: str) -> tuple[tuple[str, ...], ...] | None:
    """Labels in groups, the best first, of which any two of different groups differ by the rule of
    ``stats.corrected``, with all pairs of arms in the place of all arms; ``None`` where that is one group.
    """
    scores = [(arm, summarize(arm, metric).mean) for arm in arms]
    sign = -1 if lower_is_better(metric) else 1
    known = sorted(((arm, mean) for arm, mean in scores if mean is not None), key=lambda one: -sign * one[1])
    if len(known) < 2 or max(len(arm.finished) for arm, _ in known) < FEWEST:
        return None
    places = [(i, j) for j in range(len(known)) for i in range(j)]
    pairs = [_Pair(known[i][0], known[j][0], metric) for i, j in places]
    flips = step_down([pair.per_seed for pair in pairs])
    cuts = _cuts(len(known), places, [p is not None and p <= LEVEL for p in flips])
    if cuts:  # the t-tests of all pairs, and intervals, are worth their time only now
        ps = map(largest, flips, holm([pair.p_t for pair in pairs]))
        cuts = _cuts(len(known), places, [p is not None and p <= LEVEL for p in ps])
        across = [any(i < cut <= j for cut in cuts) for i, j in places]
        apart = [not asked or pair.clear for asked, pair in zip(across, pairs, strict=True)]
        cuts = [cut for cut in cuts if cut in _cuts(len(known), places, apart)]
    if not cuts:
        return None
    ends = [0, *cuts, len(known)]
    return tuple(tuple(arm.label for arm, _ in known[a:b]) for a, b in itertools.pairwise(ends))


def _cuts(size: int, places: Sequence[tuple[int, int]], apart: Sequence[bool]) -> list[int]:
    """Where an order can be cut: every pair on the two sides is apart."""
    matrix = np.ones((size, size), dtype=bool)
    for (i, j), one in zip(places, apart, strict=True):
        matrix[i, j] = one
    return [cut for cut in range(1, size) if matrix[:cut, cut:].all()]
