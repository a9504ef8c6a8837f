import pytest
import torch
from torch import nn

from beni.connector.auto import auto
from beni.connector.identity import IdentityConnector
from beni.connector.mlp import MlpConnector
from beni.errors import CompositionError
from beni.nn.norms import RMSNorm
from beni.stage import StageContext
from beni.types import TokenSpec, VisualTokens
from support.counting import flops_of

SPEC = TokenSpec(n=6, dim=24, grid=(2, 3))
VALUES = {
    "depth": 2,
    "hidden": "auto",
    "bias": True,
    "norm": "none",
    "dropout": 0.0,
    "init_std": 0.02,
}


def mlp(dim_out=40, spec=SPEC, **values):
    connector = MlpConnector(spec, dim_out, **VALUES | values)
    connector.init_weights()
    return connector


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_it_has_the_parameters_of_its_formula(depth) -> None:
    count = sum(p.numel() for p in mlp(depth=depth).parameters())
    assert count == 24 * 40 + 40 + (depth - 1) * (40**2 + 40)


@pytest.mark.parametrize(("hidden", "width"), [("auto", 40), ("input", 24), (17, 17)])
def test_the_layers_between_have_the_width_that_is_asked_for(hidden, width) -> None:
    connector = mlp(depth=3, hidden=hidden)
    shapes = [(layer.in_features, layer.out_features) for layer in connector.layers]
    assert shapes == [(24, width), (width, width), (width, 40)]
    assert flops_of(connector, SPEC) == 2 * 6 * (24 * width + width**2 + width * 40)


def test_one_layer_has_nothing_between() -> None:
    assert [layer.weight.shape for layer in mlp(depth=1, hidden=17).layers] == [(40, 24)]


@pytest.mark.parametrize(("norm", "kind"), [("none", nn.Identity), ("layernorm", nn.LayerNorm), ("rmsnorm", RMSNorm)])
def test_a_norm_on_the_features_takes_their_scale_away(norm, kind) -> None:
    connector = mlp(norm=norm, bias=False)
    assert isinstance(connector.norm, kind)
    x = torch.randn(2, 6, 24)
    once, tenfold = (connector(VisualTokens.dense(k * x, (2, 3)), StageContext()).x for k in (1, 10))
    assert torch.allclose(once, tenfold, rtol=1e-3, atol=1e-6) == (norm != "none")


@pytest.mark.parametrize("norm", ["layernorm", "rmsnorm"])
def test_every_tensor_is_drawn(norm) -> None:
    connector = mlp(norm=norm)
    with torch.no_grad():
        for parameter in connector.parameters():
            parameter.fill_(torch.nan)
    connector.init_weights()
    assert all(parameter.isfinite().all() for parameter in connector.parameters())


def test_it_has_at_least_one_layer() -> None:
    with pytest.raises(CompositionError, match="E-DEPTH"):
        mlp(depth=0)


def test_auto_is_nothing_at_the_llms_width_and_an_mlp_elsewhere() -> None:
    assert isinstance(auto(TokenSpec(n=6, dim=40, space="llm"), 40, **VALUES), IdentityConnector)
    assert isinstance(auto(SPEC, 40, **VALUES), MlpConnector)
