"""What the model keeps of its images, and what its answers look at.

Every selector is drawn, one of tomorrow included: the model leaves the picture, and not each selector. What an answer
looks at is the attention that its positions (those that its tokens are predicted at) pay to visual tokens in the last
layers of the llm, the mean over heads, layers and positions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch

from beni.llm.base import Llm
from beni.nn.gates import openness
from beni.stage import Picture, Stage, StageContext
from beni.types import Sequence as LlmSequence
from beni.types import VisualTokens

KEPT = "selector/kept"
"""The picture of the tokens behind the selector stage: each as far as its gate is open, and none that is gone."""
SEEN = "views/kept"
"""The picture of the patches that the encoder has seen of a finer look at the image."""
ATTENTION = "attention"
"""The picture of what an answer looks at."""


def kept(selector: Stage, tokens: VisualTokens, context: StageContext) -> VisualTokens:
    """``(i, n, d) -> (i, m, d)``: what the selector makes of the tokens. Where somebody looks, which are left is drawn
    too, unless they are the very same.
    """
    left = selector(tokens, context)
    if left is tokens or context.sink is None or not context.sink.wants_pictures:
        return left
    values = torch.ones_like(left.size) if left.log_gate is None else openness(left.log_gate)
    for row, real in enumerate(left.mask):
        context.picture(KEPT.partition("/")[2], row, values[row][real], left.yx[row][real], left.grid or tokens.grid)
    return left


@dataclass(frozen=True)
class Attention:
    """What answers look at.

    Attributes:
        images: number of an image -> the attention that the answer of its sample pays to each of its tokens that stands
            for patches, with places in the whole picture.
        shares: number of a sample with an answer and an image -> attention on all its visual tokens, in [0, 1].
        unread: why there is nothing of both; empty where there is.
    """

    images: Mapping[int, Picture] = field(default_factory=dict)
    shares: Mapping[int, float] = field(default_factory=dict)
    unread: str = ""


@dataclass(frozen=True)
class Looked:
    """What the model has left to be drawn of a micro-batch.

    Attributes:
        pictures: as in ``Sink``.
        attention: of the answers.
    """

    pictures: Mapping[str, Sequence[tuple[int, Picture]]]
    attention: Attention = Attention()


@torch.no_grad()
def attention_on(
    llm: Llm, sequence: LlmSequence, visual: VisualTokens, owners: Sequence[int], layers: int
) -> Attention:
    """What the supervised tokens of each sample attend to; one pass through the llm.

    Args:
        sequence: padded, with labels, and with the visual tokens in it as fusion has put them there.
        visual: a row an image, as fusion was given them.
        owners: the sample of each image.
        layers: the last so many that attend.
    """
    if int(sequence.is_image.sum()) != int(visual.mask.sum()):
        return Attention(unread="no attention overlay: with this fusion visual tokens have no positions in the text")
    if not llm.capabilities.shows_attention:
        return Attention(unread=f"no attention overlay: {llm.describe().kind} does not pass beni's attention on")
    places, _ = sequence.predicted()
    weights = llm.attended(sequence, places, layers).weights
    if weights is None:
        raise RuntimeError("an llm that shows its attention has shown none")
    images, shares = {}, {}
    positions = sequence.is_image.nonzero()[:, 1].split(visual.mask.sum(1).tolist())
    for image, (owner, columns) in enumerate(zip(owners, positions, strict=True)):
        mine = weights[places[0] == owner]
        if len(mine):
            each, real = mine[:, columns].mean(0), visual.mask[image]
            stands = visual.size[image][real] > 0
            images[image] = Picture(each[stands].cpu(), visual.yx[image][real][stands].float().cpu())
            shares[owner] = shares.get(owner, 0.0) + float(each.sum())
    return Attention(images, shares)
