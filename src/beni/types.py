"""The values that travel between the rooms of the house, and the legend of their axes.

Axis letters, everywhere in beni: ``b`` rows, ``t`` text positions, ``i`` images (views count as images), ``n``
patches or visual tokens going in, ``m`` visual tokens coming out, ``d`` width, ``h`` heads, ``v`` vocabulary,
``s`` segments of a packed row.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True)
class VisualTokens:
    """A padded batch of visual tokens with what later stages may want to know of each.

    Attributes:
        x: features.
        mask: True where a token is real. Padding stands at the end of a row and never influences a real token.
        yx: centre of each token in its view, (row, column) in [0, 1].
        size: source patches each token represents; a merger conserves the sum.
        grid: (rows, columns) when every row is a dense row-major grid, else None.
        grids: that of each row, when every row is such a grid but not all of one shape; else empty.
        levels: features of further encoder layers at the same places, side by side in the channels; None without.
        sources: the tokens of each encoder on its own grid, where several look at one picture; empty otherwise.
    """

    x: Float[Tensor, "i n d"]
    mask: Bool[Tensor, "i n"]
    yx: Float[Tensor, "i n 2"]
    size: Float[Tensor, "i n"]
    grid: tuple[int, int] | None = None
    levels: Float[Tensor, "i n l"] | None = None
    sources: tuple[VisualTokens, ...] = ()
    grids: tuple[tuple[int, int], ...] = ()

    @staticmethod
    def dense(x: Float[Tensor, "i n d"], grid: tuple[int, int]) -> VisualTokens:
        """Row-major grid features -> tokens, all real, each of size one patch.

        Raises:
            ValueError: when ``n`` differs from rows x columns.
        """
        rows, columns = grid
        images, n, _ = x.shape
        if n != rows * columns:
            raise ValueError(f"{n} tokens cannot fill a grid of {rows}x{columns}")
        y = (torch.arange(rows, device=x.device, dtype=torch.float32) + 0.5) / rows
        c = (torch.arange(columns, device=x.device, dtype=torch.float32) + 0.5) / columns
        yx = torch.stack(torch.meshgrid(y, c, indexing="ij"), dim=-1).reshape(1, n, 2)
        ones = torch.ones(images, n, device=x.device)
        return VisualTokens(x, ones.bool(), yx.expand(images, n, 2), ones, grid)

    def with_features(self, x: Float[Tensor, "i n d"]) -> VisualTokens:
        """The same tokens with other features (any width)."""
        return replace(self, x=x)

    def features(self) -> Iterator[Tensor]:
        """The feature tensors: their own, their levels', and those of each encoder."""
        yield self.x
        if self.levels is not None:
            yield self.levels
        for source in self.sources:
            yield from source.features()

    def select(self, rows: Int[Tensor, "k"]) -> VisualTokens:
        """Rows by index, repeated or left out as wished."""
        return replace(
            self,
            x=self.x[rows],
            mask=self.mask[rows],
            yx=self.yx[rows],
            size=self.size[rows],
            levels=None if self.levels is None else self.levels[rows],
            sources=tuple(source.select(rows) for source in self.sources),
            grids=tuple(self.grids[i] for i in rows.tolist()) if self.grids else (),
        )


Pixels = Float[Tensor, "i 3 height width"] | list[Float[Tensor, "3 _ _"]]
"""Views ready for an encoder: stacked, or one by one where their sizes differ."""

Markup = tuple[int | str, ...]
"""What stands in the text for one image: numbers of visual tokens, and texts between them (``<row_1_col_1>``)."""


@dataclass(frozen=True)
class ImageLayout:
    """How one picture became views.

    Attributes:
        size: (height, width) of the picture in pixels.
        views: (height, width) in pixels of each encoder input it became, the whole picture at low resolution included
            where there is one.
        tiles: (rows, columns) of the tiles it was cut into.
        scale: which of the nested numbers of visual tokens it gets, where a stage has several.
    """

    size: tuple[int, int]
    views: tuple[tuple[int, int], ...]
    tiles: tuple[int, int] = (1, 1)
    scale: int = 0


@dataclass(frozen=True)
class ViewedImage:
    """A picture ready for the encoder: the pixels of its views in order, how they came about, what stands for them."""

    pixels: list[Float[Tensor, "3 _ _"]]
    layout: ImageLayout
    markup: Markup


@dataclass(frozen=True)
class Prompt:
    """What the user asks about each image, for stages that look for something.

    Attributes:
        embeds: text embeddings of the llm, one row an image.
        mask: True where a position is real.
    """

    embeds: Float[Tensor, "i t d"]
    mask: Bool[Tensor, "i t"]

    def select(self, rows: Int[Tensor, "k"]) -> Prompt:
        """Rows by index, repeated as wished."""
        return Prompt(self.embeds[rows], self.mask[rows])


def to_device(value: Any, device: torch.device) -> Any:
    """A tensor or a list of tensors on ``device`` (copies are asynchronous from pinned memory); others as they are."""
    if isinstance(value, Tensor):
        return value.to(device, non_blocking=True)
    return [one.to(device, non_blocking=True) for one in value] if isinstance(value, list) else value


def pinned(value: Any) -> Any:
    """A tensor or a list of tensors in page-locked memory; others as they are."""
    if isinstance(value, Tensor):
        return value.pin_memory()
    return [one.pin_memory() for one in value] if isinstance(value, list) else value


BOOKS = ("ids", "counts", "faults", "order", "notices")
"""Fields of a ``Batch`` that are no business of the model's."""


@dataclass
class Batch:
    """One micro-batch of one rank, in one of two layouts.

    ``packed``: one row that holds all samples end to end; ``cu_seqlens`` are the borders of its segments and
    ``position_ids`` restart at each. ``padded``: one row a sample with an ``attention_mask``.

    Attributes:
        labels: -100 where nothing is supervised; ``labels[t]`` is the token *at* t, predicted from t - 1.
        pixels: all views of all images of the micro-batch, in reading order; a list of them where their sizes differ,
            None when there is no image.
        pixel_keys: a hash of the pixels of each view, where the run has a feature bank.
        longest: at least as long as any segment.
        layouts: how each image became views, in reading order.
        owners: the sample (0, 1, ... within the micro-batch) that each image belongs to.
        ids: sample ids, in order, for logs.
        counts: what the micro-batch holds, by source (data/batch/ledger.py).
        faults: pictures that could not be had, as lines of data_errors.jsonl.
        order: hash of the data order of the whole step; ranks compare it.
        notices: what the process that drew it wants a person to know.
    """

    input_ids: Int[Tensor, "b t"]
    labels: Int[Tensor, "b t"]
    position_ids: Int[Tensor, "b t"]
    pixels: Pixels | None
    attention_mask: Int[Tensor, "b t"] | None = None
    cu_seqlens: Int[Tensor, "s_plus_1"] | None = None
    longest: int | None = None
    layouts: tuple[ImageLayout, ...] = ()
    owners: Int[Tensor, "k"] | None = None
    pixel_keys: tuple[str, ...] = ()
    ids: list[str] = field(default_factory=list)
    counts: dict[str, Any] = field(default_factory=dict)
    faults: tuple[dict[str, Any], ...] = ()
    order: int = 0
    notices: tuple[str, ...] = ()

    @property
    def num_labels(self) -> int:
        """Supervised tokens, a position that nothing can predict (the first of a segment) excluded at collate time."""
        return int((self.labels != -100).sum())

    @property
    def lengths(self) -> list[int]:
        """Real positions of each sample."""
        if self.cu_seqlens is not None:
            return self.cu_seqlens.diff().tolist()
        rows, width = self.input_ids.shape
        return [width] * rows if self.attention_mask is None else self.attention_mask.sum(1).tolist()

    @property
    def num_tokens(self) -> int:
        """Real positions, visual ones included, padding excluded."""
        return self.input_ids.numel() if self.attention_mask is None else int(self.attention_mask.sum())

    def to(self, device: torch.device) -> Batch:
        """The same batch with every tensor on ``device`` (copies are asynchronous from pinned memory)."""
        return replace(self, **{name: to_device(value, device) for name, value in self.model_inputs().items()})

    def pin_memory(self) -> Batch:
        """The same batch in page-locked memory, from which a GPU copies while it computes; a ``DataLoader`` asks."""
        return replace(self, **{name: pinned(value) for name, value in self.model_inputs().items()})

    def model_inputs(self) -> dict[str, Any]:
        """Keyword arguments of ``BeniForConditionalGeneration.forward``."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name not in BOOKS}
