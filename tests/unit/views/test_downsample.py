"""Pictures that are made smaller before they are encoded."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from beni.config.compose import compose
from beni.errors import CompositionError
from beni.model.costing.table import propagate
from beni.nn.pixels import ImageTransform
from beni.views.downsample import DownsampledView

TRANSFORM = ImageTransform(48, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), "pad")


@pytest.mark.parametrize(("keep", "size"), [(0.25, (24, 24)), (9, (24, 24)), (1.0, (48, 48)), (1, (8, 8))])
def test_a_picture_has_as_many_pixels_as_its_budget_of_patches(keep, size):
    views = DownsampledView((48, 48), (6, 6), keep=keep)
    layout = views.plan((100, 300))
    assert layout.views == (size,)
    (pixels,) = views.split(Image.new("RGB", (300, 100), "red"), layout, TRANSFORM)
    assert pixels.shape == (3, *size)


def test_it_is_padded_as_the_whole_picture_is_and_then_smaller():
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 80, 3), dtype=np.uint8))
    views = DownsampledView((48, 48), (6, 6), keep=9)
    (small,) = views.split(picture, views.plan((40, 80)), TRANSFORM)
    whole = TRANSFORM(picture)
    assert torch.allclose(small.mean((1, 2)), whole.mean((1, 2)), atol=0.02)
    assert small[:, :4].std() < small[:, 8:16].std()  # the padding above the picture is even
    assert whole.shape == (3, 48, 48)


def test_the_llm_has_a_quarter_of_the_tokens_and_the_encoder_a_quarter_of_the_work():
    small, whole = (
        propagate(compose(["vision.architecture.patch_size=8", *more])) for more in (["views=downsample"], [])
    )
    tokens = [model.viewer.visual_tokens(model.viewer.plan((48, 48))) for model in (small, whole)]
    assert tokens == [9, 36]


def test_an_encoder_of_one_size_refuses_it():
    with pytest.raises(CompositionError, match=r"^E-RES"):
        propagate(compose(["vision=aimv2", "vision.weights=random", "views=downsample"]))
