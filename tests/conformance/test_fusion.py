"""What every fusion option must do."""

from __future__ import annotations

import pytest
import torch

from beni.errors import DataError
from beni.stage import TokenSpec
from beni.types import VisualTokens

GROUPS = ("fusion",)
SPEC = TokenSpec(n=4, dim=32, grid=(2, 2), space="llm")


@pytest.fixture
def fused(make, option):
    fusion = make(option, SPEC, SPEC.dim)
    per_image = fusion.placeholders(SPEC.n)
    is_image = torch.zeros(2, 10, dtype=torch.bool)
    is_image[0, 1 : 1 + per_image] = True
    is_image[1, 3 : 3 + per_image] = True
    embeds = torch.randn(2, 10, 32, requires_grad=True)
    x = torch.randn(2, 4, 32, requires_grad=True)
    return fusion, embeds, is_image, x


def test_text_keeps_its_place_and_its_embeddings(fused, option):
    fusion, embeds, is_image, x = fused
    out = fusion(embeds, is_image, VisualTokens.dense(x, (2, 2)))
    assert out.shape == embeds.shape
    assert out[~is_image].equal(embeds[~is_image])
    assert fusion(embeds, torch.zeros_like(is_image), None).equal(embeds)


def test_each_image_changes_its_own_row_only_and_gets_a_gradient(fused, option):
    fusion, embeds, is_image, x = fused
    out = fusion(embeds, is_image, VisualTokens.dense(x, (2, 2)))
    out[0].sum().backward()
    assert x.grad[0].abs().min() > 0
    assert x.grad[1].abs().max() == 0


def test_images_without_placeholders_are_an_error(fused, option):
    fusion, embeds, is_image, x = fused
    is_image[1] = False
    with pytest.raises(DataError, match="E-COUNT"):
        fusion(embeds, is_image, VisualTokens.dense(x, (2, 2)))


def test_bf16_text_takes_fp32_images_and_the_other_way_round(fused, option):
    fusion, embeds, is_image, x = fused
    for dtype in (torch.bfloat16, torch.float32):
        other = torch.float32 if dtype is torch.bfloat16 else torch.bfloat16
        assert fusion(embeds.to(dtype), is_image, VisualTokens.dense(x.to(other), (2, 2))).dtype == dtype
