"""What every fusion option must do."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from beni.errors import DataError
from beni.types import Sequence, TokenSpec, VisualTokens

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
    return fusion, text(embeds, is_image), x


def text(embeds, is_image):
    return replace(Sequence.plain(embeds), images=is_image.long() - 1)


def test_text_keeps_its_place_and_its_embeddings(fused, option):
    fusion, sequence, x = fused
    embeds, is_image = sequence.embeds, sequence.is_image
    out = fusion(sequence, VisualTokens.dense(x, (2, 2))).embeds
    assert out.shape == embeds.shape
    assert out[~is_image].equal(embeds[~is_image])
    assert fusion(text(embeds, torch.zeros_like(is_image)), None).embeds.equal(embeds)


def test_each_image_changes_its_own_row_only_and_gets_a_gradient(fused, option):
    fusion, sequence, x = fused
    out = fusion(sequence, VisualTokens.dense(x, (2, 2))).embeds
    out[0].sum().backward()
    assert x.grad[0].abs().min() > 0
    assert x.grad[1].abs().max() == 0


def test_images_without_placeholders_are_an_error(fused, option):
    fusion, sequence, x = fused
    sequence.images[1] = -1
    with pytest.raises(DataError, match="E-COUNT"):
        fusion(sequence, VisualTokens.dense(x, (2, 2)))


def test_bf16_text_takes_fp32_images_and_the_other_way_round(fused, option):
    fusion, sequence, x = fused
    for dtype in (torch.bfloat16, torch.float32):
        other = torch.float32 if dtype is torch.bfloat16 else torch.bfloat16
        words = text(sequence.embeds.to(dtype), sequence.is_image)
        assert fusion(words, VisualTokens.dense(x.to(other), (2, 2))).embeds.dtype == dtype


def test_a_rank_without_images_reaches_what_others_do_and_changes_nothing(fused, option):
    fusion, sequence, x = fused
    words = text(sequence.embeds.detach(), torch.zeros_like(sequence.is_image))
    out = fusion.blank(fusion(words, None), VisualTokens.dense(x, (2, 2))).embeds
    assert out.equal(words.embeds)
    out.sum().backward()
    assert x.grad is not None
    assert all(p.grad is not None for p in fusion.parameters())
