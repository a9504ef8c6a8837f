"""The tokens that have most to do with what is asked, as many as a budget says beforehand.

The score of a token is its cosine with the prompt in a learned space (``beni.prompt.scores``). With a budget that is
known a priori nothing needs padding. PS3 (arXiv 2503.19903) chooses so before the encoder (``views=ps3``).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from beni.config.ranges import Above, AtLeast, AtMost, Below
from beni.nn.choose import Budget, Positions, best, by_score, chosen_spec, kept, spread, with_gates
from beni.prompt.asked import Asked
from beni.prompt.scores import PromptScores, gates_of
from beni.stage import Stage, StageContext
from beni.types import TokenSpec, VisualTokens


class PromptTopK(Stage):
    """``(i, n, d) -> (i, k, d)``, or ``(i, n, d)`` with the others dropped.

    Args:
        tokens: spec of the incoming visual tokens.
        dim_out: width of the llm, at which the prompt comes.
        keep: tokens that are kept: a whole number, or a share (a float, at most 1.0).
        scope: of each ``view``, or of all views of an ``image`` together, so that one may keep more than another.
        positions: ``preserve`` the position ids that the kept tokens have among all, or ``compact`` them.
        source: the prompt as the mean of the llm's ``embeddings``, as its ``hidden`` state at the last position, or as
            a frozen ``text_encoder`` reads it.
        text_encoder: hub id or folder of one, of a whole CLIP or SigLIP too; null for another source.
        width: of the space in which tokens and prompt are compared.
        centred: subtract the mean of a view's tokens first.
        no_prompt: where nothing is asked: a ``learned`` vector is compared with, or tokens at even distances are kept
            (``uniform``).
        no_prompt_rate: share of the samples that training treats as though nothing had been asked.
        gradient: how the scores are learned: not at all (``none``); through gates of 0 that have the gradient of
            log sigmoid(scale * score) (``straight_through``); through these as gates on the kept tokens (``gates``).
        scale: of the scores in the gates.
    """

    def __init__(
        self,
        tokens: TokenSpec,
        dim_out: int,
        *,
        keep: Annotated[int, AtLeast(1)] | Annotated[float, Above(0), AtMost(1)],
        scope: Literal["view", "image"],
        positions: Literal["preserve", "compact"],
        source: Literal["embeddings", "hidden", "text_encoder"],
        text_encoder: str | None,
        width: Annotated[int, AtLeast(1)],
        centred: bool,
        no_prompt: Literal["learned", "uniform"],
        no_prompt_rate: Annotated[float, AtLeast(0), Below(1)],
        gradient: Literal["none", "straight_through", "gates"],
        scale: Annotated[float, Above(0)],
    ) -> None:
        super().__init__()
        self.budget, self.scope, self.scale = Budget(keep), scope, scale
        self.positions: Positions = positions
        self.gradient: Literal["none", "straight_through", "gates"] = gradient
        asked = Asked(source, dim_out, text_encoder, "selector")
        self.scores = PromptScores(
            tokens.dim, asked, width, no_prompt, no_prompt_rate, centred, frozen=gradient == "none"
        )
        self.reads = self.scores.reads

    def spec(self, tokens: TokenSpec) -> TokenSpec:
        left = chosen_spec(tokens, self.budget if self.scope == "view" else None, self.positions)
        if self.scope == "image" and isinstance(self.budget.keep, float):
            left = replace(left, mean=self.budget.keep * (tokens.mean or tokens.n))
        return left if self.gradient == "none" else replace(left, gated=True)

    def forward(self, tokens: VisualTokens, context: StageContext) -> VisualTokens:
        scores, asked = self.scores(tokens, context)
        context.metric("asked", asked.sum(), len(asked))
        context.drawn("scores", (scores + 1) / 2, tokens)
        tokens = with_gates(tokens, gates_of(scores, self.gradient, self.scale))
        if self.scope == "view":
            which = best(tokens, by_score(scores.detach(), tokens), self.budget)
            which = torch.where(asked[:, None], which, best(tokens, spread(tokens.mask, self.budget), self.budget))
            return kept(tokens, which, self.budget, self.positions)
        which = self._best_of_images(scores.detach(), asked, tokens, context)
        return kept(tokens, which, None, self.positions)

    def init_weights(self) -> None:
        self.scores.init_weights()

    def _best_of_images(
        self, scores: Float[Tensor, "i n"], asked: Bool[Tensor, "i"], tokens: VisualTokens, context: StageContext
    ) -> Bool[Tensor, "i n"]:
        """True at the tokens of all views of an image that the budget of the image keeps."""
        which = torch.zeros_like(tokens.mask)
        for rows in context.by_image(len(scores)):
            own = tokens.select(rows)
            together = own.map(lambda tensor: tensor.flatten(0, 1)[None])
            by_prompt = best(together, by_score(scores[rows].flatten()[None], together), self.budget)
            evenly = best(together, spread(together.mask, self.budget), self.budget)
            which[rows] = torch.where(asked[rows[0]], by_prompt, evenly).view_as(own.mask)
        return which
