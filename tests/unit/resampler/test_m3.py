"""Nested grids: each is the average of the finer ones, and any can be asked for row by row."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from beni.errors import CompositionError
from beni.resampler.m3 import M3, common_factors
from beni.stage import StageContext
from beni.types import Nested, TokenSpec, VisualTokens

SPEC = TokenSpec(n=64, dim=6, grid=(8, 8))


def m3(spec=SPEC, **keys):
    stage = M3(spec, 10, **{"factors": "auto", "factor": 1, "train": "sample", "init_std": 0.5} | keys)
    stage.init_weights()
    return stage.double()


def tokens(images=3, grid=(8, 8)):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(images, grid[0] * grid[1], 6, generator=generator, dtype=torch.float64)
    return VisualTokens.dense(x, grid)


@pytest.mark.parametrize(
    ("grid", "factors"),
    [
        ((24, 24), [1, 2, 4, 8, 24]),
        ((27, 27), [1, 3, 9, 27]),
        ((4, 6), [1, 2]),
        ((5, 7), [1]),
        ((16, 16), [1, 2, 4, 8, 16]),
    ],
)
def test_the_factors_of_a_grid_are_those_of_the_paper(grid, factors):
    assert common_factors(grid) == factors


def test_every_scale_is_the_pooled_map_of_the_mlp():
    stage, seen = m3(), tokens(1)
    maps = stage.mlp(seen.x).transpose(1, 2).unflatten(2, (8, 8))
    for scale, factor in enumerate(stage.factors):
        out = stage(seen, StageContext(scales=(scale,)))
        assert out.grid == (8 // factor, 8 // factor)
        torch.testing.assert_close(out.x, F.avg_pool2d(maps, factor).flatten(2).transpose(1, 2))
        assert stage.spec(replace(SPEC, scale=scale)).n == out.x.shape[1] == (8 // factor) ** 2


def test_coarser_tokens_are_the_means_of_finer_ones_and_one_is_that_of_all():
    stage, seen = m3(), tokens(1)
    fine, coarse, one = (stage(seen, StageContext(scales=(scale,))) for scale in (2, 3, 4))
    pooled = F.avg_pool2d(fine.x.transpose(1, 2).unflatten(2, fine.grid), 2).flatten(2).transpose(1, 2)
    torch.testing.assert_close(pooled, coarse.x)
    assert stage.factors[2:] == (2, 4, 8)
    torch.testing.assert_close(one.x[:, 0], stage.mlp(seen.x).mean(1))


def test_rows_of_one_batch_may_have_scales_of_their_own():
    stage, seen = m3(), tokens(3)
    out = stage(seen, StageContext(scales=(3, 0, 3)))
    assert out.mask.sum(1).tolist() == [4, 64, 4]
    assert out.grids == ((2, 2), (8, 8), (2, 2))
    for row, scale in enumerate((3, 0, 3)):
        alone = stage(seen.select(torch.tensor([row])), StageContext(scales=(scale,)))
        assert out.x[row][out.mask[row]].equal(alone.x[0])
    assert (out.size * out.mask).sum(1).tolist() == [64.0] * 3


def test_evaluation_uses_the_factor_it_is_told_and_training_draws():
    assert m3(factor=4)(tokens(), StageContext()).grid == (2, 2)
    assert m3().nested == Nested(4, every=False)
    assert m3(train="all", factors=[1, 2]).nested == Nested(2, every=True)
    assert m3(train="fixed").nested is None


def test_a_factor_that_does_not_divide_is_refused():
    with pytest.raises(CompositionError, match=r"E-DIV .*factor 3 does not divide the 8x8 grid"):
        m3(factor=3)
    with pytest.raises(CompositionError, match=r"E-DIV .*factor 5"):
        m3(factors=[1, 5])
    with pytest.raises(CompositionError, match="E-GRID"):
        m3(replace(SPEC, grid=None))
