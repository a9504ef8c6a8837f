"""fusion=sva against Cambrian's aggregator inside the llm, one position at a time, behind one layer."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import torch
from torch import nn

from beni.fusion.sva import SvaFusion
from beni.types import LayerCall, Sequence, TokenSpec, VisualTokens
from reference.harness import ReferenceCase, grid_tokens

# (grid, width of the sources, width of the llm, heads, sides of a cell of each source)
SHAPES = (((2, 3), 8, 12, 2, (1, 2)), ((3, 1), 12, 20, 3, (2,)), ((2, 2), 16, 24, 4, (1, 3, 2)))


def sources(tokens, sides):
    """Sources whose tokens are pieces of one tensor, each on a grid of cells of ``side`` x ``side``."""
    rows, columns = tokens.grid

    def source(side):
        count = side * side
        factors = torch.arange(1, count + 1, dtype=tokens.x.dtype).repeat(rows * columns)
        return VisualTokens.dense(
            tokens.x.repeat_interleave(count, 1) * factors[:, None], (rows * side, columns * side)
        )

    return tuple(map(source, sides))


def states(tokens, dim):
    """Hidden states of a row of text with two images in it."""
    n = tokens.x.shape[1]
    hidden = torch.linspace(-3, 3, (2 * n + 3) * dim, dtype=tokens.x.dtype).sin().view(1, -1, dim)
    stands = [False, *[True] * n, False, *[True] * n, False]
    return hidden, torch.tensor([stands])


class Written(nn.Module):
    """The aggregator in loops over positions and heads; the tensors are those of beni's part."""

    def __init__(self, shape):
        super().__init__()
        self.part, self.shape = ours(shape), shape

    def forward(self, tokens):
        grid, width, dim, heads, sides = self.shape
        hidden, stands = states(tokens, dim)
        layer, seen = self.part.blocks["0"], [source.x.unflatten(1, source.grid) for source in sources(tokens, sides)]
        out = hidden[0].clone()
        for number, place in enumerate(stands[0].nonzero()[:, 0].tolist()):
            image, cell = divmod(number, grid[0] * grid[1])
            row, column = divmod(cell, grid[1])
            overview = seen[0][image].flatten(0, 1).mean(0)
            state = hidden[0, place]
            u = layer.input_proj.weight @ torch.cat([state, layer.overview_proj.weight @ overview])
            keys, values = [], []
            for j, side in enumerate(sides):
                own = seen[j][image, row * side : (row + 1) * side, column * side : (column + 1) * side].flatten(0, 1)
                if side > 1:
                    own = own + layer.positions[str(j)]
                (k_norm, k_proj), (v_norm, v_proj) = layer.attention.keys[j], layer.attention.values[j]
                keys.append(k_norm(own) @ k_proj.weight.T)
                values.append(v_norm(own) @ v_proj.weight.T)
            keys, values, (q_norm, q_proj) = torch.cat(keys), torch.cat(values), layer.attention.query
            asked, read, size = q_norm(u) @ q_proj.weight.T, [], width // heads
            for head in range(heads):
                part = slice(head * size, (head + 1) * size)
                weights = (keys[:, part] @ asked[part] / size**0.5).softmax(0)
                read.append(weights @ values[:, part])
            u = layer.norm(u + layer.attention.o_proj.weight @ torch.cat(read))
            out[place] = state + layer.mlp.fc2.weight @ nn.functional.gelu(layer.mlp.fc1.weight @ u)
        return out[None]


def ours(shape):
    grid, width, dim, heads, sides = shape
    n = grid[0] * grid[1]
    specs = (TokenSpec(n=n * s * s, dim=width, grid=(grid[0] * s, grid[1] * s)) for s in sides)
    fusion = SvaFusion(
        TokenSpec(n=n, dim=dim, grid=grid, space="llm", sources=tuple(specs)),
        dim,
        **{"every": 1, "first": 0, "num_heads": heads, "init": "torch"},
        **{"image_attention": "causal", "out_norm": "none", "match_text_rms": False},
    )
    layers = [nn.Identity(), nn.Identity()]
    fusion.install(SimpleNamespace(hidden_size=dim, layers=lambda: layers, heads=lambda: None))
    return fusion


def call_ours(fusion, tokens):
    dim = fusion.blocks["0"].mlp.fc2.out_features
    sides = next(shape[4] for shape in SHAPES if (shape[0], shape[2]) == (tokens.grid, dim))
    hidden, stands = states(tokens, dim)
    visual = VisualTokens.dense(hidden[stands].unflatten(0, (2, -1)), tokens.grid)
    text = replace(Sequence.plain(hidden), images=stands.long() - 1)
    fused = fusion(text, replace(visual, sources=sources(tokens, sides)))
    return fused.visitors[0].after(hidden, LayerCall(*fused.numbered(), {}))


CASES = [
    ReferenceCase(
        name="sva inside the llm",
        option="fusion=sva",
        paper="arXiv 2406.16860",
        reference="loops over positions and heads",
        shapes=SHAPES,
        build_ref=Written,
        build_ours=ours,
        inputs=lambda shape, generator, dtype: grid_tokens(shape[0], shape[1], generator, dtype),
        call_ref=lambda module, tokens: module(tokens),
        call_ours=call_ours,
        convert=lambda state: {name.removeprefix("part."): tensor for name, tensor in state.items()},
    )
]
