import pytest
import torch

from beni.connector.swiglu import SwigluConnector
from beni.types import TokenSpec
from support.counting import flops_of

SPEC = TokenSpec(n=6, dim=24, grid=(2, 3))


@pytest.mark.parametrize(("hidden", "width"), [("auto", 160), (56, 56)])
def test_it_has_the_parameters_and_flops_of_its_formulas(hidden, width) -> None:
    connector = SwigluConnector(SPEC, 40, hidden=hidden, norm="none", init_std=0.02)
    assert sum(p.numel() for p in connector.parameters()) == 2 * 24 * width + width * 40
    assert flops_of(connector, SPEC) == 2 * 6 * (2 * 24 * width + width * 40)
    assert connector.spec(SPEC) == TokenSpec(n=6, dim=40, grid=(2, 3), space="llm")


@pytest.mark.parametrize("norm", ["none", "layernorm", "rmsnorm"])
@pytest.mark.parametrize("init_std", [0.02, "fan_in"])
def test_every_tensor_is_drawn(norm, init_std) -> None:
    connector = SwigluConnector(SPEC, 40, hidden="auto", norm=norm, init_std=init_std)
    with torch.no_grad():
        for parameter in connector.parameters():
            parameter.fill_(torch.nan)
    connector.init_weights()
    assert all(parameter.isfinite().all() for parameter in connector.parameters())
    wanted = 24**-0.5 if init_std == "fan_in" else init_std
    assert connector.mlp.gate_proj.weight.std().item() == pytest.approx(wanted, rel=0.1)
