import pytest
import torch
from torch import nn

from beni.nn.norms import RMSNorm, make_norm, reset_norms


@pytest.mark.parametrize(
    ("kind", "kinds", "eps"),
    [("none", nn.Identity, None), ("layernorm", nn.LayerNorm, 1e-5), ("rmsnorm", RMSNorm, 1e-6)],
)
def test_a_norm_is_known_by_its_name_and_has_the_usual_eps(kind, kinds, eps) -> None:
    norm = make_norm(kind, 8)
    assert isinstance(norm, kinds)
    assert eps is None or norm.eps == eps
    assert eps is None or make_norm(kind, 8, eps=0.25).eps == 0.25


@pytest.mark.parametrize("kind", ["layernorm", "rmsnorm"])
def test_a_reset_norm_has_weights_of_one_and_biases_of_zero(kind) -> None:
    stack = nn.Sequential(nn.Linear(8, 8), make_norm(kind, 8))
    with torch.no_grad():
        for parameter in stack.parameters():
            parameter.fill_(torch.nan)
    reset_norms(stack)
    assert stack[1].weight.eq(1).all()
    assert kind == "rmsnorm" or stack[1].bias.eq(0).all()
    assert stack[0].weight.isnan().all()
