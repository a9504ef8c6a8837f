from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from beni.nn.positions import positions_at, sincos_table
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
