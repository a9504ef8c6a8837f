import pytest
import torch
import torch.nn.functional as F

from beni.errors import CompositionError
from beni.nn.grid import to_map
from beni.resampler.perception_lm import PerceptionLm
from beni.stage import StageContext
from beni.types import TokenSpec, VisualTokens
from support.counting import flops_of

SPEC = TokenSpec(n=32, dim=6, grid=(4, 8))


def perception(spec=SPEC, ratio=2, init_std=0.5):
    stage = PerceptionLm(spec, 10, ratio=ratio, init_std=init_std)
    stage.init_weights()
    return stage


@pytest.mark.parametrize(("ratio", "grid"), [(1, (4, 8)), (2, (2, 4)), (3, (1, 2)), (4, (1, 2))])
def test_both_sides_shrink_by_the_ratio_rounded_down(ratio, grid) -> None:
    spec = perception(ratio=ratio).spec(SPEC)
    assert spec == TokenSpec(n=grid[0] * grid[1], dim=10, grid=grid, space="llm")


def test_it_has_the_parameters_and_flops_of_its_formulas() -> None:
    stage = perception()
    assert sum(p.numel() for p in stage.parameters()) == 60 + 10 + 100 + 10
    assert flops_of(stage, SPEC) == 2 * 32 * (60 + 100)


def test_pooling_comes_after_the_mlp_which_is_not_the_same_as_before() -> None:
    stage, tokens = perception(), VisualTokens.dense(torch.randn(2, 32, 6), (4, 8))
    out = stage(tokens, StageContext()).x
    after = F.avg_pool2d(to_map(tokens.with_features(stage.mlp(tokens.x))), 2).flatten(2).transpose(1, 2)
    before = stage.mlp(F.avg_pool2d(to_map(tokens), 2).flatten(2).transpose(1, 2))
    torch.testing.assert_close(out, after)
    assert (out - before).abs().max() > 1e-2


@pytest.mark.parametrize("ratio", [0, 5])
def test_a_ratio_that_leaves_nothing_is_refused(ratio) -> None:
    with pytest.raises(CompositionError, match=r"4x8 grid[\s\S]*resampler.ratio to 1..4") as caught:
        perception(ratio=ratio)
    assert caught.value.code == "E-DIV"


def test_tokens_without_a_grid_are_refused() -> None:
    with pytest.raises(CompositionError, match="E-GRID"):
        perception(TokenSpec(n=32, dim=6))


def test_every_tensor_is_drawn() -> None:
    stage = perception()
    with torch.no_grad():
        for parameter in stage.parameters():
            parameter.fill_(torch.nan)
    stage.init_weights()
    assert all(parameter.isfinite().all() for parameter in stage.parameters())
