"""What the perceiver does that its reference has no switch for."""

from __future__ import annotations

import torch

from beni.stage import StageContext
from beni.types import VisualTokens
from reference.cases.perceiver import GROUPED, idefics2, perceiver


def test_latents_that_do_not_see_themselves_equal_idefics2_without_its_latent_keys(scrambled):
    """Idefics2 has no such switch: its latents are pushed out of reach by a mask over all keys."""
    theirs = idefics2(GROUPED).double().eval()
    ours = perceiver(GROUPED).double().eval()
    scrambled(theirs, 0)
    ours.load_state_dict(theirs.state_dict())
    for layer in ours.layers:
        layer.concat_latents = False
    x = torch.randn(2, 35, 32, dtype=torch.float64)
    latents = theirs.latents.expand(2, -1, -1)
    mask = torch.zeros(2, 1, 7, 42, dtype=torch.float64)
    mask[..., 35:] = float("-inf")
    for layer in theirs.layers:
        latents = layer(latents, x, attention_mask=mask)
        latents = latents[0] if isinstance(latents, tuple) else latents
    out = ours(VisualTokens.dense(x, (5, 7)), StageContext()).x
    assert (out - theirs.norm(latents)).abs().max() <= 1e-10
