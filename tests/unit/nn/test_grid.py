from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from beni.errors import CompositionError
from beni.nn.grid import from_map, grid_of, regrid, space_to_depth, to_map
from beni.types import TokenSpec, VisualTokens

SIDES = st.integers(1, 9)


def picture(grid, dim=3, images=2):
    """Tokens that stand for unequal numbers of patches."""
    n = grid[0] * grid[1]
    tokens = VisualTokens.dense(torch.randn(images, n, dim), grid)
    return replace(tokens, size=torch.rand(images, n) + 0.5)


def test_a_map_has_rows_before_columns_and_comes_back_as_it_was() -> None:
    tokens = picture((2, 5))
    maps = to_map(tokens)
    assert maps.shape == (2, 3, 2, 5)
    assert maps[:, :, 1, 3].equal(tokens.x[:, 8])
    back = from_map(maps, tokens)
    assert back.x.equal(tokens.x)
    assert back.grid == (2, 5)
    torch.testing.assert_close(back.size, tokens.size)
    torch.testing.assert_close(back.yx, tokens.yx)


@given(SIDES, SIDES, SIDES, SIDES)
def test_any_other_grid_stands_for_all_patches(rows, columns, out_rows, out_columns) -> None:
    tokens = picture((rows, columns))
    out = from_map(torch.zeros(2, 4, out_rows, out_columns), tokens)
    torch.testing.assert_close(out.size.sum(1), tokens.size.sum(1))
    assert out.size.min() > 0
    assert out.grid == (out_rows, out_columns)


def test_a_cell_stands_for_the_patches_below_it() -> None:
    tokens = replace(picture((1, 3)), size=torch.tensor([[1.0, 2.0, 6.0]]).expand(2, 3))
    out = from_map(torch.zeros(2, 4, 1, 2), tokens)
    torch.testing.assert_close(out.size, torch.tensor([[2.0, 7.0]]).expand(2, 2))


@given(st.integers(1, 3), st.integers(1, 4), st.integers(1, 3), st.integers(1, 3))
def test_space_to_depth_is_torchs_unshuffle_with_the_channels_last(rows, columns, r, dim) -> None:
    tokens = picture((rows * r, columns * r), dim)
    out = space_to_depth(tokens, (r, r))
    torchs = F.pixel_unshuffle(to_map(tokens), r).unflatten(1, (dim, r * r))  # (i, c, place, rows, columns)
    assert out.x.equal(torchs.permute(0, 3, 4, 2, 1).flatten(3).flatten(1, 2))
    assert out.grid == (rows, columns)


def test_a_block_stands_for_and_amid_its_tokens() -> None:
    tokens = picture((2, 6))
    out = space_to_depth(tokens, (2, 3))
    torch.testing.assert_close(out.size[:, 0], tokens.size.unflatten(1, (2, 6))[:, :, :3].sum((1, 2)))
    torch.testing.assert_close(out.yx[0], torch.tensor([[0.5, 0.25], [0.5, 0.75]]))
    assert out.mask.all()


def test_a_block_over_the_border_is_filled_with_zeros_that_stand_for_nothing() -> None:
    tokens = picture((3, 5))
    out = space_to_depth(tokens, (2, 2))
    assert out.grid == (2, 3)
    corner = out.x[:, -1].unflatten(1, (4, 3))
    assert corner[:, 0].equal(tokens.x[:, -1])
    assert corner[:, 1:].eq(0).all()
    torch.testing.assert_close(out.size.sum(1), tokens.size.sum(1))
    assert out.size[:, -1].equal(tokens.size[:, -1])
    torch.testing.assert_close(out.yx[:, -1], tokens.yx[:, -1])


def test_features_keep_their_type_and_the_places_theirs() -> None:
    tokens = picture((2, 4))
    out = space_to_depth(tokens.with_features(tokens.x.bfloat16()), (2, 2))
    assert (out.x.dtype, out.size.dtype, out.yx.dtype) == (torch.bfloat16, torch.float32, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        assert from_map(to_map(tokens)[..., ::2], tokens).size.dtype == torch.float32


def test_tokens_without_a_grid_have_no_map() -> None:
    tokens = replace(picture((2, 4)), grid=None)
    for call in (to_map, lambda t: from_map(torch.zeros(2, 3, 2, 4), t), lambda t: space_to_depth(t, (2, 2))):
        with pytest.raises(ValueError, match="grid"):
            call(tokens)


def test_a_spec_without_a_grid_is_refused_in_the_name_of_the_part() -> None:
    with pytest.raises(CompositionError, match="resampler=mine needs a dense grid") as caught:
        grid_of(TokenSpec(n=8, dim=4), "resampler=mine")
    assert caught.value.code == "E-GRID"
    assert grid_of(TokenSpec(n=8, dim=4, grid=(2, 4)), "resampler=mine") == (2, 4)


def test_what_came_along_on_the_old_grid_does_not_go_on() -> None:
    source = TokenSpec(n=8, dim=4, grid=(2, 4))
    spec = regrid(replace(source, levels=12, sources=(source,)), (1, 2), 16)
    assert spec == TokenSpec(n=2, dim=16, grid=(1, 2))
