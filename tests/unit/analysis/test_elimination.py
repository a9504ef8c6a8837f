"""The rule of study.stop; its error rates at length are a benchmark."""

from __future__ import annotations

import numpy as np

from beni.analysis.elimination import Block, eliminate

ARMS = ("a", "b", "c")


def blocks(seeds: int, means: tuple[float, ...], sd: float, seed: int = 0) -> list[Block]:
    scores = np.asarray(means) + sd * np.random.default_rng(seed).normal(size=(seeds, len(means)))
    return [dict(zip(ARMS, row, strict=True)) for row in scores.tolist()]


def test_an_arm_far_behind_is_dropped_within_six_seeds_and_says_by_whom() -> None:
    found = eliminate(ARMS, blocks(6, (0.9, 0.89, 0.4), 0.02), 0.01)
    assert list(found) == ["c"]
    assert found["c"].winner in ("a", "b")
    assert found["c"].bound > 0
    assert f"after {found['c'].seeds} seeds" in str(found["c"])


def test_what_was_decided_stays_when_more_seeds_come_and_a_dropped_arm_needs_none() -> None:
    first = blocks(6, (0.9, 0.89, 0.4), 0.02)
    decided = eliminate(ARMS, first, 0.01)
    later = [{"a": 0.9, "b": 0.9}, {"a": 0.88, "b": 0.9}]
    assert eliminate(ARMS, [*first, *later], 0.01) == decided


def test_a_seed_that_an_arm_lacks_ends_the_look_and_one_that_failed_does_not() -> None:
    full = blocks(8, (0.9, 0.89, 0.4), 0.02)
    assert eliminate(ARMS, [{"a": 0.9, "b": 0.9}, *full], 0.01) == {}
    assert list(eliminate(ARMS, [{"a": 0.9, "b": None, "c": 0.4}, *full], 0.01)) == ["c"]


def test_equal_differences_by_chance_prove_nothing() -> None:
    same: list[Block] = [{"a": 0.9, "b": 0.899, "c": 0.9 + 0.05 * (-1) ** n} for n in range(8)]
    assert eliminate(ARMS, same, 0.01) == {}
    assert eliminate(ARMS, [{"a": 1.0, "b": 0.9, "c": 0.8}] * 8, 0.01) == {}


def test_the_best_of_close_arms_is_hardly_ever_dropped() -> None:
    wrong = sum("a" in eliminate(ARMS, blocks(10, (0.9, 0.899, 0.898), 0.02, seed), 0.01) for seed in range(300))
    assert wrong <= 6
