"""Families of Hugging Face vision models through one class: grid, prefix, order, resolution, layers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from beni.errors import CompositionError

from .conftest import STAGES, VIT, WINDOWS


@dataclass(frozen=True)
class Family:
    """What is known of a model at a small size.

    Attributes:
        stride: pixels a token.
        prefix: tokens before the patches.
        other: whether it takes other sizes than its own, non-square ones among them.
        asks: whether it must be asked to interpolate.
        own: its size, square.
        deep: whether its hidden states are its blocks' outputs on one grid.
        wide: whether a token at its place sees most of a small picture.
    """

    fields: dict[str, Any] = field(default_factory=lambda: VIT)
    stride: int = 8
    prefix: int = 0
    other: bool = True
    asks: bool = False
    own: int = 32
    deep: bool = True
    wide: bool = False


FAMILIES = {
    "clip_vision_model": Family(prefix=1, asks=True),
    "chinese_clip_vision_model": Family(prefix=1, asks=True),
    "siglip_vision_model": Family(VIT | {"vision_use_head": False}, asks=True),
    "vit": Family(prefix=1, asks=True),
    "deit": Family(prefix=2, asks=True),
    "vit_msn": Family(prefix=1, asks=True),
    "ijepa": Family(asks=True),
    "beit": Family(VIT | {"use_relative_position_bias": True}, prefix=1, asks=True),
    "data2vec-vision": Family(prefix=1, asks=True),
    "dinov2": Family(prefix=1),
    "dinov2_with_registers": Family(VIT | {"num_register_tokens": 4}, prefix=5),
    "dinov3_vit": Family(VIT | {"num_register_tokens": 4}, prefix=5),
    "internvl_vision": Family(VIT | {"image_size": [32, 32], "patch_size": [8, 8]}, prefix=1),
    "mlcd_vision_model": Family(prefix=1),
    "dpt": Family(prefix=1),
    "pixtral": Family(),
    "aimv2_vision_model": Family(VIT | {"use_head": False}, other=False),
    "vitdet": Family(),
    "swin": Family(WINDOWS | {"window_size": 2}, deep=False, asks=True),
    "swinv2": Family(WINDOWS | {"window_size": 2}, deep=False, asks=True),
    "focalnet": Family(WINDOWS | {"depths": [1, 1, 1]}, deep=False),
    "convnext": Family(STAGES | {"image_size": 64}, stride=32, own=64, deep=False),
    "convnextv2": Family(STAGES | {"image_size": 64}, stride=32, own=64, deep=False),
    "dinov3_convnext": Family(STAGES, stride=32, prefix=1, own=64, deep=False),
    "resnet": Family(STAGES | {"embedding_size": 8}, stride=32, own=64, deep=False, wide=True),
    "regnet": Family(STAGES | {"embedding_size": 8, "groups_width": 8}, stride=32, own=64, deep=False, wide=True),
    "mobilenet_v1": Family({"depth_multiplier": 0.25, "image_size": 64}, stride=32, own=64, deep=False, wide=True),
    "mobilenet_v2": Family({"depth_multiplier": 0.25, "image_size": 64}, stride=32, own=64, deep=False, wide=True),
    "efficientnet": Family(
        {"width_coefficient": 0.25, "depth_coefficient": 0.3, "hidden_dim": 320, "image_size": 64},
        stride=32,
        own=64,
        deep=False,
        wide=True,
    ),
    "pvt_v2": Family(STAGES | {"num_attention_heads": [1, 2, 2, 4], "depths": [1] * 4}, stride=32, own=64, deep=False),
    "segformer": Family(
        STAGES | {"num_attention_heads": [1, 2, 2, 4], "depths": [1] * 4}, stride=32, own=64, deep=False
    ),
    "pvt": Family(
        STAGES | {"num_attention_heads": [1, 2, 2, 4], "depths": [1] * 4, "image_size": 64},
        stride=32,
        prefix=1,
        own=64,
        deep=False,
        other=False,
    ),
}
WITH_OTHER_SIZES = [name for name, family in FAMILIES.items() if family.other]
DEEP = [name for name, family in FAMILIES.items() if family.deep]


def pixels(height, width, images=2):
    return torch.randn(images, 3, height, width, generator=torch.Generator().manual_seed(1))


def by_hand(out, family, images):
    """Patches of a last hidden state, by what the table above says."""
    if out.ndim == 4:
        return torch.stack([image.reshape(image.shape[0], -1).T for image in out])
    return out.reshape(images, -1, out.shape[-1])[:, family.prefix :]


@torch.no_grad()
@pytest.mark.parametrize("name", FAMILIES)
def test_at_its_own_size_the_patches_are_those_of_a_plain_call_bit_for_bit(encoder, name):
    family = FAMILIES[name]
    vision = encoder(name, family.fields, image_size=family.own)
    side = family.own // family.stride
    out = vision(pixels(family.own, family.own))
    plain = vision.model(pixel_values=pixels(family.own, family.own)).last_hidden_state
    assert vision.spec().grid == out.grid == (side, side)
    assert (vision.spec().n, vision.spec().dim) == out.x.shape[1:]
    assert out.x.equal(by_hand(plain, family, 2))


@torch.no_grad()
@pytest.mark.parametrize("name", WITH_OTHER_SIZES)
def test_at_another_size_the_grid_follows_the_picture_also_where_it_is_no_square(encoder, name):
    family = FAMILIES[name]
    height, width = 2 * family.own, 3 * family.own
    vision = encoder(name, family.fields, image_size=[height, width])
    asked = {"interpolate_pos_encoding": True} if family.asks else {}
    out = vision(pixels(height, width))
    plain = vision.model(pixel_values=pixels(height, width), **asked).last_hidden_state
    assert vision.spec().grid == out.grid == (height // family.stride, width // family.stride)
    assert out.x.equal(by_hand(plain, family, 2))


@torch.no_grad()
@pytest.mark.parametrize("name", WITH_OTHER_SIZES)
def test_a_corner_of_the_picture_is_seen_most_by_the_token_of_that_corner(encoder, name):
    family = FAMILIES[name]
    height, width, s = 2 * family.own, 3 * family.own, family.stride
    vision = encoder(name, family.fields, image_size=[height, width])
    rows, columns = vision.spec().grid
    before = pixels(height, width, 1)
    for row, column in ((0, columns - 1), (rows - 1, 0)):
        after = before.clone()
        after[:, :, row * s : (row + 1) * s, column * s : (column + 1) * s] *= -1
        moved = (vision(after).x - vision(before).x)[0].norm(dim=-1)
        if family.wide:  # fields of view as large as the picture: most of the change is on the corner's side
            down, right = moved.view(rows, columns).sum(1), moved.view(rows, columns).sum(0)
            assert (down[: rows // 2].sum() > down[rows // 2 :].sum()) == (row == 0)
            assert (right[: columns // 2].sum() > right[columns // 2 :].sum()) == (column == 0)
        else:
            assert int(moved.argmax()) == row * columns + column


@torch.no_grad()
@pytest.mark.parametrize("name", FAMILIES)
def test_a_picture_does_not_see_the_others_of_its_batch(encoder, name):
    family = FAMILIES[name]
    vision = encoder(name, family.fields, image_size=family.own)
    ours, changed = pixels(family.own, family.own, 3), pixels(family.own, family.own, 3)
    changed[1] *= -1
    before, after = vision(ours).x, vision(changed).x
    assert before[::2].equal(after[::2])
    assert not before[1].equal(after[1])


@torch.no_grad()
@pytest.mark.parametrize("name", DEEP)
def test_levels_are_the_hidden_states_of_the_whole_model_and_nothing_above_them_is_built(encoder, scramble, name):
    family = FAMILIES[name]
    whole = encoder(name, family.fields)
    scramble(whole.model)
    vision = encoder(name, family.fields, layer=-2, levels=[0, -3, 1])
    assert vision.config.num_hidden_layers == 2
    vision.model.load_state_dict(whole.model.state_dict(), strict=False)
    states = whole.model(pixel_values=pixels(32, 32), output_hidden_states=True).hidden_states
    x, *levels = (by_hand(states[i], family, 2) for i in (2, 0, 1, 1))
    out = vision(pixels(32, 32))
    torch.testing.assert_close(out.x, x, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(out.levels, torch.cat(levels, -1), rtol=1e-6, atol=1e-6)
    assert vision.spec().levels == 96
    assert vision.spec().dim == 32


@torch.no_grad()
@pytest.mark.parametrize("name", DEEP)
def test_levels_beside_the_last_layer_leave_it_as_it_is(encoder, scramble, name):
    family = FAMILIES[name]
    vision = encoder(name, family.fields, levels=[-1, 2])
    scramble(vision.model)
    alone = encoder(name, family.fields)
    alone.model.load_state_dict(vision.model.state_dict())
    out = vision(pixels(32, 32))
    states = vision.model(pixel_values=pixels(32, 32), output_hidden_states=True).hidden_states
    assert out.x.equal(alone(pixels(32, 32)).x)
    assert out.levels.equal(torch.cat([by_hand(states[i], family, 2) for i in (3, 2)], -1))


@pytest.mark.parametrize("name", sorted(set(FAMILIES) - set(DEEP)))
def test_a_model_without_one_grid_for_all_blocks_has_no_levels(encoder, name):
    family = FAMILIES[name]
    for keys in ({"levels": [1]}, {"layer": -2}):
        with pytest.raises(CompositionError, match="E-LEVELS") as caught:
            encoder(name, family.fields, image_size=family.own, **keys)
        assert "vision.layer=-1" in caught.value.fix


@torch.no_grad()
@pytest.mark.parametrize("name", [name for name in DEEP if FAMILIES[name].prefix])
def test_the_class_token_can_stay_in_front_of_the_patches(encoder, name):
    family = FAMILIES[name]
    vision = encoder(name, family.fields, keep_cls=True, levels=[1])
    out, patches = vision(pixels(32, 32)), encoder(name, family.fields, levels=[1])(pixels(32, 32))
    plain = vision.model(pixel_values=pixels(32, 32), output_hidden_states=True)
    assert out.grid is vision.spec().grid is None
    assert out.x.shape == (2, vision.spec().n, 32) == (2, 17, 32)
    assert out.x.equal(torch.cat([plain.last_hidden_state[:, :1], patches.x], 1))
    assert out.levels.equal(torch.cat([plain.hidden_states[1][:, :1], patches.levels], 1))
    assert out.yx[:, 1:].equal(patches.yx)
    assert (out.yx[:, 0] == 0.5).all()
    assert out.mask.all()
    assert out.size.sum() == out.mask.sum()


@pytest.mark.parametrize("name", ["aimv2_vision_model", "pvt"])
def test_a_size_that_the_model_does_not_take_is_answered_with_its_own(encoder, name):
    family = FAMILIES[name]
    with pytest.raises(CompositionError, match="E-RES") as caught:
        encoder(name, family.fields, image_size=2 * family.own)
    assert f"{family.own}, {family.own}" in caught.value.fix
