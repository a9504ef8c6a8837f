"""The text that is asked about each image, for stages that look for something (InstructBLIP, arXiv 2305.06500)."""

from __future__ import annotations

from itertools import pairwise

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from beni.types import Prompt


def prompts(
    embeds: Float[Tensor, "b t d"],
    asked: Bool[Tensor, "b t"],
    cu_seqlens: Int[Tensor, "s_plus_1"] | None,
    owners: Int[Tensor, "k"] | None,
    images: int,
) -> Prompt:
    """One row an image: the embeddings of its sample's text that is neither supervised nor an image.

    Args:
        asked: True at such text.
        cu_seqlens: borders of the samples in a packed row; without it every row is a sample.
        owners: the sample of each image; without it every sample has as many.
        images: how many there are.
    """
    if cu_seqlens is None:
        texts = [row[wanted] for row, wanted in zip(embeds, asked, strict=True)]
    else:
        borders = cu_seqlens.tolist()
        texts = [embeds[0, a:b][asked[0, a:b]] for a, b in pairwise(borders)]
    if owners is None:
        owners = torch.arange(images, device=embeds.device) * len(texts) // images
    lengths = torch.tensor([len(text) for text in texts], device=embeds.device)
    padded = pad_sequence(texts, batch_first=True)
    mask = torch.arange(padded.shape[1], device=embeds.device)[None] < lengths[:, None]
    return Prompt(padded[owners], mask[owners])
