"""Side channels are the attention that the encoder computes; patches left out are as if they had never been."""

from __future__ import annotations

import gc
import subprocess
import sys
import weakref
from copy import deepcopy

import pytest
import torch
from torch import nn

from beni.errors import CompositionError
from beni.training.blocks import recompute
from beni.types import VisualTokens
from beni.vision.visit import paid

from .conftest import KEYS, VIT

FAMILIES = {
    "clip_vision_model": VIT,
    "siglip_vision_model": VIT | {"vision_use_head": False},
    "vit": VIT,
    "dinov2": VIT,
    "dinov2_with_registers": VIT | {"num_register_tokens": 4},
    "internvl_vision": VIT | {"image_size": [32, 32], "patch_size": [8, 8]},
}
BOTH = frozenset({"attn", "keys"})
KEEP = frozenset({"keep"})


@pytest.fixture
def made(encoder):
    """made(family, *services, **keys): the encoder with weights so large that tokens differ, ready for the services."""

    def make(family, *services, **keys):
        own = encoder(family, FAMILIES[family], **keys)
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for name, parameter in own.named_parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3 + ("norm" in name))
        own.serve(frozenset(services))
        return own

    return make


def views(count=3, seed=0):
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(seed))


def attention_by_transformers(own, pixels):
    """Attention and keys of the last block, means over the heads ``(i, t, t)``, ``(i, t, k)``."""
    own = deepcopy(own)
    seen = []
    for name, module in own.blocks()[-1].named_modules():
        if name.endswith(("k_proj", "key")):
            module.register_forward_hook(lambda module, _, out: seen.append(out))
    weights = own.model(pixels, output_attentions=True).attentions[-1].mean(1)
    (keys,) = seen
    return weights, keys.unflatten(-1, (4, -1)).mean(-2)


@torch.no_grad()
@pytest.mark.parametrize("family", ["clip_vision_model", "siglip_vision_model", "vit", "dinov2"])
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_side_channels_are_what_the_last_layer_computes(made, family, implementation):
    own = made(family, *BOTH, attn_implementation=implementation)
    plain = made(family, attn_implementation="eager")
    out, prefix = own(views()), 0 if family == "siglip_vision_model" else 1
    weights, keys = attention_by_transformers(plain, views())
    expected = weights[:, 0] if prefix else weights.mean(1)
    torch.testing.assert_close(out.attn, expected[:, prefix:], rtol=0, atol=1e-6)
    torch.testing.assert_close(out.keys, keys[:, prefix:], rtol=0, atol=1e-6)
    assert out.attn.std() > 1e-3  # weights are large enough for tokens to differ
    assert (own.spec().attn, own.spec().keys) == (True, 8)


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_an_encoder_that_serves_computes_the_same_features_to_the_last_bit(made, family, implementation):
    plain = made(family, attn_implementation=implementation)(views())
    for services in (BOTH, KEEP, BOTH | KEEP):
        assert made(family, *services, attn_implementation=implementation)(views()).x.equal(plain.x)


@torch.no_grad()
def test_attention_is_that_of_the_layer_whose_output_is_read(made):
    shallow = made("clip_vision_model", "attn", layer=-2)(views())
    deep = made("clip_vision_model", "attn", layer=-2, levels=[-1])
    assert len(deep.blocks()) == 3
    assert deep(views()).attn.equal(shallow.attn)
    assert not made("clip_vision_model", "attn")(views()).attn.equal(shallow.attn)


@torch.no_grad()
def test_only_what_is_asked_for_comes_along(made):
    out = made("clip_vision_model", "attn")(views())
    assert out.attn is not None
    assert out.keys is None
    assert made("clip_vision_model")(views()).attn is None


@torch.no_grad()
def test_a_cls_token_that_is_kept_has_its_own_and_registers_go(made):
    out = made("dinov2_with_registers", *BOTH, keep_cls=True)(views())
    bare = made("dinov2_with_registers", *BOTH)(views())
    assert out.attn[:, 1:].equal(bare.attn)
    assert out.keys[:, 1:].equal(bare.keys)
    assert (out.attn[:, 0] > 0).all()
    assert (out.attn.sum(1) < 1).all()  # what the registers are paid is gone


@torch.no_grad()
def test_a_copy_of_the_encoder_computes_with_its_own_weights(made):
    own = made("vit", *BOTH, "keep")
    copied = deepcopy(own)
    for parameter in own.parameters():
        parameter.zero_()
    expected = made("vit", *BOTH, "keep")(views())
    assert copied(views()).x.equal(expected.x)
    assert copied(views()).keys.equal(expected.keys)


def gradients(own, objective):
    own.zero_grad()
    objective(own).backward()
    return {name: p.grad.clone() for name, p in own.named_parameters() if p.grad is not None}


def objective_of(own):
    kept = torch.ones(3, 16, dtype=torch.bool)
    kept[0, :7] = kept[2, 3:5] = False
    out = own(views(), kept)
    generator = torch.Generator().manual_seed(1)
    parts = (out.x[out.mask], out.attn[out.mask], out.keys[out.mask])
    return sum((part * torch.randn(part.shape, generator=generator)).sum() for part in parts)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("mode", ["full", "selective"])
def test_gradients_through_all_of_it_are_the_same_when_blocks_are_computed_again(made, family, mode):
    expected = gradients(made(family, *BOTH, "keep"), objective_of)
    own = made(family, *BOTH, "keep")
    recompute(own.blocks(), mode)
    found = gradients(own, objective_of)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-6, atol=1e-6)


def test_nothing_is_left_in_memory_after_a_backward_pass_that_computes_blocks_again(made):
    own = made("vit", *BOTH, attn_implementation="sdpa")
    recompute(own.blocks(), "full")
    out = own(views())
    (out.x.sum() + out.keys.sum()).backward()
    left = weakref.ref(out.keys)
    gc.disable()
    try:
        del out
        assert left() is None
    finally:
        gc.enable()


COMPILED = """
import torch
from beni.config.build import build
node = {keys} | {{"_target_": "beni.vision.hf.HFVision", "attn_implementation": "sdpa"}}
pixels = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
kept = torch.ones(3, 16, dtype=torch.bool)
kept[0, :7] = False
losses = []
for compiled in (False, True):
    torch.manual_seed(0)
    own = build(node)
    own.serve(frozenset({{"attn", "keys", "keep"}}))
    for block in own.blocks() if compiled else ():
        block.compile(backend="aot_eager", fullgraph=True)
    for keep in (None, kept):
        out = own(pixels, keep)
        losses.append(sum(part[out.mask].square().sum() for part in (out.x, out.attn, out.keys)))
    losses[-1].backward()
    losses += [p.grad.square().sum() for p in own.parameters() if p.grad is not None]
half = len(losses) // 2
torch.testing.assert_close(losses[half:], losses[:half], rtol=1e-6, atol=1e-6)
"""


@pytest.mark.slow
@pytest.mark.parametrize("family", ["clip_vision_model", "siglip_vision_model"])
def test_blocks_are_compiled_with_what_they_are_told(family):
    """In a process of its own: the compiler cannot read through the checks of shapes that tests add to functions."""
    keys = KEYS | {"architecture": {"model_type": family, **FAMILIES[family]}}
    program = [sys.executable, "-W", "ignore", "-c", COMPILED.format(keys=keys)]
    done = subprocess.run(program, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


def kept_rows():
    """Different numbers, neighbours and not, first and last patches."""
    kept = torch.zeros(3, 16, dtype=torch.bool)
    kept[0, [0, 3, 7, 8, 15]] = True
    kept[1, 4:12] = True
    kept[2, 9] = True
    return kept


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("keys", [{}, {"layer": -2, "levels": [0, 1, -1]}, {"keep_cls": True}], ids=str)
def test_to_keep_all_is_the_plain_encoder_bit_for_bit(made, family, keys):
    if family == "siglip_vision_model" and keys.get("keep_cls"):
        pytest.skip("it has no CLS token")
    own, plain = made(family, "keep", **keys), made(family, **keys)
    out, expected = own(views(), torch.ones(3, 16, dtype=torch.bool)), plain(views())
    for name, tensor in expected.per_token().items():
        assert getattr(out, name).equal(tensor), name
    assert out.grid is None


@torch.no_grad()
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("family", ["clip_vision_model", "siglip_vision_model", "vit", "dinov2"])
def test_a_subset_is_what_the_blocks_make_of_its_embeddings(made, family, implementation):
    own, plain = made(family, "keep", attn_implementation=implementation), made(family)
    out = own(views(), kept_rows())
    prefix = 0 if family == "siglip_vision_model" else 1
    entering = []
    plain.blocks()[0].register_forward_pre_hook(lambda module, inputs: entering.append(inputs[0]))
    plain(views())
    (embeddings,) = entering
    norm = {"clip_vision_model": nn.Identity, "siglip_vision_model": lambda: plain.model.post_layernorm}
    last = norm.get(family, lambda: plain.model.layernorm)()
    for row, kept in enumerate(kept_rows()):
        places = torch.cat([torch.arange(prefix), kept.nonzero()[:, 0] + prefix])
        hidden = embeddings[row, places][None]
        for block in plain.blocks():
            hidden = block(hidden, None)
        torch.testing.assert_close(out.x[row][out.mask[row]], last(hidden)[0, prefix:], rtol=1e-5, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_views_that_keep_different_numbers_are_each_as_if_alone_and_stand_where_they_stood(made, family):
    own = made(family, *BOTH, "keep", levels=[0, 1])
    out = own(views(), kept_rows())
    whole = own(views())
    assert out.mask.sum(1).tolist() == [5, 8, 1]
    for row, kept in enumerate(kept_rows()):
        alone = own(views()[row : row + 1], kept[None])
        real = out.mask[row]
        for name in ("x", "levels", "attn", "keys"):
            torch.testing.assert_close(getattr(out, name)[row][real], getattr(alone, name)[0], rtol=1e-5, atol=1e-5)
        assert out.yx[row][real].equal(whole.yx[row][kept])
        assert out.levels[row][real][:, :32].equal(whole.levels[row][kept][:, :32])  # before the first block
        assert alone.mask.all()


@torch.no_grad()
def test_pixels_of_patches_that_are_left_out_change_nothing(made):
    own, changed = made("dinov2", "keep"), views()
    changed[0, :, :8, 8:24] += 5  # patches 1 and 2 of 4x4
    before, after = own(views(), kept_rows()), own(changed, kept_rows())
    assert before.x[before.mask].equal(after.x[after.mask])
    assert not own(views()).x.equal(own(changed).x)


@torch.no_grad()
def test_rows_laid_out_for_all_patches_say_which_have_no_token(made):
    out = made("vit", "keep")(views(), kept_rows())
    bound = out.bounded(16)
    assert bound.laid.sum(1).tolist() == [16, 16, 16]
    assert bound.mask.sum(1).tolist() == [5, 8, 1]
    assert bound.x[bound.mask].equal(out.x[out.mask])
    with pytest.raises(ValueError, match="laid out for 4"):
        out.bounded(4)


def test_a_view_that_keeps_nothing_and_a_mask_of_another_size_are_refused(made):
    own = made("vit", "keep")
    with pytest.raises(ValueError, match="without any patch"):
        own(views(), torch.arange(3)[:, None].expand(3, 16) > 0)
    with pytest.raises(ValueError, match="tells of 9 patches"):
        own(views(), torch.ones(3, 9, dtype=torch.bool))
    with pytest.raises(ValueError, match="not made ready"):
        made("vit")(views(), kept_rows())


@pytest.mark.parametrize(
    ("family", "fields", "service", "code"),
    [
        ("convnext", {"hidden_sizes": [8, 16, 16, 32], "depths": [1, 1, 2, 1], "image_size": 64}, "attn", "E-SIDE"),
        ("convnext", {"hidden_sizes": [8, 16, 16, 32], "depths": [1, 1, 2, 1], "image_size": 64}, "keep", "E-KEEP"),
        ("beit", VIT | {"use_relative_position_bias": True}, "keep", "E-KEEP"),
        ("dinov3_vit", VIT, "keep", "E-KEEP"),  # positions are turned in every block
        ("pixtral", VIT, "keep", "E-KEEP"),
    ],
)
def test_an_encoder_that_cannot_is_refused_with_a_fix(encoder, family, fields, service, code):
    own = encoder(family, fields, image_size=64 if family == "convnext" else 32)
    with pytest.raises(CompositionError, match="fix: set vision=clip") as caught:
        own.serve(frozenset({service}))
    assert caught.value.code == code


@torch.no_grad()
def test_a_model_that_packs_pictures_gives_each_its_own(encoder, scramble):
    own = encoder("pixtral", VIT, attn_implementation="sdpa")
    scramble(own)
    own.serve(BOTH)
    together = own(views())
    for row in range(3):
        alone = own(views()[row : row + 1])
        torch.testing.assert_close(together.attn[row], alone.attn[0], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(together.keys[row], alone.keys[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(together.attn.sum(1), torch.ones(3))


@torch.no_grad()
def test_attention_is_summed_as_the_formula_says_with_groups_and_either_mask():
    generator = torch.Generator().manual_seed(0)
    query, key = torch.randn(2, 4, 5, 3, generator=generator), torch.randn(2, 2, 5, 3, generator=generator)
    allowed = torch.rand(2, 4, 5, 5, generator=generator) < 0.7
    allowed |= torch.eye(5, dtype=torch.bool)
    real = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]], dtype=torch.bool)
    logits = (query @ key.repeat_interleave(2, 1).transpose(2, 3) * 0.5).masked_fill(~allowed, float("-inf"))
    expected = (logits.softmax(-1).mean(1) * real[..., None]).sum(1)
    additive = torch.zeros(allowed.shape).masked_fill(~allowed, float("-inf"))
    for mask in (allowed, additive):
        torch.testing.assert_close(paid(query, key, mask, 0.5, real), expected)


def test_a_result_is_of_visual_tokens(made):
    assert isinstance(made("vit", "keep")(views(), kept_rows()), VisualTokens)
