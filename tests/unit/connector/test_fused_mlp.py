import pytest
import torch

from beni.connector.fused_mlp import FusedMlpConnector
from beni.errors import CompositionError
from beni.types import TokenSpec
from support.counting import flops_of

SPEC = TokenSpec(n=6, dim=24, grid=(2, 3))


def test_it_has_the_parameters_and_flops_of_its_formulas() -> None:
    connector = FusedMlpConnector(SPEC, 40, expansion=4, init_std=0.02)
    weights = 24 * 96 + 96 * 40 + 40 * 40
    assert sum(p.numel() for p in connector.parameters()) == weights + 96 + 40 + 40
    assert flops_of(connector, SPEC) == 2 * 6 * weights
    assert connector.spec(SPEC) == TokenSpec(n=6, dim=40, grid=(2, 3), space="llm")


@pytest.mark.parametrize("init_std", [0.02, "fan_in"])
def test_every_tensor_is_drawn(init_std) -> None:
    connector = FusedMlpConnector(SPEC, 40, expansion=4, init_std=init_std)
    with torch.no_grad():
        for parameter in connector.parameters():
            parameter.fill_(torch.nan)
    connector.init_weights()
    assert all(parameter.isfinite().all() for parameter in connector.parameters())


def test_it_does_not_narrow_first() -> None:
    with pytest.raises(CompositionError, match=r"E-DIM.*connector\.expansion=0"):
        FusedMlpConnector(SPEC, 40, expansion=0, init_std=0.02)
