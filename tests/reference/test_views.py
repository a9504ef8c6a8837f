"""Views against the image processors of transformers: the same tiles, pixel for pixel, and as many tokens."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image as PILImage
from transformers import LlavaNextConfig
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil
from transformers.models.idefics2.image_processing_pil_idefics2 import Idefics2ImageProcessorPil
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.idefics3.processing_idefics3 import Idefics3Processor
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil
from transformers.models.llava_next.modeling_llava_next import LlavaNextModel
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize
from transformers.models.siglip2.image_processing_pil_siglip2 import Siglip2ImageProcessorPil

from beni.nn.pixels import ImageTransform
from beni.stage import StageContext
from beni.types import TokenSpec, VisualTokens
from beni.views.anyres import AnyRes
from beni.views.idefics2 import Idefics2Views
from beni.views.idefics3 import Idefics3Tiles
from beni.views.internvl import InternVlTiles
from beni.views.native import NativeView

TILE = 28
TRANSFORM = ImageTransform(TILE, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
NORMALISED = {"image_mean": list(TRANSFORM.mean), "image_std": list(TRANSFORM.std)}
GRID = (4, 4)
TOKENS = TokenSpec(n=16, dim=6, grid=GRID)
SIZES = [(40, 60), (61, 40), (28, 28), (200, 30), (31, 210), (95, 100), (13, 17), (140, 141)]
"""(height, width) of pictures: wide, tall, square, extreme, smaller than a tile and larger than all."""

sizes = pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")


def picture(size):
    generator = np.random.default_rng(size)
    small = generator.integers(0, 256, (max(2, size[0] // 5), max(2, size[1] // 5), 3), dtype=np.uint8)
    return PILImage.fromarray(small).resize(size[::-1], PILImage.Resampling.BICUBIC)


def viewed(views, size):
    layout = views.plan(size)
    made = views.split(picture(size), layout, TRANSFORM)
    assert tuple(tuple(view.shape[1:]) for view in made) == layout.views
    return layout, made


def same(made, expected):
    """Pixels equal but for rounding: both round to whole grey values where they resize, in the same places."""
    assert len(made) == len(expected)
    for ours, theirs in zip(made, expected, strict=True):
        torch.testing.assert_close(ours, torch.as_tensor(np.asarray(theirs), dtype=torch.float32), rtol=0, atol=1e-5)


@sizes
def test_anyres_cuts_as_llava_next_does(size):
    canvases = [[1, 2], [2, 1], [2, 2], [3, 1], [1, 3]]
    views = AnyRes(TOKENS, 8, (TILE, TILE), canvases=canvases, unpad=True, newline=True, join=False)
    layout, made = viewed(views, size)
    theirs = LlavaNextImageProcessorPil(
        size={"height": TILE, "width": TILE},
        crop_size={"height": TILE, "width": TILE},
        image_grid_pinpoints=[[TILE * a, TILE * b] for a, b in canvases],
        **NORMALISED,
    )
    expected = theirs.preprocess(picture(size), return_tensors="np")["pixel_values"][0]
    same(made, expected)
    assert len(layout.views) == 1 + layout.tiles[0] * layout.tiles[1]


@sizes
def test_anyres_packs_as_llava_next_does(size):
    canvases = [[1, 2], [2, 1], [2, 2], [3, 1], [1, 3]]
    views = AnyRes(TOKENS, 6, (TILE, TILE), canvases=canvases, unpad=True, newline=True, join=False)
    views.init_weights()
    layout = views.plan(size)
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(len(layout.views), 16, 6, generator=generator)

    class Config:
        vision_config = type("Vision", (), {"image_size": TILE, "patch_size": TILE // 4})
        image_grid_pinpoints = LlavaNextConfig().image_grid_pinpoints and [[TILE * a, TILE * b] for a, b in canvases]

    stub = type("Model", (), {"config": Config})()
    (expected,), _ = LlavaNextModel.pack_image_features(stub, [features], [size], "default", views.newline)
    out = views.finish(VisualTokens.dense(features, GRID), StageContext(layouts=(layout,)))
    assert views.markup(layout, [TOKENS] * len(features)) == (len(expected),)
    assert out.x[0][out.mask[0]].equal(expected)


@sizes
def test_internvl_cuts_as_its_processor_does(size):
    views = InternVlTiles(
        TOKENS, (TILE, TILE), min_tiles=1, max_tiles=6, thumbnail=True, start="<img>", end="</img>", join=False
    )
    layout, made = viewed(views, size)
    theirs = GotOcr2ImageProcessorPil(
        size={"height": TILE, "width": TILE}, crop_to_patches=True, min_patches=1, max_patches=6, **NORMALISED
    )
    same(made, theirs.preprocess(picture(size), return_tensors="np")["pixel_values"])
    assert views.markup(layout, [TOKENS] * len(made)) == ("<img>", 16 * len(made), "</img>")


@sizes
def test_idefics3_cuts_and_announces_as_its_processor_does(size):
    views = Idefics3Tiles(TOKENS, (TILE, TILE), longest=4, join=False)
    layout, made = viewed(views, size)
    theirs = Idefics3ImageProcessorPil(
        size={"longest_edge": 4 * TILE}, max_image_size={"longest_edge": TILE}, return_row_col_info=True, **NORMALISED
    )
    out = theirs.preprocess([[picture(size)]], return_tensors="np")
    same(made, out["pixel_values"][0])

    class Processor:
        fake_image_token, image_token, global_image_tag = "<fake_token_around_image>", "#", "<global-img>"
        image_seq_len = 16

    said = Idefics3Processor.replace_image_token(Processor, out, 0)
    markup = views.markup(layout, [TOKENS] * len(made))
    assert "".join("#" * part if isinstance(part, int) else part for part in markup) == said


@pytest.mark.parametrize("size", [(40, 60), (61, 40), (28, 28), (95, 100), (13, 17)])
def test_idefics2_cuts_as_its_processor_does_where_sides_are_whole_patches(size):
    shape = tuple(side // 2 * 2 for side in size)
    views = Idefics2Views(
        TOKENS, (TILE, TILE), (TILE, TILE), split=True, shortest=6, longest=50, multiple=1, join=False
    )  # a patch is a pixel: whatever the reference makes of the sides, they are whole patches
    layout, made = viewed(views, shape)
    theirs = Idefics2ImageProcessorPil(
        size={"shortest_edge": 6, "longest_edge": 50}, do_image_splitting=True, do_pad=True, **NORMALISED
    )
    out = theirs.preprocess([[picture(shape)]], return_tensors="np")
    real = out["pixel_attention_mask"][0].astype(bool)
    cropped = [
        view[:, : int(mask.any(1).sum()), : int(mask.any(0).sum())]
        for view, mask in zip(out["pixel_values"][0], real, strict=True)
    ]
    same(made, cropped)
    assert views.markup(layout, [TOKENS] * 5) == ("<fake_token_around_image>", 16) * 5 + ("<fake_token_around_image>",)


@sizes
def test_native_resolution_scales_as_naflex_does(size):
    views = NativeView(8, (TILE, TILE), (4, 4), max_patches=36, min_patches=1, fill=True, multiple=1, newline=False)
    layout, made = viewed(views, size)
    theirs = Siglip2ImageProcessorPil(patch_size=7, max_num_patches=36, **NORMALISED)
    out = theirs.preprocess(picture(size), return_tensors="np")
    rows, columns = (int(side) for side in out["spatial_shapes"][0])
    assert layout.views == ((7 * rows, 7 * columns),)
    patches = made[0].unflatten(2, (columns, 7)).unflatten(1, (rows, 7)).permute(1, 3, 2, 4, 0).flatten(2).flatten(0, 1)
    same([patches], [out["pixel_values"][0][: rows * columns]])


@sizes
def test_native_resolution_rounds_as_qwen2_vl_does(size):
    views = NativeView(8, (TILE, TILE), (4, 4), max_patches=100, min_patches=4, fill=False, multiple=2, newline=False)
    expected = smart_resize(*size, factor=14, min_pixels=4 * 49, max_pixels=100 * 49)
    assert views.plan(size).views == (expected,)
