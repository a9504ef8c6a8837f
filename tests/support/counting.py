"""What a stage costs, as beni counts it: by running it."""

from __future__ import annotations

from dataclasses import replace

import torch

from beni.measure.flops import count_training_flops
from beni.stage import Stage, StageContext
from beni.types import TokenSpec, VisualTokens


def flops_of(stage: Stage, spec: TokenSpec) -> int:
    """Forward FLOPs on one row of such tokens."""
    like = next(iter(stage.parameters()), torch.empty(0))
    with torch.device(like.device):
        tokens = tokens_of(spec, like.dtype)
    scales = (spec.scale,) if stage.nested else ()
    return count_training_flops(lambda: stage(tokens, StageContext(scales=scales)).features())[0]


def tokens_of(spec: TokenSpec, dtype: torch.dtype) -> VisualTokens:
    """One row of such tokens."""
    dense = VisualTokens.dense(torch.randn(1, spec.n, spec.dim, dtype=dtype), spec.grid or (1, spec.n))
    levels = torch.randn(1, spec.n, spec.levels, dtype=dtype) if spec.levels else None
    return replace(
        dense,
        grid=spec.grid,
        levels=levels,
        sources=tuple(tokens_of(s, dtype) for s in spec.sources),
        attn=torch.rand(1, spec.n, dtype=dtype) if spec.attn else None,
        keys=torch.randn(1, spec.n, spec.keys, dtype=dtype) if spec.keys else None,
    )
