"""A part that reads the encoder's attention gets it, from the encoder or a bank; what cannot reach it is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from beni.data.batch.collate import pixel_key
from beni.errors import CompositionError
from beni.model.build import build
from beni.model.costing.counts import Costs
from beni.model.costing.table import propagate
from beni.training.blocks import recompute
from beni.vision.feature_bank import FeatureBank, describe, fingerprint
from support.options import node

FINE = ("vision.architecture.patch_size=6",)


@pytest.fixture
def run(tiny_run, monkeypatch):
    monkeypatch.setenv("BENI_TRUSTED", "support.")

    def make(*overrides):
        run = tiny_run(*FINE, *overrides)
        run["selector"] = {"_target_": "support.stages.Attended"}
        return run

    return make


def pixels(count=3):
    return torch.randn(count, 3, 24, 24, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def test_a_stage_reads_what_the_encoder_computes_and_its_spec_says_so(run):
    model = build(run()).eval()
    model.encode_images(pixels())
    (seen,) = model.selector.seen
    expected = model.vision(pixels())
    assert seen.attn.equal(expected.attn)
    assert seen.keys.equal(expected.keys)
    assert (model.specs["views"].attn, model.specs["views"].keys) == (True, 16)
    assert model.specs["selector"].n == 2


@torch.no_grad()
def test_without_a_reader_nothing_is_computed_and_nothing_installed(tiny_model):
    model = tiny_model(*FINE)
    assert model.vision(pixels()).attn is None
    assert not any("forward" in vars(block) for block in model.vision.blocks())


def test_gradients_of_attention_reach_the_encoder_also_when_its_blocks_are_computed_again(run):
    def gradient(again):
        model = build(run("train.plan.vision=full"))
        if again:
            recompute(model.layers_with_gradient(), "full")
        model.encode_images(pixels())
        (seen,) = model.selector.seen
        (seen.attn.square().sum() + seen.keys.square().sum()).backward()
        return {name: p.grad for name, p in model.vision.named_parameters() if p.grad is not None}

    plain, again = gradient(False), gradient(True)
    assert any("layers.1.self_attn.q_proj" in name for name in plain)
    assert plain.keys() == again.keys()
    for name, expected in plain.items():
        torch.testing.assert_close(again[name], expected, rtol=1e-6, atol=1e-7)


@torch.no_grad()
def test_side_channels_come_back_from_a_bank_and_a_bank_without_them_is_another(run, tiny_model, tmp_path: Path):
    model, plain = build(run()).eval(), tiny_model(*FINE)
    description = describe(model.vision, {}, "fp32")
    assert description["channels"] == ["attn", "keys"]
    assert fingerprint(description) != fingerprint(describe(plain.vision, {}, "fp32"))
    keys = [pixel_key(view) for view in pixels()]
    bank = FeatureBank(tmp_path, description, pytest.fail)
    first, second = (bank.encode(model.vision, pixels(), keys) for _ in range(2))
    bank.close()
    assert bank.hits == 3
    assert second.attn.equal(first.attn)
    assert second.keys.equal(first.keys)


def test_such_a_model_is_planned_and_its_costs_counted(run, steps_of):
    made = run()
    model = build(made)
    batch = steps_of(made, model)[0][0]
    assert Costs(propagate(made), model.config.image_token_id).flop_count(batch).components["vision"] > 0


@pytest.mark.parametrize(
    ("group", "option", "error"),
    [
        ("views", "s2", r"the selector reads attn of the encoder, which does not come through the views\n"),
        ("vision", "efficientnet_lite0", "a part reads attn of the encoder, which EfficientNet does not give"),
    ],
)
def test_what_cannot_reach_the_stage_is_refused_before_any_weight_is_loaded(run, group, option, error):
    made = run()
    made[group] = node(group, option)
    with pytest.raises(CompositionError, match=error) as caught:
        propagate(made)
    assert caught.value.code == "E-SIDE"
    assert caught.value.fix


@torch.no_grad()
def test_several_encoders_give_the_mean_of_their_attention_and_their_keys_side_by_side(run, tiny_run):
    one = tiny_run(*FINE)["vision"] | {"_partial_": True}
    two = one | {"image_size": 48, "architecture": one["architecture"] | {"image_size": 48}}
    made = run()
    made["vision"] = {
        "_target_": "beni.vision.multi.MultiVision",
        "encoders": {"one": one, "two": two},
        "weights": "random",
        "combine": "channels",
        "grid": "auto",
        "norm": False,
    }
    model = build(made).eval()
    assert model.specs["vision"] == replace(model.specs["vision"], dim=64, attn=True, keys=32)
    out = model.vision(torch.randn(2, 3, *model.vision.transform.shape, generator=torch.Generator().manual_seed(0)))
    assert out.keys.shape == (2, 16, 32)
    torch.testing.assert_close(out.attn.sum(1), torch.ones(2))  # also of the one that was brought to a coarser grid
