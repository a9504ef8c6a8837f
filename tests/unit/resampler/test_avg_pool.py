import pytest
import torch

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


def test_tokens_without_a_grid_are_refused() -> None:
    with pytest.raises(CompositionError, match="E-GRID"):
        AvgPool(TokenSpec(n=15, dim=7), side=2)
