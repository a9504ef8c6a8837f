"""Who sees which image: the tokens of images beside a sequence, and the positions that attend to them.

Each image takes one position of the text. From there on its sample sees it: to the end, or until the next image stands
(Flamingo, arXiv 2204.14198, section 2.2). Positions that see the same are gathered into one row of queries over the
keys of what they see, so that a packed row of many samples, a padded batch and the beams of a prompt all cost what
their own pairs cost, plus the padding of the rows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from beni.errors import DataError
from beni.nn.gates import is_open
from beni.types import LayerCall, Sequence, VisualTokens

SPAN = 1 << 32
"""No sample has as many positions: number of a sample times this, plus its position there, is in reading order."""

Pairs = tuple[Float[Tensor, "i kv n dh"], Float[Tensor, "i kv n dv"]]
"""Keys and values of the tokens of images."""

Made = TypeVar("Made", bound=tuple[Tensor, ...])


@dataclass(frozen=True)
class Sight:
    """What the positions of one pass see.

    Attributes:
        sees: True at positions that see anything.
        cells: the position, in the flattened pass, of each query of each group.
        place: the cell, among all of them, of each position; that of a position without one says nothing.
        images: those that each group's keys are of, in order; None where group and image are one.
        mask: tokens that each group, or each of its queries, may attend to; at least one.
        log_gate: of the tokens of each group.
    """

    sees: Bool[Tensor, "b t"]
    cells: Int[Tensor, "g q"]
    place: Int[Tensor, "p"]
    images: Int[Tensor, "g m"] | None
    mask: Bool[Tensor, "g *q k"]
    log_gate: Float[Tensor, "g k"] | None

    def gather(self, queries: Float[Tensor, "p h dh"]) -> Float[Tensor, "g h q dh"]:
        """Queries of all positions, by group."""
        return queries[self.cells].transpose(1, 2)

    def scatter(self, read: Float[Tensor, "g h q dv"]) -> Float[Tensor, "p h dv"]:
        """What groups have read, by position."""
        return read.transpose(1, 2).flatten(0, 1)[self.place]

    def of_groups(self, tokens: Float[Tensor, "i kv n dh"]) -> Float[Tensor, "g kv k dh"]:
        """Keys or values of images, by group."""
        if self.images is None:
            return tokens
        return tokens[self.images].transpose(1, 2).flatten(2, 3)  # (g, m, kv, n, dh) -> (g, kv, m * n, dh)


@dataclass(frozen=True)
class Media:
    """The visual tokens of a micro-batch, and where in the text their images stand.

    Attributes:
        visual: a row an image, in reading order.
        samples: of each image.
        columns: number of the position within its sample that each image takes.
        count: samples that there are.
        latest: a position sees the latest image before it only, instead of all.
        kept: what layers have made of the tokens, where one call of a layer follows another (generation); else None.
    """

    visual: VisualTokens
    samples: Int[Tensor, "i"]
    columns: Int[Tensor, "i"]
    count: int
    latest: bool
    kept: dict[int, Any] | None = None
    _known: list[tuple[LayerCall, Sight]] = field(default_factory=list, compare=False, repr=False)

    @staticmethod
    def of(sequence: Sequence, visual: VisualTokens, latest: bool) -> Media:
        """The images of a sequence with one placeholder an image.

        Raises:
            DataError: E-COUNT when there are more placeholders than images, or fewer.
        """
        images, places = len(visual.x), sequence.is_image
        chooses = not (torch.compiler.is_exporting() or places.is_meta)  # neither can choose by values
        if chooses and (found := int(places.sum())) != images:
            raise DataError(f"E-COUNT: {found} image placeholders for {images} images")
        where = torch.argsort((~places).flatten().byte(), stable=True)[:images]
        samples, columns = (numbers.flatten()[where] for numbers in sequence.numbered())
        return Media.at(sequence, visual, samples, columns, latest)

    @staticmethod
    def at(
        sequence: Sequence, visual: VisualTokens, samples: Int[Tensor, "i"], columns: Int[Tensor, "i"], latest: bool
    ) -> Media:
        """Images that stand at such positions of the sequence that the llm reads."""
        generates = sequence.left_padded and not torch.is_grad_enabled()
        return Media(visual, samples, columns, len(sequence.lengths()), latest, {} if generates else None)

    @staticmethod
    def unseen(sequence: Sequence, visual: VisualTokens) -> Media:
        """Images of nobody: they stand behind the last sample."""
        count = len(sequence.lengths())
        samples = torch.full((len(visual.x),), count, device=visual.x.device)
        return Media(visual, samples, torch.zeros_like(samples), count, True)

    def once(self, index: int, make: Callable[[], Made]) -> Made:
        """What layer ``index`` makes of the tokens, which generation asks for at every position."""
        if self.kept is None:
            return make()
        if index not in self.kept:
            self.kept[index] = make()
        return self.kept[index]

    def places(self, call: LayerCall) -> Int[Tensor, "i"]:
        """The position of each image in the flattened pass; one that is not there is said to be at the first."""
        stands = (call.samples.flatten() == self.samples[:, None]) & (call.columns.flatten() == self.columns[:, None])
        return stands.byte().argmax(1)

    def sight(self, call: LayerCall) -> Sight:
        """What the positions of this pass see, found out by the first layer that asks."""
        if not self._known or self._known[0][0].samples is not call.samples:
            self._known[:] = [(call, self._look(call))]
        return self._known[0][1]

    def _look(self, call: LayerCall) -> Sight:
        keys, reached = self.samples * SPAN + self.columns, call.samples * SPAN + call.columns
        last = torch.searchsorted(keys, reached, right=True) - 1
        known = last.clamp(min=0)
        sees = (last >= 0) & (self.samples[known] == call.samples)
        real = self.visual.mask
        if self.visual.log_gate is not None:
            real = real & is_open(self.visual.log_gate)
        each = self.latest or self.count == 1 == len(real)
        images = None if each else self._of_samples()
        groups, number = (known, len(real)) if each else (call.samples, self.count)
        cells, place = gathered(torch.where(sees, groups, -1), number)
        if images is None:
            mask, gates = real, self.visual.log_gate
        else:
            mask, gates = self._mask(images, last.flatten()[cells], real), self._gates(images)
            images = images.clamp(min=0)
        blind = ~mask.any(-1, keepdim=True)
        blinded = blind.expand(cells.shape) if mask.ndim == 2 else blind[..., 0]
        sees = sees & ~blinded.flatten()[place].view_as(sees)
        return Sight(sees, cells, place, images, mask | blind, gates)

    def _of_samples(self) -> Int[Tensor, "s m"]:
        """The images of each sample, in order; -1 where it has fewer than another."""
        if self.count == 1:
            return torch.arange(len(self.samples), device=self.samples.device)[None]
        numbers = torch.arange(self.count, device=self.samples.device)
        first = torch.searchsorted(self.samples, numbers)
        many = torch.searchsorted(self.samples, numbers, right=True) - first
        nth = torch.arange(int(many.max()), device=first.device)
        return torch.where(nth < many[:, None], first[:, None] + nth, -1)

    def _mask(
        self, images: Int[Tensor, "g m"], last: Int[Tensor, "g q"], real: Bool[Tensor, "i n"]
    ) -> Bool[Tensor, "g q k"]:
        """Real tokens of the images of each group up to the last that a query sees."""
        stands = (images >= 0)[:, None] & (images[:, None] <= last[..., None])
        return (stands[..., None] & real[images.clamp(min=0)][:, None]).flatten(2)

    def _gates(self, images: Int[Tensor, "g m"]) -> Float[Tensor, "g k"] | None:
        gates = self.visual.log_gate
        return None if gates is None else gates[images.clamp(min=0)].flatten(1)


def gathered(groups: Int[Tensor, "b t"], number: int) -> tuple[Int[Tensor, "g q"], Int[Tensor, "p"]]:
    """Positions by the number of their group, -1 for none: those of each group side by side, and the cell of each.

    Cells that no position fills repeat the first of all.
    """
    flat = groups.flatten()
    every = torch.arange(flat.shape[0], device=flat.device)
    if number == 1:  # nothing depends on values, which a dry run does not have
        return every[None], every
    order = torch.argsort(flat, stable=True)
    sizes = torch.bincount(flat + 1, minlength=number + 1)
    starts = sizes.cumsum(0) - sizes
    rank = torch.empty_like(flat)
    rank[order] = every - starts[flat[order] + 1]
    longest = max(1, int(sizes[1:].max()))
    place = torch.where(flat >= 0, flat * longest + rank, 0)
    cells = flat.new_zeros(number * longest)
    cells[place[flat >= 0]] = every[flat >= 0]
    return cells.view(number, longest), place
