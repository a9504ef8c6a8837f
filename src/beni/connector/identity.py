"""No connector: the visual tokens already have the llm's width."""

from __future__ import annotations

from dataclasses import replace

from beni.errors import CompositionError
from beni.stage import Stage, StageContext
from beni.types import TokenSpec, VisualTokens


class IdentityConnector(Stage):
    """``(i, n, d) -> (i, n, d)``.

    Raises:
        CompositionError: E-SPACE when the tokens are not as wide as the llm.
    """

    def __init__(self, tokens: TokenSpec, dim_out: int) -> None:
        super().__init__()
        if tokens.dim != dim_out:
            raise CompositionError(
                "E-SPACE",
                f"connector=identity: visual tokens are {tokens.dim} wide, the llm {dim_out}",
                groups=("connector", "llm"),
                fix="set connector=auto",
            )

    def spec(self, tokens: TokenSpec) -> TokenSpec:
        return replace(tokens, space="llm")

    def forward(self, tokens: VisualTokens, context: StageContext) -> VisualTokens:
        return tokens

    def init_weights(self) -> None:
        """Nothing to draw."""
