"""Sequences with image tokens for small llms, and llms whose attention is far from uniform."""

from __future__ import annotations

from dataclasses import replace

import torch

from beni.llm.hf import HFLlm
from beni.types import Sequence
from support.families import EAGER, LLMS

DEPTH = 4
LENGTHS = (9, 14, 5)
IMAGES = ((1, 6), (2, 9), (0, 0))
"""Where each sample's image tokens begin and end; the last has none."""


def make(family: str, **fields) -> HFLlm:
    """Four layers, with weights so large that what leaves is missed."""
    torch.manual_seed(0)
    sizes = {k: DEPTH for k in ("num_hidden_layers", "n_layer") if k in LLMS[family]}
    llm = HFLlm(
        name=None,
        weights="random",
        architecture={"model_type": family, **LLMS[family], **sizes, **fields},
        attn_implementation="eager" if family in EAGER else "sdpa",
        tokenizer="embedded",
    ).eval()
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in llm.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return llm


def rows(llm: HFLlm, lengths=LENGTHS, images=IMAGES) -> Sequence:
    """Left-padded samples."""
    longest = max(lengths)
    ids = torch.randint(3, llm.vocab_size, (len(lengths), longest), generator=torch.Generator().manual_seed(1))
    mask = (torch.arange(longest) >= longest - torch.tensor(lengths)[:, None]).long()
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    numbers = torch.full_like(ids, -1)
    for row, (first, end) in enumerate(images):
        start = longest - lengths[row]
        numbers[row, start + first : start + end] = 0
    plain = Sequence.plain(llm.embed(ids))
    return replace(plain, mask=mask, position_ids=positions, images=numbers, left_padded=True)


def alone(sequence: Sequence, row: int) -> Sequence:
    """One row without padding."""
    real = sequence.real[row]
    chosen = Sequence.plain(sequence.embeds[row, real][None])
    return replace(chosen, images=sequence.images[row, real][None])
