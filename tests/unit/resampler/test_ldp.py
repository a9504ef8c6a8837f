import pytest
import torch

from beni.errors import CompositionError
from beni.resampler.ldp import Ldp, SeparableBlock, squeeze_width
from beni.types import TokenSpec
from support.counting import flops_of


@pytest.mark.parametrize(("dim", "squeeze"), [(2048, 512), (64, 16), (32, 8), (16, 8), (72, 24), (40, 16), (76, 24)])
def test_the_squeeze_is_a_quarter_in_eights_and_never_far_below_it(dim, squeeze) -> None:
    assert squeeze_width(dim) == squeeze
    assert squeeze % 8 == 0
    assert squeeze >= 0.9 * (dim // 4)


def test_it_has_the_parameters_and_flops_of_its_formulas() -> None:
    spec = TokenSpec(n=24, dim=12, grid=(4, 6))
    stage, d, q = Ldp(spec, 64), 64, 16
    block = 9 * d + 2 * d + (d * q + q + q * d + d) + d**2 + 2 * d
    assert sum(p.numel() for p in stage.parameters()) == 12 * d + d + d**2 + d + 2 * block
    excite = 4 * d * q
    expected = 2 * 24 * (12 * d + d**2) + 2 * 24 * (9 * d + d**2) + 2 * 6 * (9 * d + d**2) + 2 * excite
    assert flops_of(stage, spec) == expected


@pytest.mark.parametrize(("grid", "out"), [((24, 24), (12, 12)), ((3, 4), (2, 2)), ((5, 1), (3, 1))])
def test_both_sides_are_halved_and_rounded_up(grid, out) -> None:
    spec = TokenSpec(n=grid[0] * grid[1], dim=12, grid=grid)
    assert Ldp(spec, 16).spec(spec) == TokenSpec(n=out[0] * out[1], dim=16, grid=out, space="llm")


def test_the_first_block_passes_its_input_on_and_the_second_does_not() -> None:
    for stride, passes in ((1, True), (2, False)):
        block = SeparableBlock(16, stride)
        torch.nn.init.zeros_(block.pointwise_norm.norm.weight)
        x = torch.randn(2, 16, 3, 4)
        assert block(x).equal(x) == passes
        assert passes or block(x).eq(0).all()


def test_tokens_without_a_grid_are_refused() -> None:
    with pytest.raises(CompositionError, match="E-GRID"):
        Ldp(TokenSpec(n=24, dim=12), 16)


def test_every_tensor_is_drawn() -> None:
    stage = Ldp(TokenSpec(n=24, dim=12, grid=(4, 6)), 16)
    with torch.no_grad():
        for parameter in stage.parameters():
            parameter.fill_(torch.nan)
    stage.init_weights()
    assert all(parameter.isfinite().all() for parameter in stage.parameters())
