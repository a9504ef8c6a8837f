import torch

from beni.connector.gemma3n import Gemma3nConnector
from beni.stage import StageContext
from beni.types import TokenSpec, VisualTokens


def test_every_token_comes_out_with_an_rms_of_one() -> None:
    stage = Gemma3nConnector(TokenSpec(n=6, dim=8, grid=(2, 3)), 12, init_std=0.02)
    stage.init_weights()
    x = torch.randn(2, 6, 8) * torch.tensor([1e-2, 1.0, 1e3]).repeat(2)[:, None]
    out = stage(VisualTokens.dense(x, (2, 3)), StageContext()).x
    assert out.shape == (2, 6, 12)
    assert (out.square().mean(-1).sqrt() - 1).abs().max() < 1e-3
