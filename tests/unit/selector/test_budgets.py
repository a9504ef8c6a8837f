"""How many tokens a selector keeps, which, and at what positions."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from beni.nn.choose import Budget, by_score, chosen, chosen_spec
from beni.selector.center import CenterTokens
from beni.selector.pool import PooledTokens
from beni.selector.random import RandomTokens
from beni.selector.uniform import UniformTokens
from beni.stage import Row, StageContext
from beni.types import TokenSpec, VisualTokens

SPEC = TokenSpec(n=12, dim=4, grid=(3, 4))


def drawn(rows: int = 2) -> VisualTokens:
    return VisualTokens.dense(torch.randn(rows, 12, 4, generator=torch.Generator().manual_seed(0)), (3, 4))


@pytest.mark.parametrize(
    ("keep", "n", "expected"),
    [(0.25, 12, 3), (0.25, 2, 1), (0.01, 12, 1), (1.0, 12, 12), (1, 12, 1), (5, 12, 5), (64, 12, 12), (0.5, 5, 3)],
)
def test_a_budget_is_a_share_or_a_number_and_at_least_one(keep, n, expected):
    assert Budget(keep).of(n) == expected
    assert Budget(keep).each(torch.tensor([n])).tolist() == [expected]


@pytest.mark.parametrize("n", range(1, 40))
@pytest.mark.parametrize("k", [1, 3, 7])
def test_uniform_keeps_the_tokens_in_the_middle_of_equal_parts(n, k):
    tokens = VisualTokens.dense(torch.randn(1, n, 4), (1, n))
    out = UniformTokens(TokenSpec(n=n, dim=4), keep=k, positions="preserve")(tokens, StageContext())
    k = min(k, n)
    assert out.mask[0].nonzero()[:, 0].tolist() == [int((j + 0.5) * n / k) for j in range(k)]


def test_kept_tokens_stay_where_they_were_or_move_together():
    tokens, scores = drawn(), torch.tensor([[0, 5, 1, 9, 2, 8, 3, 0, 0, 0, 0, 0]] * 2).float()
    stay = chosen(tokens, by_score(scores, tokens), Budget(3), "preserve")
    assert stay.mask[0].nonzero()[:, 0].tolist() == [1, 3, 5]
    assert stay.laid.all()
    together = chosen(tokens, by_score(scores, tokens), Budget(3), "compact")
    assert together.x.equal(tokens.x[:, [1, 3, 5]])
    assert together.yx.equal(tokens.yx[:, [1, 3, 5]])
    assert chosen_spec(SPEC, Budget(3), "preserve") == replace(SPEC, grid=None, fixed=False, mean=3)
    assert chosen_spec(SPEC, Budget(3), "compact") == replace(SPEC, grid=None, n=3)


def test_a_share_of_what_another_has_left_is_a_share_of_that():
    first = RandomTokens(SPEC, keep=0.5, positions="preserve", seed=0)
    second = CenterTokens(first.spec(SPEC), keep=0.5, positions="compact")
    out = second(first(drawn(), StageContext()), StageContext())
    assert out.mask.sum(1).tolist() == [3, 3]
    spec = second.spec(first.spec(SPEC))
    assert (spec.n, spec.mean, spec.fixed) == (6, 3.0, False)
    assert out.laid.sum(1).tolist() == [6, 6]


def test_random_draws_anew_in_training_and_never_in_evaluation():
    stage, tokens = RandomTokens(SPEC, keep=4, positions="preserve", seed=0), drawn()
    masks = {
        (mode, step): stage.train(mode)(tokens, StageContext(step=step, seed=3)).mask
        for mode in (True, False)
        for step in (0, 1)
    }
    assert masks[False, 0].equal(masks[False, 1])
    assert not masks[True, 0].equal(masks[True, 1])
    other = RandomTokens(SPEC, keep=4, positions="preserve", seed=1).eval()
    assert not other(tokens, StageContext(seed=3)).mask.equal(masks[False, 0])


def test_random_depends_on_the_sample_and_not_on_what_it_is_batched_with():
    stage, tokens = RandomTokens(SPEC, keep=4, positions="preserve", seed=0).train(), drawn(3)
    rows = tuple(Row(i, i, f"sample {i}") for i in range(3))
    together = stage(tokens, StageContext(step=5, rows=rows)).mask
    for i in range(3):
        alone = stage(tokens.select(torch.tensor([i])), StageContext(step=5, rows=rows[i : i + 1]))
        assert alone.mask[0].equal(together[i])


@pytest.mark.parametrize(
    ("grid", "keep", "expected"),
    [((6, 6), 0.25, (3, 3)), ((24, 24), 64, (8, 8)), ((4, 8), 0.25, (2, 4)), ((6, 6), 10, (3, 3)), ((6, 6), 1, (1, 1))],
)
def test_pooling_keeps_the_shape_of_the_grid_within_the_budget(grid, keep, expected):
    spec = TokenSpec(n=grid[0] * grid[1], dim=4, grid=grid)
    stage = PooledTokens(spec, keep=keep)
    assert stage.spec(spec).grid == expected
    out = stage(VisualTokens.dense(torch.ones(1, spec.n, 4), grid), StageContext())
    assert out.grid == expected
    torch.testing.assert_close(out.x, torch.ones_like(out.x))
    torch.testing.assert_close(out.size.sum(1), torch.tensor([float(spec.n)]))
