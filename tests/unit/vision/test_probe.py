"""A dry run of models that choose patches by a mask, as Idefics2 and 3 do before transformers 5.23."""

from __future__ import annotations

import torch
from torch import nn

from beni.vision.probe import dry_run


class Choosing(nn.Module):
    """Embeds the places of the patches that a mask holds."""

    def __init__(self):
        super().__init__()
        self.places = nn.Embedding(12, 8)

    def forward(self, pixel_values, patch_attention_mask):
        mask = patch_attention_mask.flatten(1)
        numbers = torch.arange(12, device=mask.device).expand(mask.shape)
        chosen = torch.zeros(mask.shape, dtype=torch.int64, device=mask.device)
        chosen[mask] = numbers[mask]
        return self.places(chosen)


def test_a_mask_without_values_is_full():
    with torch.device("meta"):
        model = Choosing()
        with dry_run(model):
            out = model(torch.empty(2, 3, 12, 16), torch.ones(2, 3, 4, dtype=torch.bool))
    assert out.shape == (2, 12, 8)
