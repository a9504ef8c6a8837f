"""The MLP of Prismatic (arXiv 2402.07865) for features of two encoders side by side: it widens before it narrows.

Reference: ``FusedMLPProjector`` of ``prismatic-vlms``, which cannot be loaded here; the tests assemble its three layers
from torch's. Deviation: weights are drawn from a normal distribution as in the other connectors, there as torch does.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Annotated, Literal, cast

import torch.nn.functional as F
from torch import nn

from beni.config.ranges import AtLeast, Example
from beni.errors import CompositionError
from beni.stage import Stage, StageContext
from beni.types import TokenSpec, VisualTokens


class FusedMlpConnector(Stage):
    """``(i, n, d) -> (i, n, dim_out)`` by way of the widths ``expansion * d``, ``dim_out``, ``dim_out``; exact GELU.

    Args:
        tokens: spec of the incoming visual tokens.
        dim_out: width of the llm.
        expansion: width of the first hidden layer in widths of the incoming tokens, at least 1.
        init_std: standard deviation of the normal draw of the weights; ``fan_in`` is 1/sqrt(width coming in).

    Raises:
        CompositionError: E-DIM when ``expansion`` is below 1.
    """

    def __init__(
        self,
        tokens: TokenSpec,
        dim_out: int,
        *,
        expansion: Annotated[int, AtLeast(1)],
        init_std: Annotated[float, AtLeast(0), Example("0.02")] | Literal["fan_in"],
    ) -> None:
        super().__init__()
        if expansion < 1:
            raise CompositionError(
                "E-DIM",
                f"connector.expansion={expansion}, but the hidden layer has at least the width of the visual tokens",
                groups=("connector",),
                fix="set connector.expansion=4",
            )
        self.init_std = init_std
        widths = (tokens.dim, expansion * tokens.dim, dim_out, dim_out)
        layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))
        self.layers = cast("list[nn.Linear]", layers)  # a ModuleList's items are typed as plain modules

    def spec(self, tokens: TokenSpec) -> TokenSpec:
        return replace(tokens, dim=self.layers[-1].out_features, space="llm")

    def forward(self, tokens: VisualTokens, context: StageContext) -> VisualTokens:
        x = tokens.x
        for layer in self.layers[:-1]:
            x = F.gelu(layer(x))
        return tokens.with_features(self.layers[-1](x))

    def init_weights(self) -> None:
        for layer in self.layers:
            std = layer.in_features**-0.5 if isinstance(self.init_std, str) else self.init_std
            nn.init.normal_(layer.weight, std=std)
            nn.init.zeros_(layer.bias)
