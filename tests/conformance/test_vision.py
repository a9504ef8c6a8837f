"""What every vision option must do, at a small size of its declared architecture."""

from __future__ import annotations

import pytest
import torch

from beni.measure.flops import count_flops
from beni.model.spec import propagate

GROUPS = ("vision",)


@pytest.fixture
def encoder(make, option):
    return make(option)


def pixels(encoder, images=3):
    size = encoder.transform.size
    return torch.randn(images, 3, size, size, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def test_it_makes_what_its_spec_says(encoder, option):
    spec, out = encoder.spec(), encoder(pixels(encoder))
    assert out.x.shape == (3, spec.n, spec.dim)
    assert out.grid == spec.grid
    assert spec.n == spec.grid[0] * spec.grid[1]
    assert out.mask.all()
    assert spec.space == "vision"


def test_its_flops_are_those_that_torch_counts(encoder, option):
    assert encoder.flops() == pytest.approx(count_flops(lambda: encoder(pixels(encoder, 1))), rel=0.01)


@torch.no_grad()
def test_an_image_does_not_see_the_others_of_its_batch(encoder, option):
    ours, changed = pixels(encoder), pixels(encoder)
    changed[1] += 1
    before, after = encoder(ours).x, encoder(changed).x
    assert before[0].equal(after[0])
    assert before[2].equal(after[2])
    assert not before[1].equal(after[1])


@torch.no_grad()
def test_a_patch_stands_where_its_token_does(encoder, option):
    """Changing one corner of the picture changes the token of that corner most: rows first, prefix tokens gone."""
    rows, columns = encoder.spec().grid
    size = encoder.transform.size
    before = pixels(encoder, 1)
    for row, column in ((0, columns - 1), (rows - 1, 0)):
        after = before.clone()
        y, x = row * size // rows, column * size // columns
        after[:, :, y : y + size // rows, x : x + size // columns] += 1
        moved = (encoder(after).x - encoder(before).x)[0].norm(dim=-1)
        assert int(moved.argmax()) == row * columns + column


@torch.no_grad()
def test_one_stream_gives_one_encoder_and_its_state_loads_into_another(make, option):
    ours, again, other = (make(option, seed=seed) for seed in (0, 0, 1))
    assert all(t.equal(again.state_dict()[n]) for n, t in ours.state_dict().items())
    images = pixels(ours)
    assert not other(images).x.equal(ours(images).x)
    other.load_state_dict(ours.state_dict())
    assert other(images).x.equal(ours(images).x)


@torch.no_grad()
def test_bf16_is_near_fp32(encoder, option):
    images = pixels(encoder)
    expected = encoder(images).x
    half = encoder.to(torch.bfloat16)(images.to(torch.bfloat16)).x
    assert (half.float() - expected).norm() <= 2e-2 * expected.norm()


def test_a_gradient_reaches_every_parameter_that_its_tokens_depend_on(encoder, option):
    out = encoder(pixels(encoder)).x
    (out * torch.randn(out.shape, generator=torch.Generator().manual_seed(1))).sum().backward()
    silent = {name for name, p in encoder.named_parameters() if p.grad is None or not p.grad.abs().max()}
    # a final norm above the chosen layer, the token for masked training, and keys, whose bias softmax ignores
    allowed = ("post_layernorm", "model.layernorm.", "mask_token", "k_proj.bias", "key.bias", "model.norm.")
    assert not {name for name in silent if not any(part in name for part in allowed)}


def test_its_blocks_are_its_repeated_layers(encoder, option):
    blocks = encoder.blocks()
    assert len(blocks) >= 2
    assert {id(b) for b in blocks} <= {id(m) for m in encoder.modules()}
    assert sum(p.numel() for b in blocks for p in b.parameters()) > 0


def test_at_its_real_size_it_fits_a_model_without_any_weight(tiny_run, option):
    from beni.config.compose import compose

    run = compose([f"vision={option[1]}", "vision.weights=random", "resampler=perceiver"])
    model = propagate(run)
    assert model.specs["vision"] == model.vision.spec()
    assert {p.device.type for p in model.vision.parameters()} == {"meta"}
