"""A saved model comes back as it was: weights, logits, config, through every door that transformers has."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import AutoModel, AutoModelForImageTextToText

from beni.model.configuration import BeniConfig
from beni.model.modeling import BeniForConditionalGeneration

PERCEIVER = ("resampler=perceiver", "resampler.num_latents=3", "resampler.num_heads=2", "resampler.head_dim=8")
LORA = ("adapter=lora", "train.plan.llm=lora", "adapter.r=2")
DORA = ("adapter=dora", "train.plan.llm=lora", "train.plan.vision=lora")
PISSA = ("adapter=pissa", *DORA[1:])
TIED = ("llm.architecture.tie_word_embeddings=true",)


def disturb(model):
    """Other weights than the initial ones, so that a tensor drawn anew instead of loaded shows."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return model


def logits(model, batch):
    with torch.no_grad():
        return model(**batch.model_inputs() | {"labels": None}).logits


@pytest.mark.parametrize(
    "overrides",
    [(), TIED, PERCEIVER, LORA, (*TIED, *LORA, *PERCEIVER), DORA, PISSA],
    ids=["untied", "tied", "perceiver", "lora", "tied-lora-perceiver", "dora", "pissa"],
)
@pytest.mark.parametrize("door", [BeniForConditionalGeneration, AutoModel, AutoModelForImageTextToText])
def test_a_saved_model_comes_back_with_equal_logits(tiny_run, tiny_model, steps_of, tmp_path, overrides, door):
    model = disturb(tiny_model(*overrides))
    batch = steps_of(tiny_run(*overrides), model)[0][0]
    model.save_pretrained(tmp_path / "saved")
    again = door.from_pretrained(tmp_path / "saved")
    assert type(again) is BeniForConditionalGeneration
    assert not again.training
    torch.testing.assert_close(logits(again, batch), logits(model, batch), rtol=0, atol=0)
    assert {n: p.shape for n, p in again.named_parameters()} == {n: p.shape for n, p in model.named_parameters()}
    tied = again.llm.model.get_output_embeddings().weight is again.llm.model.get_input_embeddings().weight
    assert tied == (overrides[:1] == TIED)


def test_bf16_storage_of_frozen_parts_survives_saving(tiny_run, tiny_model, steps_of, tmp_path):
    from beni.training.trainable import store_frozen_in_bf16

    overrides = ("train.plan.vision=frozen", "train.plan.llm=frozen")
    run, model = tiny_run(*overrides), disturb(tiny_model(*overrides))
    store_frozen_in_bf16(model, run["train"]["plan"])
    model.save_pretrained(tmp_path / "saved")
    again = BeniForConditionalGeneration.from_pretrained(tmp_path / "saved").state_dict()
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(again[name].double(), tensor.double(), rtol=0, atol=0, msg=name)


def test_the_nested_config_comes_back_equal(tiny_model, tmp_path):
    config = tiny_model(*PERCEIVER).config
    config.save_pretrained(tmp_path)
    again = BeniConfig.from_pretrained(tmp_path)
    for field in ("parts", "plan", "image_token_id", "seed"):
        assert getattr(again, field) == getattr(config, field)
    assert json.loads(again.to_json_string(use_diff=False))["parts"]["resampler"]["num_latents"] == 3


def test_a_saved_model_needs_no_hub(tiny_model, tmp_path):
    parts = tiny_model().config.parts
    assert {parts[group]["weights"] for group in ("vision", "llm")} == {"random"}
    assert parts["llm"]["architecture"]["hidden_size"] == 32


def test_an_external_peft_adapter_trains_saves_and_loads(tiny_run, tiny_model, steps_of, tmp_path):
    from peft import LoraConfig, PeftModel, get_peft_model

    batch = steps_of(tiny_run(), tiny_model())[0][0]
    before = logits(tiny_model(), batch)
    model = get_peft_model(tiny_model(), LoraConfig(r=2, target_modules=["q_proj"])).eval()
    torch.testing.assert_close(logits(model, batch), before)
    disturb(model.base_model)
    loss = model(**batch.model_inputs()).loss
    loss.backward()
    assert all(p.grad is not None for n, p in model.named_parameters() if "lora_" in n)
    model.save_pretrained(tmp_path / "adapter")
    fresh = tiny_model()
    with torch.no_grad():  # the base weights were disturbed too; only the adapter is saved
        for name, parameter in fresh.named_parameters():
            parameter.copy_(model.get_parameter(f"base_model.model.{_based(name, model)}"))
    again = PeftModel.from_pretrained(fresh, tmp_path / "adapter").eval()
    torch.testing.assert_close(logits(again, batch), logits(model, batch))


def _based(name, model):
    head, _, last = name.rpartition(".")
    wrapped = f"{head}.base_layer.{last}"
    return wrapped if f"base_model.model.{wrapped}" in dict(model.named_parameters()) else name
