import pytest
import torch

from beni.connector.mlp import MlpConnector
from beni.errors import CompositionError
from beni.resampler.pixel_shuffle import PixelShuffle
from beni.stage import StageContext
from beni.types import TokenSpec, VisualTokens
from support.counting import flops_of

SPEC = TokenSpec(n=24, dim=6, grid=(4, 6))


def shuffle(spec=SPEC, r=2, pad="error", norm="none", merge=None):
    stage = PixelShuffle(spec, r=r, pad=pad, norm=norm, merge=merge)
    stage.init_weights()
    return stage


def picture(grid=(4, 6), dim=6):
    return VisualTokens.dense(torch.randn(2, grid[0] * grid[1], dim), grid)


def square(side):
    return TokenSpec(n=side**2, dim=6, grid=(side, side))


def test_blocks_of_one_token_change_nothing() -> None:
    tokens = picture()
    assert shuffle(r=1)(tokens, StageContext()).x.equal(tokens.x)


def test_the_first_token_is_the_block_in_the_corner_row_by_row() -> None:
    tokens = picture()
    out = shuffle()(tokens, StageContext())
    assert out.x[:, 0].equal(torch.cat([tokens.x[:, place] for place in (0, 1, 6, 7)], -1))


def test_the_norm_comes_before_the_merging_and_the_zeros_after_it() -> None:
    tokens = picture((3, 3))
    out = shuffle(square(3), pad="zeros", norm="layernorm")(tokens, StageContext()).x
    each = out.unflatten(2, (4, 6))
    torch.testing.assert_close(each[:, 0, 0], torch.nn.functional.layer_norm(tokens.x[:, 0], (6,), eps=1e-6))
    assert each[:, -1, 1:].eq(0).all()


@pytest.mark.parametrize(
    ("values", "dim", "parameters", "flops"),
    [
        ({}, 24, 0, 0),
        ({"norm": "layernorm"}, 24, 12, 0),
        ({"norm": "rmsnorm"}, 24, 6, 0),
        ({"merge": "same"}, 6, 24 * 6, 2 * 6 * 24 * 6),
        ({"merge": 10, "norm": "rmsnorm"}, 10, 24 * 10 + 6, 2 * 6 * 24 * 10),
    ],
)
def test_it_has_the_width_parameters_and_flops_of_its_formulas(values, dim, parameters, flops) -> None:
    stage = shuffle(**values)
    assert stage.spec(SPEC) == TokenSpec(n=6, dim=dim, grid=(2, 3))
    assert sum(p.numel() for p in stage.parameters()) == parameters
    assert flops_of(stage, SPEC) == flops


def test_with_the_head_of_internvl_it_has_the_parameters_of_the_formula() -> None:
    stage = shuffle()
    head = {"depth": 2, "hidden": "auto", "bias": True, "norm": "layernorm", "dropout": 0.0}
    connector = MlpConnector(stage.spec(SPEC), 40, **head, init_std=0.02)
    assert sum(p.numel() for p in connector.parameters()) == 2 * 24 + 24 * 40 + 40**2 + 2 * 40


def test_every_tensor_is_drawn() -> None:
    stage = shuffle(norm="layernorm", merge="same")
    with torch.no_grad():
        for parameter in stage.parameters():
            parameter.fill_(torch.nan)
    stage.init_weights()
    assert all(parameter.isfinite().all() for parameter in stage.parameters())


def test_siglip_at_384_pixels_is_refused_with_three_ways_out() -> None:
    with pytest.raises(CompositionError) as caught:
        shuffle(square(27))
    assert caught.value.code == "E-DIV"
    message = str(caught.value)
    assert "r=2 does not divide the 27x27 grid" in message
    for way_out in ("resampler.r=3", "28x28", "resampler.pad=zeros"):
        assert way_out in message
    assert shuffle(square(27), r=3).spec(square(27)).grid == (9, 9)
    assert shuffle(square(27), pad="zeros").spec(square(27)).grid == (14, 14)


@pytest.mark.parametrize(("grid", "r"), [((4, 6), 0), ((4, 6), 4), ((3, 4), 2), ((1, 4), 2)])
def test_a_block_that_does_not_divide_both_sides_is_refused(grid, r) -> None:
    with pytest.raises(CompositionError, match="E-DIV"):
        shuffle(TokenSpec(n=grid[0] * grid[1], dim=6, grid=grid), r=r)


def test_tokens_without_a_grid_are_refused() -> None:
    with pytest.raises(CompositionError, match="E-GRID"):
        shuffle(TokenSpec(n=24, dim=6))
