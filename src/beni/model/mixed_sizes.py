"""Views of several sizes: encoded size by size, and taken through the stages grid by grid.

No stage and no encoder then needs to know of padding, and a grid is a grid also where every picture has its own. Where
views look twice (``beni.views.two_looks``) the sizes are encoded one after the other, and between them is chosen what
the encoder sees of the second.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from beni.nn.rows import by_grid, stack
from beni.stage import StageContext
from beni.types import Pixels, VisualTokens
from beni.views.base import Views
from beni.views.two_looks import TwoLooks

Encode = Callable[..., VisualTokens]
"""(views of one size, stacked, their keys and, where some patches are left out, True at those that are kept) -> a row
each."""
Stages = Callable[[VisualTokens, StageContext], VisualTokens]


def encoded(
    encode: Encode, views: Views, pixels: Pixels, keys: Sequence[str], context: StageContext, calls: int = 0
) -> VisualTokens:
    """Views -> one row each, in order, as the views of the model want them encoded.

    Args:
        keys: of each view, or none.
        context: of the views.
        calls: of ``encode``, at least; views that look twice make two for any images.
    """
    if not isinstance(views, TwoLooks):
        return on_each_size(encode, pixels, keys, calls)
    whole, finer = (torch.stack([*pixels[look::2]]) for look in (0, 1))
    first = encode(whole, keys[0::2])
    choice = views.choose(first, finer, context)
    second = encode(finer, keys[1::2], choice.keep)
    if choice.log_gate is not None:
        second = replace(second, log_gate=choice.log_gate)
    places = torch.arange(2 * len(whole), device=first.x.device)
    return stack([first, second], [places[0::2], places[1::2]])


def on_each_size(encode: Encode, pixels: Pixels, keys: Sequence[str], calls: int = 0) -> VisualTokens:
    """Views -> one row each, in order.

    Args:
        encode: views of one size, stacked, and their keys -> a row each.
        keys: of each view, or none.
        calls: of ``encode``, at least.
    """
    if isinstance(pixels, Tensor):
        return _repeated(encode(pixels, keys), calls - 1, lambda: encode(pixels[:1], keys[:1]))
    sizes: dict[tuple[int, ...], list[int]] = {}
    for place, view in enumerate(pixels):
        sizes.setdefault(tuple(view.shape), []).append(place)
    parts = [
        encode(torch.stack([pixels[i] for i in where]), [keys[i] for i in where] if keys else ())
        for where in sizes.values()
    ]
    rows = stack(parts, [torch.tensor(where, device=pixels[0].device) for where in sizes.values()])
    return _repeated(rows, calls - len(parts), lambda: encode(pixels[0][None], keys[:1]))


def on_each_grid(stages: Stages, tokens: VisualTokens, context: StageContext, calls: int = 0) -> VisualTokens:
    """Tokens through ``stages``, the rows of each grid by themselves where there are several.

    Args:
        calls: of ``stages``, at least.
    """

    def once_more(some: VisualTokens) -> VisualTokens:
        first = torch.tensor([0], device=some.x.device)
        return stages(some.select(first), replace(context.of_rows(first), sink=None))

    if not tokens.grids:
        return _repeated(stages(tokens, context), calls - 1, lambda: once_more(tokens))
    places, made, groups = [], [], by_grid(tokens)
    for where, dense in groups:
        made.append(stages(dense, context.of_rows(where)))
        places.append(where)
    return _repeated(stack(made, places), calls - len(made), lambda: once_more(groups[0][1]))


def _repeated(tokens: VisualTokens, times: int, call: Callable[[], VisualTokens]) -> VisualTokens:
    """The tokens after ``call`` has been made so often, for nothing."""
    for _ in range(times):
        tokens = tokens.with_features(tokens.x + call().x.sum() * 0.0)
    return tokens
