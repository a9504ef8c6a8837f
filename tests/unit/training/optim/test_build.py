"""Which parameters an optimizer takes at which rate and decay, and what its steps are."""

from __future__ import annotations

import math
from importlib.util import find_spec

import pytest
import torch

from beni.components import COMPONENTS
from beni.hub import OPTIMIZER_PACKAGES
from beni.model.costing.table import propagate
from beni.training.optim.build import build_optimizer, hidden_matrices
from beni.training.step import clip_and_update

SETTINGS = {
    "optimizer": "adamw",
    "lr": 1.0,
    "lr_scale": dict.fromkeys(COMPONENTS, 1.0),
    "layer_decay": {"vision": 1.0, "llm": 1.0},
    "schedule": "cosine",
    "decay_ratio": None,
    "min_lr": 0.1,
    "warmup_ratio": 0.2,
    "weight_decay": 0.3,
    "betas": [0.9, 0.95],
    "eps": 1e-8,
    "clip": 0,
}


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


BARE = {
    "dinov2": (
        {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 24, "patch_size": 12},
        {"cls_token", "mask_token", "position_embeddings"},
    ),
    "swin": (
        {"embed_dim": 16, "depths": [1, 1], "num_heads": [2, 2], "window_size": 3, "image_size": 24, "patch_size": 4},
        {"relative_position_bias_table"},
    ),
    "perceiver": ((), {"latents"}),
    "c_abstractor": (("resampler.side=1",), {"positions.weight"}),
}
"""Backbone or resampler -> a small one, and its tensors of two or more dimensions that nothing is multiplied with."""


@pytest.mark.parametrize("part", BARE)
def test_embeddings_kept_as_bare_tensors_do_not_decay_and_are_left_to_adamw(tiny_run, part):
    small, expected = BARE[part]
    if isinstance(small, dict):
        run = tiny_run("train.plan.vision=full")
        run["vision"] |= {"architecture": {"model_type": part} | small}
    else:
        run = tiny_run(f"resampler={part}", *small)
    model = propagate(run)
    component = model.vision if isinstance(small, dict) else model.resampler
    groups, hidden = build_optimizer(model, SETTINGS).param_groups, hidden_matrices(model)
    decayed = {id(p) for group in groups if group["weight_decay"] for p in group["params"]}
    kept = {n: p for n, p in component.named_parameters() if p.ndim >= 2 and id(p) not in decayed}
    assert {next(end for end in expected if name.endswith(end)) for name in kept} == expected
    assert not any(id(p) in hidden for p in kept.values())


@pytest.mark.parametrize("kind", ["mixtral", "gpt_oss"])
def test_routers_and_stacks_of_experts_decay_and_the_biases_of_experts_do_not(tiny_run, kind):
    run = tiny_run("llm.attn_implementation=eager")
    run["llm"]["architecture"] |= {"model_type": kind, "num_local_experts": 2, "head_dim": 8}
    model = propagate(run)
    groups = build_optimizer(model, SETTINGS).param_groups
    decayed = {id(p) for group in groups if group["weight_decay"] for p in group["params"]}
    bare = {n.rpartition("mlp.")[2]: p for n, p in model.llm.layers()[0].named_parameters() if ".mlp." in f".{n}"}
    biases = {"router.bias", "experts.gate_up_proj_bias", "experts.down_proj_bias"} & bare.keys()
    assert {name for name, p in bare.items() if id(p) not in decayed} == biases
    assert {"experts.gate_up_proj", "experts.down_proj"} < bare.keys()
    router = next(p for name, p in bare.items() if name in ("router.weight", "gate.weight"))
    assert id(router) in hidden_matrices(model)


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


OWN = {
    "adamw": {},
    "adamw_8bit": {},
    "muon": {"momentum": 0.9, "ns_steps": 5},
    "lion": {},
    "adafactor": {"beta2_decay": -0.8, "min_scale": 1e-3, "clip_threshold": 1.0},
}


@pytest.fixture
def step(absent):
    """step(optimizer, model, gradients, rate, **settings) -> the optimizer, after a step for each of ``gradients``."""

    def make(name, model, gradients, rate=0.1, **settings):
        require(name, absent)
        optimizer = build_optimizer(model, SETTINGS | {"optimizer": name} | OWN[name] | settings)
        for gradient in gradients:
            for parameter in model.parameters():
                parameter.grad = gradient(parameter)
            clip_and_update(model, optimizer, rate, clip=0)
        return optimizer

    return make


def require(name, absent):
    if (package := OPTIMIZER_PACKAGES.get(name)) is not None and find_spec(package) is None:
        absent(f"optim={name} needs {package}")


def noise(seed, scale=1.0):
    """Gradients of a seeded normal distribution."""
    generator = torch.Generator().manual_seed(seed)
    return lambda p: scale * torch.randn(p.shape, generator=generator)


def remembered(source):
    """Wraps a gradient so that it is kept by parameter."""
    kept = {}

    def gradient(parameter):
        kept[parameter] = source(parameter)
        return kept[parameter].clone()

    return gradient, kept


MATRIX, VECTOR = "llm.model.model.layers.0.mlp.up_proj.weight", "llm.model.model.norm.weight"


def test_lion_moves_by_the_sign_of_an_interpolation_and_decays_by_rate_times_decay(tiny_model, step):
    model = tiny_model()
    p = dict(model.named_parameters())[MATRIX]
    start = p.detach().clone()
    (one, first), (two, second) = remembered(noise(0)), remembered(noise(1, 0.1))
    optimizer = step("lion", model, [one, two], betas=[0.9, 0.99])
    moment = 0.01 * first[p]
    x = start * (1 - 0.1 * 0.3) - 0.1 * torch.sign(0.1 * first[p])
    x = x * (1 - 0.1 * 0.3) - 0.1 * torch.sign(0.9 * moment + 0.1 * second[p])
    torch.testing.assert_close(p.detach(), x)
    torch.testing.assert_close(optimizer.state[p]["exp_avg"], 0.99 * moment + 0.01 * second[p])


def test_muon_moves_a_matrix_along_its_orthogonalised_moment_by_an_update_of_adamws_size(tiny_model, step):
    model = tiny_model()
    p = dict(model.named_parameters())[MATRIX]
    start, (gradient, kept) = p.detach().clone(), remembered(noise(0))
    step("muon", model, [gradient], weight_decay=0.3)
    update = (start * (1 - 0.1 * 0.3) - p.detach()) / (0.1 * 0.2 * math.sqrt(max(p.shape)))
    u, _, vh = torch.linalg.svd(kept[p], full_matrices=False)
    rotated = u.T @ update @ vh.T  # UV' with singular values near 1: five iterations in bf16 reach 0.7 to 1.2
    assert 0.6 < rotated.diagonal().min() < rotated.diagonal().max() < 1.3
    assert (rotated - rotated.diagonal().diag()).abs().max() < 0.05
    # arXiv 2502.16982, section 2.2: an update's root mean square is 0.2
    assert float((start * (1 - 0.03) - p.detach()).square().mean().sqrt() / 0.1) == pytest.approx(0.2, abs=0.05)


def test_muon_takes_hidden_matrices_and_adamw_the_embeddings_head_latents_norms_and_biases(tiny_model, step):
    model = tiny_model("resampler=perceiver", "resampler.num_heads=2", "train.plan.llm=lora", "adapter=lora")
    optimizer = step("muon", model, [noise(0)])
    names = {p: n for n, p in model.named_parameters()}
    by_muon = {names[p] for p, state in optimizer.state.items() if "momentum_buffer" in state}
    by_adamw = {names[p] for p, state in optimizer.state.items() if "exp_avg_sq" in state}
    assert by_muon | by_adamw == {n for n, p in model.named_parameters() if p.requires_grad}
    assert {n for n in by_muon if not n.endswith("weight")} == set()
    assert "connector.layers.0.weight" in by_muon
    assert "connector.layers.0.bias" in by_adamw
    assert any("lora_A" in n for n in by_muon)
    assert any("latents" in n or "queries" in n for n in by_adamw)
    full = tiny_model()
    optimizer = step("muon", full, [noise(0)])
    for name in ("llm.model.lm_head.weight", "llm.model.model.embed_tokens.weight", VECTOR):
        assert "exp_avg_sq" in optimizer.state[dict(full.named_parameters())[name]], name
    assert "momentum_buffer" in optimizer.state[dict(full.named_parameters())[MATRIX]]


def test_a_matrix_of_one_row_or_column_is_left_to_adamw(tiny_model):
    model = tiny_model("train.plan.llm=lora", "adapter=lora", "adapter.r=1")
    chosen = hidden_matrices(model)
    adapters = [p for n, p in model.named_parameters() if "lora_" in n]
    assert adapters
    assert not any(id(p) in chosen for p in adapters)


@pytest.mark.parametrize("scale", [1.0, 1e-5])  # the second's mean square lies below fp32's machine epsilon
def test_adafactor_divides_by_the_root_of_a_factored_moment_and_scales_by_the_tensors_own(tiny_model, step, scale):
    model = tiny_model()
    named = dict(model.named_parameters())
    starts = {name: named[name].detach().clone() for name in (MATRIX, VECTOR)}
    (one, first), (two, second) = remembered(noise(0, scale)), remembered(noise(1, 0.3 * scale))
    step("adafactor", model, [one, two], rate=0.01)
    for name, start in starts.items():
        x, moment = start, None
        for t, g in enumerate((first[named[name]], second[named[name]]), start=1):
            share, square = t**-0.8, g.square()
            parts = (square.mean(1, keepdim=True), square.mean(0, keepdim=True)) if g.ndim == 2 else (square,)
            moment = (
                parts if moment is None else [(1 - share) * m + share * s for m, s in zip(moment, parts, strict=True)]
            )
            v = moment[0] @ moment[1] / moment[0].mean() if g.ndim == 2 else moment[0]
            u = g / v.sqrt()
            u = u / max(1.0, float(u.square().mean().sqrt()))
            size = max(1e-3, float(x.square().mean().sqrt()))
            x = x * (1 - 0.01 * (0.3 if g.ndim == 2 else 0.0)) - min(0.01, t**-0.5) * size * u
        torch.testing.assert_close(named[name].detach(), x, rtol=1e-4, atol=1e-6)


def test_adamw_in_8_bits_takes_adamws_first_step_and_keeps_moments_of_matrices_in_bytes(tiny_model, step):
    big = "llm.architecture.intermediate_size=128"
    ours, theirs = tiny_model(big), tiny_model(big)
    optimizer = step("adamw_8bit", ours, [noise(0)])
    step("adamw", theirs, [noise(0)])
    for (name, p), q in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-5, msg=name)
    named = dict(ours.named_parameters())
    assert optimizer.state[named[MATRIX]]["state1"].dtype == torch.uint8
    assert optimizer.state[named["llm.model.model.embed_tokens.weight"]]["exp_avg"].dtype == torch.float32


@pytest.mark.parametrize("name", OWN)
def test_every_optimizer_is_one_object_whose_groups_hold_each_parameter_once(tiny_model, absent, name):
    require(name, absent)
    model = tiny_model("train.plan.vision=frozen")
    optimizer = build_optimizer(model, SETTINGS | {"optimizer": name} | OWN[name])
    held = [p for group in optimizer.param_groups for p in group["params"]]
    assert {id(p) for p in held} == {id(p) for p in model.parameters() if p.requires_grad}
    assert len(held) == len(set(held))
    for parameter in held:
        parameter.grad = torch.ones_like(parameter)
    before = [p.detach().clone() for p in held]
    clip_and_update(model, optimizer, 0.0, clip=0)
    assert all(a.equal(p) for a, p in zip(before, held, strict=True))  # the rate of every group is set
    assert all(p.grad is None for p in held)
    assert set(optimizer.state) == set(held)
