"""What a micro-batch costs in FLOPs, by component, under the plan of freezing that holds now.

The rule is the field's: a component costs its forward pass once where it is frozen and off the gradient's way, twice
where it is frozen but on it (an llm above a connector that trains), three times where it trains. It is not applied but
observed: each part is run without values (``dry_runs.py``), forward and backward, with the flags of the real
parameters. So what the rule leaves out is right too: adapters, a first layer whose input wants no gradient, a tensor
frozen by itself.

Billed is what the task needs: a view of a picture for its patches, attention for each segment by itself (the sum of
squared lengths, causal or not), the head for the rows that predict a label. Padding is billed to nobody and told apart,
as is what activation checkpointing computes again.
"""

from __future__ import annotations

from collections import Counter, abc
from collections.abc import Collection
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from beni.components import COMPONENTS
from beni.model.context import owners_of
from beni.model.costing.dry_runs import Count, DryRuns, Recomputing, Wants
from beni.model.costing.flop_count import FlopCount
from beni.model.costing.rates import LONG, Around, Falling, Rate, Staircase
from beni.model.modeling import BeniForConditionalGeneration
from beni.model.viewer import placeholders
from beni.types import IGNORE, Batch, ImageLayout

IMAGES = 4096
"""Kinds of images whose costs are kept; pictures of a large data set come in more sizes than anybody wants to keep."""


class Rates(NamedTuple):
    """A ``Count`` of the llm, at any length."""

    forward: Rate | Staircase | Falling
    useful: Rate | Staircase | Falling
    again: Rate | Staircase | Falling


class Own(NamedTuple):
    """A ``Count`` of a fusion's own layers, for any sample."""

    forward: Around
    useful: Around
    again: Around


@dataclass(frozen=True)
class Visual:
    """What is counted of one image before the llm.

    Attributes:
        counts: by component.
        tokens: visual tokens of the image.
        read: those of them that the fusion's own layers read.
        wants: of which fields of these a gradient is wanted.
    """

    counts: dict[str, Count]
    tokens: int
    read: int
    wants: Wants


class Costs:
    """Bills micro-batches. What it has found out about an image or an llm it keeps until ``recount``.

    Args:
        twin: the model on the meta device, with its plan applied.
        image_token_id: the placeholder in batches, where some are billed.
        recomputing: of the run's activation checkpointing; None where there is none.
        attention_kept: attention is not among what is computed again.

    Raises:
        CompositionError: E-FLOPS, by any method, when a part cannot be run without values.
    """

    def __init__(
        self,
        twin: BeniForConditionalGeneration,
        image_token_id: int = -1,
        recomputing: Recomputing | None = None,
        attention_kept: bool = False,
    ) -> None:
        self.twin, self._image_token = twin.eval(), image_token_id
        self._runs, self._attention_kept = DryRuns(self.twin, recomputing, attention_kept), attention_kept
        self._image = lru_cache(IMAGES)(self._count_image)
        self._llm, self._pruned, self._own = cache(self._rate_llm), cache(self._rate_pruned), cache(self._rate_own)

    def recount(self, trained: Collection[str]) -> None:
        """Counts anew: the parameters of these names train from now on, and no others."""
        for name, parameter in self.twin.named_parameters():
            parameter.requires_grad_(name in trained)
        self._runs.forget()
        for known in (self._image, self._llm, self._pruned, self._own):
            known.cache_clear()

    def prefill(self, layout: ImageLayout, length: int, label_rows: int, dropped: int = 0) -> dict[str, int]:
        """Forward FLOPs of each component, for one sample of ``length`` positions with one such image.

        Args:
            label_rows: positions that the head is on.
            dropped: positions of the image that the llm is not given.
        """
        return {name: count.forward for name, count in self._sample(layout, length, label_rows, dropped).items()}

    def training(self, layout: ImageLayout, length: int, label_rows: int, dropped: int = 0) -> dict[str, int]:
        """Forward and backward FLOPs of each component, for such a sample."""
        return {name: count.useful for name, count in self._sample(layout, length, label_rows, dropped).items()}

    def flop_count(self, batch: Batch, kept: abc.Sequence[int] | None = None) -> FlopCount:
        """What the forward and backward pass of a micro-batch cost. Reads its values, so it must lie on the CPU.

        Args:
            kept: positions of each sample that the llm was given, where fusion has dropped some.
        """
        images = [self._image(*one) for one in zip(batch.layouts, self._asked(batch), strict=True)]
        counts, llm = total_of(images), self._rates_of(images)
        lengths, labels = list(kept or batch.lengths), batch.num_labels
        own = self._own_of(images, lengths, lengths, batch)
        counts["fusion"] = counts["fusion"].plus(own)
        sizes = self._sizes(llm, lengths, self._before_answers(batch, lengths))
        laid_out, extra = sizes, 0
        if batch.attention_mask is not None and not self.twin.fusion.looks_ahead:
            # padding is computed like the rest; fusions that look ahead lay rows end to end first
            width = max(kept) if kept else batch.input_ids.shape[1]
            laid_out = padded(sizes, width)
            columns = int((batch.labels != IGNORE).any(0).sum())  # the head is on the same columns of all rows
            extra = llm.useful.of(laid_out, len(lengths) * columns) - llm.useful.of(sizes, labels)
            extra += self._own_of(images, [width] * len(lengths), lengths, batch).useful - own.useful
        alone = self._read_alone(batch)
        asked = self._alone(images, alone) if alone else 0
        return FlopCount(
            components={name: count.useful for name, count in counts.items()}
            | {"llm": llm.useful.of(sizes, labels) + asked},
            causal=round(llm.useful.pairs(sizes) / 2),
            recomputed=sum(count.again for count in counts.values()) + llm.again.of(laid_out, 0),
            padding=extra,
        )

    def _sample(self, layout: ImageLayout, length: int, label_rows: int, dropped: int) -> dict[str, Count]:
        """FLOPs of each component for one sample of ``length`` positions with one such image."""
        image = self._image(layout, 0)
        positions = placeholders(self.twin.viewer.markup(layout))
        dropped = dropped if positions == image.tokens else 0  # else tokens have no positions of their own
        length -= dropped
        counts, rates = total_of([image]), self._rates_of([image])
        if self._runs.fusion_visits:
            counts["fusion"] = counts["fusion"].plus(self._around(image.wants, [(length, image.read - dropped)]))
        rows = (label_rows, label_rows, 0)
        sizes = self._sizes(rates, [length], [positions - dropped])
        llm = (rate.of(sizes, own) for rate, own in zip(rates, rows, strict=True))
        return counts | {"llm": Count(*llm)}

    def _count_image(self, layout: ImageLayout, asked: int) -> Visual:
        """An image, with a prompt of so many positions."""
        specs, runs = self.twin.row_specs(layout), self._runs
        counts: dict[str, Count] = dict.fromkeys(COMPONENTS, Count())
        for size, kept in zip(layout.views, self.twin.views.sees(layout), strict=True):
            counts["vision"] = counts["vision"].plus(runs.view(size, kept))
        counts["views"], first = runs.rows(layout, specs["vision"], asked)
        wants = [first] * len(specs["views"])
        for before, name in pairwise(("views", "selector", "resampler", "connector")):
            for number, row in enumerate(specs[before]):
                count, wants[number] = runs.stage(name, row, asked, wants[number])
                counts[name] = counts[name].plus(count)
        # what views add behind the connector (a newline) trains with them
        wanted = frozenset().union(*wants) | ({"x"} if runs.trains("views") else frozenset())
        tokens = self.twin.viewer.visual_tokens(layout)
        if not runs.fusion_visits:
            counts["fusion"] = runs.fusion(replace(specs["connector"][0], n=tokens, grid=None), wanted)
        read = tokens
        if "parts" in self.twin.fusion.reads_beside:
            read -= placeholders(self.twin.viewer.markup(layout))
        if "sources" in self.twin.fusion.reads_beside:
            read = sum(row.n for row in specs["connector"])  # and no newlines, which read nothing
        return Visual(counts, tokens, read, wanted)

    def _own_of(
        self, images: abc.Sequence[Visual], lengths: abc.Sequence[int], given: abc.Sequence[int], batch: Batch
    ) -> Count:
        """The fusion's own layers, which a micro-batch with images passes in all of its positions.

        Args:
            lengths: positions of each sample that are computed.
            given: those that it has without the image positions that fusion has dropped.
        """
        if not images or not self._runs.fusion_visits:
            return Count()
        tokens = [0] * len(lengths)
        for image, owner in zip(images, owners_of(batch.owners, len(images), len(lengths)), strict=True):
            tokens[owner] += image.read
        read = [count - laid + left for count, laid, left in zip(tokens, batch.lengths, given, strict=True)]
        return self._around(images[0].wants, list(zip(lengths, read, strict=True)))

    def _around(self, wants: Wants, samples: abc.Sequence[tuple[int, int]]) -> Count:
        return Count(*(rate.of(samples) for rate in self._own(wants)))

    def _rate_own(self, wants: Wants) -> Own:
        def fitted(name: str) -> Around:
            return Around.fit(lambda n, k: getattr(self._runs.around(n, k, wants), name), self.twin.specs["llm"].n)

        return Own(*map(fitted, Count._fields))

    def _rates_of(self, images: abc.Sequence[Visual]) -> Rates:
        """The llm in a micro-batch with such images, or without any."""
        if images and self.twin.pruner.pruning is not None:
            return self._pruned(self._reached(images))
        return self._unpruned(images)

    def _unpruned(self, images: abc.Sequence[Visual]) -> Rates:
        """The llm where all positions stay."""
        if images and self._runs.fusion_visits:
            return self._llm(False, images[0].wants)
        return self._llm(self._reached(images), None)

    def _alone(self, images: abc.Sequence[Visual], lengths: abc.Sequence[int]) -> int:
        """The llm on prompts of so many positions, without an image and without a gradient."""
        forward = self._unpruned(images).forward
        assert not isinstance(forward, Falling)
        return forward.of(lengths, 0)

    def _reached(self, images: abc.Sequence[Visual]) -> bool:
        """Whether embeddings want a gradient."""
        return self._runs.embeddings_train() or (bool(images) and self._runs.trains(*COMPONENTS[:-1]))

    def _rate_pruned(self, reached: bool) -> Rates:
        """The llm whose image tokens leave on the way, with embeddings that want a gradient or do not."""
        pruning = self.twin.pruner.pruning
        assert pruning is not None

        def fitted(name: str) -> Falling:
            return Falling.fit(
                lambda sizes, rows: getattr(self._runs.pruned_llm(sizes, rows, reached), name),
                len(pruning.cuts),
                words=pruning.raters is not None,
            )

        forward, useful, again = map(fitted, Count._fields)
        return Rates(forward, useful, again.without_pairs(len(pruning.cuts)) if self._attention_kept else again)

    def _sizes(self, llm: Rates, lengths: abc.Sequence[int], images: abc.Sequence[int]) -> abc.Sequence[Any]:
        """Samples of so many positions as the rates of an llm take them.

        Args:
            images: how many of the positions may leave.
        """
        pruning = self.twin.pruner.pruning
        if pruning is None or not isinstance(llm.forward, Falling):
            return lengths
        pairs = zip(lengths, images, strict=True)
        return [(length - image, image, *pruning.left(image).values()) for length, image in pairs]

    def _before_answers(self, batch: Batch, lengths: abc.Sequence[int]) -> list[int]:
        """Image positions before the first label of each sample, without those that fusion has dropped.

        Args:
            lengths: positions of each sample that the llm was given.
        """
        image, label = (batch.input_ids == self._image_token).flatten(), (batch.labels != IGNORE).flatten()
        samples = self._samples(batch)
        asked = [image[cells][label[cells].cumsum(0) == 0] for cells in samples]
        return [
            max(0, int(one.sum()) - len(cells) + length)
            for one, cells, length in zip(asked, samples, lengths, strict=True)
        ]

    def _rate_llm(self, reached: bool, visited: Wants | None) -> Rates:
        """The llm, with embeddings that want a gradient or do not.

        Args:
            visited: the fusion's own layers stand around its own, for visual tokens of which such a gradient is wanted.
        """

        def count(length: int, rows: int = 1) -> Count:
            if visited is not None:
                return self._runs.visited_llm(length, rows, visited)
            return self._runs.llm(length, rows, reached)

        short = [Rate.fit(lambda n, k, name=name: getattr(count(n, k), name)) for name in Count._fields]
        # whether what short sequences cost tells what long ones do, within 1 %
        long, said = self._runs.passes(LONG), short[0].of([LONG], 1)
        if abs(said - long) > 0.01 * long:
            pairs = zip(Count._fields, short, strict=True)
            return Rates(*(Staircase(lambda n, name=name: getattr(count(n), name), rate) for name, rate in pairs))
        forward, useful, again = short
        return Rates(forward, useful, replace(again, pair=0.0) if self._attention_kept else again)

    def _asked(self, batch: Batch) -> list[int]:
        """Positions of the prompt of each image; 0 where no stage reads it."""
        if not self.twin.uses_prompt or batch.owners is None:
            return [0] * len(batch.layouts)
        counts = self._prompts(batch)
        return [counts[owner] for owner in batch.owners.tolist()]

    def _read_alone(self, batch: Batch) -> list[int]:
        """Positions of the prompts that the llm reads by themselves, for stages that want its states of them."""
        if "prompt_hidden" not in self.twin.prompt_reads or batch.owners is None:
            return []
        counts = self._prompts(batch)
        return [counts[owner] for owner in sorted(set(batch.owners.tolist()))]

    def _prompts(self, batch: Batch) -> list[int]:
        """Positions of the prompt of each sample."""
        asked = ((batch.labels == IGNORE) & (batch.input_ids != self._image_token)).flatten()
        return [int(asked[cells].sum()) for cells in self._samples(batch)]

    def _samples(self, batch: Batch) -> list[Tensor]:
        """Where the real positions of each sample are, rows one after another."""
        cells = torch.arange(batch.input_ids.numel())
        if batch.cu_seqlens is not None:
            return [cells[a:b] for a, b in pairwise(batch.cu_seqlens.tolist())]
        cells = cells.view_as(batch.input_ids)
        if batch.attention_mask is None:
            return list(cells)
        return [row[mask.bool()] for row, mask in zip(cells, batch.attention_mask, strict=True)]


def padded(sizes: abc.Sequence[Any], width: int) -> abc.Sequence[Any]:
    """Samples in rows of one width, which shrink together where tokens leave."""
    if all(isinstance(size, int) for size in sizes):
        return [width] * len(sizes)
    words = max(size[0] for size in sizes)
    behind = [max(size[0] + size[cut] for size in sizes) for cut in range(2, len(sizes[0]))]
    return [(words, *(columns - words for columns in (width, *behind)))] * len(sizes)


def total_of(images: abc.Sequence[Visual]) -> dict[str, Count]:
    """All images together, by component."""
    total: dict[str, Count] = dict.fromkeys(COMPONENTS, Count())
    alike = {id(image): image for image in images}  # most images of a micro-batch are of a few kinds
    for kind, times in Counter(map(id, images)).items():
        for name, count in alike[kind].counts.items():
            total[name] = total[name].plus(count, times)
    return total
