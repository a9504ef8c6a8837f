"""Views of several sizes: encoded size by size, and taken through the stages grid by grid.

No stage and no encoder then needs to know of padding, and a grid is a grid also where every picture has its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from beni.nn.rows import by_grid, stack
from beni.stage import StageContext
from beni.types import Pixels, VisualTokens

Encode = Callable[[Tensor, Sequence[str]], VisualTokens]
Stages = Callable[[VisualTokens, StageContext], VisualTokens]


def on_each_size(encode: Encode, pixels: Pixels, keys: Sequence[str]) -> VisualTokens:
    """Views -> one row each, in order.

    Args:
        encode: views of one size, stacked, and their keys -> a row each.
        keys: of each view, or none.
    """
    if isinstance(pixels, Tensor):
        return encode(pixels, keys)
    sizes: dict[tuple[int, ...], list[int]] = {}
    for place, view in enumerate(pixels):
        sizes.setdefault(tuple(view.shape), []).append(place)
    parts = [
        encode(torch.stack([pixels[i] for i in where]), [keys[i] for i in where] if keys else ())
        for where in sizes.values()
    ]
    return stack(parts, [torch.tensor(where, device=pixels[0].device) for where in sizes.values()])


def on_each_grid(stages: Stages, tokens: VisualTokens, context: StageContext) -> VisualTokens:
    """Tokens through ``stages``, the rows of each grid by themselves where there are several.

    Auxiliary losses are means over rows, so those of the parts are weighted by their rows.
    """
    if not tokens.grids:
        return stages(tokens, context)
    places, made = [], []
    for where, dense in by_grid(tokens):
        prompt = None if context.prompt is None else context.prompt.select(where)
        own = replace(context, prompt=prompt, aux={})
        made.append(stages(dense, own))
        places.append(where)
        for name, loss in own.aux.items():
            share = loss * (len(where) / len(tokens.x))
            context.aux[name] = context.aux[name] + share if name in context.aux else share
    return stack(made, places)
