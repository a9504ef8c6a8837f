"""DeepStack's tokens of tiles against its rule written out: slices of one large map, added to the hidden states of the
whole picture's positions before one layer after another.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import torch
from torch import nn

from beni.fusion.deepstack import DeepStack
from beni.stage import StageContext
from beni.types import ImageLayout, LayerCall, Sequence, TokenSpec
from beni.views.deepstack import DeepStackViews
from reference.harness import ReferenceCase, grid_tokens

# (width, grid of a tile, canvas)
SHAPES = ((6, (2, 3), (2, 2)), (8, (3, 2), (1, 3)), (10, (4, 4), (3, 2)))


class Ours(nn.Module):
    """Rows ``(1 + k, n, d)`` of one picture -> what its positions are given, ``(1 + k, n, d)``: the embeddings, then
    what is added after each layer.
    """

    def __init__(self, shape, sampling):
        super().__init__()
        dim, grid, canvas = shape
        self.count, self.canvas = canvas[0] * canvas[1], canvas
        spec = TokenSpec(n=grid[0] * grid[1], dim=dim, grid=grid, space="llm")
        self.views = DeepStackViews(spec, (8, 8), canvases=[list(canvas)], sampling=sampling)
        self.fusion = DeepStack(
            self.views.finished(spec),
            dim,
            **{"source": "views", "sets": self.count, "first": 1, "every": 2},
            **{"image_attention": "causal", "out_norm": "none", "match_text_rms": False},
        )

    def forward(self, tokens):
        layout = ImageLayout((16, 16), ((8, 8),) * (1 + self.count), self.canvas)
        visual = self.views.finish(tokens, StageContext(layouts=(layout,)))
        n = tokens.x.shape[1]
        is_image = torch.tensor([[False, *[True] * n, False]])
        text = replace(Sequence.plain(tokens.x.new_zeros(1, n + 2, tokens.x.shape[2])), images=is_image.long() - 1)
        fused = self.fusion(text, visual)
        assert list(fused.visitors) == [1 + 2 * number for number in range(self.count)]
        call, nothing = LayerCall(*fused.numbered(), {}), torch.zeros_like(fused.embeds)
        given = [fused.embeds, *(visitor.after(nothing, call) for visitor in fused.visitors.values())]
        assert not any(one[~is_image].any() for one in given)
        return torch.stack([one[is_image] for one in given])


class WrittenOut(nn.Module):
    """The same by slices of the map."""

    def __init__(self, shape, sampling):
        super().__init__()
        self.shape, self.sampling = shape, sampling

    def forward(self, x):
        dim, (tall, wide), (rows, columns) = self.shape
        field = x.new_zeros(rows * tall, columns * wide, dim)
        for number, tile in enumerate(x[1:]):
            top, left = number // columns * tall, number % columns * wide
            field[top : top + tall, left : left + wide] = tile.view(tall, wide, dim)
        if self.sampling == "2d":
            sets = [field[i::rows, j::columns].reshape(-1, dim) for i in range(rows) for j in range(columns)]
        elif self.sampling == "1d":
            sets = [field.reshape(-1, dim)[k :: rows * columns] for k in range(rows * columns)]
        else:
            sets = list(x[1:])
        return torch.stack([x[0], *sets])


CASES = [
    ReferenceCase(
        name=f"deepstack of views, {sampling}",
        option="fusion=deepstack_views",
        paper="arXiv 2406.04334",
        reference="slices of torch.Tensor",
        shapes=SHAPES,
        build_ref=partial(WrittenOut, sampling=sampling),
        build_ours=partial(Ours, sampling=sampling),
        inputs=lambda shape, generator, dtype: grid_tokens(
            shape[1], shape[0], generator, dtype, images=1 + shape[2][0] * shape[2][1]
        ),
        call_ref=lambda module, tokens: module(tokens.x),
        call_ours=lambda module, tokens: module(tokens),
    )
    for sampling in ("2d", "1d", "grid")
]
