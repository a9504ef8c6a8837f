import torch

from beni.connector.pali import PaliConnector
from beni.stage import StageContext
from beni.types import TokenSpec, VisualTokens


def test_it_starts_at_zero_and_says_so() -> None:
    connector = PaliConnector(TokenSpec(n=6, dim=24, grid=(2, 3)), 40)
    connector.init_weights()
    x = torch.randn(2, 6, 24, requires_grad=True)
    out = connector(VisualTokens.dense(x, (2, 3)), StageContext()).x
    assert connector.zero_at_start
    assert out.eq(0).all()


def test_the_first_gradient_reaches_its_weights_but_not_the_features() -> None:
    connector = PaliConnector(TokenSpec(n=6, dim=24, grid=(2, 3)), 40)
    connector.init_weights()
    x = torch.randn(2, 6, 24, requires_grad=True)
    out = connector(VisualTokens.dense(x, (2, 3)), StageContext()).x
    (out * torch.randn(out.shape)).sum().backward()
    assert connector.proj.weight.grad.abs().min() > 0
    assert connector.proj.bias.grad.abs().min() > 0
    assert x.grad.eq(0).all()


def test_it_has_the_parameters_of_a_linear_layer() -> None:
    connector = PaliConnector(TokenSpec(n=6, dim=24, grid=(2, 3)), 40)
    assert sum(p.numel() for p in connector.parameters()) == 24 * 40 + 40
