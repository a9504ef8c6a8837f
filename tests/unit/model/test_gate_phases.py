"""Learned gates in a model: open ones change nothing, dropping is closing, and the run goes from one to the other."""

from __future__ import annotations

import pytest
import torch

from beni.data.batch.collate import collate
from beni.model.build import build
from beni.model.inputs import StepInputs
from beni.training.initial import load_initial
from beni.training.step import forward_backward
from beni.types import ImageInputs
from support.families import EAGER, LLMS
from support.options import node

FINE = ("vision.architecture.patch_size=6", "data.pictures_share=0.3")
CPU = torch.device("cpu")
FAMILIES = ("llama", "qwen3", "gemma3_text", "gpt2", "opt", "phi", "mistral", "gpt_neox", "olmo2", "granite")


@pytest.fixture
def run_of(tiny_run):
    """run_of(option, *overrides, values of the gate) -> the smallest run with the gate."""

    def make(option, *overrides, llm=None, **values):
        run = tiny_run(*FINE, *overrides)
        run["selector"] = node("selector", option) | ({"hidden": 16} | values if option != "none" else {})
        if llm is not None:
            run["llm"] |= {"architecture": {"model_type": llm, **LLMS[llm]}}
            run["llm"] |= {"attn_implementation": "eager" if llm in EAGER else "sdpa"}
        return run

    return make


@pytest.fixture
def modelled(run_of, steps_of):
    """modelled(...) -> a model with large weights, in evaluation mode, and a few items."""

    def make(option, *overrides, **values):
        run = run_of(option, *overrides, **values)
        model = build(run).eval()
        generator = torch.Generator().manual_seed(5)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if not name.startswith("selector."):
                    parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
        steps = steps_of(run, model)
        return model, [steps.items(0, index)[0][0] for index in range(6)]

    return make


def half_open(model):
    """Sets the selector's offset so that about half of the gates count as open."""
    with torch.no_grad():
        model.selector.offset.zero_()
    return model


@torch.no_grad()
@pytest.mark.parametrize("layout", ["packed", "padded"])
@pytest.mark.parametrize("option", ["gate_gumbel", "gate_hardkuma", "dynamicvit"])
def test_gates_that_are_all_open_are_no_selector_bit_for_bit(modelled, option, layout):
    gated, items = modelled(option, start=0.99, keep=1.0)
    bare, _ = modelled("none")
    inputs = collate(items, layout, 0).model_inputs()
    assert gated.encode_images(inputs["pixels"]).log_gate.count_nonzero() == 0
    assert gated(**inputs).logits.equal(bare(**inputs).logits)


@torch.no_grad()
@pytest.mark.parametrize("layout", ["packed", "padded"])
@pytest.mark.parametrize("llm", FAMILIES)
def test_dropping_is_closing_while_positions_are_kept(modelled, llm, layout):
    soft, items = modelled("gate_gumbel", llm=llm)
    drop, _ = modelled("gate_gumbel", llm=llm, phase="drop")
    drop.load_state_dict(half_open(soft).state_dict())
    inputs = collate(items, layout, 0).model_inputs()
    opened = soft.encode_images(inputs["pixels"]).log_gate == 0
    assert 0.1 < opened.float().mean() < 0.9
    masked, dropped = soft(**inputs), drop(**inputs)
    assert dropped.lengths.sum() < int((inputs["input_ids"] >= 0).sum())
    torch.testing.assert_close(dropped.logits, masked.logits, rtol=1e-5, atol=1e-5)
    everything, _ = modelled("none", llm=llm)
    assert (everything(**inputs).logits - masked.logits).abs().max() > 1e-3


@torch.no_grad()
def test_compact_positions_lay_the_text_out_for_what_is_kept_and_so_are_another_model(modelled, steps_of, run_of):
    values = {"keep": 0.5, "phase": "drop"}
    preserve, items = modelled("gate_gumbel", **values)
    compact, again = modelled("gate_gumbel", positions="compact", **values)
    compact.load_state_dict(preserve.state_dict())
    assert (preserve.specs["llm"].n, compact.specs["llm"].n) == (16, 8)
    long, short = (collate(some, "packed", 0).model_inputs() for some in (items, again))
    images = [len(item.images) for item in items]
    assert [len(a.encoded.ids) - len(b.encoded.ids) for a, b in zip(items, again, strict=True)] == [
        8 * n for n in images
    ]
    ours, theirs = preserve(**long), compact(**short)
    assert ours.logits.shape == theirs.logits.shape
    with_image = torch.tensor(images, dtype=torch.bool)[ours.samples]
    torch.testing.assert_close(ours.logits[~with_image], theirs.logits[~with_image], rtol=1e-5, atol=1e-5)
    assert (ours.logits - theirs.logits)[with_image].abs().max() > 1e-4


@torch.no_grad()
def test_generation_with_closed_gates_is_generation_without_the_tokens(modelled):
    soft, items = modelled("gate_gumbel")
    drop, _ = modelled("gate_gumbel", phase="drop")
    drop.load_state_dict(half_open(soft).state_dict())
    options = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    asked = collate([item for item in items if item.images][:1], "padded", 0).model_inputs()
    prompt = {key: asked[key] for key in ("input_ids", "pixels", "attention_mask", "images")}
    assert soft.generate(**prompt, **options).tolist() == drop.generate(**prompt, **options).tolist()


def gradients(model, items, split):
    model.zero_grad()
    result = forward_backward(model, [collate(items[a:b], "packed", 0) for a, b in split], 3, CPU, "fp32", steps=10)
    return result, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("option", ["gate_gumbel", "gate_hard_concrete", "gate_hardkuma", "dynamicvit"])
def test_a_step_is_the_same_however_its_samples_are_dealt(modelled, option):
    model, items = modelled(option)
    model.train()
    whole, expected = gradients(model, items, [(0, 6)])
    parts, found = gradients(model, items, [(0, 1), (1, 4), (4, 6)])
    torch.testing.assert_close(parts.loss, whole.loss)
    assert parts.auxiliary.keys() == whole.auxiliary.keys() == {f"selector/{name}" for name in model.selector.auxiliary}
    for name in whole.auxiliary:
        torch.testing.assert_close(parts.auxiliary[name], whole.auxiliary[name])
    assert {name for name in expected if name.startswith("selector.")} == {
        f"selector.{name}" for name, _ in model.selector.named_parameters()
    }
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-3, atol=1e-5)
    for name, (total, count) in whole.metrics.items():
        again, number = parts.metrics[name]
        torch.testing.assert_close(again / number, total / count)


def test_gates_are_drawn_anew_in_each_step_and_not_in_evaluation(modelled):
    model, items = modelled("gate_gumbel")
    inputs = collate(items, "packed", 0).model_inputs()

    def loss(step):
        with torch.no_grad():
            return float(model(**inputs, how=StepInputs(step=step, steps=10)).token_loss)

    model.train()
    assert loss(1) == loss(1) != loss(2)
    model.eval()
    assert loss(1) == loss(2)


def test_a_gate_that_was_trained_soft_goes_on_dropping(run_of, steps_of, tmp_path):
    model = build(run_of("gate_gumbel"))
    with torch.no_grad():
        model.selector.offset.fill_(0.1)
        model.selector.multiplier.fill_(0.3)
    model.save_pretrained(tmp_path)
    run = run_of("gate_gumbel", phase="drop", keep=0.25)
    second = build(run)
    report = load_initial(second, tmp_path)
    assert not report.kept
    assert not report.left
    assert second.selector.offset.equal(model.selector.offset)
    assert second.selector.multiplier.equal(model.selector.multiplier)
    result = forward_backward(second.train(), steps_of(run, second)[0], 0, CPU, "fp32")
    silent = [name for name, p in second.named_parameters() if name.startswith("selector.") and p.grad is None]
    assert silent == []
    assert float(result.loss) > 0


@torch.no_grad()
def test_a_perceiver_reads_gates_and_hands_none_on(modelled):
    perceiver = ("resampler=perceiver", "resampler.num_latents=3", "resampler.num_heads=2", "resampler.head_dim=8")
    soft, items = modelled("gate_gumbel", *perceiver)
    drop, _ = modelled("gate_gumbel", *perceiver, phase="drop")
    drop.load_state_dict(half_open(soft).state_dict())
    assert not soft.specs["llm"].gated
    inputs = collate(items, "packed", 0).model_inputs()
    torch.testing.assert_close(drop(**inputs).logits, soft(**inputs).logits, rtol=1e-5, atol=1e-5)
    images = ImageInputs(visual=soft.encode_images(inputs["pixels"]))
    assert images.visual.x.shape[1] == 3
