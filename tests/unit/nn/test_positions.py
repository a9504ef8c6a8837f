from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from beni.nn.positions import positions_at, rotated, rotations, sincos_table
from beni.types import VisualTokens

CPU = torch.device("cpu")


def tokens(grid, dtype=torch.float64):
    return VisualTokens.dense(torch.zeros(2, grid[0] * grid[1], 8, dtype=dtype), grid)


def test_columns_come_first_and_sines_before_cosines():
    table = sincos_table((3, 5), 8, CPU)
    assert table.shape == (8, 3, 5)
    wanted = [math.sin(4), math.sin(0.04), math.cos(4), math.cos(0.04)]  # column 4, rates 1 and 1/100
    wanted += [math.sin(2), math.sin(0.02), math.cos(2), math.cos(0.02)]  # row 2
    torch.testing.assert_close(table[:, 2, 4], torch.tensor(wanted, dtype=torch.float64))


def test_on_a_grid_of_its_own_size_the_table_stays_as_it_is():
    table = sincos_table((3, 3), 8, CPU)
    assert positions_at(table, tokens((3, 3))).equal(table.flatten(1).T[None])


@pytest.mark.parametrize("grid", [(3, 3), (2, 7), (9, 4), (1, 1)])
def test_tokens_that_lost_their_grid_keep_their_positions(grid):
    table = sincos_table((3, 3), 8, CPU)
    dense = positions_at(table, tokens(grid))
    assert dense.shape == (1, grid[0] * grid[1], 8)
    lost = positions_at(table, replace(tokens(grid), grid=None))
    assert lost.shape == (2, grid[0] * grid[1], 8)
    assert (lost - dense).abs().max() <= 1e-6  # places are fp32


def test_positions_have_the_dtype_of_the_tokens():
    table = sincos_table((3, 3), 8, CPU)
    for dtype in (torch.bfloat16, torch.float32, torch.float64):
        for visual in (tokens((2, 4), dtype), replace(tokens((2, 4), dtype), grid=None)):
            assert positions_at(table, visual).dtype == dtype


def test_products_of_what_is_turned_depend_on_the_distance_of_their_places():
    q, k = torch.randn(2, 1, 3, 1, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def product(at, to):
        angles = [rotations(torch.tensor([[place]]), 8, 100.0) for place in (at, to)]
        return (rotated(q, angles[0]) * rotated(k, angles[1])).sum(-1)

    torch.testing.assert_close(product(7, 4), product(3, 0), rtol=1e-5, atol=1e-6)
    assert (product(7, 4) - product(7, 3)).abs().min() > 1e-3


def test_a_pair_of_channels_is_turned_by_its_own_angle():
    x = torch.tensor([1.0, 0.0, 0.0, 1.0]).view(1, 1, 1, 4)  # pairs (0, 2) and (1, 3)
    turned = rotated(x, rotations(torch.tensor([[5]]), 4, 100.0)).flatten()
    wanted = [math.cos(5), -math.sin(0.5), math.sin(5), math.cos(0.5)]
    torch.testing.assert_close(turned, torch.tensor(wanted))
