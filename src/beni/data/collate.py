"""Encoded samples and their pictures to one micro-batch, packed or padded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from beni.data.template import IGNORE, Encoded
from beni.types import Batch


@dataclass(frozen=True)
class Item:
    """One sample, ready to be laid out: its tokens and the pixels of its views in reading order."""

    id: str
    encoded: Encoded
    pixels: list[Tensor]


def collate(items: Sequence[Item], layout: str, pad: int) -> Batch:
    """Samples -> micro-batch in the ``packed`` or ``padded`` layout."""
    pixels = [view for item in items for view in item.pixels]
    stacked = torch.stack(pixels) if pixels else None
    labels = [item.encoded.labels.copy() for item in items]
    for row in labels:
        row[0] = IGNORE  # nothing precedes the first token of a sample: in a pack its neighbour would predict it
    ids = [item.encoded.ids for item in items]
    names = [item.id for item in items]
    if layout == "packed":
        lengths = [len(row) for row in ids]
        return Batch(
            input_ids=_row(np.concatenate(ids)),
            labels=_row(np.concatenate(labels)),
            position_ids=_row(np.concatenate([np.arange(n) for n in lengths])),
            pixels=stacked,
            cu_seqlens=torch.tensor(np.concatenate([[0], np.cumsum(lengths)]), dtype=torch.int32),
            ids=names,
        )
    longest = max(len(row) for row in ids)
    return Batch(
        input_ids=_rows(ids, longest, pad),
        labels=_rows(labels, longest, IGNORE),
        position_ids=torch.arange(longest).expand(len(ids), longest).contiguous(),
        pixels=stacked,
        attention_mask=_rows([np.ones(len(row), dtype=np.int64) for row in ids], longest, 0),
        ids=names,
    )


def _row(values: np.ndarray) -> Tensor:
    return torch.from_numpy(values.astype(np.int64))[None]


def _rows(rows: Sequence[np.ndarray], width: int, fill: int) -> Tensor:
    out = np.full((len(rows), width), fill, dtype=np.int64)
    for i, row in enumerate(rows):
        out[i, : len(row)] = row
    return torch.from_numpy(out)
