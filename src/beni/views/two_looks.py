"""Two looks at a picture: the whole at the encoder's size, then more finely at some of its patches only.

The choice is made between the looks, from what the first one saw, so what is not chosen costs next to nothing: the
patches of the second look are embedded, and those that are not kept never reach a block of the encoder
(``VisionEncoder.forward``). They have the positions that they have in the whole picture. As many are kept of every
picture, so nothing is padded.

A class of your own says how much each patch is worth (``rates``), and in ``gates`` whether the kept ones bring a
gradient back to that.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from PIL.Image import Image as Picture
from torch import Tensor

from beni.errors import CompositionError
from beni.nn.choose import Budget
from beni.nn.pixels import PictureTransform
from beni.nn.rows import real_tokens
from beni.stage import StageContext
from beni.types import ImageLayout, Markup, TokenSpec, VisualTokens, centres
from beni.views.base import WHOLE, Box
from beni.views.tiled import SeveralViews, squashed


@dataclass(frozen=True)
class Choice:
    """What the second look sees.

    Attributes:
        keep: True at the patches that the encoder sees, of every picture as many.
        log_gate: gates of the tokens that it makes of them; None for none.
    """

    keep: Bool[Tensor, "i n"]
    log_gate: Float[Tensor, "i k"] | None


class TwoLooks(SeveralViews):
    """``(2 i, n, d) -> (2 i, n, d)``, or ``-> (i, m, d)`` where both looks are joined: the tokens of the whole picture,
    then those of the patches that were kept.

    Args:
        tokens: spec of the tokens of one view.
        tile: (height, width) in pixels of the picture that the encoder wants.
        patches: (rows, columns) of patches that the encoder makes of it.
        times: the sides of the second look, as multiples of the first.
        keep: patches of the second look that are kept: a whole number, or a share (a float, at most 1.0).
        gated: the kept ones have gates.
        join: put both looks into one row.

    Raises:
        CompositionError: E-DIV, by ``rows``, when patches of both looks do not cover the same places.
    """

    def __init__(
        self,
        tokens: TokenSpec,
        tile: tuple[int, int],
        patches: tuple[int, int],
        times: int,
        keep: int | float,
        gated: bool,
        join: bool,
    ) -> None:
        super().__init__(tokens, 2, join)
        rows, columns = self.patches = patches
        self.tile, self.gated = tile, gated
        self.grid = (rows * times, columns * times)
        # whole patches: of a side that they do not divide, some pixels would be patches of the finer look only
        self.finer = (tile[0] // rows * self.grid[0], tile[1] // columns * self.grid[1])
        self.kept = Budget(keep).of(self.grid[0] * self.grid[1])
        self.seen = (None, self.kept)

    @abstractmethod
    def rates(
        self, whole: VisualTokens, finer: Float[Tensor, "i 3 height width"], context: StageContext
    ) -> Float[Tensor, "i n"]:
        """How much each patch of the second look is worth, in reading order.

        Args:
            whole: the patches that the first look saw, on their grid.
            finer: pixels of the second look.
            context: of its rows.
        """

    @abstractmethod
    def gates(self, rates: Float[Tensor, "i n"]) -> Float[Tensor, "i n"] | None:
        """Log-gates that bring a gradient to the rates; None for none, and always where ``gated`` is False."""

    def choose(self, whole: VisualTokens, finer: Float[Tensor, "i 3 height width"], context: StageContext) -> Choice:
        """The patches of the second look that are worth most, of equal ones the first.

        Args:
            whole: what the first look saw, a row an image.
            finer: pixels of the second look.
            context: of the rows that these views make.
        """
        n = self.patches[0] * self.patches[1]
        prefix = whole.x.shape[1] - n
        context = context.of_rows(torch.arange(len(finer)) * (1 if self.join else 2) + (0 if self.join else 1))
        patches = whole.map(lambda tensor: tensor[:, prefix:], self.patches)
        rates = self.rates(patches, finer, context)
        ranking = torch.argsort(rates.detach(), dim=1, descending=True, stable=True)
        places = ranking[:, : self.kept].sort(1).values
        keep = torch.zeros_like(rates, dtype=torch.bool).scatter(1, places, True)
        gates = self.gates(rates)
        self._draw(rates, keep, context)
        return Choice(keep, None if gates is None else F.pad(gates.gather(1, places), (prefix, 0)))

    def _draw(self, rates: Float[Tensor, "i n"], keep: Bool[Tensor, "i n"], context: StageContext) -> None:
        """Leaves a picture of what is kept, where somebody will look."""
        if context.sink is None or not context.sink.wants_pictures:
            return
        yx = centres(self.grid, keep.device)[0]
        for row, own in enumerate(keep):
            context.picture("kept", row, torch.ones_like(rates[row])[own], yx[own], self.grid)

    def plan(self, size: tuple[int, int]) -> ImageLayout:
        return ImageLayout(size, (self.tile, self.finer))

    def extremes(self) -> list[ImageLayout]:
        return [self.plan(self.tile)]

    def split(self, picture: Picture, layout: ImageLayout, transform: PictureTransform) -> list[Tensor]:
        whole, finer = (squashed(picture, size) for size in layout.views)
        return [transform(whole), transform.at(self.finer)(finer)]

    def boxes(self, layout: ImageLayout) -> Sequence[Box]:
        return [WHOLE, WHOLE]

    def spec(self, tokens: TokenSpec) -> TokenSpec:
        prefix = tokens.n - self.patches[0] * self.patches[1]
        return self._rows(tokens, self.kept + prefix)[-1]

    def rows(self, layout: ImageLayout, views: Sequence[TokenSpec]) -> list[TokenSpec]:
        whole, finer = views
        prefix = whole.n - self.patches[0] * self.patches[1]
        n, (rows, columns), (height, width) = finer.n - prefix, self.grid, self.finer
        if n != rows * columns:
            raise CompositionError(
                "E-DIV",
                f"the encoder makes {self.patches[0]}x{self.patches[1]} patches of {self.tile[0]}x{self.tile[1]} "
                f"pixels, and {n} instead of {rows}x{columns} of {height}x{width}",
                groups=("vision", "views"),
                fix="set vision.image_size to a multiple of the encoder's patch",
            )
        return self._rows(whole, self.kept + prefix)

    def around(self) -> tuple[str, str]:
        return "", ""

    def arranged(self, layout: ImageLayout, rows: Sequence[TokenSpec]) -> Markup:
        return (sum(row.n for row in rows),)

    def arrange(self, layout: ImageLayout, rows: VisualTokens) -> VisualTokens:
        return real_tokens(rows)

    def _rows(self, whole: TokenSpec, kept: int) -> list[TokenSpec]:
        """The rows of an image of which the first look gives ``whole`` and the second ``kept`` tokens; rows of
        different lengths form no grid.
        """
        each = [replace(whole, n=n, grid=None, gated=whole.gated or self.gated) for n in (whole.n, kept)]
        return [self._joined(each)] if self.join else each
