"""DeepStack: further features are added to the hidden states of an image's positions, layer by layer (arXiv 2406.04334;
from levels of the encoder as Qwen3-VL has it, arXiv 2511.21631).

Visual tokens stand in the text as with ``inline``. What comes along with them is cut into sets, each of which is added
to what one of the llm's first layers gives at the places of the tokens. No position is added, so the llm costs what it
costs without. Sets are of one of two sources:

``levels``: features of further encoder layers (``vision.levels``, and blocks of them behind
``resampler=pixel_shuffle``), each set through a merger of its own to the llm's width. Reference: ``transformers``
``Qwen3VLVisionPatchMerger`` with its norm behind the shuffle, equal to 1e-5 with its weights, and
``Qwen3VLTextModel._deepstack_process``, equal bit by bit.

``views``: tokens of a larger picture, sampled in its tiles (``views=deepstack``) and added as the connector gives them.
Reference: ``deepstack_llama.py`` of https://github.com/MengLcool/DeepStack-VL, which adds the first set before layer
``start``: after layer ``first = start - 1``.
"""

from __future__ import annotations

from collections.abc import Sequence as Several
from dataclasses import replace
from functools import partial
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from beni.config.ranges import AtLeast
from beni.errors import CompositionError
from beni.fusion.base import Beside, Decoder, Fusion
from beni.fusion.inline import InlineFusion
from beni.fusion.media import SPAN
from beni.nn.queries import draw_layers
from beni.types import LayerCall, LayerVisitor, Markup, Sequence, TokenSpec, VisualTokens


class DeepStack(Fusion):
    """The embeddings ``(b, t, d)`` with the placeholder positions replaced, and features that are added to them after
    layers ``first``, ``first + every``, ...

    Args:
        tokens: spec of the visual tokens; must bring ``levels``, or what the source ``views`` needs (``deep``).
        dim: width of the llm.
        source: what is added, ``levels`` of the encoder or tokens of ``views``.
        sets: what the levels are cut into, of equal width, or as many as come from views; each is added after a layer
            of its own.
        first: number of the first such layer, from 0 on.
        every: layers of the llm from one to the next.
        image_attention: as of ``inline``.
        out_norm: as of ``inline``, also on tokens of views that are added.
        match_text_rms: as of ``inline``, likewise.

    Raises:
        CompositionError: E-LEVELS when there are no levels, or ``sets`` does not divide them, or other than ``sets``
            come from views; E-PLACE, by ``install``, when the llm has not so many layers, and one more that reads the
            last features.
    """

    def __init__(
        self,
        tokens: TokenSpec,
        dim: int,
        *,
        source: Literal["levels", "views"],
        sets: Annotated[int, AtLeast(1)],
        first: Annotated[int, AtLeast(0)],
        every: Annotated[int, AtLeast(1)],
        image_attention: Literal["causal", "image", "prefix"],
        out_norm: Literal["none", "layernorm", "rmsnorm"],
        match_text_rms: bool,
    ) -> None:
        super().__init__()
        if source == "views" and tokens.deep != sets * dim:
            raise CompositionError(
                "E-LEVELS",
                f"fusion=deepstack_views adds {sets} sets of tokens of views, and {tokens.deep // dim} come along",
                groups=("views", "fusion"),
                fix=f"set fusion.sets={tokens.deep // dim}" if tokens.deep else "set views=deepstack",
            )
        if source == "levels" and (not tokens.levels or tokens.levels % sets):
            raise CompositionError(
                "E-LEVELS",
                f"fusion=deepstack adds {sets} sets of features of further encoder layers, and those that come along "
                f"are {tokens.levels} wide",
                groups=("vision", "fusion"),
                fix=f"set vision.levels to {sets} hidden states, for instance to '{list(range(1, sets + 1))}', with "
                "resampler=none or resampler=pixel_shuffle, which keep them",
            )
        self.source, self.sets, self.first, self.every = source, sets, first, every
        self.inline = InlineFusion(
            tokens, dim, image_attention=image_attention, out_norm=out_norm, match_text_rms=match_text_rms
        )
        mergers = sets if source == "levels" else 0
        self.mergers = nn.ModuleList(Merger(tokens.levels // sets, dim) for _ in range(mergers))

    @property
    def looks_ahead(self) -> bool:
        return self.inline.looks_ahead

    @property
    def reads_gates(self) -> bool:
        return False

    @property
    def reads_beside(self) -> frozenset[Beside]:
        return frozenset({"deep"}) if self.source == "views" else frozenset()

    @property
    def reads_along(self) -> frozenset[int]:
        return frozenset()

    @property
    def calibrates(self) -> bool:
        return self.inline.calibrates

    def markup(self, parts: Markup) -> Markup:
        return self.inline.markup(parts)

    def install(self, llm: Decoder) -> None:
        depth, last = len(llm.layers()), self.first + (self.sets - 1) * self.every
        if last >= depth - 1:
            raise CompositionError(
                "E-PLACE",
                f"fusion=deepstack adds features after layer {last}, but the llm has the layers 0 to {depth - 1}, and "
                "what is added after the last one reaches no text",
                groups=("fusion", "llm"),
                fix="set fusion.every=1, a smaller fusion.first, or fewer fusion.sets and vision.levels or tiles",
            )

    def layers(self) -> list[nn.Module]:
        return list(self.mergers)

    def forward(
        self, sequence: Sequence, visual: VisualTokens | None, owners: Int[Tensor, "k"] | None = None
    ) -> Sequence:
        fused = self.inline(sequence, visual, owners)
        if visual is None:
            return fused
        samples, columns = fused.numbered()
        places = (samples * SPAN + columns)[fused.is_image]  # ascending, as reading order is
        visitors = {}
        for number, features in enumerate(self._features(visual)):
            change = partial(add, places=places, features=features)
            visitors[self.first + number * self.every] = LayerVisitor(after=change)
        return replace(fused, visitors=visitors)

    def blank(self, sequence: Sequence, visual: VisualTokens) -> Sequence:
        blank = self.inline.blank(sequence, visual)
        nothing = torch.stack([features.sum() for features in self._features(visual)]).sum() * 0.0
        return replace(blank, embeds=blank.embeds + nothing.to(blank.embeds.dtype))

    def _features(self, visual: VisualTokens) -> Several[Float[Tensor, "k d"]]:
        """What is added at the places of the real tokens, in reading order, a set after another."""
        brought = visual.levels if self.source == "levels" else visual.deep
        if brought is None:
            raise ValueError(f"deepstack was given tokens without what it adds of {self.source}")
        sets = brought[visual.mask].chunk(self.sets, -1)
        if self.source == "views":
            return [self.inline.sized(tokens) for tokens in sets]
        return [merger(levels) for merger, levels in zip(self.mergers, sets, strict=True)]

    @torch.no_grad()
    def calibrate(self, text: Float[Tensor, "k d"], visual: VisualTokens) -> None:
        self.inline.calibrate(text, visual)

    def init_weights(self) -> None:
        self.inline.init_weights()
        for merger in self.mergers:
            draw_layers(merger, lambda weight: nn.init.normal_(weight, std=0.02))


class Merger(nn.Module):
    """``(k, w) -> (k, d)``: layer norm, linear, GELU, linear, as wide inside as what comes in."""

    def __init__(self, width: int, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.fc1, self.fc2 = nn.Linear(width, width), nn.Linear(width, dim)

    def forward(self, levels: Float[Tensor, "k w"]) -> Float[Tensor, "k d"]:
        return self.fc2(F.gelu(self.fc1(self.norm(levels.to(self.fc1.weight.dtype)))))


def add(
    hidden: Float[Tensor, "b t d"], call: LayerCall, places: Int[Tensor, "k"], features: Float[Tensor, "_ d"]
) -> Float[Tensor, "b t d"]:
    """Hidden states with the features added at their places, one for each: number of the sample times ``SPAN``, plus
    that of the position in it. A dry run, which does not know where images are, has more features than places.
    """
    here = call.samples * SPAN + call.columns
    index = torch.searchsorted(places, here).clamp(max=len(places) - 1)
    found = (places[index] == here)[..., None]
    return torch.where(found, hidden + features[index].to(hidden.dtype), hidden)
