"""What the data loader needs of a model: a picture to the pixels of its views and to what stands for it in the text."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from PIL.Image import Image as Picture

from beni.data.images import Image, decode
from beni.errors import CompositionError
from beni.fusion.base import Fusion
from beni.nn.pixels import PictureTransform
from beni.types import ImageLayout, Markup, Nested, TokenSpec, ViewedImage
from beni.views.base import WHOLE, Views

USUAL_SIZE = (768, 1024)
"""(height, width) in pixels of the picture that plans are made for where no data is at hand."""


@dataclass(frozen=True)
class Viewer:
    """Pictures to views, with the parts of one model. Pure; runs in the loader's workers.

    Attributes:
        specs: layout of an image -> what its visual tokens are behind each stage.
        nested: several numbers of visual tokens that training draws from; None for one.
    """

    views: Views
    transform: PictureTransform
    specs: Callable[[ImageLayout], dict[str, list[TokenSpec]]]
    fusion: Fusion
    nested: Nested | None = None

    def __call__(self, picture: Picture, scale: int = 0) -> ViewedImage:
        if picture.mode != "RGB":
            picture = decode(Image(picture.copy, "image"))  # as training reads it: transparency over white, 16 bits
        planned = replace(self.views.plan((picture.height, picture.width)), scale=scale)
        layout = self.views.settled(picture, planned)
        return ViewedImage(self.views.split(picture, layout, self.transform), layout, self.markup(layout))

    def scales(self, rng: np.random.Generator) -> tuple[int, ...]:
        """The scales at which a training sample is seen: all, or one that ``rng`` draws."""
        if self.nested is None:
            return (0,)
        scales = tuple(range(1, self.nested.drawn + 1))
        return scales if self.nested.every else (int(rng.choice(scales)),)

    @property
    def sized(self) -> bool:
        """Whether what becomes of a picture depends on its size."""
        return len({replace(layout, size=(0, 0)) for layout in self.views.extremes()}) > 1

    def plan(self, size: tuple[int, int]) -> ImageLayout:
        """How a picture of (height, width) is cut; (0, 0) stands for a usual one."""
        return self.views.plan(size if min(size) > 0 else USUAL_SIZE)

    def seen(self, size: tuple[int, int]) -> list[ImageLayout]:
        """The layouts at which training sees a picture of (height, width), one after another; the longest of those it
        draws from.
        """
        layout = self.plan(size)
        if self.nested is None:
            return [layout]
        scaled = [replace(layout, scale=scale) for scale in range(1, self.nested.drawn + 1)]
        return scaled if self.nested.every else [max(scaled, key=lambda one: placeholders(self.markup(one)))]

    def visual_tokens(self, layout: ImageLayout) -> int:
        """Visual tokens of an image, whether or not each takes a position of the llm."""
        return placeholders(self.views.markup(layout, self.specs(layout)["connector"]))

    def markup(self, layout: ImageLayout) -> Markup:
        """What stands in the text for an image."""
        stands = self.views.overview if "parts" in self.fusion.reads_beside else self.views.markup
        return self.fusion.markup(stands(layout, self.specs(layout)["connector"]))

    @property
    def parts(self) -> bool:
        """Whether any picture has views of parts of it, in rows of their own."""
        return any(place != WHOLE for layout in self.views.extremes() for place in self.views.places(layout))


def require_read(viewer: Viewer, tokens: TokenSpec) -> None:
    """What comes along with visual tokens must be read, and what fusion reads by itself must be there.

    Args:
        tokens: as fusion is given them.

    Raises:
        CompositionError: E-STACK when views are made for deeper layers of the llm and fusion has none, or fusion reads
            views of parts of a picture and every view is of the whole of it.
    """
    beside = viewer.fusion.reads_beside
    if tokens.deep and "deep" not in beside:
        raise CompositionError(
            "E-STACK",
            "tokens of tiles come along for deeper layers of the llm, and the fusion does not read them",
            groups=("views", "fusion"),
            fix="set fusion=deepstack_views, or views=internvl",
        )
    if "parts" in beside and not viewer.parts:
        raise CompositionError(
            "E-STACK",
            "the fusion reads views of parts of a picture beside the text, and these views show the whole of it only",
            groups=("views", "fusion"),
            fix="set views=internvl or views=idefics3 with views.join=false, or fusion=inline",
        )


def require_room(viewer: Viewer, limit: int | None) -> None:
    """Every kind of image must pass all stages, and leave the llm a position for text.

    Args:
        limit: positions of the llm; None where there is no limit.

    Raises:
        CompositionError: E-TOKENS when one takes them all, and whatever the stages raise.
    """
    scales = range(1 + (viewer.nested.drawn if viewer.nested else 0))
    layouts = [replace(layout, scale=scale) for layout in viewer.views.extremes() for scale in scales]
    taken = max(placeholders(viewer.markup(layout)) for layout in layouts)
    if limit is not None and taken >= limit:
        raise CompositionError(
            "E-TOKENS",
            f"one image takes up to {taken} positions, the llm has {limit}",
            groups=("resampler", "llm"),
            fix="use resampler=perceiver, a smaller vision.image_size or fewer views",
        )


def placeholders(markup: Markup) -> int:
    """Positions that the visual tokens of an image take."""
    return sum(part for part in markup if isinstance(part, int))
