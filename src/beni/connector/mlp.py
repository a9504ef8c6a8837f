"""MLP connector of LLaVA-1.5 (arXiv 2310.03744): linear, then GELU and linear as often as wished.

Reference: ``transformers`` ``LlavaMultiModalProjector`` (depth 2, no norm), equal to 1e-5 with its weights.
Option: ``norm`` standardises the vision encoder's features first; features of CNNs and of encoders without a final
norm differ in scale by orders of magnitude between channels.

Behind ``resampler=pixel_shuffle`` this is the head of Idefics3 (depth 1, no bias), InternVL and LFM2-VL (depth 2,
layernorm), Qwen2-VL (depth 2, ``hidden=input``), Mistral 3 (depth 2, no bias) and Llama 4 (depth 3, no bias, ``hidden``
of its projector). Deviation from Llama 4: dropout stands before the last layer, not after the first.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Annotated, Literal, cast

from torch import nn

from beni.config.ranges import AtLeast, AtMost, Below, Example
from beni.errors import CompositionError
from beni.nn.norms import make_norm, reset_norms
from beni.stage import Stage, StageContext
from beni.types import TokenSpec, VisualTokens


class MlpConnector(Stage):
    """``(i, n, d) -> (i, n, dim_out)``; depth 1 is the linear projector of LLaVA (arXiv 2304.08485).

    Args:
        tokens: spec of the incoming visual tokens.
        dim_out: width of the llm.
        depth: linear layers, at least 1, with exact GELU between.
        bias: give the linear layers biases.
        hidden: width of the layers between; ``auto`` is ``dim_out``, ``input`` is the width of the incoming tokens.
        norm: ``none``, ``layernorm`` or ``rmsnorm`` on the incoming features.
        dropout: probability in [0, 1) on the hidden activations; with depth 1 on the incoming features.
        init_std: standard deviation of the normal draw of the weights; ``fan_in`` is 1/sqrt(width coming in), which
            keeps the scale of standardised features.

    Raises:
        CompositionError: E-DEPTH when ``depth`` is below 1.
    """

    def __init__(
        self,
        tokens: TokenSpec,
        dim_out: int,
        *,
        depth: Annotated[int, AtMost(1000)],
        hidden: Annotated[int, AtLeast(1)] | Literal["auto", "input"],
        bias: bool,
        norm: Literal["none", "layernorm", "rmsnorm"],
        dropout: Annotated[float, AtLeast(0), Below(1), Example("0.1")],
        init_std: Annotated[float, AtLeast(0), Example("0.02")] | Literal["fan_in"],
    ) -> None:
        super().__init__()
        if depth < 1:
            raise CompositionError(
                "E-DEPTH",
                f"connector.depth={depth}, but a connector has at least one linear layer",
                groups=("connector",),
                fix="set connector.depth=1 or more, or connector=identity where the widths agree",
            )
        self.init_std = init_std
        self.norm = make_norm(norm, tokens.dim)
        between = {"auto": dim_out, "input": tokens.dim}[hidden] if isinstance(hidden, str) else hidden
        widths = [tokens.dim] + [between] * (depth - 1) + [dim_out]
        layers = nn.ModuleList(nn.Linear(a, b, bias=bias) for a, b in pairwise(widths))
        self.layers = cast("list[nn.Linear]", layers)  # a ModuleList's items are typed as plain modules
        self.dropout = nn.Dropout(dropout)
        self.act = nn.GELU()

    def spec(self, tokens: TokenSpec) -> TokenSpec:
        return replace(tokens, dim=self.layers[-1].out_features, space="llm")

    def forward(self, tokens: VisualTokens, context: StageContext) -> VisualTokens:
        x = self.norm(tokens.x)
        for layer in self.layers[:-1]:
            x = self.act(layer(x))
        return tokens.with_features(self.layers[-1](self.dropout(x)))

    def init_weights(self) -> None:
        reset_norms(self)
        for layer in self.layers:
            std = layer.in_features**-0.5 if isinstance(self.init_std, str) else self.init_std
            nn.init.normal_(layer.weight, std=std)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
