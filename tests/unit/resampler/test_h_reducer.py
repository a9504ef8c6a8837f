import pytest
import torch

from beni.errors import CompositionError
from beni.resampler.h_reducer import HReducer
from beni.stage import StageContext
from beni.types import TokenSpec, VisualTokens
from support.counting import flops_of

SPEC = TokenSpec(n=24, dim=6, grid=(3, 8))


def reducer(k=4, end_token=True, spec=SPEC):
    stage = HReducer(spec, 10, k=k, end_token=end_token)
    stage.init_weights()
    return stage


@pytest.mark.parametrize(("end_token", "n", "grid"), [(True, 257, None), (False, 256, (32, 8))])
def test_1024_tokens_become_256_and_one_that_ends_them(end_token, n, grid) -> None:
    spec = TokenSpec(n=1024, dim=6, grid=(32, 32))
    assert reducer(end_token=end_token, spec=spec).spec(spec) == TokenSpec(n=n, dim=10, grid=grid, space="llm")


def test_it_has_the_parameters_and_flops_of_its_formulas() -> None:
    stage, c, d = reducer(), 6, 10
    assert sum(p.numel() for p in stage.parameters()) == 4 * c * c * 4 + 4 * c + c * c * 4 + c + c * d + d + d
    assert flops_of(stage, SPEC) == 2 * 6 * (16 * c**2 + 4 * c**2 + c * d)


def test_a_picture_that_moves_by_a_group_of_columns_moves_its_tokens_by_one() -> None:
    stage, x = reducer(end_token=False), torch.randn(2, 3, 8, 6)
    still, moved = (
        stage(VisualTokens.dense(features.flatten(1, 2), (3, 8)), StageContext()).x.unflatten(1, (3, 2))
        for features in (x, x.roll(4, dims=2))
    )
    torch.testing.assert_close(moved, still.roll(1, dims=2))


def test_a_token_depends_on_its_own_group_only() -> None:
    stage, x = reducer(), torch.randn(1, 24, 6)
    changed = x.clone()
    changed[:, 8:12] += 1
    before, after = (stage(VisualTokens.dense(f, (3, 8)), StageContext()).x for f in (x, changed))
    assert (before != after).any(-1).tolist() == [[False, False, True, False, False, False, False]]


def test_the_end_token_is_the_same_for_every_picture_and_stands_for_no_patch() -> None:
    stage = reducer()
    out = stage(VisualTokens.dense(torch.randn(2, 24, 6), (3, 8)), StageContext())
    assert out.x[:, -1].equal(stage.end.expand(2, -1))
    assert out.size.tolist() == [[4.0] * 6 + [0.0]] * 2
    assert out.mask.all()
    assert out.yx[:, -1].eq(0.5).all()


@pytest.mark.parametrize("k", [0, 3, 16])
def test_groups_that_do_not_divide_a_row_are_refused(k) -> None:
    with pytest.raises(CompositionError, match=r"8 columns of the 3x8 grid[\s\S]*resampler.k to one of 1, 2") as caught:
        reducer(k=k)
    assert caught.value.code == "E-DIV"


def test_tokens_without_a_grid_are_refused() -> None:
    with pytest.raises(CompositionError, match="E-GRID"):
        reducer(spec=TokenSpec(n=24, dim=6))


def test_every_tensor_is_drawn() -> None:
    stage = reducer()
    with torch.no_grad():
        for parameter in stage.parameters():
            parameter.fill_(torch.nan)
    stage.init_weights()
    assert all(parameter.isfinite().all() for parameter in stage.parameters())
