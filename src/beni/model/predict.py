"""Sequences to logits: which layout the llm is called in, and which positions may look ahead."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from beni.fusion.base import Fusion
from beni.llm.base import Llm
from beni.llm.segment_attention import SegmentPlan
from beni.types import VisualTokens

Places = tuple[Int[Tensor, "k"], Int[Tensor, "k"]]
"""(rows, columns) of positions in a batch of sequences."""


@dataclass(frozen=True)
class Sequences:
    """What the llm reads, packed (one row and ``cu_seqlens``) or padded (``attention_mask``).

    Attributes:
        images: number of the image of each placeholder; -1 elsewhere.
        supervised: True at labels; None where there are none.
        longest: at least as long as any segment; None for the whole row.
    """

    embeds: Float[Tensor, "b t d"]
    images: Int[Tensor, "b t"]
    supervised: Bool[Tensor, "b t"] | None
    position_ids: Int[Tensor, "b t"]
    attention_mask: Int[Tensor, "b t"] | None = None
    cu_seqlens: Int[Tensor, "s_plus_1"] | None = None
    longest: int | None = None


def image_numbers(is_image: Bool[Tensor, "b t"], visual: VisualTokens | None) -> Int[Tensor, "b t"]:
    """Number of the image of each placeholder, in reading order; -1 elsewhere. ``visual``, a row an image, tells how
    many each has; without it all are 0.
    """
    numbers = is_image.long() - 1
    if visual is not None:
        counts = visual.mask.sum(1)
        numbers[is_image] = torch.arange(len(counts), device=counts.device).repeat_interleave(counts)
    return numbers


def predict(llm: Llm, fusion: Fusion, sequences: Sequences, places: Places | None = None) -> Tensor:
    """Logits at the places, ``(k, v)``, or everywhere, ``(b, t, v)``."""
    if _needs_packing(fusion, sequences):
        packed, where = _end_to_end(sequences)
        if places is not None:
            return predict(llm, fusion, packed, (torch.zeros_like(places[0]), where[places]))
        logits = predict(llm, fusion, packed)
        out = logits.new_zeros(*where.shape, logits.shape[-1])
        out[_real(sequences)] = logits[0]
        return out
    inputs = _inputs(fusion, sequences)
    if places is None:
        return llm(*inputs)
    rows, columns = places
    keep, place = columns.unique(return_inverse=True)
    return llm(*inputs, keep)[rows, place]


def hidden_states(llm: Llm, fusion: Fusion, sequences: Sequences, places: Places) -> Float[Tensor, "k d"]:
    """What the llm's head is given at the places."""
    if _needs_packing(fusion, sequences):
        packed, where = _end_to_end(sequences)
        return hidden_states(llm, fusion, packed, (torch.zeros_like(places[0]), where[places]))
    return llm.hidden(*_inputs(fusion, sequences))[places]


def _inputs(fusion: Fusion, sequences: Sequences) -> tuple[Tensor, Tensor, Tensor | None, SegmentPlan | None]:
    """Embeddings, positions, mask and segments, as the llm is called with."""
    embeds, segments = sequences.embeds, None
    if sequences.cu_seqlens is not None:
        blocks = None
        if fusion.sees_ahead:
            asked = before_answers(sequences)
            blocks = fusion.blocks(sequences.images[0], asked, sequences.cu_seqlens)
        segments = SegmentPlan.build(sequences.cu_seqlens, embeds.shape[1], blocks, sequences.longest)
    return embeds, sequences.position_ids, sequences.attention_mask, segments


def _needs_packing(fusion: Fusion, sequences: Sequences) -> bool:
    """Only segment attention knows of positions that look ahead."""
    return fusion.sees_ahead and sequences.cu_seqlens is None


def _real(sequences: Sequences) -> Bool[Tensor, "b t"]:
    mask = sequences.attention_mask
    return torch.ones_like(sequences.images, dtype=torch.bool) if mask is None else mask.bool()


def _end_to_end(sequences: Sequences) -> tuple[Sequences, Int[Tensor, "b t"]]:
    """Padded rows as one packed row, and where in it each position has gone."""
    real = _real(sequences)
    packed = Sequences(
        embeds=sequences.embeds[real][None],
        images=sequences.images[real][None],
        supervised=None if sequences.supervised is None else sequences.supervised[real][None],
        position_ids=sequences.position_ids[real][None],
        cu_seqlens=F.pad(real.sum(1).cumsum(0), (1, 0)),
    )
    return packed, real.flatten().cumsum(0).view_as(real) - 1


def before_answers(packed: Sequences) -> Bool[Tensor, "t"]:
    """For a packed row: True before the first supervised position of each segment; everywhere without any."""
    if packed.supervised is None or packed.cu_seqlens is None:
        return torch.ones_like(packed.images[0], dtype=torch.bool)
    count = F.pad(packed.supervised[0].cumsum(0), (1, 0))
    borders = packed.cu_seqlens.long()
    return count[1:] == count[borders[:-1]].repeat_interleave(borders.diff())
