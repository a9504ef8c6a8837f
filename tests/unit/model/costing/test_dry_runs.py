"""Parts that are run without values: what passes a gradient on, a fusion's own layers, and what cannot be counted."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from beni.data.batch.collate import collate
from beni.errors import CompositionError
from beni.llm import segment_attention
from beni.measure.flops import counting
from beni.model.build import build
from beni.model.costing.counts import Costs
from beni.model.costing.table import propagate, spec_table
from beni.training.blocks import recompute, recomputing
from beni.training.step import forward_backward
from support.options import node
from support.shrink import shrink_stage
from support.small_model import together

FROZEN = ("train.plan.vision=frozen", "train.plan.llm=frozen")
FINE = ("vision.architecture.patch_size=6",)
ROOM = ("llm.architecture.max_position_embeddings=2048", "template.max_length=2048")
PERCEIVER = ("resampler=perceiver", "resampler.num_latents=4", "resampler.num_heads=2", "resampler.head_dim=8")
CROSSED = {"_target_": "support.cross_fusion.CrossFusion"}
JOINED = ("views=anyres", "views.canvases=[[1,2],[2,1]]", "views.join=true", "views.newline=false")


@pytest.fixture
def compared(monkeypatch, steps_of):
    """compared(run) -> (bill, what torch counts) of a micro-batch, its first one or that of chosen items."""
    monkeypatch.setattr(segment_attention, "WASTE", 1.0)  # no padding inside attention
    monkeypatch.setenv("BENI_TRUSTED", "support.")

    def compare(run, mode="none", chosen=None):
        model, layout = build(run), run["compute"]["layout"]
        steps = steps_of(run, model)
        items = [steps.items(0, index)[0][0] for index in range(8)]
        batch = steps[0][0] if chosen is None else collate([one for one in items if chosen(one)], layout, 0)
        again = partial(recomputing, mode=mode) if mode != "none" else None
        flop_count = Costs(propagate(run), model.config.image_token_id, again).flop_count(batch)
        recompute(model.layers_with_gradient(), mode)
        with counting() as counter:
            forward_backward(model, [batch], 0, torch.device("cpu"), "fp32")
        return flop_count, counter.get_total_flops()

    return compare


@pytest.mark.parametrize("views", [(), ("views.newline=true",), JOINED], ids=["none", "newline", "joined"])
def test_what_views_learn_asks_a_gradient_of_the_parts_behind_it_alone(tiny_run, compared, views):
    """Of the connector's first product where views are joined before it, and not for a newline that joins behind it."""
    run = tiny_run(*FROZEN, *FINE, "connector=mlp2x_gelu", "template.max_length=2048", *views)
    flop_count, flops = compared(run)
    assert flop_count.useful == flops
    assert (flop_count.components["connector"] % 3 == 0) == (views == JOINED)


def test_gates_and_auxiliary_losses_have_a_backward_pass(tiny_run, compared):
    run = tiny_run(*FROZEN, *FINE, *PERCEIVER)
    run["selector"] = {"_target_": "support.stages.Weighed"}
    flop_count, flops = compared(run)
    assert flop_count.components["selector"] > 0
    assert flop_count.useful == pytest.approx(flops, rel=0.001)


OWN = ("cross_fusion", "flamingo", "mllama", "hyper", "hybrid")


@pytest.fixture(params=OWN)
def crossed(request, tiny_run, monkeypatch):
    """crossed(*overrides) -> a run whose fusion puts layers of its own around those of the llm."""
    monkeypatch.setenv("BENI_TRUSTED", "support.")

    def make(*overrides):
        run = tiny_run(*FINE, *ROOM, "llm.architecture.num_hidden_layers=3", "data.pictures_share=0.6", *overrides)
        run["fusion"] = dict(CROSSED)
        if (option := request.param) != "cross_fusion":
            run["fusion"] = shrink_stage("fusion", option, node("fusion", option)) | {"sees": "all"}
        run |= together("fusion", option)
        return run

    return make


PLANS = {
    "all": ("train.plan.vision=full", "train.plan.llm=full"),
    "all but the backbones": FROZEN,
    "the fusion": (*FROZEN, "train.plan.connector=frozen"),
    "the llm": ("train.plan.vision=frozen", "train.plan.llm=full", "train.plan.connector=frozen"),
    "the connector": (*FROZEN, "train.plan.fusion=frozen"),
}


@pytest.mark.parametrize("plan", ["all", "all but the backbones"])
@pytest.mark.parametrize("option", ["deepstack", "deepstack_views", "sva"])
def test_what_is_added_at_positions_of_images_is_billed_what_torch_counts(option, tiny_run, compared, plan):
    run = tiny_run(*FINE, *ROOM, *PLANS[plan], "llm.architecture.num_hidden_layers=4", "data.pictures_share=0.6")
    run["fusion"] = shrink_stage("fusion", option, node("fusion", option))
    run["vision"]["levels"] = [0] if option == "deepstack" else []
    run |= together("fusion", option)
    one = iter([True])
    flop_count, flops = compared(run, chosen=lambda item: len(item.images) == 2 and next(one, False))
    assert (flop_count.components["fusion"] > 0) == (option != "deepstack_views")  # which adds, and makes no product
    assert flop_count.useful == pytest.approx(flops, rel=0.001)


@pytest.mark.slow
@pytest.mark.parametrize("plan", PLANS)
def test_a_fusions_own_layers_are_billed_what_torch_counts(crossed, compared, plan):
    run = crossed(*PLANS[plan])
    one = iter([True])
    flop_count, flops = compared(run, chosen=lambda item: len(item.images) == 2 and next(one, False))
    assert flop_count.components["fusion"] > 0
    if "hyper" in run["fusion"]["_target_"] and plan == "the connector":
        # too much: a gradient of the first layer's queries, which none of them wants
        assert flops < flop_count.useful < 1.03 * flops
        return
    assert flop_count.useful == pytest.approx(flops, rel=0.001)


@pytest.mark.slow
def test_a_fusions_own_layers_are_computed_again_like_those_of_the_llm(crossed, compared):
    one, two = iter([True]), iter([True])
    plain, _ = compared(crossed(*FROZEN), chosen=lambda item: bool(item.images) and next(one, False))
    flop_count, flops = compared(crossed(*FROZEN), "full", lambda item: bool(item.images) and next(two, False))
    assert flop_count.components == plain.components
    assert flop_count.useful + flop_count.recomputed == pytest.approx(flops, rel=0.001)


def test_without_pictures_a_fusions_own_layers_cost_nothing(crossed, compared):
    run = crossed(*FROZEN, "data.text_share=0.5", "data.pictures_share=0")
    flop_count, flops = compared(run, chosen=lambda item: not item.images)
    assert flop_count.components["fusion"] == 0
    assert flop_count.useful == flop_count.components["llm"] == pytest.approx(flops, rel=0.001)


@pytest.mark.slow
def test_the_plan_of_a_fusion_with_layers_of_its_own_is_its_bill(crossed, steps_of):
    run = crossed(*FROZEN)
    model, planned = build(run), propagate(run)
    steps = steps_of(run, model)
    item = next(one for one in (steps.items(0, index)[0][0] for index in range(8)) if len(one.images) == 1)
    batch = collate([item], "packed", 0)
    table = spec_table(planned, run, batch.num_tokens, batch.num_labels, batch.layouts[0])
    flop_count = Costs(planned, model.config.image_token_id).flop_count(batch)
    assert table.train_flops_per_sample == flop_count.useful
    rows = {row.stage: row for row in table.rows}
    assert rows["fusion"].parameters > 0
    assert 0 < rows["fusion"].flops < flop_count.components["fusion"]


def test_a_part_that_reads_values_to_decide_what_it_computes_is_refused_by_name(tiny_run, monkeypatch):
    monkeypatch.setenv("BENI_TRUSTED", "support.")
    run = tiny_run()
    run["selector"] = {"_target_": "support.stages.Peeking"}
    model = propagate(run)
    with pytest.raises(
        CompositionError, match=r"^E-FLOPS \[selector\]: selector cannot be run without values.*\n  fix:"
    ):
        Costs(model).prefill(model.views.plan((48, 48)), 40, 4)


def test_pictures_of_a_kind_are_looked_at_once(tiny_run, steps_of, tiny_model, monkeypatch):
    run, model = tiny_run("data.text_share=0"), tiny_model()
    batch = steps_of(run, model)[0][0]
    costs = Costs(propagate(run), model.config.image_token_id)
    first, asked = costs.flop_count(batch), []
    monkeypatch.setattr(type(costs.twin), "row_specs", lambda *_: asked.append(1))
    assert costs.flop_count(batch) == first
    assert not asked
