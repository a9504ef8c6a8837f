"""Causal attention inside the segments of a packed row, registered with transformers as ``beni_segments``.

transformers isolates packed samples only when no mask is given *and* no cache is used, by building a dense (t, t) mask;
unknown attention names skip mask building, so here the borders travel as a ``SegmentPlan`` in the keyword arguments.

In half precision on a GPU torch's variable-length flash attention takes the borders as they are. Everywhere else
segments of similar length are gathered into rectangles ``(segments, length)``: right padding under a causal mask can
reach no real query, so each rectangle is one plain causal attention without a mask. On two CPU cores that replaces a
(7000, 7000) mask by a few hundred short squares. CPU bf16 runs in fp32: the bf16 backward of torch's CPU kernel is five
times slower (484 against 95 ms, training.md section 5).

Gates on keys are put into queries and keys (``beni.nn.gates``), so the kernels are the same with them.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.attention.varlen import varlen_attn
from transformers import AttentionInterface

from beni.llm.dense_attention import dense, scale_of
from beni.llm.readings import Readings, reread
from beni.llm.watch import Watch, noted
from beni.nn.gates import widened

NAME = "beni_segments"
WASTE = 1.25  # a rectangle may hold this many times the positions of its longest-to-shortest run of segments


HALF = (torch.float16, torch.bfloat16)
GROUPED = {"enable_gqa": True} if "enable_gqa" in inspect.signature(varlen_attn).parameters else None
"""What tells ``varlen_attn`` that keys have fewer heads than queries; torch 2.11 wants them repeated."""


@dataclass(frozen=True)
class Rectangle:
    """Segments of one packed row, right-padded to a common length.

    Attributes:
        index: position in the row of each cell; padding cells repeat a real position.
        real: False at padding cells.
        sees: the later positions that each position may attend to beside the earlier ones; None for none.
    """

    index: Int[Tensor, "s length"]
    real: Bool[Tensor, "s length"]
    sees: Bool[Tensor, "s length length"] | None = None


@dataclass(frozen=True)
class Cells:
    """The cells of all rectangles of a row, one after another.

    Attributes:
        index: position in the row of each cell.
        padding: cells that repeat a position.
        place: the real cell of each position.
    """

    index: Int[Tensor, "c"]
    padding: Int[Tensor, "p"]
    place: Int[Tensor, "t"]


@dataclass(frozen=True)
class SegmentPlan:
    """How one packed row is cut; built once a micro-batch and used by every layer.

    Attributes:
        cu_seqlens: borders (0, ..., t) of the segments.
        blocks: positions of one segment with the same number from 0 on see each other both ways; -1 for the others.
        length: of the row.
        longest: no segment is longer.
        log_gate: what is added to the logits of attention to each position; None for nothing.
        readings: by layer, what changes what it reads (``LayerVisitor.within``).
        columns: where each position stood in its segment before others left, by which a window is measured; None for
            where it is.
    """

    cu_seqlens: Int[Tensor, "s_plus_1"]
    blocks: Int[Tensor, "t"] | None
    length: int
    longest: int
    log_gate: Float[Tensor, "t"] | None = None
    readings: Readings = field(default_factory=dict)
    columns: Int[Tensor, "t"] | None = None

    @staticmethod
    def build(
        cu_seqlens: Int[Tensor, "s_plus_1"],
        length: int,
        blocks: Int[Tensor, "t"] | None = None,
        longest: int | None = None,
        log_gate: Float[Tensor, "t"] | None = None,
        readings: Readings | None = None,
        columns: Int[Tensor, "t"] | None = None,
    ) -> SegmentPlan:
        """Borders of the segments of a row of ``length`` positions -> plan, on the device of ``cu_seqlens``.

        Args:
            longest: no segment is longer than that; the row when None.
        """
        # a power of two: few programs are compiled, and flash attention starts few blocks that find nothing to do
        bound = 1 << ((longest or length) - 1).bit_length()
        return SegmentPlan(cu_seqlens.int(), blocks, length, bound, log_gate, readings or {}, columns)

    @cached_property
    def rectangles(self) -> tuple[Rectangle, ...]:
        """Cover every position of the row exactly once. Reads the borders, which a GPU is waited for."""
        borders = self.cu_seqlens.tolist()
        segments = sorted(((b - a, a) for a, b in pairwise(borders)), reverse=True)
        groups: list[list[tuple[int, int]]] = []
        for length, start in segments:
            if not groups or groups[-1][0][0] > WASTE * length:
                groups.append([])
            groups[-1].append((length, start))
        return tuple(_rectangle(group, self.cu_seqlens.device, self.blocks) for group in groups)

    @cached_property
    def cells(self) -> Cells:
        """The cells of all rectangles."""
        index = torch.cat([rectangle.index.flatten() for rectangle in self.rectangles])
        real = torch.cat([rectangle.real.flatten() for rectangle in self.rectangles])
        place = torch.empty(self.length, dtype=torch.long, device=index.device)
        place[index[real]] = real.nonzero()[:, 0]
        return Cells(index, (~real).nonzero()[:, 0], place)


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
        sees = both if bool(both.triu(1).any()) else None
    return Rectangle(index, real, sees)


class _ToCells(torch.autograd.Function):
    """``(t, ...) -> (c, ...)``. No gradient comes back to padding cells, so its backward only gathers."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cells: Cells) -> Tensor:
        ctx.cells = cells
        return x.index_select(0, cells.index)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0].index_select(0, ctx.cells.place), None


class _FromCells(torch.autograd.Function):
    """``(c, ...) -> (t, ...)``, the inverse; padding cells are left behind."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cells: Cells) -> Tensor:
        ctx.cells = cells
        return x.index_select(0, cells.place)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        gradient = gradients[0].index_select(0, ctx.cells.index)
        return gradient.index_fill_(0, ctx.cells.padding, 0.0), None


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
    watch: Watch | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """``(1, h, t, dh)`` queries and ``(1, kv heads, t, dh)`` keys and values -> ``(1, t, h, dh)``."""
    if watch is not None:
        noted(watch, query, key, scaling, sliding_window, softcap)
    if segments is None or query.shape[0] != 1:
        raise ValueError(f"{NAME} attention needs one packed row and its segments; the model did not pass them on")
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))  # (t, heads, dh)
    if q.is_cuda and torch.is_autocast_enabled("cuda"):  # as torch's own attention does
        q, k, v = (x.to(torch.get_autocast_dtype("cuda")) for x in (q, k, v))
    width, factor = v.shape[-1], scaling
    if segments.log_gate is not None and softcap is None:
        scaling = scale_of(q, scaling)
        q, k, v = widened(q, k, v, segments.log_gate[:, None], scaling)
    if q.is_cuda and suits_flash(q, k, v, segments, dropout, softcap, sliding_window):
        read = flash(q, k, v, segments, scaling, sliding_window).to(query.dtype)
    else:
        read = in_rectangles(q, k, v, segments, scaling, dropout, sliding_window, softcap)
    return reread(module, segments.readings, query, read[..., :width][None], factor), None


def suits_flash(
    q: Float[Tensor, "t h dq"],
    k: Float[Tensor, "t kv dk"],
    v: Float[Tensor, "t kv dv"],
    segments: SegmentPlan,
    dropout: float,
    softcap: float | None,
    window: int | None = None,
) -> bool:
    """Whether flash attention computes this on a GPU; the rectangles compute all of it."""
    plain = segments.blocks is None and softcap is None and dropout == 0 and (segments.columns is None or not window)
    return plain and q.dtype in HALF and flash_takes(q.shape[-1], k.shape[-1], v.shape[-1])


def flash_takes(*widths: int) -> bool:
    """Whether flash attention has kernels for heads of such queries, keys and values: one width, and not any."""
    width = widths[0]
    return set(widths) == {width} and width % 8 == 0 and width <= 256


def flash(
    q: Float[Tensor, "t h dh"],
    k: Float[Tensor, "t kv dh"],
    v: Float[Tensor, "t kv dh"],
    segments: SegmentPlan,
    scaling: float | None,
    window: int | None,
) -> Float[Tensor, "t h dh"]:
    """Torch's variable-length flash attention: CUDA, half precision. Nothing here depends on the borders' values."""
    options: dict[str, Any] = {}
    if q.shape[1] != k.shape[1]:
        if GROUPED is None:
            k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
        else:
            options = GROUPED
    back = -1 if window is None else window - 1  # beside itself
    borders, longest = segments.cu_seqlens, segments.longest
    out = varlen_attn(q, k, v, borders, borders, longest, longest, scale=scaling, window_size=(back, 0), **options)
    assert isinstance(out, Tensor)
    return out


@torch.compiler.disable  # every row has other rectangles, and each would be compiled anew
def in_rectangles(
    q: Float[Tensor, "t h dh"],
    k: Float[Tensor, "t kv dh"],
    v: Float[Tensor, "t kv dh"],
    segments: SegmentPlan,
    scaling: float | None,
    dropout: float,
    window: int | None,
    softcap: float | None,
) -> Float[Tensor, "t h dh"]:
    """Any device and precision. Gates are already in the keys, but where a softcap would bound them too."""
    dtype = q.dtype
    if q.device.type == "cpu" and dtype == torch.bfloat16:
        q, k, v = q.float(), k.float(), v.float()
    cells, outputs, start = segments.cells, [], 0
    q, k, v = (_ToCells.apply(x, cells) for x in (q, k, v))
    log_gate = None
    if segments.log_gate is not None and softcap is not None:
        log_gate = _ToCells.apply(segments.log_gate.to(q.dtype), cells)
    for rectangle in segments.rectangles:
        shape, end = rectangle.index.shape, start + rectangle.index.numel()
        rows = (x[start:end].unflatten(0, shape).transpose(1, 2) for x in (q, k, v))  # (s, heads, length, dh)
        gates = None if log_gate is None else log_gate[start:end].view(shape)
        stood = None if segments.columns is None or not window else segments.columns[rectangle.index]
        out = causal(*rows, scaling, dropout, window, softcap, rectangle.sees, gates, stood)
        outputs.append(out.transpose(1, 2).flatten(0, 1))
        start = end
    together = torch.cat(outputs) if len(outputs) > 1 else outputs[0]
    return _FromCells.apply(together, cells).to(dtype)


def causal(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scaling: float | None,
    dropout: float,
    window: int | None,
    softcap: float | None,
    sees: Bool[Tensor, "s length length"] | None = None,
    log_gate: Float[Tensor, "s length"] | None = None,
    columns: Int[Tensor, "s length"] | None = None,
) -> Tensor:
    """Plain causal attention of a rectangle, with the two variations that decoders in the wild have, and with positions
    that see each other both ways, also beyond a sliding window, as in Gemma 3. The window is measured by ``columns``
    where there are some.
    """
    length = q.shape[2]
    within = columns is None and (window is None or window >= length)
    if sees is None and softcap is None and log_gate is None and within:
        gqa = q.shape[1] != k.shape[1]
        return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=True, scale=scaling, enable_gqa=gqa)
    distance = torch.arange(length, device=q.device)[:, None] - torch.arange(length, device=q.device)
    allowed = (distance >= 0) & (distance < (window or length))
    if columns is not None and window:
        allowed = ((distance >= 0) & (columns[:, :, None] - columns[:, None] < window))[:, None]
    if sees is not None:
        allowed = (allowed | sees[:, None]) if allowed.ndim == 4 else (allowed | sees)[:, None]
    return dense(q, k, v, allowed, scaling, dropout, softcap, log_gate)


AttentionInterface.register(NAME, segment_attention)
