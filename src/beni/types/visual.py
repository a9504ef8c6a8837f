"""Visual tokens: a padded batch of features with what later stages may want to know of each.

A stage never builds them field by field: whatever it does to the places of the tokens (choose, repeat, reorder, put end
to end) it says once, with ``map``, ``gather``, ``select`` or ``cat``, and every field follows; ``with_features``
changes what the tokens are and leaves where they are. Only ``fresh`` and ``dense`` begin anew, and say so: what came
along with the tokens that were read ends there. A test holds that no other module calls the constructor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from beni.types.spec import TokenSpec

PER_TOKEN = {"per": "token"}
"""Metadata of a field that is a tensor with one entry a token, ``(i, n, ...)``."""


@dataclass(frozen=True)
class VisualTokens:
    """A padded batch of visual tokens.

    Optional tensors are None where nobody has made them. Where tokens that have one meet tokens that have none (a
    learned newline beside patches), the latter's are zeros.

    Attributes:
        x: features.
        mask: True where a token is real. Neither padding nor a dropped token ever influences a real one.
        yx: centre of each token in its view, (row, column) in [0, 1].
        size: source patches each token represents; a merger conserves the sum.
        grid: (rows, columns) when every row is a dense row-major grid, else None.
        levels: features of further encoder layers at the same places, side by side in the channels, as wide as the
            encoder makes them.
        sources: the tokens of each encoder on its own grid, where several look at one picture; empty otherwise.
        grids: that of each row, when every row is such a grid but not all of one shape; else empty.
        dropped: True where a stage that keeps as many tokens as the picture deserves has taken one out. It has a place
            in the text all the same, which fusion takes out too; padding has none.
        compact: position ids close up where a token has been dropped; else the others keep theirs.
        log_gate: what is added to the logits of attention to a token: 0 leaves it open, -inf closes it.
        deep: features for deeper layers of the llm, side by side in the channels, each of the llm's width.
        attn: attention that the last layer of the encoder whose output is read pays to each token, the mean over its
            heads: from its CLS token where it has one, else the mean over all tokens. Only for parts that declare that
            they read it (``Stage.reads``).
        keys: keys of that layer's attention, the mean over its heads, likewise.
        whole: True at tokens of a view of the whole picture, False at those of its parts and at learned ones between
            them. None where nothing but the whole picture is viewed.
    """

    x: Float[Tensor, "i n d"] = field(metadata=PER_TOKEN)
    mask: Bool[Tensor, "i n"] = field(metadata=PER_TOKEN)
    yx: Float[Tensor, "i n 2"] = field(metadata=PER_TOKEN)
    size: Float[Tensor, "i n"] = field(metadata=PER_TOKEN)
    grid: tuple[int, int] | None = None
    levels: Float[Tensor, "i n l"] | None = field(default=None, metadata=PER_TOKEN)
    sources: tuple[VisualTokens, ...] = ()
    grids: tuple[tuple[int, int], ...] = ()
    dropped: Bool[Tensor, "i n"] | None = field(default=None, metadata=PER_TOKEN)
    compact: bool = False
    log_gate: Float[Tensor, "i n"] | None = field(default=None, metadata=PER_TOKEN)
    deep: Float[Tensor, "i n e"] | None = field(default=None, metadata=PER_TOKEN)
    attn: Float[Tensor, "i n"] | None = field(default=None, metadata=PER_TOKEN)
    keys: Float[Tensor, "i n k"] | None = field(default=None, metadata=PER_TOKEN)
    whole: Bool[Tensor, "i n"] | None = field(default=None, metadata=PER_TOKEN)

    @staticmethod
    def fresh(
        x: Float[Tensor, "i n d"],
        mask: Bool[Tensor, "i n"],
        yx: Float[Tensor, "i n 2"],
        size: Float[Tensor, "i n"],
        grid: tuple[int, int] | None = None,
    ) -> VisualTokens:
        """Tokens that were made of others, or of nothing: no further field comes along."""
        return VisualTokens(x, mask, yx, size, grid)

    @staticmethod
    def dense(x: Float[Tensor, "i n d"], grid: tuple[int, int]) -> VisualTokens:
        """Row-major grid features as fresh tokens, all real, each of size one patch.

        Raises:
            ValueError: when ``n`` differs from rows x columns.
        """
        images, n, _ = x.shape
        if n != grid[0] * grid[1]:
            raise ValueError(f"{n} tokens cannot fill a grid of {grid[0]}x{grid[1]}")
        ones = torch.ones(images, n, device=x.device)
        return VisualTokens.fresh(x, ones.bool(), centres(grid, x.device).expand(images, n, 2), ones, grid)

    @staticmethod
    def drawn(spec: TokenSpec, rows: int, draw: Callable[[int, int, int], Tensor]) -> VisualTokens:
        """Such tokens as a spec tells of, all of them real, for who wants some before there are any.

        Args:
            draw: makes a tensor ``(rows, n, width)``.
        """
        dense = VisualTokens.dense(draw(rows, spec.n, spec.dim), spec.grid or (1, spec.n))
        return replace(
            dense,
            grid=spec.grid,
            levels=draw(rows, spec.n, spec.levels) if spec.levels else None,
            sources=tuple(VisualTokens.drawn(source, rows, draw) for source in spec.sources),
            log_gate=F.logsigmoid(draw(rows, spec.n, 1)[..., 0]) if spec.gated else None,
            deep=draw(rows, spec.n, spec.deep) if spec.deep else None,
            attn=draw(rows, spec.n, 1)[..., 0].softmax(1) if spec.attn else None,
            keys=draw(rows, spec.n, spec.keys) if spec.keys else None,
            whole=draw(rows, spec.n, 1)[..., 0] > 0 if spec.parted else None,
        )

    @classmethod
    def of(
        cls, tensors: Mapping[str, Tensor], grid: tuple[int, int] | None, sources: tuple[VisualTokens, ...]
    ) -> VisualTokens:
        """The inverse of ``per_token``, for what was written to a disk."""
        x, mask, yx, size = (tensors[name] for name in ("x", "mask", "yx", "size"))
        rest = {name: tensor for name, tensor in tensors.items() if name not in ("x", "mask", "yx", "size")}
        return replace(cls(x, mask, yx, size, grid, sources=sources), **rest)

    @property
    def laid(self) -> Bool[Tensor, "i n"]:
        """True where a token has a place in the text: real ones and dropped ones, but not padding."""
        return self.mask if self.dropped is None else self.mask | self.dropped

    def per_token(self) -> dict[str, Tensor]:
        """Name -> tensor of every field with one entry a token that there is, in the order of the class."""
        named = {f.name: getattr(self, f.name) for f in fields(self) if f.metadata == PER_TOKEN}
        return {name: tensor for name, tensor in named.items() if tensor is not None}

    def features(self) -> Iterator[Tensor]:
        """The feature tensors: their own, their levels', and those of each encoder."""
        yield self.x
        if self.levels is not None:
            yield self.levels
        for source in self.sources:
            yield from source.features()

    def with_features(self, x: Float[Tensor, "i n d"]) -> VisualTokens:
        """The tokens with other features (any width)."""
        return replace(self, x=x)

    def map(self, change: Callable[[Tensor], Tensor], grid: tuple[int, int] | None = None) -> VisualTokens:
        """The tokens at other places: ``change`` is applied to every tensor ``(i, n, ...)`` alike.

        Args:
            change: chooses, repeats or reorders along the first two axes.
            grid: that of the result, where it has one. Sources have grids of their own, and are left behind.
        """
        changed = {name: change(tensor) for name, tensor in self.per_token().items()}
        return replace(self, **changed, grid=grid, grids=(), sources=())

    def gather(self, places: Int[Tensor, "i m"]) -> VisualTokens:
        """``(i, n, d) -> (i, m, d)``: the tokens at ``places`` of each row, on no grid."""
        rows = torch.arange(len(places), device=places.device)[:, None]
        return self.map(lambda tensor: tensor[rows, places])

    def drop(self, kept: Bool[Tensor, "i n"]) -> VisualTokens:
        """Without the tokens where ``kept`` is False. They stay where they are, marked as dropped, so that the others
        keep their places in the text.
        """
        mask = self.mask & kept
        return replace(self, mask=mask, dropped=self.laid & ~mask, grid=None, grids=(), sources=())

    def of_whole(self) -> VisualTokens:
        """The tokens of views of the whole picture; the others are taken for padding, which they then stand among."""
        if self.whole is None:
            return self
        dropped = None if self.dropped is None else self.dropped & self.whole
        return replace(self, mask=self.mask & self.whole, dropped=dropped)

    def bounded(self, n: int) -> VisualTokens:
        """``(i, m, d) -> (i, n, d)`` of rows for each of which the text is laid out for ``n`` tokens: the places where
        no real token stands count as dropped.

        Raises:
            ValueError: when a row has more than ``n`` places.
        """
        extra = n - self.mask.shape[1]
        if extra < 0:
            raise ValueError(f"rows of {self.mask.shape[1]} tokens do not fit a text that is laid out for {n}")
        longer = self.map(lambda tensor: F.pad(tensor, (0, 0) * (tensor.ndim - 2) + (0, extra)))
        return replace(longer, dropped=~longer.mask)

    def select(self, rows: Int[Tensor, "k"]) -> VisualTokens:
        """Rows by index, repeated or left out as wished."""
        return replace(
            self.map(lambda tensor: tensor[rows], self.grid),
            sources=tuple(source.select(rows) for source in self.sources),
            grids=tuple(self.grids[i] for i in rows.tolist()) if self.grids else (),
        )

    def repeat(self, images: int) -> VisualTokens:
        """``(1, n, d) -> (i, n, d)``: the same row for every image."""
        return self.map(lambda tensor: tensor.expand(images, *tensor.shape[1:]), self.grid)

    @staticmethod
    def cat(pieces: Sequence[VisualTokens]) -> VisualTokens:
        """``(i, n, d), (i, m, d), ... -> (i, n + m + ..., d)``: the tokens of each row end to end, on no grid."""
        joined = {name: torch.cat(tensors, 1) for name, tensors in _filled(pieces).items()}
        compact = any(piece.compact for piece in pieces)
        return replace(_richest(pieces), **joined, grid=None, grids=(), sources=(), compact=compact)

    @staticmethod
    def stack(batches: Sequence[VisualTokens]) -> VisualTokens:
        """``(i, n, d), (j, m, d), ... -> (i + j + ..., max, d)``: rows below one another, padded to the longest.

        The result is on a grid where all are on the same one, on ``grids`` where each is on one.
        """
        longest = max(batch.x.shape[1] for batch in batches)

        def padded(tensor: Tensor) -> Tensor:
            return F.pad(tensor, (0, 0) * (tensor.ndim - 2) + (0, longest - tensor.shape[1]))

        joined = {name: torch.cat([padded(t) for t in tensors]) for name, tensors in _filled(batches).items()}
        grids = [batch.grid for batch in batches for _ in batch.x]
        same = len(set(grids)) == 1
        each = () if same else tuple(grid for grid in grids if grid is not None)
        return replace(
            _richest(batches),
            **joined,
            grid=grids[0] if same else None,
            grids=each if len(each) == len(grids) else (),
            sources=(),
            compact=any(batch.compact for batch in batches),
        )


def centres(grid: tuple[int, int], device: torch.device | None = None) -> Float[Tensor, "1 n 2"]:
    """(row, column) in [0, 1] of the centre of every cell of a grid, in reading order."""
    rows, columns = grid
    y = (torch.arange(rows, device=device, dtype=torch.float32) + 0.5) / rows
    c = (torch.arange(columns, device=device, dtype=torch.float32) + 0.5) / columns
    return torch.stack(torch.meshgrid(y, c, indexing="ij"), dim=-1).reshape(1, rows * columns, 2)


def _filled(pieces: Sequence[VisualTokens]) -> dict[str, list[Tensor]]:
    """Name -> the tensors of all pieces, for every field that any of them has; zeros for those that have it not."""
    own = [piece.per_token() for piece in pieces]
    filled = {}
    for name in {name: None for tensors in own for name in tensors}:
        like = next(tensors[name] for tensors in own if name in tensors)
        filled[name] = [
            tensors[name] if name in tensors else like.new_zeros(*piece.mask.shape, *like.shape[2:])
            for tensors, piece in zip(own, pieces, strict=True)
        ]
    return filled


def _richest(pieces: Sequence[VisualTokens]) -> VisualTokens:
    """The first of those with the most fields, in the place of which the joined ones are put."""
    return max(pieces, key=lambda piece: len(fields(piece)))


@dataclass(frozen=True)
class Prompt:
    """What is asked about each image, for stages that look for something.

    Attributes:
        embeds: text embeddings of the llm, one row an image.
        mask: True where a position is real.
        hidden: what the llm makes of them, without an image and without an answer; no gradient reaches it. None where
            no stage reads ``prompt_hidden``. Zeros where no position is real.
        texts: what the user says, one an image; empty where no stage reads ``prompt_text``.
    """

    embeds: Float[Tensor, "i t d"]
    mask: Bool[Tensor, "i t"]
    hidden: Float[Tensor, "i t d"] | None = None
    texts: tuple[str, ...] = ()

    def select(self, rows: Int[Tensor, "k"]) -> Prompt:
        """Rows by index, repeated as wished."""
        return Prompt(
            self.embeds[rows],
            self.mask[rows],
            None if self.hidden is None else self.hidden[rows],
            tuple(self.texts[i] for i in rows.tolist()) if self.texts else (),
        )
