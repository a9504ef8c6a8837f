"""Gradients as ranks leave them: run, joined and compared."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from support.processes import run_ranks

PROGRAM = Path(__file__).with_name("gradients.py")


def gradients_of(run, out: Path, world: int, **settings) -> tuple[list[float], np.ndarray]:
    """Losses and gradients (one row a step) of so many ranks."""
    ranks = run_ranks(PROGRAM, {"run": run, **settings}, out, world, 300)
    assert all(rank["losses"] == ranks[0]["losses"] for rank in ranks)
    return ranks[0]["losses"], joined([np.load(f"{out}.{rank}.npz") for rank in range(world)])


def joined(ranks) -> np.ndarray:
    """Whole gradients; a parameter is sharded by its first dimension over the first ranks, the others repeat them."""
    columns = {}
    for key in ranks[0].files:
        size, name = key.split(":")
        together = np.concatenate([rank[key] for rank in ranks], axis=1)
        columns[name] = together[:, : int(size)]
        assert columns[name].shape[1] == int(size)
    return np.concatenate([columns[name] for name in sorted(columns)], axis=1)


def agree(alone, shared, steps, within=1e-6):
    """Losses, and each step's gradient, to ``within`` of their size."""
    (losses, expected), (theirs, found) = alone, shared
    assert len(expected) == len(found) == steps
    np.testing.assert_allclose(theirs, losses, rtol=within)
    size = np.linalg.norm(expected, axis=1)
    assert size.min() > 0
    assert (np.linalg.norm(found - expected, axis=1) / size).max() <= within
