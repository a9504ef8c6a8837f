"""One optimizer step: the same gradient however it is cut, the loss that transformers computes, bad losses refused."""

from __future__ import annotations

import pytest
import torch

from beni.model.context import embedded
from beni.training.step import clip_and_update, forward_backward

CPU = torch.device("cpu")


def gradient(model):
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_one_step_has_one_gradient_however_it_is_cut(tiny_run, tiny_model, steps_of, layout):
    results = {}
    for accumulation in (1, 2, 4, 8):
        model = tiny_model()
        batches = steps_of(tiny_run(), model, accumulation=accumulation, layout=layout)[0]
        assert len(batches) == accumulation
        result = forward_backward(model, batches, 0, CPU, "fp32")
        results[accumulation] = (gradient(model), float(result.loss), result.labels)
    expected, loss, count = results[1]
    for ours, our_loss, our_count in results.values():
        assert (ours - expected).norm() <= 1e-6 * expected.norm()
        assert our_loss == pytest.approx(loss, rel=1e-6)
        assert our_count == count


def test_a_micro_batch_without_images_joins_the_others(tiny_run, tiny_model, steps_of):
    overrides = ("data.text_share=0.5", "train.batch_size=4")
    model = tiny_model(*overrides)
    batches = steps_of(tiny_run(*overrides), model, accumulation=4)[1]
    assert {batch.pixels is None for batch in batches} == {True, False}
    forward_backward(model, batches, 0, CPU, "fp32")
    assert all(p.grad is not None for n, p in model.named_parameters() if n.startswith("connector"))


def test_the_loss_is_that_of_transformers_on_the_same_batch(tiny_run, tiny_model, steps_of):
    model = tiny_model()
    batch = steps_of(tiny_run(), model, layout="padded")[0][0]
    text = embedded(model, batch.input_ids, attention_mask=batch.attention_mask)
    embeds = model.fusion(text, model.encode_images(batch.pixels)).embeds
    theirs = model.llm.model(inputs_embeds=embeds, attention_mask=batch.attention_mask, labels=batch.labels).loss
    torch.testing.assert_close(model(**batch.model_inputs()).loss, theirs, rtol=1e-6, atol=1e-6)
    packed = steps_of(tiny_run(), model, layout="packed")[0][0]
    torch.testing.assert_close(model(**packed.model_inputs()).loss, theirs, rtol=1e-6, atol=1e-6)


def test_labels_and_predictions_stand_at_the_same_places(tiny_run, tiny_model, steps_of):
    model = tiny_model()
    batch = steps_of(tiny_run(), model, layout="padded")[0][0]
    out = model(**batch.model_inputs())
    everywhere = model(**batch.model_inputs() | {"labels": None}).logits
    assert out.targets.equal(batch.labels[out.rows, out.columns])
    assert len(out.targets) == batch.num_labels
    torch.testing.assert_close(out.logits, everywhere[out.rows, out.columns - 1])


def test_clipping_bounds_the_norm_and_zero_switches_it_off():
    for clip, moved in ((0.5, 0.5), (0.0, 5.0), (10.0, 5.0)):
        module = torch.nn.Linear(2, 1, bias=False)
        before = module.weight.detach().clone()
        module.weight.grad = torch.tensor([[3.0, 4.0]])
        optimizer = torch.optim.SGD([{"params": module.parameters(), "lr_scale": 1.0}], lr=9.0)
        norm = clip_and_update(module, optimizer, rate=1.0, clip=clip)
        assert norm == pytest.approx(5.0)
        assert (module.weight - before).norm().item() == pytest.approx(moved, rel=1e-4)
        assert module.weight.grad is None
