"""resampler=sva against Cambrian's, one query at a time."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from beni.resampler.sva import Sva
from beni.stage import StageContext
from beni.types import TokenSpec, VisualTokens
from reference.harness import ReferenceCase, grid_tokens

# (grid, width in, hidden, width out, depth, heads, groups, side, encoders)
SHAPES = (
    ((4, 4), 12, 16, 24, 2, 4, 1, 2, 1),
    ((2, 3), 16, 8, 12, 1, 2, 2, "auto", 2),
    ((4, 6), 32, 12, 16, 3, 3, 2, 2, 3),
)


def sources(tokens, encoders):
    """The first encoder's tokens, and finer grids whose tokens are pieces of them."""
    rows, columns = tokens.grid
    images, n, dim = tokens.x.shape
    return tuple(
        VisualTokens.dense(tokens.x.reshape(images, n * 4**k, dim // 4**k) * (k + 1), (rows * 2**k, columns * 2**k))
        for k in range(encoders)
    )


def source_specs(grid, dim, encoders):
    return tuple(
        TokenSpec(n=grid[0] * grid[1] * 4**k, dim=dim // 4**k, grid=(grid[0] * 2**k, grid[1] * 2**k))
        for k in range(encoders)
    )


class Cells(nn.Module):
    """Cambrian's sampler in loops over layers, queries and heads; the tensors are those of beni's part."""

    def __init__(self, shape):
        super().__init__()
        self.part, self.shape = ours(shape), shape

    def forward(self, tokens):
        grid, _, hidden, _, _, heads, _, side, encoders = self.shape
        part, width = self.part, hidden // heads
        rows, columns = (grid if encoders > 1 else (grid[0] // 2, grid[1] // 2)) if side == "auto" else (side, side)
        seen = []
        for source, (mlp, norm) in zip(sources(tokens, encoders), part.inputs, strict=True):
            x = nn.functional.gelu(source.x @ mlp.fc1.weight.T + mlp.fc1.bias) @ mlp.fc2.weight.T + mlp.fc2.bias
            seen.append(norm(x).unflatten(1, source.grid))
        overview = seen[0].flatten(1, 2).mean(1)
        out = []
        for row in range(rows):
            for column in range(columns):
                channels = []
                for query, layers in zip(part.queries, part.groups, strict=True):
                    q = query.expand(len(overview), -1)
                    for layer in layers:
                        u = torch.cat([q, overview @ layer.overview_proj.weight.T], -1) @ layer.input_proj.weight.T
                        keys, values = [], []
                        for j, x in enumerate(seen):
                            high, wide = x.shape[1] // rows, x.shape[2] // columns
                            cell = x[:, row * high : (row + 1) * high, column * wide : (column + 1) * wide]
                            cell = cell.flatten(1, 2)
                            if high * wide > 1:
                                cell = cell + layer.positions[str(j)]
                            (k_norm, k_proj), (v_norm, v_proj) = layer.attention.keys[j], layer.attention.values[j]
                            keys.append(k_norm(cell) @ k_proj.weight.T)
                            values.append(v_norm(cell) @ v_proj.weight.T)
                        keys, values = torch.cat(keys, 1), torch.cat(values, 1)
                        q_norm, q_proj = layer.attention.query
                        asked = q_norm(u) @ q_proj.weight.T
                        read = []
                        for head in range(heads):
                            part_of = slice(head * width, (head + 1) * width)
                            scores = torch.einsum("id,ikd->ik", asked[:, part_of], keys[:, :, part_of]) / width**0.5
                            read.append(torch.einsum("ik,ikd->id", scores.softmax(-1), values[:, :, part_of]))
                        u = layer.norm(u + torch.cat(read, -1) @ layer.attention.o_proj.weight.T)
                        q = q + nn.functional.gelu(u @ layer.mlp.fc1.weight.T) @ layer.mlp.fc2.weight.T
                    channels.append(q)
                out.append(torch.cat(channels, -1))
        x = torch.stack(out, 1)
        x = nn.functional.gelu(x @ part.proj.fc1.weight.T + part.proj.fc1.bias)
        return x @ part.proj.fc2.weight.T + part.proj.fc2.bias


def ours(shape):
    grid, dim, hidden, dim_out, depth, heads, groups, side, encoders = shape
    specs = source_specs(grid, dim, encoders)
    return Sva(
        replace(specs[0], sources=specs if encoders > 1 else ()),
        dim_out,
        side=side,
        hidden_size=hidden,
        depth=depth,
        num_heads=heads,
        groups=groups,
    )


def call_ours(module, tokens):
    seen = sources(tokens, len(module.grids))
    return module(replace(tokens, sources=seen) if len(seen) > 1 else tokens, StageContext()).x


CASES = [
    ReferenceCase(
        name="sva",
        option="resampler=sva",
        paper="arXiv 2406.16860",
        reference="loops over cells and heads",
        shapes=SHAPES,
        build_ref=Cells,
        build_ours=ours,
        inputs=lambda shape, generator, dtype: grid_tokens(shape[0], shape[1], generator, dtype),
        call_ref=lambda module, tokens: module(tokens),
        call_ours=call_ours,
        convert=lambda state: {name.removeprefix("part."): tensor for name, tensor in state.items()},
    )
]
