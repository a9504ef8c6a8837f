"""Two ranks of which one sees a picture whenever the other sees none: no rank hangs, and gradients are those of one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from beni.config.compose import compose
from distributed.processes import run_ranks

pytestmark = pytest.mark.slow

PROGRAM = Path(__file__).with_name("modalities.py")
STEPS = 200
PLANS = {
    "frozen": ("train.plan.vision=frozen",),
    "frozen and sharded": ("train.plan.vision=frozen", "fsdp.frozen=shard"),
    "trained": ("train.plan.vision=full",),
    "lora": ("train.plan.vision=lora", "adapter=lora", "adapter.targets=[q_proj,v_proj]"),
}


PERCEIVER = ("resampler=perceiver", "resampler.num_latents=3", "resampler.num_heads=2", "resampler.head_dim=8")


@pytest.fixture
def gradients(tiny_values, tmp_path):
    """gradients(values, **settings) -> (losses, gradient of each step) of one process, and of two."""

    def run(values, **settings):
        seen = []
        for world, mode in ((1, "none"), (2, "full")):
            composed = compose([*tiny_values, "data.text_share=0.5", *values, f"fsdp={mode}"])
            out = tmp_path / f"seen-{world}"
            ranks = run_ranks(PROGRAM, {"run": composed, **settings}, out, world, 300)
            assert all(rank["losses"] == ranks[0]["losses"] for rank in ranks)
            seen.append((ranks[0]["losses"], joined([np.load(f"{out}.{rank}.npz") for rank in range(world)])))
        return seen

    return run


def joined(ranks):
    """Whole gradients, one row a step; a parameter is sharded by its first dimension."""
    columns = {}
    for key in ranks[0].files:
        kind, name = key.split(":")
        columns[name] = np.concatenate([rank[key] for rank in (ranks if kind == "part" else ranks[:1])], axis=1)
    return np.concatenate([columns[name] for name in sorted(columns)], axis=1)


def agree(alone, shared, steps):
    (losses, expected), (theirs, found) = alone, shared
    assert len(expected) == len(found) == steps
    np.testing.assert_allclose(theirs, losses, rtol=1e-6)
    size = np.linalg.norm(expected, axis=1)
    assert size.min() > 0
    assert (np.linalg.norm(found - expected, axis=1) / size).max() <= 1e-6


@pytest.mark.parametrize("plan", PLANS)
def test_opposite_modalities(gradients, plan):
    seen = gradients(PLANS[plan], steps=STEPS, turns=[[True, False]], alternate=True)
    agree(*seen, STEPS)


@pytest.mark.parametrize(
    "values",
    [PERCEIVER, (*PERCEIVER, "train.plan.vision=frozen", "train.plan.llm=frozen")],
    ids=["all train", "llm and encoder frozen"],
)
def test_the_last_micro_batch_has_no_picture(gradients, values):
    """What a picture alone has a gradient for is summed over ranks in the same step all the same."""
    seen = gradients(values, steps=6, turns=[[True, True], [False, False]], alternate=False)
    agree(*seen, 6)
