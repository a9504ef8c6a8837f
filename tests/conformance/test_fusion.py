"""What every fusion option must do."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from beni.errors import DataError
from beni.types import Sequence, VisualTokens
from support.fusions import SPEC, family, fusion_of

GROUPS = ("fusion",)
WHOLE = 3


def text(embeds, is_image):
    return replace(Sequence.plain(embeds), images=is_image.long() - 1)


def seen(x):
    """Tokens of such features, the first of them of the whole picture, with levels of which some depend on nothing."""
    levels = torch.linspace(-1, 1, 36).sin().expand(len(x), 4, 36)
    whole = (torch.arange(4) < WHOLE).expand(len(x), -1)
    levels, deep = (made.contiguous().requires_grad_() for made in (levels, levels.repeat(1, 1, 2)[..., :64]))
    sources = tuple(
        VisualTokens.dense(torch.linspace(-3, 3, len(x) * side**2 * 16).cos().view(len(x), -1, 16), (side, side))
        for side in (2, 4)
    )
    return replace(VisualTokens.dense(x, (2, 2)), levels=levels, deep=deep, whole=whole, sources=sources)


@pytest.fixture
def fused(option):
    llm = family("llama", num_hidden_layers=3)
    fusion = fusion_of(option[1], llm)
    stands = WHOLE if "parts" in fusion.reads_beside else SPEC.n
    per_image = sum(part for part in fusion.markup((stands,)) if isinstance(part, int))
    torch.manual_seed(1)
    is_image = torch.zeros(2, 10, dtype=torch.bool)
    is_image[0, 1 : 1 + per_image] = True
    is_image[1, 3 : 3 + per_image] = True
    embeds = torch.randn(2, 10, 32, requires_grad=True)
    x = torch.randn(2, 4, 32, requires_grad=True)
    return fusion, llm, text(embeds, is_image), x


def test_text_keeps_its_place_and_its_embeddings(fused, option):
    fusion, _, sequence, x = fused
    embeds, is_image = sequence.embeds, sequence.is_image
    out = fusion(sequence, seen(x))
    assert out.embeds.shape == embeds.shape
    assert out.embeds[~is_image].equal(embeds[~is_image])
    assert fusion(text(embeds, torch.zeros_like(is_image)), None).embeds.equal(embeds)


def test_each_image_changes_its_own_row_only_and_gets_a_gradient(fused, option):
    fusion, llm, sequence, x = fused
    out = llm.hidden(fusion(sequence, seen(x)))
    out[0].square().sum().backward()
    assert x.grad[0].abs().min() > 0
    assert x.grad[1].abs().max() == 0


@torch.no_grad()
def test_nothing_in_front_of_an_image_depends_on_it(fused, option):
    fusion, llm, sequence, x = fused
    bare = llm.hidden(sequence)
    for image, first in ((0, 1), (1, 3)):
        out = llm.hidden(fusion(sequence, seen(x)))[image]
        assert out[:first].equal(bare[image, :first])
        assert not out[first].equal(bare[image, first])


def test_images_without_placeholders_are_an_error(fused, option):
    fusion, _, sequence, x = fused
    sequence.images[1] = -1
    with pytest.raises(DataError, match="E-COUNT"):
        fusion(sequence, seen(x))


def test_placeholders_without_an_image_are_an_error(fused, option):
    fusion, _, sequence, _ = fused
    with pytest.raises(DataError, match=r"E-COUNT: .* but no image was given"):
        fusion(sequence, None)


@torch.no_grad()
def test_bf16_text_takes_fp32_images_and_the_other_way_round(fused, option):
    fusion, llm, sequence, x = fused
    for dtype in (torch.bfloat16, torch.float32):
        other = torch.float32 if dtype is torch.bfloat16 else torch.bfloat16
        words = text(sequence.embeds.to(dtype), sequence.is_image)
        out = fusion(words, seen(x.to(other)))
        assert out.embeds.dtype == dtype
        llm.to(dtype)
        assert llm.hidden(out).dtype == dtype


def test_a_rank_without_images_reaches_what_others_do_and_changes_nothing(fused, option):
    fusion, llm, sequence, x = fused
    words = text(sequence.embeds.detach(), torch.zeros_like(sequence.is_image))
    out = fusion.blank(fusion(words, None), seen(x))
    assert out.embeds.equal(words.embeds)
    read = llm.hidden(out)
    assert read.equal(llm.hidden(words))
    read.sum().backward()
    assert x.grad is not None
    assert not x.grad.any()
    assert all(p.grad is not None and not p.grad.any() for p in fusion.parameters())
