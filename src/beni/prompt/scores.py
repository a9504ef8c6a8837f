"""How much each visual token has to do with what is asked: a cosine between the two, in a space that is learned."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from beni.nn.choose import legible
from beni.prompt.asked import Asked
from beni.stage import Reads, StageContext
from beni.types import VisualTokens

Gradient = Literal["none", "straight_through", "gates"]


class PromptScores(nn.Module):
    """``(i, n, d)`` and what is asked about each row -> cosines ``(i, n)``.

    Args:
        dim: width of the visual tokens.
        source: of what is asked.
        width: of the space that both are mapped to.
        no_prompt: a row about which nothing is asked is compared with a ``learned`` vector, which is also added to the
            prompt of the others, or with nothing (``uniform``).
        no_prompt_rate: share of the rows that training treats as though nothing had been asked about them.
        centred: the mean of the tokens of a row is subtracted from each first, as features of an encoder tend to point
            the same way.
        frozen: no gradient is wanted of the maps.
    """

    def __init__(
        self,
        dim: int,
        source: Asked,
        width: int,
        no_prompt: Literal["learned", "uniform"],
        no_prompt_rate: float,
        centred: bool,
        frozen: bool,
    ) -> None:
        super().__init__()
        self.source, self.no_prompt_rate, self.centred = source, no_prompt_rate, centred
        self.of_token = nn.Linear(dim, width, bias=False)
        self.of_text = nn.Linear(source.dim, width, bias=no_prompt == "learned")
        self.requires_grad_(not frozen)

    @property
    def reads(self) -> frozenset[Reads]:
        """What a stage must declare that it reads."""
        return self.source.reads

    def forward(self, tokens: VisualTokens, context: StageContext) -> tuple[Float[Tensor, "i n"], Bool[Tensor, "i"]]:
        """The cosines, and True at rows that are compared with something: all, where the vector of nothing is learned;
        the others' cosines are 0.
        """
        text, asked = self.asked(tokens.x, context)
        return self.cosines(tokens, text).masked_fill(~asked[:, None], 0.0), asked

    def cosines(self, tokens: VisualTokens, text: Float[Tensor, "i w"]) -> Float[Tensor, "i n"]:
        """Between each token and what ``asked`` says of its row."""
        x = tokens.x
        if self.centred:
            real = legible(tokens)[..., None].to(x.dtype)
            x = x - (x * real).sum(1, keepdim=True) / real.sum(1, keepdim=True).clamp(min=1)
        return (F.normalize(self.of_token(x), dim=-1) @ F.normalize(text, dim=-1)[..., None])[..., 0]

    def asked(
        self, like: Float[Tensor, "i n d"], context: StageContext
    ) -> tuple[Float[Tensor, "i w"], Bool[Tensor, "i"]]:
        """What is asked about each row in the space of comparison, and True at rows where that is something: all, where
        the vector of nothing is learned.

        Args:
            like: features of the rows, for their number and type.
        """
        text, asked = self._text(like, context)
        # text embeddings are small, and a prompt must not drown in the vector of nothing
        text = self.of_text(F.layer_norm(text, text.shape[-1:]) * asked[:, None])
        return text, asked if self.of_text.bias is None else torch.ones_like(asked)

    def init_weights(self) -> None:
        """Maps that keep the size of what they map, and a vector of nothing of length one."""
        for linear in (self.of_token, self.of_text):
            nn.init.normal_(linear.weight, std=linear.in_features**-0.5)
        if self.of_text.bias is not None:
            nn.init.normal_(self.of_text.bias, std=self.of_text.out_features**-0.5)

    def _text(
        self, like: Float[Tensor, "i n d"], context: StageContext
    ) -> tuple[Float[Tensor, "i t"], Bool[Tensor, "i"]]:
        """What is asked about each row, and whether something is."""
        text, asked = self.source(like, context.prompt)
        if context.prompt is not None and self.training and self.no_prompt_rate > 0:
            asked = asked & (context.noise("null", like[:, 0, 0]) >= self.no_prompt_rate)
        return text, asked


def gates_of(scores: Float[Tensor, "i n"], gradient: Gradient, scale: float) -> Float[Tensor, "i n"] | None:
    """Log-gates that bring a gradient to the scores, which choosing the best of them does not.

    Returns:
        log sigmoid(scale * score) for ``gates``; 0 with that gradient for ``straight_through``; None for ``none``.
    """
    if gradient == "none":
        return None
    soft = F.logsigmoid(scale * scores)
    return soft if gradient == "gates" else soft - soft.detach()
