"""The tokens that have enough to do with what is asked: as many as the picture and the question deserve.

The score of a token is its cosine with the prompt in a learned space (``beni.prompt.scores``). How many are kept
varies, so what follows reads a mask: a resampler that does, or the llm, before which fusion takes the others out.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from beni.config.ranges import Above, AtLeast, Below
from beni.nn.choose import Budget, Positions, best, by_score, chosen_spec, kept, legible, spread, with_gates
from beni.prompt.asked import Asked
from beni.prompt.scores import PromptScores, gates_of
from beni.stage import Stage, StageContext
from beni.types import TokenSpec, VisualTokens


class Threshold(Stage):
    """``(i, n, d) -> (i, n, d)`` with the others dropped.

    Args:
        tokens: spec of the incoming visual tokens.
        dim_out: width of the llm, at which the prompt comes.
        threshold: least score of a token that is kept.
        of: what is compared with it: the ``cosine``, or its ``deviation`` from the mean of the view in standard
            deviations.
        least: tokens that are kept whatever their score; at even distances where nothing is asked.
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
            log sigmoid(scale * (score - threshold)) (``straight_through``); through these as gates (``gates``).
        scale: of the scores in the gates.
    """

    def __init__(
        self,
        tokens: TokenSpec,
        dim_out: int,
        *,
        threshold: float,
        of: Literal["cosine", "deviation"],
        least: Annotated[int, AtLeast(1)],
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
        self.threshold, self.of, self.least, self.scale = threshold, of, Budget(least), scale
        self.positions: Positions = positions
        self.gradient: Literal["none", "straight_through", "gates"] = gradient
        asked = Asked(source, dim_out, text_encoder, "selector")
        self.scores = PromptScores(
            tokens.dim, asked, width, no_prompt, no_prompt_rate, centred, frozen=gradient == "none"
        )
        self.reads = self.scores.reads

    def spec(self, tokens: TokenSpec) -> TokenSpec:
        left = chosen_spec(tokens, None, self.positions)
        return left if self.gradient == "none" else replace(left, gated=True)

    def forward(self, tokens: VisualTokens, context: StageContext) -> VisualTokens:
        cosines, asked = self.scores(tokens, context)
        context.drawn("scores", (cosines + 1) / 2, tokens)
        scores = cosines if self.of == "cosine" else _deviation(cosines, legible(tokens))
        enough = (scores >= self.threshold) & asked[:, None] & legible(tokens)
        evenly = best(tokens, spread(tokens.mask, self.least), self.least)
        some = torch.where(asked[:, None], best(tokens, by_score(scores.detach(), tokens), self.least), evenly)
        which = enough | some
        context.metric("kept", which.sum(), int(tokens.mask.sum()) if not which.is_meta else which.numel())
        gates = gates_of(scores - self.threshold, self.gradient, self.scale)
        return kept(with_gates(tokens, gates), which, None, self.positions)

    def init_weights(self) -> None:
        self.scores.init_weights()


def _deviation(scores: Float[Tensor, "i n"], real: Bool[Tensor, "i n"]) -> Float[Tensor, "i n"]:
    """Scores as standard deviations from the mean of their row."""
    count = real.sum(1, keepdim=True).clamp(min=1)
    centred = scores - (scores * real).sum(1, keepdim=True) / count
    return centred / ((centred * real).square().sum(1, keepdim=True) / count + 1e-12).sqrt()
