"""Generation with a cache says what the model says without one, in any company."""

from __future__ import annotations

import pytest
import torch

from beni.model.context import embedded
from beni.types import SampleInputs

PERCEIVER = ("resampler=perceiver", "resampler.num_latents=3", "resampler.num_heads=2", "resampler.head_dim=8")
NEW = 6


@pytest.fixture
def asked(tiny_run, tiny_model, steps_of):
    """A model with large weights (so that answers vary), and prompts of different lengths with their pixels."""
    run, model = tiny_run(*PERCEIVER), tiny_model(*PERCEIVER)
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3)
    steps = steps_of(run, model)
    prompts = []
    for sample in steps.source.heldout():
        images = [steps.viewer(image.load()) for image in sample.images]
        pixels = torch.stack([view for image in images for view in image.pixels])
        prompts.append((torch.from_numpy(steps.renderer.prompt(sample, [i.markup for i in images]).ids), pixels))
    assert len({len(ids) for ids, _ in prompts}) > 1
    return model, prompts


@torch.no_grad()
def uncached(model, ids, pixels):
    for _ in range(NEW):
        logits = model(ids[None], pixels).logits
        ids = torch.cat([ids, logits[0, -1:].argmax(-1)])
    return ids[-NEW:]


def test_cached_greedy_generation_equals_uncached(asked):
    model, prompts = asked
    answers = set()
    for ids, pixels in prompts:
        said = model.generate(ids[None], pixels, max_new_tokens=NEW, do_sample=False, pad_token_id=0, eos_token_id=None)
        assert said[0].equal(torch.cat([ids, uncached(model, ids, pixels)]))
        answers.add(tuple(said[0, len(ids) :].tolist()))
    assert len(answers) > 1


def test_a_left_padded_batch_generates_what_each_prompt_does_alone(asked):
    model, prompts = asked
    longest = max(len(ids) for ids, _ in prompts)
    left = [torch.nn.functional.pad(ids, (longest - len(ids), 0)) for ids, _ in prompts]
    mask = torch.stack([torch.arange(longest) >= longest - len(ids) for ids, _ in prompts]).long()
    pixels = torch.cat([p for _, p in prompts])
    options = {"max_new_tokens": NEW, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    together = model.generate(torch.stack(left), pixels, attention_mask=mask, **options)
    for row, (ids, own) in zip(together[:, longest:], prompts, strict=True):
        assert row.equal(model.generate(ids[None], own, **options)[0, len(ids) :])


def test_a_left_padded_row_has_the_logits_it_has_alone(asked):
    model, prompts = asked
    ids, pixels = prompts[0]
    left = torch.nn.functional.pad(ids, (3, 0))[None]
    mask = (torch.arange(left.shape[1]) >= 3).long()[None]
    with torch.no_grad():
        torch.testing.assert_close(
            model(left, pixels, attention_mask=mask).logits[:, 3:],
            model(ids[None], pixels).logits,
            rtol=1e-4,
            atol=1e-4,
        )


def test_generation_after_packed_training_is_the_same_as_before_it(asked):
    model, prompts = asked
    ids, pixels = prompts[0]
    options = {"max_new_tokens": NEW, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    before = model.generate(ids[None], pixels, **options)
    packed = SampleInputs(torch.tensor([0, len(ids)]))
    model(ids[None], pixels, labels=ids[None], samples=packed).loss.backward()
    assert model.generate(ids[None], pixels, **options).equal(before)


def test_positions_count_real_tokens_only(tiny_model):
    """A llama sees only distances; a model with learned positions would see where the padding ended."""
    model, mask = tiny_model(), torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
    ids = torch.ones_like(mask)
    assert embedded(model, ids, attention_mask=mask).position_ids.tolist() == [[0, 0, 0, 1, 2], [0, 1, 2, 3, 4]]
    assert embedded(model, ids).position_ids.tolist() == [[0, 1, 2, 3, 4]] * 2
