"""resampler=tokenpacker against the paper's, region by region with torch's attention."""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import nn

from beni.resampler.tokenpacker import TokenPacker
from beni.stage import StageContext
from beni.types import TokenSpec, VisualTokens
from reference.harness import ReferenceCase

# (grid, width in, width of the levels, hidden, width out, side of a region, heads)
SHAPES = (
    ((4, 4), 12, 48, 16, 24, 2, 4),
    ((6, 9), 16, 32, 16, 12, 3, 2),
    ((4, 3), 8, 24, 8, 16, 1, 1),
)


class Packer(nn.Module):
    """``(i, n, d), (i, n, l)``; a region at a time, no transposed batches."""

    def __init__(self, shape):
        super().__init__()
        self.grid, dim, levels, hidden, dim_out, self.s, heads = shape
        self.q_proj_1 = nn.Linear(dim, hidden, bias=False)
        self.k_proj_1 = nn.Sequential(nn.Linear(levels, hidden), nn.GELU(), nn.Linear(hidden, hidden))
        self.v_proj_1 = nn.Sequential(nn.Linear(levels, hidden), nn.GELU(), nn.Linear(hidden, hidden))
        self.ln_q_1, self.ln_k_1, self.ln_v_1 = (nn.LayerNorm(hidden, eps=1e-6) for _ in range(3))
        self.clip_attn = nn.MultiheadAttention(hidden, heads, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(hidden, dim_out), nn.GELU(), nn.Linear(dim_out, dim_out))

    def forward(self, x, levels):
        rows, columns = (side // self.s for side in self.grid)
        features = x.transpose(1, 2).unflatten(2, self.grid)
        coarse = F.interpolate(features, (rows, columns), mode="bilinear", align_corners=False)
        keys = self.ln_k_1(self.k_proj_1(levels)).unflatten(1, self.grid)
        values = self.ln_v_1(self.v_proj_1(levels)).unflatten(1, self.grid)
        made = []
        for row in range(rows):
            for column in range(columns):
                region = (
                    slice(None),
                    slice(row * self.s, (row + 1) * self.s),
                    slice(column * self.s, (column + 1) * self.s),
                )
                query = self.ln_q_1(self.q_proj_1(coarse[:, None, :, row, column]))
                made.append(self.clip_attn(query, keys[region].flatten(1, 2), values[region].flatten(1, 2))[0])
        return self.mlp(torch.cat(made, 1))


def convert(state):
    names = {
        "q_proj_1.": "query_proj.",
        "k_proj_1.0.": "key_mlp.fc1.",
        "k_proj_1.2.": "key_mlp.fc2.",
        "v_proj_1.0.": "value_mlp.fc1.",
        "v_proj_1.2.": "value_mlp.fc2.",
        "ln_q_1.": "query_norm.",
        "ln_k_1.": "key_norm.",
        "ln_v_1.": "value_norm.",
        "clip_attn.out_proj.": "attention.o_proj.",
        "mlp.0.": "proj.fc1.",
        "mlp.2.": "proj.fc2.",
    }
    out = {}
    for name, tensor in state.items():
        if name.startswith("clip_attn.in_proj_"):
            kind = name.removeprefix("clip_attn.in_proj_")
            out |= {f"attention.{p}_proj.{kind}": t for p, t in zip("qkv", tensor.chunk(3), strict=True)}
            continue
        start = next(start for start in names if name.startswith(start))
        out[names[start] + name.removeprefix(start)] = tensor
    return out


def inputs(shape, generator, dtype):
    """Features and levels in one tensor, so that the gradient of both is compared."""
    (rows, columns), dim, levels, *_ = shape
    x = torch.randn(2, rows * columns, dim + levels, generator=generator, dtype=torch.float64)
    return VisualTokens.dense(x.to(dtype), shape[0])


def call_ours(module, tokens):
    dim = module.query_proj.in_features
    parts = replace(tokens.with_features(tokens.x[..., :dim]), levels=tokens.x[..., dim:])
    return module(parts, StageContext()).x


def call_ref(module, tokens):
    dim = module.q_proj_1.in_features
    return module(tokens.x[..., :dim], tokens.x[..., dim:])


CASES = [
    ReferenceCase(
        name="tokenpacker",
        option="resampler=tokenpacker",
        paper="arXiv 2407.02392",
        reference="torch.nn.MultiheadAttention",
        shapes=SHAPES,
        build_ref=Packer,
        build_ours=lambda shape: TokenPacker(
            TokenSpec(n=shape[0][0] * shape[0][1], dim=shape[1], grid=shape[0], levels=shape[2]),
            shape[4],
            s=shape[5],
            hidden_size=shape[3],
            num_heads=shape[6],
        ),
        inputs=inputs,
        call_ref=call_ref,
        call_ours=call_ours,
        convert=convert,
    )
]
