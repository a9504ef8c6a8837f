"""A stage that reads the llm's states of the prompt, on ranks that share the llm's weights: all read, or none hangs."""

from __future__ import annotations

import pytest

from beni.config.compose import compose
from distributed.same_gradients import agree, gradients_of

pytestmark = pytest.mark.slow

TURNS = {"turns": [[True, False], [False, False], [True, True]], "alternate": True}
"""One rank has a picture while the other has none; neither has one; both have."""


@pytest.fixture
def listening(tiny_values, monkeypatch):
    """listening(*overrides) -> a run whose selector reads the prompt's states and text."""
    monkeypatch.setenv("BENI_TRUSTED", "support.")

    def make(*overrides):
        run = compose([*tiny_values, "data.text_share=0.5", *overrides])
        run["selector"] = {"_target_": "support.stages.Listener"}
        return run

    return make


@pytest.mark.parametrize("plan", [("train.plan.llm=full",), ("train.plan.llm=frozen", "fsdp.frozen=shard")])
@pytest.mark.parametrize("mode", ["none", "full"])
def test_two_ranks_with_opposite_modalities_have_the_gradients_of_one(listening, tmp_path, mode, plan):
    alone = [value for value in plan if not value.startswith("fsdp")]
    one = gradients_of(listening(*alone, "fsdp=none"), tmp_path / "one", 1, steps=4, **TURNS)
    recomputing = f"compute.activation_checkpointing={mode}"
    two = gradients_of(listening(*plan, "fsdp=full", recomputing), tmp_path / "two", 2, steps=4, **TURNS)
    agree(one, two, 4)
