"""Idefics2's order of things: project each visual token to the llm's width, then let latents read them there.

Paper: Idefics2, arXiv 2405.02246. Reference: ``transformers`` ``Idefics2Connector``, equal to 1e-5 in fp32 and 1e-10 in
fp64 with its weights. ``resampler=perceiver`` is the same perceiver at the width of the vision encoder, the connector
after it; this one costs a matrix product per patch more and leaves nothing to the connector.
Deviation: the initial weights are those of ``resampler=perceiver``.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

from torch import nn

from beni.config.ranges import Above, AtLeast, AtMost, Below, Example
from beni.nn.mlp import SwiGLU
from beni.nn.queries import draw_layers
from beni.resampler.perceiver import Perceiver
from beni.stage import Reads, Stage, StageContext
from beni.types import TokenSpec, VisualTokens


class PerceiverIdefics2(Stage):
    """``(i, n, d) -> (i, num_latents, dim_out)``.

    Args:
        tokens: spec of the incoming visual tokens.
        dim_out: width of the llm, at which the perceiver works.
        expansion: hidden width of the projection as a multiple of the llm's width.
        depth: layers of the perceiver; this and what follows is as in ``resampler=perceiver``.

    Raises:
        CompositionError: E-HEADS when ``num_kv_heads`` does not divide ``num_heads``.
    """

    reads: frozenset[Reads] = frozenset({"log_gate"})

    def __init__(
        self,
        tokens: TokenSpec,
        dim_out: int,
        *,
        expansion: Annotated[float, Above(0), Example("4")],
        depth: Annotated[int, AtLeast(1), AtMost(1000)],
        num_latents: Annotated[int, AtLeast(1)],
        num_heads: Annotated[int, AtLeast(1)],
        num_kv_heads: Annotated[int, AtLeast(1)],
        head_dim: Annotated[int, AtLeast(1)],
        concat_latents: bool,
        attention_dropout: Annotated[float, AtLeast(0), Below(1), Example("0.1")],
    ) -> None:
        super().__init__()
        self.projection = SwiGLU(tokens.dim, round(expansion * dim_out), dim_out)
        self.perceiver = Perceiver(
            replace(tokens, dim=dim_out, space="llm"),
            hidden_size="auto",
            depth=depth,
            num_latents=num_latents,
            num_heads=num_heads,
            num_kv_heads=num_kv_heads,
            head_dim=head_dim,
            concat_latents=concat_latents,
            attention_dropout=attention_dropout,
        )

    def spec(self, tokens: TokenSpec) -> TokenSpec:
        return self.perceiver.spec(self._projected(tokens))

    def forward(self, tokens: VisualTokens, context: StageContext) -> VisualTokens:
        return self.perceiver(tokens.with_features(self.projection(tokens.x)), context)

    def init_weights(self) -> None:
        draw_layers(self.projection, lambda weight: nn.init.normal_(weight, std=(0.4 / weight.shape[1]) ** 0.5))
        self.perceiver.init_weights()

    def _projected(self, tokens: TokenSpec) -> TokenSpec:
        return replace(tokens, dim=self.projection.down_proj.out_features, space="llm")
