"""The connector that fits: LLaVA-1.5's MLP, or none where the resampler already ends at the llm's width."""

from __future__ import annotations

from typing import Annotated, Literal

from beni.config.ranges import AtLeast, AtMost, Below, Example
from beni.connector.identity import IdentityConnector
from beni.connector.mlp import MlpConnector
from beni.stage import Stage
from beni.types import TokenSpec


def auto(
    tokens: TokenSpec,
    dim_out: int,
    *,
    depth: Annotated[int, AtMost(1000)],
    hidden: Annotated[int, AtLeast(1)] | Literal["auto", "input"],
    bias: bool,
    norm: Literal["none", "layernorm", "rmsnorm"],
    dropout: Annotated[float, AtLeast(0), Below(1), Example("0.1")],
    init_std: Annotated[float, AtLeast(0), Example("0.02")] | Literal["fan_in"],
) -> Stage:
    """An ``IdentityConnector`` for tokens in the llm's space, else an ``MlpConnector`` with these values."""
    if tokens.space == "llm":
        return IdentityConnector(tokens, dim_out)
    return MlpConnector(
        tokens,
        dim_out,
        depth=depth,
        hidden=hidden,
        bias=bias,
        norm=norm,
        dropout=dropout,
        init_std=init_std,
    )
