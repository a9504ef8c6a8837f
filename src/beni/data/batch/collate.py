"""Encoded samples and their pictures to one micro-batch, packed or padded."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from beni.data.batch.ledger import Counts
from beni.data.batch.usable import Fault
from beni.data.render.template import Encoded
from beni.types import IGNORE, Batch, ViewedImage


@dataclass(frozen=True)
class Item:
    """One sample, ready to be laid out: its tokens, its images in reading order, and what the user says in it."""

    id: str
    encoded: Encoded
    images: list[ViewedImage]
    source: str = ""
    asked: str = ""


def collate(
    items: Sequence[Item],
    layout: str,
    pad: int,
    pixel_keys: bool = False,
    faults: Sequence[Fault] = (),
    order: int = 0,
) -> Batch:
    """Samples -> micro-batch in the ``packed`` or ``padded`` layout.

    Args:
        pad: id that fills rows up.
        pixel_keys: add a ``pixel_key`` of each view.
        faults: pictures and records that could not be used.
        order: hash of the step's data order.
    """
    images = [(owner, image) for owner, item in enumerate(items) for image in item.images]
    pixels = [view for _, image in images for view in image.pixels]
    seen: dict[str, Any] = {
        "pixels": stack_views(pixels),
        "layouts": tuple(image.layout for _, image in images),
        "owners": torch.tensor([owner for owner, _ in images]) if images else None,
        "pixel_keys": tuple(pixel_key(view) for view in pixels) if pixel_keys else (),
        "prompts": tuple(item.asked for item in items),
        "faults": tuple(fault.to_dict() for fault in faults),
        "order": order,
    }
    labels = [item.encoded.labels.copy() for item in items]
    for row in labels:
        row[0] = IGNORE  # nothing precedes the first token of a sample: in a pack its neighbour would predict it
    ids = [item.encoded.ids for item in items]
    names = [item.id for item in items]
    width = 0 if layout == "packed" else max(len(row) for row in ids)
    seen["counts"] = _counts(items, labels, width, faults)
    if layout == "packed":
        lengths = [len(row) for row in ids]
        return Batch(
            input_ids=_row(np.concatenate(ids)),
            labels=_row(np.concatenate(labels)),
            position_ids=_row(np.concatenate([np.arange(n) for n in lengths])),
            **seen,
            cu_seqlens=torch.tensor(np.concatenate([[0], np.cumsum(lengths)]), dtype=torch.int32),
            longest=max(lengths),
            ids=names,
        )
    return Batch(
        input_ids=_rows(ids, width, pad),
        labels=_rows(labels, width, IGNORE),
        position_ids=torch.arange(width).expand(len(ids), width).contiguous(),
        **seen,
        attention_mask=_rows([np.ones(len(row), dtype=np.int64) for row in ids], width, 0),
        ids=names,
    )


def stack_views(views: list[Tensor]) -> Any:
    """Views -> one tensor, or the list where their sizes differ; None for no view."""
    if not views:
        return None
    return torch.stack(views) if len({view.shape for view in views}) == 1 else views


def pixel_key(view: Tensor) -> str:
    """Hash of a view's pixels, 32 hexadecimal digits: equal for equal bits, dtype and shape. 0.7 GiB/s."""
    digest = hashlib.blake2b(f"{view.dtype} {tuple(view.shape)}".encode(), digest_size=16)
    digest.update(view.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _counts(
    items: Sequence[Item], labels: Sequence[np.ndarray], width: int, faults: Sequence[Fault]
) -> dict[str, Counts]:
    """What a micro-batch holds, by source; ``width`` is that of padded rows."""
    counts: dict[str, Counts] = {}
    for item, row in zip(items, labels, strict=True):
        mine = Counts(
            samples=1,
            tokens=len(row),
            labels=int((row != IGNORE).sum()),
            images=len(item.images),
            padding=max(0, width - len(row)),
            truncated=item.encoded.truncated,
        )
        counts[item.source] = counts.get(item.source, Counts()) + mine
    for fault in faults:
        one = Counts(bad=1) if fault.image else Counts(bad_records=1)
        counts[fault.source] = counts.get(fault.source, Counts()) + one
    return counts


def _row(values: np.ndarray) -> Tensor:
    return torch.from_numpy(values.astype(np.int64))[None]


def _rows(rows: Sequence[np.ndarray], width: int, fill: int) -> Tensor:
    out = np.full((len(rows), width), fill, dtype=np.int64)
    for i, row in enumerate(rows):
        out[i, : len(row)] = row
    return torch.from_numpy(out)


def content(images: Sequence[ViewedImage]) -> str:
    """A name for pictures by what an encoder sees of them: what is drawn for a picture in evaluation depends on it."""
    digest = hashlib.blake2b(digest_size=12)
    for image in images:
        digest.update(repr(image.layout).encode())
        for view in image.pixels:
            digest.update(view.numpy().tobytes())
    return digest.hexdigest()
