import pytest
import torch
from torch import nn

from beni.nn.conv import LayerNorm2d, SqueezeExcitation, init_as_torch


def test_the_norm_standardises_the_channels_of_each_place() -> None:
    normed = LayerNorm2d(16, eps=0)(5 + 3 * torch.randn(2, 16, 3, 4))
    torch.testing.assert_close(normed.mean(1), torch.zeros(2, 3, 4), atol=1e-5, rtol=0)
    torch.testing.assert_close(normed.square().mean(1), torch.ones(2, 3, 4), atol=1e-5, rtol=0)


def test_excitation_scales_whole_channels_by_their_means() -> None:
    excite = SqueezeExcitation(6, 4, nn.ReLU(), nn.Sigmoid())
    x = torch.randn(2, 6, 3, 4)
    scale = excite(x) / x
    torch.testing.assert_close(scale, scale[:, :, :1, :1].expand_as(scale))
    shuffled = x.flatten(2)[:, :, torch.randperm(12)].unflatten(2, (3, 4))
    torch.testing.assert_close(excite(shuffled) / shuffled, scale)


@pytest.mark.parametrize(
    "module", [nn.Linear(3, 4), nn.Conv2d(3, 4, 3), LayerNorm2d(4), SqueezeExcitation(8, 4, nn.ReLU(), nn.Sigmoid())]
)
def test_every_tensor_is_drawn(module) -> None:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.fill_(torch.nan)
    init_as_torch(module)
    assert all(parameter.isfinite().all() for parameter in module.parameters())
