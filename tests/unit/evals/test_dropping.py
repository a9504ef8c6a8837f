"""Visual tokens that are hidden from the llm: how many, which, and that every fusion then reads the others alone."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from beni.data.metric import LossOnly
from beni.evals.ablations import TRUE, Ablation
from beni.evals.dropping import can_drop, dropped, dropping
from beni.evals.scores import score
from beni.types import VisualTokens

QFORMER = [
    *("resampler=qformer_instruct", "resampler.hidden_size=32", "resampler.depth=2", "resampler.num_queries=6"),
    *("resampler.num_heads=4", "resampler.intermediate_size=64"),
]
"""What it makes of a picture depends on what is asked."""

HALF = Ablation("dropped", dropped=0.5)


def test_half_of_the_real_tokens_of_each_row_are_dropped_and_one_stays():
    tokens = VisualTokens.dense(torch.rand(4, 9, 3), (3, 3))
    real = torch.tensor([9, 9, 4, 1])
    tokens = replace(tokens, mask=torch.arange(9) < real[:, None])
    few = dropped(tokens, 0.5)
    assert few.mask.sum(1).tolist() == [5, 5, 2, 1]
    assert (few.laid == tokens.mask).all()
    assert (few.mask[0] == few.mask[1]).all()
    assert (dropped(tokens, 0.5).mask == few.mask).all()


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["fusion=mllama", "fusion.first=0", "fusion.every=1"],
        ["fusion=hyper", "fusion.first=0", "fusion.every=1"],
        ["views=anyres", "views.canvases=[[1,2],[2,1]]", "template.max_length=2048"],
        ["selector=random", "selector.keep=3"],
        ["fusion.image_attention=image"],
        QFORMER,
    ],
    ids=lambda overrides: " ".join(overrides[:2]) or "inline",
)
@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_with_tokens_dropped_a_loss_is_another_one_whatever_the_batch(subject_of, make_sample, overrides, layout):
    samples = [make_sample(i, [(24, 24)] * (i % 3)) for i in range(4)]
    subject = subject_of(*overrides, layout=layout)
    with torch.no_grad():
        for name, parameter in subject.model.fusion.named_parameters():
            if "gate" in name:  # closed at first, where pictures change nothing
                parameter.fill_(0.5)

    def losses(ablation, size):
        return [row["loss"] for row in score(replace(subject, batch_size=size), LossOnly(), samples, ablation)]

    true, half = losses(TRUE, 4), losses(HALF, 4)
    assert half == pytest.approx(losses(HALF, 1), rel=1e-4)
    changed = [a != pytest.approx(b, rel=1e-6) for a, b in zip(true, half, strict=True)]
    assert changed == [bool(one.images) for one in samples]
    assert losses(TRUE, 4) == true  # nothing stays behind


def test_nothing_is_put_before_a_fusion_where_nothing_is_dropped(subject_of):
    fusion = subject_of().model.fusion
    with dropping(fusion, 0.0):
        assert not fusion._forward_pre_hooks
    with dropping(fusion, 0.5):
        assert len(fusion._forward_pre_hooks) == 1
    assert can_drop(fusion)
    assert not fusion._forward_pre_hooks
