import pytest
import torch

from beni.errors import CompositionError
from beni.resampler.concat_adjacent import ConcatAdjacent
from beni.stage import StageContext
from beni.types import TokenSpec, VisualTokens

SPEC = TokenSpec(n=24, dim=6, grid=(3, 8))


def test_1024_tokens_become_256_of_four_times_the_width() -> None:
    spec = TokenSpec(n=1024, dim=1408, grid=(32, 32))
    assert ConcatAdjacent(spec, k=4).spec(spec) == TokenSpec(n=256, dim=5632, grid=(32, 8))


def test_permuting_tokens_inside_a_group_permutes_the_columns_of_the_next_layer() -> None:
    x, weight = torch.randn(2, 3, 2, 4, 6), torch.randn(10, 4, 6)
    order = torch.tensor([2, 0, 3, 1])

    def project(features, columns):
        tokens = VisualTokens.dense(features.flatten(1, 3), (3, 8))
        return ConcatAdjacent(SPEC, k=4)(tokens, StageContext()).x @ columns.flatten(1).T

    torch.testing.assert_close(project(x[:, :, :, order], weight[:, order]), project(x, weight))


@pytest.mark.parametrize("k", [0, 3, 16])
def test_a_group_that_would_reach_into_the_next_row_is_refused(k) -> None:
    with pytest.raises(
        CompositionError, match=r"8 columns of the 3x8 grid[\s\S]*resampler.k to one of 1, 2, 4, 8"
    ) as caught:
        ConcatAdjacent(SPEC, k=k)
    assert caught.value.code == "E-DIV"


def test_tokens_without_a_grid_are_refused() -> None:
    with pytest.raises(CompositionError, match="E-GRID"):
        ConcatAdjacent(TokenSpec(n=24, dim=6), k=4)
