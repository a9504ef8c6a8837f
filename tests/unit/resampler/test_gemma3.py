import pytest
import torch

from beni.errors import CompositionError
from beni.resampler.gemma3 import Gemma3
from beni.stage import StageContext
from beni.types import TokenSpec, VisualTokens
from support.counting import flops_of

SPEC = TokenSpec(n=32, dim=6, grid=(4, 8))


def gemma3(spec=SPEC, r=2, norm_weight=True, init_std=0.02):
    stage = Gemma3(spec, 10, r=r, norm_weight=norm_weight, init_std=init_std)
    stage.init_weights()
    return stage


def test_its_4096_tokens_become_256() -> None:
    spec = TokenSpec(n=4096, dim=6, grid=(64, 64))
    assert gemma3(spec, r=4).spec(spec) == TokenSpec(n=256, dim=10, grid=(16, 16), space="llm")


def test_it_has_the_parameters_and_flops_of_its_formulas() -> None:
    stage = gemma3()
    assert sum(p.numel() for p in stage.parameters()) == 6 + 60
    assert flops_of(stage, SPEC) == 2 * 8 * 60
    assert sum(p.numel() for p in gemma3(norm_weight=False).parameters()) == 60


def test_the_published_start_is_zero_and_the_default_is_not() -> None:
    tokens = VisualTokens.dense(torch.randn(2, 32, 6), (4, 8))
    assert gemma3(init_std=0)(tokens, StageContext()).x.eq(0).all()
    assert gemma3()(tokens, StageContext()).x.std(1).min() > 0


def test_a_picture_of_one_colour_gives_equal_tokens() -> None:
    x = torch.randn(2, 1, 6).expand(2, 32, 6)
    out = gemma3()(VisualTokens.dense(x, (4, 8)), StageContext()).x
    torch.testing.assert_close(out, out[:, :1].expand_as(out))


@pytest.mark.parametrize("r", [0, 3, 8])
def test_squares_that_do_not_divide_both_sides_are_refused(r) -> None:
    with pytest.raises(CompositionError, match=r"4x8 grid[\s\S]*resampler.r to one of 1, 2, 4") as caught:
        gemma3(r=r)
    assert caught.value.code == "E-DIV"


def test_tokens_without_a_grid_are_refused() -> None:
    with pytest.raises(CompositionError, match="E-GRID"):
        gemma3(TokenSpec(n=32, dim=6))


def test_every_tensor_is_drawn() -> None:
    stage = gemma3()
    with torch.no_grad():
        for parameter in stage.parameters():
            parameter.fill_(torch.nan)
    stage.init_weights()
    assert all(parameter.isfinite().all() for parameter in stage.parameters())
