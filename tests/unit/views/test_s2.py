"""S2: several sizes of the picture, stitched and brought to one grid."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from PIL import Image as PILImage

from beni.errors import CompositionError, ConfigError
from beni.nn.pixels import ImageTransform
from beni.stage import StageContext
from beni.types import TokenSpec, VisualTokens
from beni.views.s2 import S2Views

TILE, PATCH = 12, 3
TRANSFORM = ImageTransform(TILE, (0.5,) * 3, (0.5,) * 3)
TOKENS = TokenSpec(n=16, dim=3, grid=(4, 4))


def views(scales, tokens=TOKENS):
    return S2Views(tokens, (TILE, TILE), scales=scales)


def noise(side):
    generator = torch.Generator().manual_seed(0)
    return PILImage.fromarray(torch.randint(0, 256, (side, side, 3), generator=generator, dtype=torch.uint8).numpy())


def encode(pixels):
    """A patch-local encoder: the mean of each patch."""
    means = F.avg_pool2d(pixels, PATCH)
    return VisualTokens.dense(means.flatten(2).transpose(1, 2), (means.shape[2], means.shape[3]))


def through(stage, picture):
    layout = stage.plan((picture.height, picture.width))
    return stage(encode(torch.stack(stage.split(picture, layout, TRANSFORM))), StageContext(layouts=(layout,)))


def test_one_scale_of_one_is_the_plain_encoder():
    picture = noise(TILE)
    plain = encode(TRANSFORM(picture)[None])
    assert through(views([1]), picture).x.equal(plain.x)


@pytest.mark.parametrize("scale", [2, 3])
def test_stitched_tiles_equal_a_patch_local_encoder_on_the_whole_picture(scale):
    picture = noise(scale * TILE)
    whole = encode(TRANSFORM.at((scale * TILE, scale * TILE))(picture)[None])
    expected = F.avg_pool2d(whole.x.transpose(1, 2).unflatten(2, whole.grid), scale).flatten(2).transpose(1, 2)
    torch.testing.assert_close(through(views([scale]), picture).x, expected)


def test_scales_stand_side_by_side_in_the_channels_in_their_order():
    picture = noise(2 * TILE)
    both = through(views([1, 2]), picture)
    assert both.x.shape == (1, 16, 6)
    assert both.x[..., :3].equal(through(views([1]), picture).x)
    assert both.x[..., 3:].equal(through(views([2]), picture).x)
    assert views([1, 2]).spec(TOKENS) == TokenSpec(n=16, dim=6, grid=(4, 4))


def test_every_scale_costs_the_square_of_it_in_views():
    assert len(views([1, 2, 3]).plan((100, 50)).views) == 1 + 4 + 9


@pytest.mark.parametrize(
    ("code", "tokens"),
    [
        ("E-GRID", TokenSpec(n=17, dim=3)),
        ("E-LEVELS", TokenSpec(n=16, dim=3, grid=(4, 4), levels=6)),
        ("E-STACK", TokenSpec(n=16, dim=3, grid=(4, 4), sources=(TOKENS,))),
    ],
)
def test_what_has_no_place_in_one_grid_is_refused(code, tokens):
    with pytest.raises(CompositionError) as caught:
        views([1, 2], tokens)
    assert caught.value.code == code


def test_a_scale_below_one_is_refused():
    with pytest.raises(ConfigError, match=r"views\.scales=\[0\]"):
        views([0])
