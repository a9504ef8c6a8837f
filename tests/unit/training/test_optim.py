"""The schedule's values, and which parameters decay."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from beni.config.schema import COMPONENTS
from beni.training.optim import build_optimizer, learning_rate
from beni.training.step import clip_and_update

SETTINGS = {
    "lr": 1.0,
    "lr_scale": dict.fromkeys(COMPONENTS, 1.0),
    "min_lr": 0.1,
    "warmup_ratio": 0.2,
    "weight_decay": 0.3,
    "betas": [0.9, 0.95],
    "eps": 1e-8,
    "clip": 0,
}


def test_the_rate_rises_linearly_then_falls_as_a_cosine_to_its_least():
    rates = [learning_rate(step, 11, SETTINGS) for step in range(11)]
    assert rates[:3] == pytest.approx([0.5, 1.0, 1.0])  # two warm-up steps, then the peak
    assert rates[6] == pytest.approx(0.55)  # half way down
    assert rates[10] == pytest.approx(0.1)
    assert all(a > b for a, b in pairwise(rates[2:]))


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_short_runs_have_a_finite_rate(steps):
    rates = [learning_rate(step, steps, SETTINGS | {"warmup_ratio": 0.0}) for step in range(steps)]
    assert rates[0] == 1.0
    assert all(0.1 <= rate <= 1.0 for rate in rates)


def test_without_warmup_the_first_rate_is_the_peak():
    assert learning_rate(0, 10, SETTINGS | {"warmup_ratio": 0.0}) == 1.0


def test_matrices_decay_and_norms_biases_and_embeddings_do_not(tiny_model):
    model = tiny_model("train.plan.vision=frozen", "resampler=perceiver", "resampler.num_heads=2")
    optimizer = build_optimizer(model, SETTINGS)
    names = {id(p): n for n, p in model.named_parameters()}
    decay = {names[id(p)]: group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert set(decay) == {n for n, p in model.named_parameters() if p.requires_grad}
    assert decay["llm.model.model.layers.0.self_attn.q_proj.weight"] == 0.3
    assert decay["connector.layers.0.weight"] == 0.3
    assert decay["llm.model.model.embed_tokens.weight"] == 0
    assert decay["llm.model.model.norm.weight"] == 0
    assert decay["connector.layers.0.bias"] == 0
    assert decay["resampler.norm.weight"] == 0


def test_a_tied_embedding_is_optimized_once_and_does_not_decay(tiny_model):
    model = tiny_model("llm.architecture.tie_word_embeddings=true")
    optimizer = build_optimizer(model, SETTINGS)
    weight = model.llm.model.lm_head.weight
    holding = [g["weight_decay"] for g in optimizer.param_groups for p in g["params"] if p is weight]
    assert holding == [0.0]


def test_each_component_learns_at_its_own_multiple_of_the_rate(tiny_model):
    """AdamW's first step moves every weight by its rate, whatever the gradient (decay off)."""
    model = tiny_model()
    scales = SETTINGS["lr_scale"] | {"llm": 0.25, "connector": 2.0}
    optimizer = build_optimizer(model, SETTINGS | {"lr_scale": scales, "weight_decay": 0.0})
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.ones_like(parameter)
    clip_and_update(model, optimizer, 1e-3, clip=0)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            moved = (before[name] - parameter.detach()).abs()
            expected = 1e-3 * scales[name.partition(".")[0]]
            torch.testing.assert_close(moved, torch.full_like(moved, expected), rtol=1e-3, atol=1e-6)
