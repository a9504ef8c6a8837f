"""The sequence that the llm reads: text and visual tokens at their positions, in one of two layouts.

``packed``: one row that holds all samples end to end, with the borders of its segments. ``padded``: a sample a row,
with a mask. Whoever changes it gives back a new one; nothing is changed in place.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from beni.types.pruning import Pruning
from beni.types.visitor import LayerVisitor

IGNORE = -100
"""The label of a position at which nothing is supervised."""

Places = tuple[Int[Tensor, "k"], Int[Tensor, "k"]]
"""(rows, columns) of positions in a batch of sequences."""


@dataclass(frozen=True)
class Sequence:
    """What the llm reads.

    Attributes:
        embeds: embeddings of every position.
        position_ids: of each position within its sample.
        images: number of the image (in reading order) that a placeholder stands for, -1 at text. Until fusion has
            counted the tokens of each image, 0 at every placeholder.
        labels: ``labels[t]`` is the token *at* t, predicted from t - 1; ``IGNORE`` where nothing is supervised. None
            without any.
        mask: 1 at real positions of the padded layout; None where it is packed.
        cu_seqlens: borders (0, ..., t) of the samples in the one row of the packed layout; None where it is padded.
        longest: at least as long as any segment; None for the whole row.
        blocks: positions of one sample with the same number from 0 on see each other both ways, beside what causal
            attention allows; -1 for the others. None where nothing looks ahead.
        log_gate: what is added to the logits of attention to each position, in every layer; None for nothing.
        left_padded: the padding of the padded layout stands before the samples, as generation wants it.
        visitors: what stands around layers of the llm while it reads this sequence, by the number of the layer. They
            are told where each position has gone (``LayerCall``), so changes of the layout leave them as they are.
        pruning: how image tokens leave between layers of the llm; None where all stay.
    """

    embeds: Float[Tensor, "b t d"]
    position_ids: Int[Tensor, "b t"]
    images: Int[Tensor, "b t"]
    labels: Int[Tensor, "b t"] | None = None
    mask: Int[Tensor, "b t"] | None = None
    cu_seqlens: Int[Tensor, "s_plus_1"] | None = None
    longest: int | None = None
    blocks: Int[Tensor, "b t"] | None = None
    log_gate: Float[Tensor, "b t"] | None = None
    left_padded: bool = False
    visitors: Mapping[int, LayerVisitor] = field(default_factory=dict)
    pruning: Pruning | None = None

    @staticmethod
    def plain(embeds: Float[Tensor, "b t d"]) -> Sequence:
        """Rows of text without padding, each a sample."""
        rows, width, _ = embeds.shape
        positions = torch.arange(width, device=embeds.device).expand(rows, width)
        return Sequence(embeds, positions, torch.full_like(positions, -1), mask=torch.ones_like(positions))

    @property
    def packed(self) -> bool:
        """Whether all samples stand end to end in one row."""
        return self.cu_seqlens is not None

    @property
    def is_image(self) -> Bool[Tensor, "b t"]:
        """True at placeholders of images."""
        return self.images >= 0

    @property
    def real(self) -> Bool[Tensor, "b t"]:
        """True at positions that are no padding."""
        return torch.ones_like(self.images, dtype=torch.bool) if self.mask is None else self.mask.bool()

    @property
    def begins(self) -> Bool[Tensor, "b t"]:
        """True at the first position of every segment or row, padding included."""
        begins = torch.zeros_like(self.images, dtype=torch.bool)
        if self.cu_seqlens is None:
            begins[:, 0] = True
        else:
            begins[0, self.cu_seqlens[:-1].long()] = True
        return begins

    @property
    def asked(self) -> Bool[Tensor, "b t"]:
        """True at real positions before the first supervised one of their sample: at all of them without labels."""
        if self.labels is None:
            return self.real
        supervised = self.labels != IGNORE
        if self.cu_seqlens is None:
            return self.real & (supervised.cumsum(1) == 0)
        count = F.pad(supervised[0].cumsum(0), (1, 0))
        borders = self.cu_seqlens.long()
        return (count[1:] == count[borders[:-1]].repeat_interleave(borders.diff()))[None]

    def predicted(self) -> tuple[Places, Int[Tensor, "k"]]:
        """Where labels are predicted (the position before each), and the labels.

        Raises:
            ValueError: when there are no labels.
        """
        if self.labels is None:
            raise ValueError("labels were to be predicted of a sequence without any")
        rows, before = (self.labels[:, 1:] != IGNORE).nonzero(as_tuple=True)
        return (rows, before), self.labels[rows, before + 1]

    def lengths(self) -> Int[Tensor, "s"]:
        """Real positions of each sample."""
        return self.real.sum(1) if self.cu_seqlens is None else self.cu_seqlens.diff().long()

    def samples(self, places: Places) -> Int[Tensor, "k"]:
        """Number of the sample that each place belongs to."""
        rows, columns = places
        if self.cu_seqlens is None:
            return rows
        return torch.searchsorted(self.cu_seqlens.long(), columns, right=True) - 1

    def numbered(self) -> tuple[Int[Tensor, "b t"], Int[Tensor, "b t"]]:
        """The sample of each position, -1 at padding; and the number of each real position within its sample."""
        if self.cu_seqlens is None:
            real = self.real
            rows = torch.arange(len(real), device=real.device)[:, None]
            return torch.where(real, rows, -1), (real.cumsum(1) - 1).clamp(min=0)
        borders = self.cu_seqlens.long()
        columns = torch.arange(self.embeds.shape[1], device=borders.device)
        samples = torch.searchsorted(borders, columns, right=True) - 1
        return samples[None], (columns - borders[samples])[None]

    def end_to_end(self) -> tuple[Sequence, Int[Tensor, "b t"]]:
        """Padded rows as one packed row, and where in it each real position has gone."""
        real = self.real
        borders = F.pad(real.sum(1).cumsum(0), (1, 0))
        chosen = self._at(lambda tensor: tensor[real][None])
        packed = replace(self, **chosen, mask=None, cu_seqlens=borders, longest=None, left_padded=False)
        return packed, real.flatten().cumsum(0).view_as(real) - 1

    def keep(self, kept: Bool[Tensor, "b t"], compact: bool = False) -> Sequence:
        """Without the positions where ``kept`` is False, in either layout; what is left keeps its ``position_ids``.

        Padding goes too where every row is long enough without it.

        Args:
            compact: what is left moves up by one position id for each position of its sample that went before it.
        """
        kept = kept & self.real
        if compact:
            return replace(self, position_ids=self.position_ids - self.gone_before(kept)).keep(kept)
        return self.at(*self.order(kept), kept)

    def order(self, kept: Bool[Tensor, "b t"]) -> tuple[Int[Tensor, "b k"], Bool[Tensor, "b k"]]:
        """Which columns each row has when it is without the positions where ``kept``, of real ones, is False; and False
        where that is padding.
        """
        if self.cu_seqlens is not None:
            order = kept[0].nonzero()[:, 0][None]
            return order, torch.ones_like(order, dtype=torch.bool)
        width = int(kept.sum(1).max())
        # stable: what is kept stays in order, at the end of a row where its padding stands before it
        order = torch.argsort(kept.long() if self.left_padded else (~kept).long(), dim=1, stable=True)
        order = order[:, order.shape[1] - width :] if self.left_padded else order[:, :width]
        return order, kept.gather(1, order)

    def at(self, order: Int[Tensor, "b k"], real: Bool[Tensor, "b k"], kept: Bool[Tensor, "b t"]) -> Sequence:
        """The sequence of the columns that ``order(kept)`` gave."""
        rows = torch.arange(len(order), device=order.device)[:, None]
        chosen = self._at(lambda tensor: tensor[rows.to(tensor.device), order.to(tensor.device)])
        if self.cu_seqlens is not None:
            counted = F.pad(kept[0].cumsum(0), (1, 0))
            borders = counted[self.cu_seqlens.long()].to(self.cu_seqlens.dtype)
            return replace(self, **chosen, cu_seqlens=borders)
        for name, nothing in (("images", -1), ("labels", IGNORE)):  # what was dropped may stand in the padding
            if name in chosen:
                chosen[name] = chosen[name].masked_fill(~real, nothing)
        return replace(self, **chosen, mask=real.long())

    def gone_before(self, kept: Bool[Tensor, "b t"]) -> Int[Tensor, "b t"]:
        """Real positions of the same sample before each one that are not kept."""
        gone = (self.real & ~kept).long()
        before = gone.cumsum(1) - gone
        if self.cu_seqlens is None:
            return before
        borders = self.cu_seqlens.long()
        starts = F.pad(gone[0].cumsum(0), (1, 0))[borders[:-1]]
        return before - starts.repeat_interleave(borders.diff())[None]

    def _at(self, choose: Callable[[Tensor], Tensor]) -> dict[str, Any]:
        """Name -> tensor of every field with one entry a position, but the mask, chosen alike."""
        names = ("embeds", "position_ids", "images", "labels", "blocks", "log_gate")
        tensors = {name: getattr(self, name) for name in names}
        return {name: choose(tensor) for name, tensor in tensors.items() if tensor is not None}
