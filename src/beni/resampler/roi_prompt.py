"""Windows that have most to do with what is asked: the heat of a patch is its cosine with the prompt in a learned space
(``beni.prompt.scores``).

Choosing a window has no gradient. As with selectors that go by the prompt, a log-gate brings one to the cosines: the
gate of a region's tokens is log sigmoid(scale * mean cosine in its window), or 0 with that gradient.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch

from beni.config.ranges import Above, AtLeast, AtMost, Below
from beni.nn.boxes import best_windows, dealt, even_windows, require_sizes
from beni.prompt.asked import Asked
from beni.prompt.scores import PromptScores, gates_of
from beni.resampler.roi import RegionProposer, Regions, heat_map
from beni.stage import StageContext
from beni.types import TokenSpec, VisualTokens


class PromptedRegions(RegionProposer):
    """``(i, rows * columns, d) -> (i, whole^2 + regions * bins^2, d)``: windows with the highest scores, best first.

    Args:
        tokens: spec of the incoming visual tokens.
        dim_out: width of the llm, at which the prompt comes.
        regions: boxes of each view.
        sizes: of windows, as shares of the view's sides; each gets an equal portion of the boxes.
        overlap: intersection over union above which windows of one size exclude each other.
        source: the prompt as the mean of the llm's ``embeddings``, as its ``hidden`` state at the last position, or as
            a frozen ``text_encoder`` reads it.
        text_encoder: hub id or folder of one, of a whole CLIP or SigLIP too; null for another source.
        width: of the space in which patches and prompt are compared.
        centred: subtract the mean of a view's patches first.
        no_prompt: where nothing is asked: a ``learned`` vector is compared with, or windows stand at even distances
            (``uniform``).
        no_prompt_rate: share of the samples that training treats as though nothing had been asked.
        gradient: how the scores are learned: not at all (``none``); through gates of 0 that have the gradient of
            log sigmoid(scale * score) (``straight_through``); through these as gates (``gates``).
        scale: of the scores in the gates.
        bins: rows and columns of tokens of each box.
        samples: points along each side of a bin that are averaged; ``auto`` leaves no cell of a box out.
        whole: rows and columns of tokens of the whole view, which come first; 0 leaves them out.
        embed_boxes: add to each token where its box lies.

    Raises:
        CompositionError: E-GRID when the tokens form no dense grid, E-GATE when they have gates.
        ConfigError: when there are no ``sizes``.
    """

    def __init__(
        self,
        tokens: TokenSpec,
        dim_out: int,
        *,
        regions: Annotated[int, AtLeast(1)],
        sizes: list[Annotated[float, Above(0), AtMost(1)]],
        overlap: Annotated[float, AtLeast(0), AtMost(1)],
        source: Literal["embeddings", "hidden", "text_encoder"],
        text_encoder: str | None,
        width: Annotated[int, AtLeast(1)],
        centred: bool,
        no_prompt: Literal["learned", "uniform"],
        no_prompt_rate: Annotated[float, AtLeast(0), Below(1)],
        gradient: Literal["none", "straight_through", "gates"],
        scale: Annotated[float, Above(0)],
        bins: Annotated[int, AtLeast(1)],
        samples: Annotated[int, AtLeast(1)] | Literal["auto"],
        whole: Annotated[int, AtLeast(0)],
        embed_boxes: bool,
    ) -> None:
        require_sizes(sizes, "resampler.sizes")
        super().__init__(tokens, "resampler=roi_prompt", dealt(regions, sizes), bins, samples, whole, embed_boxes)
        self.sizes, self.overlap, self.scale = sizes, overlap, scale
        self.gradient: Literal["none", "straight_through", "gates"] = gradient
        asked = Asked(source, dim_out, text_encoder, "resampler")
        self.scores = PromptScores(
            tokens.dim, asked, width, no_prompt, no_prompt_rate, centred, frozen=gradient == "none"
        )
        self.reads, self.gates = self.scores.reads, gradient != "none"

    def propose(self, tokens: VisualTokens, context: StageContext) -> Regions:
        scores, asked = self.scores(tokens, context)
        context.drawn("scores", (scores + 1) / 2, tokens)
        boxes, means = best_windows(heat_map(scores, tokens), self.regions, self.sizes, self.overlap)
        even = even_windows(self.regions, self.sizes).to(boxes)
        gates = gates_of(means, self.gradient, self.scale)
        return Regions(torch.where(asked[:, None, None], boxes, even), gates)
