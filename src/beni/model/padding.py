"""Whether a model takes the padding in front of a text for text: then each prompt is answered by itself."""

from __future__ import annotations

import torch

from beni.data.render.tokens import SpecialTokens
from beni.model.modeling import BeniForConditionalGeneration
from beni.nn.precision import autocast

PADS = 3
"""Positions put before a text to see whether they change anything."""
READ = 0.05
"""Share of the range of the logits by which they then differ. Measured on tiny models with large weights: at most 5e-7
in fp32 and 0 in bf16 for 27 families, 0.7 to 0.8 for RWKV, xLSTM and RecurrentGemma.
"""


@torch.no_grad()
def reads_padding(
    model: BeniForConditionalGeneration, tokens: SpecialTokens, device: torch.device, precision: str
) -> bool:
    """Whether padding before a text changes what the llm makes of it: some recurrent ones read it as text."""
    text = torch.arange(8) * 7919 % model.llm.vocab_size
    text = text[text != tokens.image]
    behind = torch.cat([torch.full((PADS,), tokens.pad), text])
    mask = (torch.arange(len(behind)) >= PADS).long()
    with autocast(device, precision):
        alone = model(text[None].to(device)).logits
        padded = model(behind[None].to(device), attention_mask=mask[None].to(device)).logits
    padded = padded[:, PADS:]
    return bool((padded - alone).abs().max() > READ * alone.abs().max())
