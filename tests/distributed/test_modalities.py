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


@pytest.mark.parametrize("plan", PLANS)
def test_opposite_modalities(tiny_values, tmp_path, plan):
    values = (*tiny_values, "data.text_share=0.5", *PLANS[plan])
    seen = {}
    for world, mode in ((1, "none"), (2, "full")):
        run = compose([*values, f"fsdp={mode}"])
        out = tmp_path / f"seen-{world}"
        seen[world] = run_ranks(PROGRAM, {"run": run, "steps": STEPS}, out, world, 300), np.load(f"{out}.0.npy")
    (alone, expected), (ranks, found) = seen[1], seen[2]
    assert len(expected) == len(found) == STEPS
    for rank in ranks:
        np.testing.assert_allclose(rank["losses"], alone[0]["losses"], rtol=1e-6)
    size = np.linalg.norm(expected, axis=1)
    assert size.min() > 0
    assert (np.linalg.norm(found - expected, axis=1) / size).max() <= 1e-6
