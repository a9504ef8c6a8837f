"""resampler=qwen_vl and resampler=mqt against torch's own MultiheadAttention, positions written out in loops."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial

import torch
from torch import nn

from beni.resampler.mqt import Mqt
from beni.resampler.qwen_vl import QwenVL
from beni.types import TokenSpec
from reference.convert import from_multihead, rename
from reference.harness import ReferenceCase, grid_tokens

# (width, llm's width, rows, columns, side of the queries, heads)
QWEN = ((20, 32, 3, 7, 3, 4), (24, 24, 4, 4, 4, 1), (16, 40, 9, 2, 2, 5), (12, 16, 5, 6, 4, 2))
MQT = ((32, 20, 3, 7, 3, 4), (24, 24, 4, 4, 4, 1), (40, 16, 9, 2, 2, 5))
TAKEN = {9: 5, 16: 16, 4: 1}
"""How many of so many queries are used."""


def angle_table(side, dim):
    """A cell's column in the first half of the channels, its row in the second; sines before cosines."""
    table = torch.zeros(side, side, dim, dtype=torch.float64)
    for row in range(side):
        for column in range(side):
            for half, place in enumerate((column, row)):
                for i in range(dim // 4):
                    angle = place / 10000 ** (i / (dim // 4))
                    table[row, column, half * dim // 2 + i] = math.sin(angle)
                    table[row, column, half * dim // 2 + dim // 4 + i] = math.cos(angle)
    return table


def cubic(distance):
    """Keys' kernel with a = -0.75, which is torch's."""
    d, a = abs(distance), -0.75
    if d <= 1:
        return (a + 2) * d**3 - (a + 3) * d**2 + 1
    return a * d**3 - 5 * a * d**2 + 8 * a * d - 4 * a if d < 2 else 0.0


def weights(place, side):
    """Of the cells of one axis at ``place`` in [0, 1]; beyond the border its cell is repeated."""
    at = place * side - 0.5
    out = [0.0] * side
    for cell in range(math.floor(at) - 1, math.floor(at) + 3):
        out[min(max(cell, 0), side - 1)] += cubic(at - cell)
    return out


def resized(table, tokens):
    yx = tokens.yx
    if tokens.grid is not None:  # the places that tokens carry are rounded to fp32
        rows, columns = tokens.grid
        exact = [[(r + 0.5) / rows, (c + 0.5) / columns] for r in range(rows) for c in range(columns)]
        yx = torch.tensor([exact], dtype=torch.float64)
    down, across = (
        torch.tensor([[weights(float(p), len(table)) for p in row] for row in yx[..., axis]], dtype=torch.float64)
        for axis in (0, 1)
    )
    return torch.einsum("inr,inc,rcd->ind", down, across, table)


class Qwen(nn.Module):
    """The release, and the norm and matrix that its encoder applies afterwards."""

    def __init__(self, shape):
        super().__init__()
        dim, dim_out, _, _, self.side, heads = shape
        self.query = nn.Parameter(torch.empty(self.side**2, dim_out))
        self.kv_proj = nn.Identity() if dim == dim_out else nn.Linear(dim, dim_out, bias=False)
        self.ln_q, self.ln_kv, self.ln_post = (nn.LayerNorm(dim_out, eps=1e-6) for _ in range(3))
        self.attn = nn.MultiheadAttention(dim_out, heads, batch_first=True)
        self.proj = nn.Parameter(torch.empty(dim_out, dim_out))

    def forward(self, tokens):
        x = self.ln_kv(self.kv_proj(tokens.x))
        table = angle_table(self.side, x.shape[2])
        queries = self.ln_q(self.query) + table.flatten(0, 1).to(x.dtype)
        keys = x + resized(table, tokens).to(x.dtype)
        out, _ = self.attn(queries.expand(len(x), -1, -1), keys, x, key_padding_mask=~tokens.mask)
        return self.ln_post(out) @ self.proj


class Matryoshka(nn.Module):
    """The release; with ``key_content`` its keys see the patches too."""

    def __init__(self, shape, key_content):
        super().__init__()
        dim, dim_out, _, _, self.side, heads = shape
        self.key_content = key_content
        self.query = nn.Parameter(torch.empty(self.side**2, dim))
        self.ln_q, self.ln_k, self.ln_v = (nn.LayerNorm(dim, eps=1e-6) for _ in range(3))
        self.attn = nn.MultiheadAttention(dim, heads, batch_first=True)
        self.proj = nn.Parameter(torch.empty(dim, dim_out))

    def forward(self, tokens):
        x, m = tokens.x, TAKEN[self.side**2]
        table = angle_table(self.side, x.shape[2])
        queries = self.ln_q(self.query[:m] + table.flatten(0, 1)[:m].to(x.dtype))
        positions = resized(table, tokens).to(x.dtype)
        keys = self.ln_k(x + positions) if self.key_content else self.ln_k(positions).expand(len(x), -1, -1)
        out, _ = self.attn(queries.expand(len(x), -1, -1), keys, self.ln_v(x), key_padding_mask=~tokens.mask)
        return out @ self.proj


def qwen_vl(shape):
    dim, dim_out, rows, columns, side, heads = shape
    return QwenVL(TokenSpec(n=rows * columns, dim=dim, grid=(rows, columns)), dim_out, side=side, num_heads=heads)


def mqt(shape, key_content):
    dim, dim_out, rows, columns, side, heads = shape
    return Mqt(
        TokenSpec(n=rows * columns, dim=dim, grid=(rows, columns)),
        dim_out,
        max_queries=side**2,
        num_queries=TAKEN[side**2],
        nested=[],
        num_heads=heads,
        key_content=key_content,
    )


def convert(state):
    pairs = [
        ("ln_q.", "query_norm."),
        ("ln_kv.", "kv_norm."),
        ("ln_k.", "key_norm."),
        ("ln_v.", "value_norm."),
        ("ln_post.", "norm."),
    ]
    state = rename(from_multihead(state, "attn"), pairs)
    return {n: t for n, t in state.items() if n not in ("query", "proj")} | {
        "queries": state["query"],
        "proj.weight": state["proj"].T,
    }


def on_a_grid(shape, generator, dtype):
    return grid_tokens((shape[2], shape[3]), shape[0], generator, dtype)


def scattered(shape, generator, dtype):
    """No grid: each row has its own places, and some of them are padding."""
    tokens = grid_tokens((shape[2], shape[3]), shape[0], generator, dtype)
    n = tokens.x.shape[1]
    mask = torch.arange(n)[None] < torch.tensor([n, n // 2])[:, None]
    return replace(tokens, mask=mask, yx=torch.rand(2, n, 2, generator=generator), grid=None)


def case(name, option, paper, reference, shapes, build_ref, build_ours, inputs):
    return ReferenceCase(
        name=name,
        option=f"resampler={option}",
        paper=paper,
        reference=reference,
        shapes=shapes,
        build_ref=build_ref,
        build_ours=build_ours,
        inputs=inputs,
        call_ref=lambda module, tokens: module(tokens),
        convert=convert,
    )


CASES = [
    case(
        f"qwen_vl {kind}",
        "qwen_vl",
        "arXiv 2308.12966",
        "torch.nn.MultiheadAttention",
        QWEN,
        Qwen,
        qwen_vl,
        inputs,
    )
    for kind, inputs in (("on a grid", on_a_grid), ("scattered", scattered))
] + [
    case(
        f"mqt {kind}, keys {'with' if key_content else 'without'} content",
        "mqt",
        "arXiv 2405.19315",
        "torch.nn.MultiheadAttention",
        MQT,
        partial(Matryoshka, key_content=key_content),
        partial(mqt, key_content=key_content),
        inputs,
    )
    for kind, inputs, key_content in (
        ("on a grid", on_a_grid, True),
        ("scattered", scattered, True),
        ("on a grid", on_a_grid, False),
    )
]
