"""Adapters go where the plan says, start as nothing, are all that trains there, and can be merged."""

from __future__ import annotations

import pytest
import torch

from beni.errors import CompositionError
from beni.model.costing.table import propagate
from beni.model.modeling import BeniForConditionalGeneration
from beni.model.plan import count_parameters

PERCEIVER = ("resampler=perceiver", "resampler.num_latents=3", "resampler.num_heads=2", "resampler.head_dim=8")
BOTH = ("train.plan.llm=lora", "train.plan.vision=lora", "adapter.r=4")
TAKES_OUT = ("pissa", "olora")
KINDS = ("lora", "dora", "rslora", *TAKES_OUT)


def logits(model, batch):
    with torch.no_grad():
        return model(**batch.model_inputs() | {"labels": None}).logits


def disturb(model):
    """Adapters as they might be after training."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.add_(noise * (0.3 * parameter.abs() if "magnitude" in name else 0.05))
    return model


@pytest.mark.parametrize("component", ["vision", "resampler", "llm"])
@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_adapters_are_only_inside_the_planned_component(tiny_model, component, kind):
    targets = "adapter.targets=[q_proj,v_proj]"
    model = tiny_model(*PERCEIVER, f"adapter={kind}", targets, f"train.plan.{component}=lora")
    adapters = [n for n, _ in model.named_parameters() if "lora_" in n]
    assert adapters
    assert {n.partition(".")[0] for n in adapters} == {component}
    trained = {n for n, p in model.named_parameters() if p.requires_grad and n.startswith(f"{component}.")}
    assert trained == set(adapters)
    assert count_parameters(model)[component]["trained"] == sum(model.get_parameter(n).numel() for n in adapters)


@pytest.mark.parametrize("kind", KINDS)
def test_at_step_zero_a_model_with_adapters_equals_the_model_without(tiny_run, tiny_model, steps_of, kind):
    plain, adapted = tiny_model(), tiny_model(f"adapter={kind}", *BOTH)
    batch = steps_of(tiny_run(), plain)[0][0]
    exact = {"rtol": 0, "atol": 0} if kind not in TAKES_OUT else {"rtol": 1e-5, "atol": 1e-5}
    torch.testing.assert_close(logits(adapted, batch), logits(plain, batch), **exact)


@pytest.mark.parametrize("kind", KINDS)
def test_a_merged_model_computes_what_the_adapted_one_does_and_is_saved_without_adapters(
    tiny_run, tiny_model, steps_of, tmp_path, kind
):
    model = disturb(tiny_model(f"adapter={kind}", *BOTH))
    batch = steps_of(tiny_run(), model)[0][0]
    expected = logits(model, batch)
    assert (expected - logits(tiny_model(), batch)).abs().max() > 0.01
    model.merge_adapters()
    torch.testing.assert_close(logits(model, batch), expected, rtol=1e-5, atol=1e-5)
    model.save_pretrained(tmp_path)
    again = BeniForConditionalGeneration.from_pretrained(tmp_path)
    assert set(again.state_dict()) == set(tiny_model().state_dict())
    torch.testing.assert_close(logits(again, batch), logits(model, batch), rtol=0, atol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_every_adapter_weight_trains_after_two_steps(tiny_run, tiny_model, steps_of, kind):
    model = tiny_model(f"adapter={kind}", "adapter.r=4", "train.plan.llm=lora")
    batch = steps_of(tiny_run(), model)[0][0]
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=1.0)
    for _ in range(2):  # B is zero at first, so A gets its gradient in the second step
        optimizer.zero_grad()
        model(**batch.model_inputs()).loss.backward()
        optimizer.step()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in trained)


def test_all_linear_is_every_linear_layer_but_the_head(tiny_model):
    model = tiny_model("adapter=lora", "train.plan.llm=lora")
    linear = {n for n, m in tiny_model().llm.model.named_modules() if isinstance(m, torch.nn.Linear)}
    adapted = {n.removesuffix(".base_layer") for n, _ in model.llm.model.named_modules() if n.endswith("base_layer")}
    assert adapted == linear - {"lm_head"}


def test_targets_may_differ_between_components(tiny_model):
    targets = "adapter.targets={llm: [self_attn.q_proj], vision: all-linear}"
    model = tiny_model("adapter=lora", *BOTH, targets)
    inside = {n.split(".lora_")[0] for n, _ in model.named_parameters() if "lora_" in n}
    assert {n.rpartition(".")[2] for n in inside if n.startswith("llm.")} == {"q_proj"}
    assert {n.rpartition(".")[2] for n in inside if n.startswith("vision.")} >= {"q_proj", "fc1", "fc2"}


@pytest.mark.parametrize(
    ("words", "overrides"),
    [
        (r"\['wq'\] are no linear layers of llm.*'down_proj'", ["adapter.targets=[wq,v_proj]"]),
        (r"\[\] are no linear layers", ["adapter.targets=[]"]),
        (r"no linear layers of llm", ["adapter.targets=[self_attn]"]),
        (r"lm_head is one weight", ["adapter.targets=[lm_head]", "llm.architecture.tie_word_embeddings=true"]),
        (r"only 16 directions", ["adapter=pissa", "adapter.r=17"]),
    ],
)
def test_targets_that_cannot_be_are_an_error_that_says_what_can(tiny_run, words, overrides):
    with pytest.raises(CompositionError, match=words) as caught:
        propagate(tiny_run("adapter=lora", "train.plan.llm=lora", *overrides))
    assert str(caught.value).startswith("E-ADAPTER [adapter x llm]")


def test_transposed_weights_are_not_decomposed_by_olora(tiny_run):
    run = tiny_run("adapter=olora", "train.plan.llm=lora")
    run["llm"]["architecture"] = {"model_type": "gpt2", "n_embd": 32, "n_layer": 1, "n_head": 2, "vocab_size": 512}
    with pytest.raises(CompositionError, match=r"init=olora[^$]*Conv1D[^$]*fix: set adapter\.init=pissa"):
        propagate(run)


@pytest.mark.parametrize("resampler", ["none", "avg_pool"])
def test_a_component_without_linear_layers_takes_no_adapter(tiny_run, resampler):
    side = ["resampler.side=1"] if resampler == "avg_pool" else []
    with pytest.raises(CompositionError, match=r"resampler, \w+, has no linear layers") as caught:
        propagate(tiny_run("adapter=lora", "train.plan.resampler=lora", f"resampler={resampler}", *side))
    assert str(caught.value).startswith("E-ADAPTER [adapter x resampler]")
    assert "fix: set train.plan.resampler=full, or frozen" in str(caught.value)


def test_layers_inside_torchs_own_attention_get_no_adapter():
    """It reads their weights and never calls them: an adapter there would do nothing."""
    from beni.nn.linear import linear_layers

    inside = torch.nn.ModuleDict({"attention": torch.nn.MultiheadAttention(8, 2), "out": torch.nn.Linear(8, 8)})
    assert list(linear_layers(inside)) == ["out"]


def test_adapters_stay_in_32_bits_beside_a_base_in_16(tiny_run, tiny_model):
    from beni.training.trainable import store_frozen_in_bf16

    plan = tiny_run("adapter=dora", *BOTH)["train"]["plan"]
    model = tiny_model("adapter=dora", *BOTH)
    store_frozen_in_bf16(model, plan)
    dtypes = {"lora_" in n: p.dtype for n, p in model.llm.named_parameters() if p.ndim > 1}
    assert dtypes == {True: torch.float32, False: torch.bfloat16}
