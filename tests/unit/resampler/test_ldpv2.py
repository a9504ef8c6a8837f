import pytest
import torch

from beni.errors import CompositionError
from beni.resampler.ldpv2 import Ldpv2
from beni.stage import StageContext
from beni.types import TokenSpec, VisualTokens
from support.counting import flops_of

SPEC = TokenSpec(n=24, dim=12, grid=(4, 6))


@pytest.mark.parametrize(
    ("grid", "side", "out"), [((24, 24), "auto", (12, 12)), ((3, 4), "auto", (2, 2)), ((24, 24), 8, (8, 8))]
)
def test_its_result_has_the_sides_that_are_asked_for(grid, side, out) -> None:
    spec = TokenSpec(n=grid[0] * grid[1], dim=12, grid=grid)
    assert Ldpv2(spec, 16, side=side).spec(spec) == TokenSpec(n=out[0] * out[1], dim=16, grid=out, space="llm")


def test_it_has_the_parameters_and_flops_of_its_formulas() -> None:
    stage = Ldpv2(SPEC, 16, side="auto")
    assert sum(p.numel() for p in stage.parameters()) == 12 * 16 + 16 + 16**2 + 16 + 9 * 16 + 16
    assert flops_of(stage, SPEC) == 2 * 24 * (12 * 16 + 16**2) + 2 * 6 * 9 * 16


def test_a_picture_of_one_colour_gives_tokens_that_differ_by_their_place() -> None:
    stage = Ldpv2(SPEC, 16, side=3)
    stage.init_weights()
    x = torch.randn(1, 1, 12).expand(1, 24, 12)
    (out,) = stage(VisualTokens.dense(x, (4, 6)), StageContext()).x
    assert torch.pdist(out).min() > 1e-3


@pytest.mark.parametrize("side", [0, 5])
def test_a_result_larger_than_the_grid_is_refused(side) -> None:
    with pytest.raises(CompositionError, match=r"grid of 4x6[\s\S]*resampler.side to auto or to 1..4") as caught:
        Ldpv2(SPEC, 16, side=side)
    assert caught.value.code == "E-DIV"


def test_tokens_without_a_grid_are_refused() -> None:
    with pytest.raises(CompositionError, match="E-GRID"):
        Ldpv2(TokenSpec(n=24, dim=12), 16, side="auto")


def test_every_tensor_is_drawn() -> None:
    stage = Ldpv2(SPEC, 16, side="auto")
    with torch.no_grad():
        for parameter in stage.parameters():
            parameter.fill_(torch.nan)
    stage.init_weights()
    assert all(parameter.isfinite().all() for parameter in stage.parameters())
