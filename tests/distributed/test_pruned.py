"""Image tokens that leave the llm on a rank whose neighbour has no image, and so computes all its layers whole."""

from __future__ import annotations

import pytest

from beni.config.compose import compose
from distributed.same_gradients import agree, gradients_of

pytestmark = pytest.mark.slow

DEEP = ("llm.architecture.num_hidden_layers=4", "vision.architecture.patch_size=6", "data.text_share=0.5")
TURNS = {"turns": [[True, False], [False, False]], "alternate": True}
"""One rank has a picture while the other has none; then neither has one, or both."""


@pytest.mark.parametrize(
    ("pruner", "mode"), [(("pruner=fastv",), "none"), (("pruner=pyramiddrop", "pruner.keep=[0.6,0.4,0.2]"), "full")]
)
def test_two_ranks_with_opposite_modalities_have_the_gradients_of_one(tiny_values, tmp_path, pruner, mode):
    def run(*overrides):
        return compose([*tiny_values, *DEEP, *pruner, *overrides])

    alone = gradients_of(run("fsdp=none"), tmp_path / "one", 1, steps=4, **TURNS)
    sharded = run("fsdp=full", f"compute.activation_checkpointing={mode}")
    agree(alone, gradients_of(sharded, tmp_path / "two", 2, steps=4, **TURNS), 4)
