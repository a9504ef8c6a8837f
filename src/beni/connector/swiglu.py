"""Gated feed-forward connector: the modality projection of Idefics2 (arXiv 2405.02246), also Molmo's (2409.17146).

Reference: ``transformers`` ``Idefics2MLP`` with SiLU, equal to 1e-5 in fp32 and 1e-10 in fp64 with its weights.
Option: ``norm`` standardises the vision encoder's features first; the reference has none.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Literal

from torch import nn

from beni.config.ranges import AtLeast, Example
from beni.nn.mlp import SwiGLU
from beni.nn.norms import make_norm, reset_norms
from beni.stage import Stage, StageContext
from beni.types import TokenSpec, VisualTokens


class SwigluConnector(Stage):
    """``(i, n, d) -> (i, n, dim_out)``: ``down(silu(gate(x)) * up(x))``, no biases.

    Args:
        tokens: spec of the incoming visual tokens.
        dim_out: width of the llm.
        hidden: width between the layers; ``auto`` is ``4 * dim_out``. Idefics2 takes that of its llm's own MLP.
        norm: ``none``, ``layernorm`` or ``rmsnorm`` on the incoming features.
        init_std: standard deviation of the normal draw of the weights; ``fan_in`` is 1/sqrt(width coming in).
    """

    def __init__(
        self,
        tokens: TokenSpec,
        dim_out: int,
        *,
        hidden: Annotated[int, AtLeast(1)] | Literal["auto"],
        norm: Literal["none", "layernorm", "rmsnorm"],
        init_std: Annotated[float, AtLeast(0), Example("0.02")] | Literal["fan_in"],
    ) -> None:
        super().__init__()
        self.init_std, self.dim_out = init_std, dim_out
        self.norm = make_norm(norm, tokens.dim)
        self.mlp = SwiGLU(tokens.dim, 4 * dim_out if isinstance(hidden, str) else hidden, dim_out)

    def spec(self, tokens: TokenSpec) -> TokenSpec:
        return replace(tokens, dim=self.dim_out, space="llm")

    def forward(self, tokens: VisualTokens, context: StageContext) -> VisualTokens:
        return tokens.with_features(self.mlp(self.norm(tokens.x)))

    def init_weights(self) -> None:
        reset_norms(self)
        for layer in (self.mlp.gate_proj, self.mlp.up_proj, self.mlp.down_proj):
            std = layer.in_features**-0.5 if isinstance(self.init_std, str) else self.init_std
            nn.init.normal_(layer.weight, std=std)
