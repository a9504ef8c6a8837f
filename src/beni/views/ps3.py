"""PS3: what is asked decides where the encoder looks more finely (NVILA, arXiv 2503.19903).

Reference: ``ps3/modeling_ps3.py`` of https://github.com/NVlabs/PS3. The whole picture passes the encoder; each of its
patches is compared with what is asked, and so are features that a small convolution net makes of the finer picture, of
which each patch of the whole takes its best (``adaptive_max_pool2d``). The mean of both cosines is brought to the finer
grid by taking the nearest; the patches with the highest ones pass the encoder. The worth of a patch is
P(keep) = sigmoid(scale * cosine), and a learned vector stands in where nothing is asked.

Deviations: one finer size, not two or three. The finer pass reads no keys and values of the first one; the two meet in
what follows. Tokens and prompt are compared in a learned space after one matrix, not after an MLP
(``beni.prompt.scores``). There the choice is taught by boxes; here the model's own loss teaches it, through gates.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from beni.config.ranges import Above, AtLeast, AtMost, Below
from beni.nn.choose import unit
from beni.prompt.asked import Asked
from beni.prompt.scores import PromptScores, gates_of
from beni.stage import StageContext
from beni.types import TokenSpec, VisualTokens
from beni.views.two_looks import TwoLooks


class Ps3(TwoLooks):
    """``(2 i, n, d) -> (2 i, n, d)``, or ``-> (i, m, d)`` where both looks are joined.

    Args:
        tokens: spec of the tokens of one view.
        dim_out: width of the llm, at which the prompt comes.
        tile: (height, width) in pixels of the picture that the encoder wants.
        patches: (rows, columns) of patches that the encoder makes of it.
        times: the sides of the finer picture, as multiples of the encoder's.
        keep: patches of the finer picture that are kept: a whole number, or a share (a float, at most 1.0).
        detail: channels of the features of the finer picture that are compared, too; 0 for none.
        source: the prompt as the mean of the llm's ``embeddings``, as its ``hidden`` state at the last position, or as
            a frozen ``text_encoder`` reads it.
        text_encoder: hub id or folder of one, of a whole CLIP or SigLIP too; null for another source.
        width: of the space in which patches and prompt are compared.
        centred: subtract the mean of the whole picture's tokens first.
        no_prompt_rate: share of the samples that training treats as though nothing had been asked.
        gradient: how the choice is learned: not at all (``none``); through gates of 0 that have the gradient of
            log P(keep) (``straight_through``); through these as gates on the kept tokens (``gates``).
        scale: of the cosine in P(keep).
        join: let the resampler see both looks at once.
    """

    def __init__(
        self,
        tokens: TokenSpec,
        dim_out: int,
        tile: tuple[int, int],
        patches: tuple[int, int],
        *,
        times: Annotated[int, AtLeast(2)],
        keep: Annotated[int, AtLeast(1)] | Annotated[float, Above(0), AtMost(1)],
        detail: Annotated[int, AtLeast(0)],
        source: Literal["embeddings", "hidden", "text_encoder"],
        text_encoder: str | None,
        width: Annotated[int, AtLeast(1)],
        centred: bool,
        no_prompt_rate: Annotated[float, AtLeast(0), Below(1)],
        gradient: Literal["none", "straight_through", "gates"],
        scale: Annotated[float, Above(0)],
        join: bool,
    ) -> None:
        super().__init__(tokens, tile, patches, times, keep, gated=gradient != "none", join=join)
        self.scale = scale
        self.gradient: Literal["none", "straight_through", "gates"] = gradient
        asked = Asked(source, dim_out, text_encoder, "views")
        self.scores = PromptScores(
            tokens.dim, asked, width, "learned", no_prompt_rate, centred, frozen=gradient == "none"
        )
        patch = (tile[0] // patches[0], tile[1] // patches[1])
        self.detail = Detail(patch, detail, width) if detail else None
        if self.detail is not None:
            self.detail.requires_grad_(gradient != "none")
        self.reads = self.scores.reads

    def rates(
        self, whole: VisualTokens, finer: Float[Tensor, "i 3 height width"], context: StageContext
    ) -> Float[Tensor, "i n"]:
        text, _ = self.scores.asked(whole.x, context)
        cosines = self.scores.cosines(whole, text)
        if self.detail is not None:
            cosines = (cosines + self.detail(finer, text, self.patches).to(cosines.dtype)) / 2
        for row, own in enumerate(cosines if context.sink is not None and context.sink.wants_pictures else ()):
            context.picture("scores", row, (own + 1) / 2, whole.yx[row], self.patches)
        return F.interpolate(cosines.unflatten(1, (1, *self.patches)), self.grid, mode="nearest").flatten(1)

    def gates(self, rates: Float[Tensor, "i n"]) -> Float[Tensor, "i n"] | None:
        return gates_of(rates, self.gradient, self.scale)


class Detail(nn.Module):
    """How much the small things within each patch have to do with what is asked.

    Args:
        patch: (height, width) of a patch of the encoder in pixels.
        channels: of the features.
        width: of what is asked.
    """

    def __init__(self, patch: tuple[int, int], channels: int, width: int) -> None:
        super().__init__()
        half = (max(1, patch[0] // 2), max(1, patch[1] // 2))
        self.embed = nn.Conv2d(3, channels, half, stride=half)
        self.around = nn.Conv2d(channels, channels, 3, padding=1)
        self.of_text = nn.Linear(width, channels, bias=False)

    def forward(
        self, pixels: Float[Tensor, "i 3 height width"], text: Float[Tensor, "i w"], grid: tuple[int, int]
    ) -> Float[Tensor, "i n"]:
        """The highest cosine under each cell of ``grid``."""
        features = self.around(F.gelu(self.embed(pixels.to(self.embed.weight.dtype))))
        wanted = unit(self.of_text(text))  # (i, channels)
        cosines = wanted[:, None] @ unit(features.flatten(2).transpose(1, 2)).transpose(1, 2)
        return F.adaptive_max_pool2d(cosines.unflatten(2, features.shape[2:]), grid).flatten(1)

    def init_weights(self) -> None:
        """Maps that keep the size of what they map."""
        for layer in (self.embed, self.around, self.of_text):
            nn.init.normal_(layer.weight, std=layer.weight[0].numel() ** -0.5)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
