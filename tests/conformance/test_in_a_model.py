"""Every option of the visual path inside a model: packed or padded, saved and loaded, trained, with adapters."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch

from beni.data.batch.collate import collate
from beni.model.build import build_model
from beni.model.modeling import BeniForConditionalGeneration
from beni.model.plan import apply_plan
from beni.training.optim.build import build_optimizer
from beni.training.step import clip_and_update, forward_backward
from beni.training.trainable import TrainabilityCheck
from support.options import node
from support.small_model import small_run

GROUPS = ("vision", "views", "selector", "resampler", "connector", "fusion", "pruner", "llm")


RUNS = {}


@pytest.fixture
def run(tiny_run, option, absent):
    from beni.errors import WeightsError

    if option not in RUNS:
        try:
            RUNS[option] = small_run(tiny_run, *option)
        except WeightsError as error:
            return absent(str(error))
    return deepcopy(RUNS[option])


def built(run, steps_of):
    model = build_model(run, image_token_id=-1)
    steps = steps_of(run, model)
    model.config.image_token_id = steps.renderer.tokens.image
    apply_plan(model, run["train"]["plan"])
    return model.eval(), steps


def scrambled(model):
    """Initial zeros of a part would hide it."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name in ("views", "selector", "resampler", "connector", "fusion"):
            for parameter in getattr(model, name).parameters():
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return model


@torch.no_grad()
def test_a_sample_is_predicted_alike_packed_padded_and_alone(run, steps_of, option):
    model, steps = built(run, steps_of)
    scrambled(model)
    items = [item for index in range(3) for item in steps.items(0, index)[0]]

    def logits(chosen, layout):
        return model(**collate(chosen, layout, 0).model_inputs()).logits

    packed, padded = logits(items, "packed"), logits(items, "padded")
    alone = torch.cat([logits([one], "packed") for one in items])
    torch.testing.assert_close(packed, alone, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(padded, alone, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_it_is_the_same_after_saving_and_loading_and_it_generates(run, steps_of, option, tmp_path):
    model, steps = built(run, steps_of)
    scrambled(model).save_pretrained(tmp_path)
    again = BeniForConditionalGeneration.from_pretrained(tmp_path).eval()
    assert all(tensor.equal(again.state_dict()[name]) for name, tensor in model.state_dict().items())
    inputs = steps[0][0].model_inputs()  # a kernel may depend on where in memory a weight lies: 1e-8 apart
    torch.testing.assert_close(again(**inputs).logits, model(**inputs).logits, rtol=1e-5, atol=1e-5)
    item = steps.items(0, 0)[0][0]
    asked = collate([item], "padded", 0).model_inputs()
    prompt = {key: asked[key] for key in ("input_ids", "pixels", "attention_mask", "images")}
    options = {"max_new_tokens": 3, "min_new_tokens": 3, "do_sample": False, "pad_token_id": 0}
    said = again.generate(**prompt, **options)
    assert said[:, prompt["input_ids"].shape[1] :].shape == (1, 3)
    assert said.equal(model.generate(**prompt, **options))


def test_all_of_it_trains_in_two_steps(run, steps_of, option):
    run["optim"] |= {"lr": 1e-2}
    model, steps = built(run, steps_of)
    optimizer = build_optimizer(model, run["optim"])
    check = TrainabilityCheck.before_first_step(model)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for step in range(2):
        loss = float(forward_backward(model, steps[step], step, torch.device("cpu"), "fp32").loss)
        assert 0 < loss < 20
        if step == 0:
            check.gradients(model)
        clip_and_update(model, optimizer, 1e-2, 1.0)
    still = [n for n, p in model.named_parameters() if p.equal(before[n]) and n.startswith(f"{option[0]}.")]
    allowed = ("mask_token", "post_layernorm", "layernorm", "k_proj.bias", "key.bias", "norm.", "views.view")
    assert not [name for name in still if option[0] != "vision" and not any(part in name for part in allowed)]


def test_adapters_of_the_llm_stay_out_of_it(run, steps_of, option):
    run["adapter"] = node("adapter", "lora") | {"r": 2, "targets": ["q_proj", "v_proj"]}
    run["train"]["plan"] |= {"llm": "lora"}
    plain = dict(run, adapter={"_target_": "beni.adapter.none.NoAdapter"})
    plain["train"] = run["train"] | {"plan": run["train"]["plan"] | {"llm": "full"}}
    model, steps = built(run, steps_of)
    bare, _ = built(plain, steps_of)
    adapters = [name for name, _ in model.named_parameters() if "lora_" in name]
    assert adapters
    assert all(name.startswith("llm.") for name in adapters)
    with torch.no_grad():  # at once, an adapted model is the bare one
        inputs = steps[0][0].model_inputs()
        assert model(**inputs).logits.equal(bare(**inputs).logits)
