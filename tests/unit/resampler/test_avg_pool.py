from dataclasses import replace

import pytest
import torch

from beni.conformance.__main__ import main as check
from beni.errors import CompositionError
from beni.resampler.avg_pool import AvgPool
from beni.stage import StageContext
from beni.types import TokenSpec, VisualTokens


def pool(grid, side, x):
    stage = AvgPool(TokenSpec(n=grid[0] * grid[1], dim=x.shape[-1], grid=grid), side=side)
    return stage(VisualTokens.dense(x, grid), StageContext()).x


@pytest.mark.parametrize("grid", [(4, 6), (3, 5)])
def test_a_picture_of_one_colour_stays_one(grid) -> None:
    x = torch.randn(2, 1, 7).expand(2, grid[0] * grid[1], 7)
    torch.testing.assert_close(pool(grid, 2, x), x[:, :4])


def test_bins_that_tile_the_grid_keep_the_mean() -> None:
    x = torch.randn(2, 24, 7)
    torch.testing.assert_close(pool((4, 6), 2, x).mean(1), x.mean(1))


def test_a_linear_layer_and_pooling_change_places() -> None:
    x, weight = torch.randn(2, 15, 7), torch.randn(7, 9)
    torch.testing.assert_close(pool((3, 5), 2, x @ weight), pool((3, 5), 2, x) @ weight)


@pytest.mark.parametrize("side", [0, 4])
def test_a_result_larger_than_the_grid_is_refused(side) -> None:
    with pytest.raises(CompositionError, match="E-DIV"):
        AvgPool(TokenSpec(n=15, dim=7, grid=(3, 5)), side=side)


def test_tokens_without_a_grid_have_no_cells() -> None:
    with pytest.raises(CompositionError, match=r"E-GRID.*\n  fix: set resampler\.side=1"):
        AvgPool(TokenSpec(n=15, dim=7), side=2)


def test_what_a_selector_leaves_has_a_mean() -> None:
    spec, x = TokenSpec(n=15, dim=7), torch.randn(3, 15, 7)
    mask = torch.rand(3, 15) < 0.5
    mask[:, 0], mask[2] = True, False
    tokens = replace(VisualTokens.dense(x, (3, 5)), mask=mask, grid=None)
    stage = AvgPool(spec, side=1)
    made = stage(tokens, StageContext())
    assert stage.spec(spec) == TokenSpec(n=1, dim=7, grid=(1, 1))
    for row in range(2):
        torch.testing.assert_close(made.x[row, 0], x[row, mask[row]].mean(0))
        torch.testing.assert_close(made.yx[row, 0], tokens.yx[row, mask[row]].mean(0))
        assert made.size[row, 0] == mask[row].sum()
    assert not made.x[2].any()
    assert made.mask.all()


def test_a_gate_weighs_a_token_and_open_ones_change_nothing() -> None:
    x, grid = torch.randn(2, 6, 7), (2, 3)
    dense = VisualTokens.dense(x, grid)
    stage = AvgPool(TokenSpec(n=6, dim=7, grid=grid, gated=True), side=1)
    open_ = stage(replace(dense, log_gate=torch.zeros(2, 6)), StageContext())
    torch.testing.assert_close(open_.x, pool(grid, 1, x))
    gates = torch.tensor([1.0, 0.0, 0.5, 0.0, 0.25, 1.0]).expand(2, 6)
    made = stage(replace(dense, log_gate=gates.log()), StageContext())
    torch.testing.assert_close(made.x[:, 0], (gates[..., None] * x).sum(1) / 2.75)
    assert made.log_gate is None


def test_the_mean_of_all_passes_the_conformance_kit() -> None:
    assert check(["beni.resampler.avg_pool:AvgPool", "side=1"]) == 0
