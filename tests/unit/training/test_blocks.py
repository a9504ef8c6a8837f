"""Recomputed and compiled layers give the loss and the gradients of plain ones, and keep less."""

from __future__ import annotations

import shutil

import pytest
import torch
import torch._functorch.config
from torch.utils._python_dispatch import TorchDispatchMode

from beni.training.blocks import ATTENTION, PRODUCTS, prepare_blocks, recompute

ADAPTED = ("train.plan.llm=lora", "adapter=lora", "adapter.dropout=0.3", "train.plan.vision=full")


def one_step(model, batch):
    """Loss, gradients, and the bytes that autograd keeps for the backward pass."""
    kept = {}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    model.train()
    torch.manual_seed(0)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = model(**batch.model_inputs()).loss
    loss.backward()
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    activations = sum(size for place, size in kept.items() if place not in weights)
    return {"loss": loss.detach()} | {n: p.grad for n, p in model.named_parameters() if p.grad is not None}, activations


@pytest.fixture
def two_models(tiny_run, tiny_model, steps_of):
    """two_models(*overrides) -> equal models and a batch."""

    def make(*overrides):
        models = [tiny_model(*overrides) for _ in range(2)]
        return *models, steps_of(tiny_run(*overrides), models[0])[0][0]

    return make


@pytest.mark.parametrize("overrides", [(), ADAPTED], ids=["full", "lora with dropout"])
@pytest.mark.parametrize("mode", ["full", "selective"])
def test_recomputing_changes_no_bit(two_models, mode, overrides):
    plain, saving, batch = two_models(*overrides)
    recompute(saving.layers_with_gradient(), mode)
    (expected, all_kept), (found, kept) = one_step(plain, batch), one_step(saving, batch)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert found[name].equal(gradient), name
    assert kept < 0.75 * all_kept


class Counted(TorchDispatchMode):
    """How often matrix products and attention are computed."""

    def __init__(self):
        super().__init__()
        self.products = self.attention = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.products += func in PRODUCTS
        self.attention += func in ATTENTION
        return func(*args, **(kwargs or {}))


def test_selective_repeats_every_second_product_and_no_attention(two_models):
    counted = {}
    for mode in ("none", "full", "selective"):
        _, model, batch = two_models("train.plan.vision=frozen")
        recompute(model.layers_with_gradient(), mode)
        with Counted() as counts:
            one_step(model, batch)
        counted[mode] = counts
    layers, linears = 2, 7  # of the llm, and of each of them; nothing in a layer waits for the result of the last
    assert counted["full"].products - counted["none"].products == layers * (linears - 1)
    assert counted["selective"].products - counted["none"].products == layers * (linears // 2)
    assert counted["selective"].attention == counted["none"].attention
    assert counted["full"].attention > counted["none"].attention


def test_without_gradients_nothing_is_recomputed(two_models):
    plain, saving, batch = two_models()
    recompute(saving.layers_with_gradient(), "full")
    calls = []
    saving.llm.layers()[0].register_forward_hook(lambda *_: calls.append(1))
    with torch.no_grad():
        assert saving(**batch.model_inputs()).loss.equal(plain(**batch.model_inputs()).loss)
    assert calls == [1]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="the compiler of CPU code needs g++")
@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")  # torch's compiler looks at it
@pytest.mark.parametrize("mode", ["full", "memory_budget"])
def test_compiled_layers_have_the_gradients_of_plain_ones(two_models, mode):
    plain, compiled, batch = two_models("train.plan.vision=frozen")
    with torch._functorch.config.patch(activation_memory_budget=0.7):  # put back afterwards
        prepare_blocks(compiled, {"activation_checkpointing": mode, "memory_budget": 0.3, "compile": True})
        assert torch._functorch.config.activation_memory_budget == (0.3 if mode == "memory_budget" else 1.0)
        (expected, _), (found, _) = one_step(plain, batch), one_step(compiled, batch)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-6, msg=name)
