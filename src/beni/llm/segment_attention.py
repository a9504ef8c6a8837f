"""Causal attention inside the segments of a packed row, registered with transformers as ``beni_segments``.

transformers isolates packed samples only when no mask is given *and* no cache is used, by building a dense (t, t) mask;
unknown attention names skip mask building, so here the borders travel as a ``SegmentPlan`` in the keyword arguments.
Segments of similar length are gathered into rectangles ``(segments, length)``: right padding under a causal mask can
reach no real query, so each rectangle is one plain causal attention without a mask. On two CPU cores that replaces a
(7000, 7000) mask by a few hundred short squares. CPU bf16 runs in fp32: the bf16 backward of torch's CPU kernel is five
times slower (484 against 95 ms, training.md section 5).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Int
from torch import Tensor, nn
from transformers import AttentionInterface

NAME = "beni_segments"
WASTE = 1.25  # a rectangle may hold this many times the positions of its longest-to-shortest run of segments


@dataclass(frozen=True)
class Rectangle:
    """Segments of one packed row, right-padded to a common length.

    Attributes:
        index: position in the row of each cell; padding cells repeat a real position.
        real: False at padding cells; None when there are none.
        sees: the later positions that each position may attend to beside the earlier ones; None for none.
    """

    index: Int[Tensor, "s length"]
    real: Bool[Tensor, "s length"] | None
    sees: Bool[Tensor, "s length length"] | None = None


@dataclass(frozen=True)
class SegmentPlan:
    """How one packed row is cut into rectangles; built once a micro-batch and used by every layer.

    Attributes:
        rectangles: cover every position of the row exactly once.
        order: for each position of the row, its place among the real cells of all rectangles in turn.
    """

    rectangles: tuple[Rectangle, ...]
    order: Int[Tensor, "t"]

    @staticmethod
    def build(cu_seqlens: Int[Tensor, "s_plus_1"], blocks: Int[Tensor, "t"] | None = None) -> SegmentPlan:
        """Borders (0, ..., t) of the segments -> plan, on the device of ``cu_seqlens``.

        Args:
            blocks: positions of one segment with the same number from 0 on see each other both ways; -1 for the others.
        """
        device = cu_seqlens.device
        borders = cu_seqlens.tolist()
        segments = sorted(((b - a, a) for a, b in pairwise(borders)), reverse=True)
        groups: list[list[tuple[int, int]]] = []
        for length, start in segments:
            if not groups or groups[-1][0][0] > WASTE * length:
                groups.append([])
            groups[-1].append((length, start))
        rectangles = tuple(_rectangle(group, device, blocks) for group in groups)
        cells = torch.cat([r.index.flatten() if r.real is None else r.index[r.real] for r in rectangles])
        order = torch.empty_like(cells)
        order[cells] = torch.arange(len(cells), device=device)
        return SegmentPlan(rectangles, order)


def _rectangle(group: list[tuple[int, int]], device: torch.device, blocks: Tensor | None) -> Rectangle:
    lengths = torch.tensor([length for length, _ in group], device=device)
    starts = torch.tensor([start for _, start in group], device=device)
    column = torch.arange(int(lengths.max()), device=device)
    real = column[None] < lengths[:, None]
    index = starts[:, None] + torch.minimum(column[None], lengths[:, None] - 1)
    sees = None
    if blocks is not None:
        own = blocks[index].masked_fill(~real, -1)
        both = (own[:, :, None] == own[:, None, :]) & (own[:, :, None] >= 0)
        sees = both.triu(1) if bool(both.triu(1).any()) else None
    return Rectangle(index, None if bool(real.all()) else real, sees)


def segment_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    segments: SegmentPlan | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """``(1, h, t, dh)`` queries and ``(1, kv heads, t, dh)`` keys and values -> ``(1, t, h, dh)``."""
    if segments is None or query.shape[0] != 1:
        raise ValueError(f"{NAME} attention needs one packed row and its segments; the model did not pass them on")
    dtype = query.dtype
    if query.device.type == "cpu" and dtype == torch.bfloat16:
        query, key, value = query.float(), key.float(), value.float()
    outputs = []
    for rectangle in segments.rectangles:
        q, k, v = (x[0][:, rectangle.index].transpose(0, 1) for x in (query, key, value))  # (s, heads, length, dh)
        out = causal(q, k, v, scaling, dropout, sliding_window, softcap, rectangle.sees).transpose(1, 2)
        outputs.append(out.flatten(0, 1) if rectangle.real is None else out[rectangle.real])
    return torch.cat(outputs)[segments.order][None].to(dtype), None


def causal(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scaling: float | None,
    dropout: float,
    window: int | None,
    softcap: float | None,
    sees: Bool[Tensor, "s length length"] | None = None,
) -> Tensor:
    """Plain causal attention of a rectangle, with the two variations that decoders in the wild have, and with later
    positions that may be seen too; a sliding window limits how far back, not how far ahead, as in Gemma 3.
    """
    length = q.shape[2]
    if sees is None and softcap is None and (window is None or window >= length):
        gqa = q.shape[1] != k.shape[1]
        return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=True, scale=scaling, enable_gqa=gqa)
    groups = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    distance = torch.arange(length, device=q.device)[:, None] - torch.arange(length, device=q.device)
    allowed = (distance >= 0) & (distance < (window or length))
    if sees is not None:
        allowed = (allowed | sees)[:, None]
    if softcap is None:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=allowed, dropout_p=dropout, scale=scaling)
    logits = q @ k.transpose(-1, -2) * (q.shape[-1] ** -0.5 if scaling is None else scaling)
    logits = softcap * torch.tanh(logits / softcap)
    weights = logits.masked_fill(~allowed, float("-inf")).softmax(-1, dtype=torch.float32).to(q.dtype)
    return F.dropout(weights, dropout) @ v


AttentionInterface.register(NAME, segment_attention)
