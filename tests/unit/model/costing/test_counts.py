"""The FLOPs of a micro-batch against torch's counter over a real forward and backward pass."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from beni.llm import segment_attention
from beni.measure.flops import count_training_flops, counting
from beni.model.build import build
from beni.model.costing.counts import Costs
from beni.model.costing.flop_count import FlopCount
from beni.model.costing.table import propagate
from beni.training.blocks import recompute, recomputing
from beni.training.step import forward_backward

STATES = {
    "connector": "llm=frozen,vision=frozen",
    "connector and llm": "llm=full,vision=frozen",
    "everything": "llm=full,vision=full",
    "vision under a frozen llm": "llm=frozen,vision=full",
    "adapters in the llm": "llm=lora,vision=frozen",
    "adapters in both": "llm=lora,vision=lora",
    "resampler alone": "llm=frozen,vision=frozen,connector=frozen",
    "llm alone": "llm=full,vision=frozen,connector=frozen,resampler=frozen",
    "adapters alone": "llm=lora,vision=frozen,connector=frozen,resampler=frozen",
    "vision alone": "llm=frozen,vision=full,connector=frozen,resampler=frozen",
}
SMALL = ("resampler.num_latents=4", "resampler.num_heads=2", "resampler.head_dim=8", "train.batch_size=4")
CPU = torch.device("cpu")
COMPOSED = {}
"""Overrides -> run; the plan is changed in a copy."""


def counting_kept_attention():
    """Counts CPU attention as the one operation that a selective policy keeps, four products back."""
    kept, backward = (getattr(torch.ops.aten, FUSED + end) for end in ("", "_backward"))
    return FlopCounterMode(
        display=False,
        custom_mapping={
            kept: lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v),
            backward: lambda gradient, q, k, v, *_, **__: 2 * sdpa_flop_count(q, k, v),
        },
    )


FUSED = "_scaled_dot_product_flash_attention_for_cpu"


def with_a_text(batch):
    """The packed batch and, behind it, a sample without a picture."""
    text = torch.arange(100, 113)[None]
    labels = torch.where(text > 108, text, -100)
    return replace(
        batch,
        input_ids=torch.cat([batch.input_ids, text], 1),
        labels=torch.cat([batch.labels, labels], 1),
        position_ids=torch.cat([batch.position_ids, text - 100], 1),
        cu_seqlens=F.pad(batch.cu_seqlens, (0, 1), value=batch.input_ids.shape[1] + 13),
    )


def without_pictures(batch):
    """Its samples with words in the place of pictures."""
    words = batch.input_ids.clamp(min=100)
    return replace(batch, input_ids=words, pixels=None, layouts=(), owners=None, pixel_keys=())


@pytest.fixture
def counted(monkeypatch, steps_of, tiny_run):
    """counted(state, *overrides) -> (flop_count, what torch counts) of the first micro-batch, changed by ``change``."""
    monkeypatch.setattr(segment_attention, "WASTE", 1.0)  # no padding inside attention

    def count(state, *overrides, mode="none", change=lambda batch: batch, small=SMALL):
        adapter = ("adapter=lora", "train.plan.llm=lora", "adapter.targets=[q_proj,v_proj]")
        values = ("resampler=perceiver", *adapter, *small, *overrides)
        run = deepcopy(COMPOSED.get(values) or COMPOSED.setdefault(values, tiny_run(*values)))
        run["train"]["plan"] |= dict(one.split("=") for one in STATES[state].split(","))
        model, twin = build(run), propagate(run)
        batch = change(steps_of(run, model)[0][0])
        again, kept = partial(recomputing, mode=mode) if mode != "none" else None, mode == "selective"
        flop_count = Costs(twin, model.config.image_token_id, again, kept).flop_count(batch)
        recompute(model.layers_with_gradient(), mode)
        with counting_kept_attention() if kept else counting() as counter:
            forward_backward(model, [batch], 0, CPU, "fp32")
        return flop_count, counter.get_total_flops()

    return count


@pytest.mark.parametrize("state", STATES)
def test_a_bill_is_what_torch_counts(counted, state):
    flop_count, flops = counted(state, change=with_a_text)
    assert flop_count.padding == flop_count.recomputed == 0
    assert flop_count.useful == pytest.approx(flops, rel=0.001)


@pytest.mark.parametrize("state", ["connector", "llm alone"])
def test_without_pictures_vision_costs_nothing(counted, state):
    flop_count, flops = counted(state, change=without_pictures)
    assert flop_count.useful == flop_count.components["llm"] == pytest.approx(flops, rel=0.001)


@pytest.mark.parametrize("name", ["Attended", "Listener"])
@pytest.mark.parametrize("overrides", [(), ("train.plan.llm=full",), ("compute.layout=padded",)], ids=str)
def test_what_stages_read_beside_features_is_billed(monkeypatch, steps_of, tiny_run, name, overrides):
    """Attention of the encoder's last layer, and a pass of the llm over prompts."""
    monkeypatch.setattr(segment_attention, "WASTE", 1.0)
    monkeypatch.setenv("BENI_TRUSTED", "support.")
    run = tiny_run("vision.architecture.patch_size=6", "train.plan.vision=frozen", *overrides)
    run["selector"] = {"_target_": f"support.stages.{name}"}
    model = build(run)
    batch = steps_of(run, model)[0][0]
    flop_count = Costs(propagate(run), model.config.image_token_id).flop_count(batch)
    with counting() as counter:
        forward_backward(model, [batch], 0, CPU, "fp32")
    within = 0.03 if "compute.layout=padded" in overrides else 0.001  # then prompts are padded too, which nobody bills
    assert flop_count.useful + flop_count.padding == pytest.approx(counter.get_total_flops(), rel=within)
    plain = tiny_run("vision.architecture.patch_size=6", "train.plan.vision=frozen", *overrides)
    bare = Costs(propagate(plain), model.config.image_token_id).flop_count(steps_of(plain, build(plain))[0][0])
    component = "vision" if name == "Attended" else "llm"
    assert flop_count.components[component] > bare.components[component]


def test_a_frozen_llm_that_only_reads_text_has_no_backward_pass(counted):
    text, _ = counted("connector", change=without_pictures)
    seen, _ = counted("connector")
    assert 2 * text.components["llm"] < seen.components["llm"] < 3 * text.components["llm"]


def test_padding_is_billed_apart(counted):
    packed, _ = counted("everything")
    padded, flops = counted("everything", "compute.layout=padded")
    assert padded.components == packed.components
    assert padded.padding > 0
    assert padded.useful + padded.padding == pytest.approx(flops, rel=0.001)


@pytest.mark.parametrize("state", ["connector", "adapters in both"])
def test_recomputation_is_billed_apart(counted, state):
    plain, _ = counted(state)
    flop_count, flops = counted(state, mode="full")
    assert flop_count.components == plain.components
    assert flop_count.recomputed > 0
    assert flop_count.useful + flop_count.recomputed == pytest.approx(flops, rel=0.001)


def test_padding_that_is_computed_again_is_billed_as_such(counted):
    flop_count, flops = counted("everything", "compute.layout=padded", mode="full")
    assert flop_count.padding > 0
    assert flop_count.useful + flop_count.padding + flop_count.recomputed == pytest.approx(flops, rel=0.001)


@pytest.mark.parametrize("state", ["connector", "everything"])
def test_attention_that_is_kept_is_not_billed_again(counted, state):
    flop_count, flops = counted(state, mode="selective")
    assert flop_count.recomputed > 0
    assert flop_count.recomputed == pytest.approx(flops - flop_count.useful, rel=0.001)


MIXTRAL = ("llm.architecture.model_type=mixtral", "++llm.architecture.num_local_experts=4")


def test_a_mixture_of_experts_is_billed_what_torch_counts(counted, monkeypatch):
    from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

    plain = ALL_EXPERTS_FUNCTIONS["batched_mm"]  # torch does not count its grouped products
    monkeypatch.setitem(ALL_EXPERTS_FUNCTIONS._global_mapping, "grouped_mm", plain)
    flop_count, flops = counted("everything", *MIXTRAL, change=with_a_text)
    assert flop_count.useful == pytest.approx(flops, rel=0.001)


MAMBA = (
    *("llm.architecture.model_type=mamba2", "llm.architecture.hidden_size=32", "llm.architecture.num_hidden_layers=2"),
    *("++llm.architecture.num_heads=4", "++llm.architecture.head_dim=16"),
    *("++llm.architecture.state_size=64", "++llm.architecture.n_groups=1", "++llm.architecture.chunk_size=64"),
    "llm.attn_implementation=eager",
)


def test_an_llm_that_works_in_chunks_is_billed_its_chunks(tiny_run):
    run = tiny_run("train.plan.llm=full", "train.plan.vision=frozen", *MAMBA)
    rate = Costs(propagate(run), 0)._llm(True, None).useful
    llm = propagate(run).llm

    def counted(length):
        with torch.device("meta"):
            embeds = torch.empty(1, length, llm.hidden_size, requires_grad=True)
        run = llm.dry_run(embeds, 5)
        return count_training_flops(lambda: [run()])[1]

    for lengths in ([20], [65], [128], [30, 300]):
        assert rate.of(lengths, 5 * len(lengths)) == pytest.approx(sum(map(counted, lengths)), rel=0.01)


def test_a_prompt_is_billed_to_the_stage_that_reads_it(counted):
    small = ("hidden_size=32", "depth=2", "num_queries=4", "num_heads=2", "intermediate_size=64")
    override = ["resampler=qformer_instruct", *(f"resampler.{one}" for one in small), "train.batch_size=1"]
    flop_count, flops = counted("everything", *override, small=())
    assert flop_count.useful == pytest.approx(flops, rel=0.001)


def test_causal_attention_is_half_of_its_products(counted, steps_of):
    flop_count, _ = counted("connector", "train.batch_size=1")
    longer, _ = counted("connector", "train.batch_size=1", change=with_a_text)
    # two layers of 32, forward and backward: two products each way forward, four back, 2 FLOPs each
    assert longer.causal - flop_count.causal == pytest.approx(2 * 32 * 13**2 * 2 * (2 + 4) / 2, rel=0.1)


def test_what_begins_to_train_is_billed_after_a_recount(tiny_run, steps_of, tiny_model):
    frozen = tiny_run("train.plan.llm=frozen", "train.plan.vision=frozen")
    model = tiny_model("train.plan.llm=full", "train.plan.vision=frozen")
    batch = steps_of(frozen, model)[0][0]
    image = model.config.image_token_id
    costs, fresh = (Costs(propagate(run), image) for run in (frozen, tiny_run("train.plan.vision=frozen")))
    before = costs.flop_count(batch).useful
    costs.recount({name for name, p in model.named_parameters() if p.requires_grad})
    assert before < costs.flop_count(batch).useful == fresh.flop_count(batch).useful


def test_an_encoder_whose_last_map_is_one_cell_is_billed(tiny_run):
    """In training mode its BatchNorm refuses one picture of one value a channel; a run never uses that mode."""
    run = tiny_run("vision.image_size=16")
    run["vision"]["architecture"] = {"model_type": "levit", "image_size": 16, "hidden_sizes": [16, 16, 16]}
    model = propagate(run)
    image = model.views.plan((16, 16))
    assert model.specs["vision"].n == 1
    assert Costs(model).prefill(image, 8, 2)["vision"] > 0


def test_bills_add_up():
    one = FlopCount.of(range(10))
    assert (one + one).values() == [2 * value for value in range(10)]
    assert (one + one).useful == 2 * one.useful == 2 * sum(range(7))
