"""A run that cannot fit says by how much, and what to change, before anything is allocated."""

from __future__ import annotations

import pytest
import torch

from beni.errors import ResourceError
from beni.measure import memory

CPU = torch.device("cpu")
SIZES = {
    "frozen": 10**9,
    "trained": 10**6,
    "positions": 1000,
    "layers": 22,
    "width": 2048,
    "intermediate": 5632,
    "label_rows": 100,
    "vocabulary": 32000,
}


def test_weights_gradients_and_moments_are_counted_exactly():
    half, full = memory.estimate(precision="bf16", **SIZES), memory.estimate(precision="fp32", **SIZES)
    assert half.weights == 2 * 10**9 + 4 * 10**6
    assert full.weights == 4 * (10**9 + 10**6)
    assert half.optimizer == full.optimizer == 12 * 10**6
    assert half.activations < full.activations


def test_moments_and_averages_are_counted_by_optimizer(tiny_run, tiny_model):
    from beni.model.plan import count_parameters
    from beni.model.spec import estimate_memory

    model = tiny_model()
    trained = sum(count["trained"] for count in count_parameters(model).values())

    def each(*overrides, world=1):
        return estimate_memory(model, tiny_run(*overrides), world, 64, 8).optimizer / trained

    assert each() == 4 + 8
    assert each("optim=lion") == 4 + 4
    assert each("optim=adafactor", "train.ema=0.9") == 4 + 4
    assert each("fsdp=full", world=4) == 3
    assert each("optim=muon", "fsdp=full", world=4) == 1 + 4  # every process keeps the whole moment


def test_logits_are_counted_as_the_loss_keeps_them(tiny_run, tiny_model, monkeypatch):
    from beni.model import loss
    from beni.model.spec import estimate_memory

    model = tiny_model()
    monkeypatch.setattr(loss, "CHUNK_BYTES", 4 * model.llm.vocab_size * 10)

    def activations(how):
        return estimate_memory(model, tiny_run(f"train.loss={how}"), 1, 64, 8).activations

    lacking = (8 * 8 - 10) * model.llm.vocab_size * 12
    assert activations("full") - activations("chunked") == lacking
    assert activations("auto") == activations("fused") == activations("chunked")


def test_lacking_memory_is_an_error_with_the_figures_and_the_settings(monkeypatch):
    monkeypatch.setattr(memory, "available", lambda device: 2 * memory.GIB)
    need = memory.Memory(weights=3 * memory.GIB, loading=0, optimizer=memory.GIB, activations=memory.GIB)
    with pytest.raises(ResourceError) as caught:
        memory.require(need, CPU)
    text = str(caught.value)
    assert "needs about 5.0 GiB (weights 3.0, gradients and moments 1.0, activations 1.0)" in text
    assert "cpu has 2.0 GiB free: 3.0 GiB are lacking" in text
    assert "fix: raise train.accumulation" in text


def test_loading_in_fp32_counts_where_it_is_the_peak(monkeypatch):
    monkeypatch.setattr(memory, "available", lambda device: 2 * memory.GIB)
    with pytest.raises(ResourceError, match=r"needs about 3\.0 GiB"):
        memory.require(memory.Memory(weights=0, loading=3 * memory.GIB, optimizer=0, activations=0), CPU)


def test_a_run_that_fits_is_let_through():
    memory.require(memory.Memory(weights=1, loading=1, optimizer=1, activations=1), CPU)
    assert memory.available(CPU) > 0
    assert memory.peak_gib(CPU) > 0.01
