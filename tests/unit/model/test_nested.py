"""Nested numbers of visual tokens in a model: drawn by sample, counted in the text, billed in the plan."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from beni.model.costing.table import propagate, spec_table

SIZES = ("vision.image_size=24", "vision.architecture.patch_size=6")
MQT = ("resampler=mqt", "resampler.max_queries=9", "resampler.num_queries=9", "resampler.num_heads=4")
OPTIONS = {"m3": ("resampler=m3",), "mqt": (*MQT, "resampler.nested=[1,2,4,9]")}
NUMBERS = {"m3": {1, 4, 16}, "mqt": {1, 2, 4, 9}}


@pytest.mark.parametrize("option", OPTIONS)
@torch.no_grad()
def test_training_sees_every_number_and_evaluation_its_own(tiny_run, tiny_model, steps_of, option):
    overrides = (*SIZES, *OPTIONS[option], "data.text_share=0", "data.pictures_share=0")
    model = tiny_model(*overrides)
    steps = steps_of(tiny_run(*overrides), model)
    seen = set()
    for step in range(6):
        for batch in steps[step]:
            assert torch.isfinite(model(**batch.model_inputs()).loss)
            is_image = (batch.input_ids[0] == model.config.image_token_id).int()
            seen |= {int(is_image[a:b].sum()) for a, b in pairwise(batch.cu_seqlens.tolist())}
    assert seen == NUMBERS[option]
    picture = torch.randn(2, 3, 24, 24)
    assert model.encode_images(picture).mask.sum(1).tolist() == [max(NUMBERS[option])] * 2


@torch.no_grad()
def test_a_sample_is_predicted_alike_at_its_scale_in_any_company(tiny_run, tiny_model, steps_of):
    overrides = (*SIZES, *OPTIONS["m3"], "data.text_share=0")
    model = tiny_model(*overrides)
    steps = steps_of(tiny_run(*overrides), model)
    from beni.data.batch.collate import collate

    items = [item for index in range(4) for item in steps.items(0, index)[0]]
    assert len({image.layout.scale for item in items for image in item.images}) > 1
    together = model(**collate(items, "packed", 0).model_inputs()).logits
    apart = torch.cat([model(**collate([item], "padded", 0).model_inputs()).logits for item in items])
    torch.testing.assert_close(together, apart, rtol=1e-4, atol=1e-4)


def test_the_plan_bills_all_scales_or_the_mean_of_those_that_are_drawn(tiny_run):
    def trained(train):
        run = tiny_run(*SIZES, "resampler=m3", f"resampler.train={train}")
        model = propagate(run)
        image = model.views.plan((24, 24))
        return spec_table(model, run, 40, 10, image)

    fixed, sample, every = trained("fixed"), trained("sample"), trained("all")
    assert fixed.prefill_flops == sample.prefill_flops == every.prefill_flops
    assert sample.train_flops_per_sample < fixed.train_flops_per_sample < every.train_flops_per_sample
    assert every.train_flops_per_sample == pytest.approx(3 * sample.train_flops_per_sample, rel=1e-6)
