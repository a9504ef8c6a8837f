"""CDPruner: tokens that have to do with what is asked and differ from each other (arXiv 2506.10967).

A determinantal point process whose kernel is r_i cos(x_i, x_j) r_j, with r the relevance of a token to the prompt,
between 0 and 1 in each view. The set of a given size with the largest determinant is sought greedily (arXiv
1709.05135). Where nothing is asked and nothing is learned for that case, r is 1, and the tokens only differ.

Reference: ``encode_images`` of the released ``llava_arch.py``; the tests derive the same choice from determinants.
There the relevance is the negative cosine of CLIP's projected patches with CLIP's text embedding; here it is a cosine
in a learned space (``beni.prompt.scores``), since any encoder and any llm may meet.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from beni.config.ranges import Above, AtLeast, AtMost, Below
from beni.nn.choose import Budget, Positions, at_places, chosen_spec, in_full_rows, kept, unit, with_gates
from beni.prompt.asked import Asked
from beni.prompt.scores import PromptScores, gates_of
from beni.stage import Stage, StageContext
from beni.types import TokenSpec, VisualTokens

LEAST = 1e-6
"""Relevance of the least relevant token of a view, as in the reference."""


class CDPruner(Stage):
    """``(i, n, d) -> (i, k, d)``, or ``(i, n, d)`` with the others dropped.

    Args:
        tokens: spec of the incoming visual tokens.
        dim_out: width of the llm, at which the prompt comes.
        keep: tokens of a row that are kept: a whole number, or a share (a float, at most 1.0).
        positions: ``preserve`` the position ids that the kept tokens have among all, or ``compact`` them.
        source: the prompt as the mean of the llm's ``embeddings``, as its ``hidden`` state at the last position, or as
            a frozen ``text_encoder`` reads it.
        text_encoder: hub id or folder of one, of a whole CLIP or SigLIP too; null for another source.
        width: of the space in which tokens and prompt are compared.
        centred: subtract the mean of a view's tokens first.
        no_prompt: where nothing is asked: a ``learned`` vector is compared with, or all tokens are equally relevant
            (``uniform``).
        no_prompt_rate: share of the samples that training treats as though nothing had been asked.
        gradient: how the relevance is learned: not at all (``none``); through gates of 0 that have the gradient of
            log sigmoid(scale * cosine) (``straight_through``); through these as gates on the kept tokens (``gates``).
        scale: of the cosines in the gates.
    """

    def __init__(
        self,
        tokens: TokenSpec,
        dim_out: int,
        *,
        keep: Annotated[int, AtLeast(1)] | Annotated[float, Above(0), AtMost(1)],
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
        self.budget, self.scale = Budget(keep), scale
        self.positions: Positions = positions
        self.gradient: Literal["none", "straight_through", "gates"] = gradient
        asked = Asked(source, dim_out, text_encoder, "selector")
        self.scores = PromptScores(
            tokens.dim, asked, width, no_prompt, no_prompt_rate, centred, frozen=gradient == "none"
        )
        self.reads = self.scores.reads

    def spec(self, tokens: TokenSpec) -> TokenSpec:
        left = chosen_spec(tokens, self.budget, self.positions)
        return left if self.gradient == "none" else replace(left, gated=True)

    def forward(self, tokens: VisualTokens, context: StageContext) -> VisualTokens:
        scores, _ = self.scores(tokens, context)
        context.drawn("scores", (scores + 1) / 2, tokens)
        rated = replace(tokens, attn=scores.detach())  # goes with the tokens to where the choice is made
        _, which = in_full_rows(rated, self.budget, _choose)
        tokens = with_gates(tokens, gates_of(scores, self.gradient, self.scale))
        return kept(tokens, which, self.budget, self.positions)

    def init_weights(self) -> None:
        self.scores.init_weights()


def _choose(rows: VisualTokens, k: int) -> tuple[VisualTokens, Bool[Tensor, "g n"]]:
    directions, scores = unit(rows.x.detach()), rows.attn
    assert scores is not None
    low, high = scores.amin(1, keepdim=True), scores.amax(1, keepdim=True)
    relevance = torch.where(high > low, (scores - low + LEAST) / (high - low).clamp(min=LEAST), 1.0)
    relevance = relevance.to(directions.dtype)
    kernel = relevance[..., None] * (directions @ directions.transpose(1, 2)) * relevance[:, None]
    return rows, at_places(most_diverse(kernel, k), kernel.shape[1])


def most_diverse(kernel: Float[Tensor, "g n n"], k: int) -> Int[Tensor, "g k"]:
    """Places of ``k`` items, each of which makes the determinant of the kernel of those before and itself largest.

    A Cholesky factor is kept of the items so far; ``gain`` is what each item would multiply the determinant by.
    """
    rows = torch.arange(len(kernel), device=kernel.device)
    gain = kernel.diagonal(dim1=1, dim2=2).clone()
    taken = torch.zeros_like(gain, dtype=torch.bool)
    factors: list[Float[Tensor, "g n"]] = []
    places = []
    for _ in range(k):
        place = gain.masked_fill(taken, -torch.inf).argmax(1)
        taken = taken.scatter(1, place[:, None], True)
        places.append(place)
        column = kernel[rows, place]
        if factors:
            before = torch.stack(factors, 1)  # (g, so far, n)
            column = column - (before[rows, :, place][:, None] @ before)[:, 0]
        factor = column / gain[rows, place].clamp(min=torch.finfo(gain.dtype).eps).sqrt()[:, None]
        factors.append(factor)
        gain = gain - factor.square()
    return torch.stack(places, 1)
