"""Two ranks of which one sees a picture whenever the other sees none: no rank hangs, and gradients are those of one."""

from __future__ import annotations

import pytest
import torch.nn.functional as F

from beni.config.compose import compose
from distributed.same_gradients import agree, gradients_of

pytestmark = pytest.mark.slow

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

    def run(values, how="full", **settings):
        seen = []
        for world, mode, loss in ((1, "none", "full"), (2, "full", how)):
            mine = [f"fsdp={mode}", *(v for v in values if world == 2 or not v.startswith("fsdp"))]
            composed = compose([*tiny_values, "data.text_share=0.5", *mine, f"compute.loss={loss}"])
            seen.append(gradients_of(composed, tmp_path / f"seen-{world}", world, **settings))
        return seen

    return run


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


def test_gates_whose_tokens_another_rank_alone_has_are_learned_alike(tiny_values, tmp_path, monkeypatch):
    """The gate's weights have a gradient through the gate alone, which a rank without a picture must take part in."""
    monkeypatch.setenv("BENI_TRUSTED", "support.")
    seen = []
    for world, mode in ((1, "none"), (2, "full")):
        run = compose([*tiny_values, "data.text_share=0.5", f"fsdp={mode}"])
        run["selector"] = {"_target_": "support.stages.Gated"}
        turns = {"turns": [[True, False], [False, False]], "alternate": True}
        seen.append(gradients_of(run, tmp_path / f"seen-{world}", world, steps=4, **turns))
    agree(*seen, 4)


@pytest.mark.parametrize("turns", [[[True, False], [False, False]], [[True, True], [True, False]]])
@pytest.mark.parametrize(
    "values",
    [
        ("selector=gate_gumbel",),
        ("selector=gate_gumbel", "selector.phase=drop"),
        ("selector=gate_hard_concrete",),
        ("selector=gate_hardkuma",),
        ("selector=dynamicvit", "selector.hidden=16"),
    ],
    ids=" ".join,
)
def test_gates_are_drawn_and_learned_alike_on_ranks_and_alone(tiny_values, tmp_path, values, turns):
    """What is drawn, losses for how many gates are open, and a multiplier, which a rank without images has too."""
    seen = []
    for world, mode in ((1, "none"), (2, "full")):
        fine = ("vision.architecture.patch_size=6", "llm.architecture.max_position_embeddings=512")
        run = compose([*tiny_values, *fine, "data.text_share=0.5", f"fsdp={mode}", *values])
        dealt = {"turns": turns, "alternate": True}
        seen.append(gradients_of(run, tmp_path / f"seen-{world}", world, steps=4, **dealt))
    agree(*seen, 4, within=1e-5)


@pytest.mark.parametrize(
    ("how", "values"),
    [
        ("chunked", ("llm.architecture.tie_word_embeddings=true",)),
        ("chunked", ("train.plan.llm=frozen", "fsdp.frozen=shard")),
        pytest.param("fused", (), marks=pytest.mark.skipif(not hasattr(F, "linear_cross_entropy"), reason="old torch")),
    ],
    ids=["chunked and tied", "chunked and frozen", "fused"],
)
def test_a_loss_without_logits_has_the_gradient_of_one_with_them(gradients, how, values):
    """Alone with all logits, two ranks without them; the head belongs to a unit of FSDP."""
    seen = gradients(values, how=how, steps=3, turns=[[True, False], [True, True]], alternate=True, piece=3)
    agree(*seen, 3)
