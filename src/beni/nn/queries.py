"""What all resamplers with learned queries share: the tokens they hand on, and how their layers are drawn."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from beni.errors import CompositionError
from beni.nn.attention import GroupedQueryAttention
from beni.nn.norms import RMSNorm
from beni.types import TokenSpec, VisualTokens


def queried_spec(tokens: TokenSpec, n: int, dim: int, space: Literal["vision", "llm"]) -> TokenSpec:
    """The spec of ``n`` tokens that have read ``tokens``: no grid, nothing that came along."""
    return TokenSpec(n=n, dim=dim, space=space, scale=tokens.scale)


def queried(x: Float[Tensor, "i m d"], tokens: VisualTokens, yx: Float[Tensor, "m 2"] | None = None) -> VisualTokens:
    """Features of ``m`` queries that have read ``tokens``; each stands for an equal share of the patches.

    Args:
        yx: where each query stands; in the middle of the view when None, since it looks everywhere.
    """
    images, m, _ = x.shape
    places = tokens.yx.new_full((m, 2), 0.5) if yx is None else yx.to(tokens.yx.dtype)
    patches = (tokens.size * tokens.mask).sum(1, keepdim=True)
    return VisualTokens.fresh(
        x=x,
        mask=tokens.mask.new_ones(images, m),
        yx=places.expand(images, m, 2),
        size=(patches / m).expand(images, m),
    )


def head_dim_of(dim: int, num_heads: int, part: str) -> int:
    """Width of each of ``num_heads`` heads that share ``dim``.

    Raises:
        CompositionError: E-HEADS when the heads do not divide the width.
    """
    if num_heads < 1 or dim % num_heads:
        usual, group = [heads for heads in range(1, 65) if dim % heads == 0], part.partition("=")[0]
        raise CompositionError(
            "E-HEADS",
            f"{part}: num_heads={num_heads} does not divide the width {dim}",
            groups=(group,),
            fix=f"set {group}.num_heads to one of {', '.join(map(str, usual))}",
        )
    return dim // num_heads


def check_kv_heads(num_heads: int, num_kv_heads: int) -> None:
    """Raises:
    CompositionError: E-HEADS when the key/value heads do not divide the query heads.
    """
    if num_kv_heads < 1 or num_heads % num_kv_heads:
        raise CompositionError(
            "E-HEADS",
            f"resampler.num_kv_heads={num_kv_heads} does not divide num_heads={num_heads}",
            groups=("resampler",),
            fix=f"set resampler.num_kv_heads to 1 or {num_heads}",
        )


def draw_layers(module: nn.Module, weight: Callable[[Tensor], object]) -> None:
    """Draws every linear layer below ``module`` with ``weight``; biases start at zero, norms as the identity."""
    for part in module.modules():
        if isinstance(part, nn.Linear):
            weight(part.weight)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
        elif isinstance(part, nn.LayerNorm):
            nn.init.ones_(part.weight)
            nn.init.zeros_(part.bias)
        elif isinstance(part, RMSNorm):
            nn.init.ones_(part.weight)


def draw_stacked(attention: GroupedQueryAttention) -> None:
    """Queries, keys and values as ``nn.MultiheadAttention`` draws them: Xavier for the three as one matrix."""
    bound = (6 / (4 * attention.q_proj.in_features)) ** 0.5
    for projection in (attention.q_proj, attention.k_proj, attention.v_proj):
        nn.init.uniform_(projection.weight, -bound, bound)


def centres(side: int, device: torch.device) -> Float[Tensor, "m 2"]:
    """(row, column) of the cells of a square grid, in [0, 1], row-major."""
    line = (torch.arange(side, device=device, dtype=torch.float32) + 0.5) / side
    return torch.stack(torch.meshgrid(line, line, indexing="ij"), -1).flatten(0, 1)
