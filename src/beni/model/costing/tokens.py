"""Visual tokens without values, on which parts are run to count what they cost; and of which a gradient is wanted."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from beni.model.mixed_sizes import encoded
from beni.model.modeling import BeniForConditionalGeneration
from beni.stage import Sink, StageContext
from beni.types import ImageLayout, Prompt, TokenSpec, VisualTokens
from beni.views.two_looks import TwoLooks
from beni.vision.base import VisionEncoder

Wants = frozenset[str]
"""The fields of visual tokens of which a gradient is wanted; ``sources`` for those of any encoder's."""

CARRIERS = ("x", "levels", "log_gate", "deep")
"""Fields through which a gradient comes back."""


def tokens_of(spec: TokenSpec, wants: Wants, rows: int = 1) -> VisualTokens:
    """Rows of such tokens without values."""
    with torch.device("meta"):
        tokens = VisualTokens.drawn(spec, rows, torch.empty)
    for name in wants & tokens.per_token().keys():
        getattr(tokens, name).requires_grad_()
    for source in tokens.sources:
        for features in source.features():
            features.requires_grad_("sources" in wants)
    return tokens


def wanted(tokens: VisualTokens) -> Wants:
    """Fields of the tokens whose gradient is wanted."""
    own = {name for name, tensor in tokens.per_token().items() if name in CARRIERS and tensor.requires_grad}
    return frozenset(own | ({"sources"} if any(wanted(source) for source in tokens.sources) else set()))


def carriers(tokens: VisualTokens) -> Iterator[Tensor]:
    """The tensors through which a gradient comes back."""
    yield from (tensor for name, tensor in tokens.per_token().items() if name in CARRIERS)
    for source in tokens.sources:
        yield from carriers(source)


def rows_of(
    twin: BeniForConditionalGeneration,
    layout: ImageLayout,
    views: Sequence[TokenSpec],
    prompt: Prompt | None,
    wants: Wants,
) -> VisualTokens:
    """The rows that views make of the encoder's tokens of an image.

    Args:
        twin: the model on the meta device.
        views: what is known of the tokens of each view.
        prompt: what is asked about the image; None for nothing.
        wants: of which fields of the encoder's tokens a gradient is wanted.
    """
    stage, specs = twin.views, iter(views)
    if prompt is not None:  # the same for all rows
        prompt = prompt.select(torch.zeros(len(stage.rows(layout, views)), dtype=torch.long))
    context = StageContext(layouts=(layout,), prompt=prompt, stage="views", sink=Sink())
    if not isinstance(stage, TwoLooks):
        return stage(VisualTokens.stack([tokens_of(view, wants) for view in views]), context)

    def encode(pixels: Tensor, keys: Sequence[str], keep: Tensor | None = None) -> VisualTokens:
        spec = next(specs)
        fewer = 0 if keep is None else patches_of(twin.vision, spec) - stage.kept
        return tokens_of(replace(spec, n=spec.n - fewer, grid=spec.grid if keep is None else None), wants)

    pixels = [torch.empty(3, *size, device="meta") for size in layout.views]
    return stage(encoded(encode, stage, pixels, (), context), context)


def patches_of(vision: VisionEncoder, view: TokenSpec) -> int:
    """Patches of a view of which the encoder's tokens have this spec; a CLS token that is kept is none."""
    rows, columns = vision.patches
    return view.n - vision.spec().n + rows * columns
