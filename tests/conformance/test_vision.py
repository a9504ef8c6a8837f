"""What every vision option must do, at a small size of its declared architecture."""

from __future__ import annotations

from copy import deepcopy

import numpy as np
import pytest
import torch
from PIL import Image

from beni.errors import CompositionError
from beni.model.costing.table import propagate
from support.options import node

GROUPS = ("vision",)
WIDE = ("resnet", "mobilenet_v2", "efficientnet", "efficientnet_lite0", "fastvit_hd", "mobilenetv5")
"""Encoders each of whose tokens sees most of a small picture."""


ENCODERS = {}


@pytest.fixture
def encoder(make, option):
    if option not in ENCODERS:
        ENCODERS[option] = make(option)
    return deepcopy(ENCODERS[option])


def pixels(encoder, images=3):
    height, width = encoder.transform.shape
    return torch.randn(images, 3, height, width, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def test_it_makes_what_its_spec_says(encoder, option):
    spec, out = encoder.spec(), encoder(pixels(encoder))
    assert out.x.shape == (3, spec.n, spec.dim)
    assert out.grid == spec.grid
    assert spec.grid is None or spec.n == spec.grid[0] * spec.grid[1]
    assert out.mask.all()
    assert [(s.x.shape[1:], s.grid) for s in out.sources] == [((s.n, s.dim), s.grid) for s in spec.sources]
    assert spec.space == "vision"


@torch.no_grad()
def test_an_image_does_not_see_the_others_of_its_batch(encoder, option):
    ours, changed = pixels(encoder), pixels(encoder)
    changed[1] += 1
    before, after = encoder(ours).x, encoder(changed).x
    assert before[0].equal(after[0])
    assert before[2].equal(after[2])
    assert not before[1].equal(after[1])


def test_a_batch_has_the_gradients_of_its_images(encoder, option):
    """One by one they must add up: torch's BatchNorm does not do that by itself (nn/batch_norm.py)."""
    encoder, images = encoder.double(), pixels(encoder, 2).double()
    generator = torch.Generator().manual_seed(1)
    weights = [torch.randn(x.shape[1:], generator=generator, dtype=x.dtype) for x in encoder(images).features()]

    def gradients(parts):
        encoder.zero_grad()
        for part in parts:
            sum((x * w).sum() for x, w in zip(encoder(part).features(), weights, strict=True)).backward()
        return {name: p.grad.clone() for name, p in encoder.named_parameters() if p.grad is not None}

    together, apart = gradients([images]), gradients([images[:1], images[1:]])
    noise = 1e-6 * max(float(gradient.abs().max()) for gradient in together.values())
    for name, gradient in together.items():
        torch.testing.assert_close(apart[name], gradient, rtol=1e-5, atol=noise, msg=name)


@torch.no_grad()
def test_a_patch_stands_where_its_token_does(encoder, option):
    """Changing one corner of the picture changes the token of that corner most: rows first, prefix tokens gone."""
    yx = encoder(pixels(encoder, 1)).yx[0]
    side = 24 * len(yx[:, 0].unique())
    before = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
    for corner in ((0.0, 1.0), (1.0, 0.0)):
        after = before.copy()
        y, x = (round(place) * (side - 24) for place in corner)
        after[y : y + 24, x : x + 24] = 255 - after[y : y + 24, x : x + 24]
        seen = [encoder(encoder.transform(Image.fromarray(picture))[None]).x[0] for picture in (before, after)]
        moved = (seen[1] - seen[0]).norm(dim=-1)
        distance = (yx - torch.tensor(corner)).norm(dim=-1)
        if option[1] in WIDE:
            assert (moved * distance).sum() / moved.sum() < distance.mean() - 0.05
        else:
            assert distance[moved.argmax()] == distance.min()


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
    """Networks of BatchNorm with random weights amplify: MobileNetV2 moves by 23 % when its weights are rounded."""
    images = pixels(encoder)
    expected = encoder(images).x
    half = encoder.to(torch.bfloat16)(images.to(torch.bfloat16)).x
    rounded = encoder.float()(images).x
    times = 3 if option[1] in WIDE else 2
    allowed = max(2e-2, times * float((rounded - expected).norm() / expected.norm()))
    assert (half.float() - expected).norm() <= allowed * expected.norm()
    assert allowed == 2e-2 or option[1] in WIDE


@torch.no_grad()
def test_weights_that_were_drawn_give_features_of_a_size_that_can_be_learned_from(encoder, option):
    """A deep network of BatchNorm with the statistics of an untrained one does not (nn/batch_norm.py)."""
    for features in encoder(pixels(encoder)).features():
        assert 1e-2 < features.std() < 1e2


def test_a_gradient_reaches_every_parameter_that_its_tokens_depend_on(encoder, option):
    generator = torch.Generator().manual_seed(1)
    sum((x * torch.randn(x.shape, generator=generator)).sum() for x in encoder(pixels(encoder)).features()).backward()
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


LEAVES_OUT = {
    *("aimv2", "clip", "clip_224", "clip_b32", "dinov2", "dinov2_registers", "eva_g", "ijepa", "internvit_300m"),
    *("siglip", "siglip2", "siglip2_naflex", "siglip_224", "siglip_base", "siglip_base_512", "tiny_vit", "vit"),
    *("aimv2_448", "radio", "tipsv2"),
}
"""Encoders that see only the patches they are told to."""

SEEN_INSIDE = LEAVES_OUT | {
    *("beit", "dinosiglip", "dinov3", "mof", "pixtral", "sequence", "siglip_idefics2", "siglip_idefics3"),
}
"""Encoders that give side channels."""


@torch.no_grad()
def test_it_gives_side_channels_of_every_token_or_says_that_it_has_none(encoder, option):
    before = encoder(pixels(encoder)).x
    if option[1] not in SEEN_INSIDE:
        with pytest.raises(CompositionError, match=r"^E-SIDE "):
            encoder.serve(frozenset({"attn", "keys"}))
        return
    encoder.serve(frozenset({"attn", "keys"}))
    spec, out = encoder.spec(), encoder(pixels(encoder))
    assert spec.attn
    assert out.attn.shape == (3, spec.n)
    assert out.keys.shape == (3, spec.n, spec.keys)
    assert (out.attn > 0).all()
    assert (out.attn.sum(1) <= len(node(*option).get("encoders", "1")) + 1e-5).all()
    assert out.x.equal(before)


@torch.no_grad()
def test_it_sees_the_patches_it_is_told_to_or_says_that_it_must_see_all(encoder, option):
    images, whole = pixels(encoder), encoder(pixels(encoder))
    if option[1] not in LEAVES_OUT:
        with pytest.raises(CompositionError, match=r"^E-KEEP "):
            encoder.serve(frozenset({"keep"}))
        return
    encoder.serve(frozenset({"keep"}))
    rows, columns = encoder.patches
    assert encoder(images, torch.ones(3, rows * columns, dtype=torch.bool)).x.equal(whole.x)
    keep = torch.rand(3, rows * columns, generator=torch.Generator().manual_seed(1)) < 0.5
    keep[:, 4] = True
    out = encoder(images, keep)
    assert len(set(keep.sum(1).tolist())) > 1
    for row in range(3):
        alone = encoder(images[row : row + 1], keep[row : row + 1]).x[0]
        torch.testing.assert_close(out.x[row][out.mask[row]], alone, rtol=1e-5, atol=1e-5)
        assert out.yx[row][out.mask[row]].equal(whole.yx[row][keep[row]])
    dark = images.clone()
    height, width = (side // patches for side, patches in zip(images.shape[2:], encoder.patches, strict=True))
    seen = keep.view(3, 1, rows, columns).repeat_interleave(height, 2).repeat_interleave(width, 3)
    dark.mul_(seen)  # what is not seen may be anything
    torch.testing.assert_close(encoder(dark, keep).x[out.mask], out.x[out.mask], rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_its_blocks_are_given_patches_one_after_another(encoder, option):
    """As a convolution leaves them, channel by channel, every norm would copy them."""
    seen = []
    for block in encoder.blocks()[:1]:
        block.register_forward_pre_hook(
            lambda _, inputs, named: seen.extend([*inputs, *named.values()]), with_kwargs=True
        )
    encoder(pixels(encoder))
    assert all(x.is_contiguous() for x in seen if isinstance(x, torch.Tensor) and x.ndim == 3)
