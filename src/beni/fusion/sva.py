"""Spatial Vision Aggregators inside the llm (Cambrian-1, arXiv 2406.16860): between layers, the hidden states of an
image's positions read their own cells of the encoders' features once more.

Visual tokens stand in the text as with ``inline``, on the grid of ``resampler=sva``. Behind layers ``first``, ``first +
every``, ... an aggregator takes the hidden states at their positions for queries, reads what the resampler has read
(the projected features of each encoder, which come along with the tokens), and adds what it makes of it. No position is
added. Ends of rows (``views.newline``) stay as they are.

Reference: ``cambrian_llama.py`` and ``vision_sampler.py`` of https://github.com/cambrian-mllm/cambrian; no class of it
can be loaded, so tests derive the result cell by cell. Deviation: the last matrix of an aggregator starts at zero
(``init=zero``), so that a fresh one changes no bit of the llm; Cambrian draws it as torch does (``init=torch``).
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Annotated, Literal, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from beni.config.ranges import AtLeast
from beni.errors import CompositionError
from beni.fusion.base import Beside, Decoder, Fusion
from beni.fusion.inline import InlineFusion
from beni.fusion.media import SPAN
from beni.fusion.own_layers import OwnLayers
from beni.nn.aggregator import AggregatorLayer, gathered
from beni.nn.conv import init_as_torch
from beni.nn.queries import head_dim_of
from beni.types import LayerCall, LayerVisitor, Markup, Sequence, TokenSpec, VisualTokens


class SvaFusion(Fusion):
    """The embeddings ``(b, t, d)`` with the placeholder positions replaced, and aggregators behind layers ``first``,
    ``first + every``, ...

    Args:
        tokens: spec of the visual tokens; must be on a grid, and bring ``sources`` of one width on grids that it
            divides.
        dim: width of the llm.
        every: layers of the llm from one aggregator to the next.
        first: number of the layer, from 0 on, that the first aggregator stands behind.
        num_heads: heads; divides the width of the sources.
        init: how the last matrix of each aggregator starts, at ``zero`` or drawn as ``torch`` does.
        image_attention: as of ``inline``.
        out_norm: as of ``inline``.
        match_text_rms: as of ``inline``.

    Raises:
        CompositionError: E-STACK when no sources come along, or not on grids that the tokens' divides; E-HEADS when
            ``num_heads`` does not divide their width; E-PLACE, by ``install``, when the llm has no layer ``first``
            that another one follows.
    """

    def __init__(
        self,
        tokens: TokenSpec,
        dim: int,
        *,
        every: Annotated[int, AtLeast(1)],
        first: Annotated[int, AtLeast(0)],
        num_heads: Annotated[int, AtLeast(1)],
        init: Literal["zero", "torch"],
        image_attention: Literal["causal", "image", "prefix"],
        out_norm: Literal["none", "layernorm", "rmsnorm"],
        match_text_rms: bool,
    ) -> None:
        super().__init__()
        self.grid, keys = cells_of(tokens)
        self.init, width = init, tokens.sources[0].dim
        head_dim_of(width, num_heads, "fusion=sva")
        self._make = partial(AggregatorLayer, dim, width, num_heads, keys)
        self.inline = InlineFusion(
            tokens, dim, image_attention=image_attention, out_norm=out_norm, match_text_rms=match_text_rms
        )
        self.blocks = OwnLayers(first, every)

    @property
    def looks_ahead(self) -> bool:
        return self.inline.looks_ahead

    @property
    def reads_gates(self) -> bool:
        return False

    @property
    def reads_beside(self) -> frozenset[Beside]:
        return frozenset({"sources"})

    @property
    def reads_along(self) -> frozenset[int]:
        return frozenset()

    @property
    def calibrates(self) -> bool:
        return self.inline.calibrates

    def markup(self, parts: Markup) -> Markup:
        return self.inline.markup(parts)

    def install(self, llm: Decoder) -> None:
        self.blocks.install(llm, self._make, behind=True)

    def layers(self) -> list[nn.Module]:
        return list(self.blocks.values())

    def forward(
        self, sequence: Sequence, visual: VisualTokens | None, owners: Int[Tensor, "k"] | None = None
    ) -> Sequence:
        fused = self.inline(sequence, visual, owners)
        if visual is None:
            return fused
        samples, columns = fused.numbered()
        places = (samples * SPAN + columns)[fused.is_image]  # ascending, as reading order is
        ends = visual.x.shape[1] > self.grid[0] * self.grid[1]  # of rows, which stand for no patch
        if ends and not visual.x.is_meta:  # a dry run has no values to choose by
            places = places[(visual.size > 0)[visual.mask]]
        return replace(fused, visitors=self._visitors(places, visual, skips=not torch.is_grad_enabled()))

    def blank(self, sequence: Sequence, visual: VisualTokens) -> Sequence:
        nowhere = torch.full((len(visual.x) * self.grid[0] * self.grid[1],), len(sequence.lengths()) * SPAN)
        visitors = self._visitors(nowhere.to(visual.x.device), visual, skips=False)
        return replace(self.inline.blank(sequence, visual), visitors=visitors)

    def _visitors(self, places: Int[Tensor, "k"], visual: VisualTokens, skips: bool) -> dict[int, LayerVisitor]:
        """What stands behind layers of the llm.

        Args:
            places: of the queries: number of the sample times ``SPAN``, plus that of the position in it.
            skips: nothing is computed in passes that no query is in, as those of generation behind the prompt.
        """
        overview, cells, log_gate = gathered(list(visual.sources), self.grid)

        def read(index: int, hidden: Float[Tensor, "b t d"], call: LayerCall) -> Float[Tensor, "b t d"]:
            here = call.samples * SPAN + call.columns
            number = torch.searchsorted(places, here).clamp(max=len(places) - 1)
            found = places[number] == here
            if skips and not (torch.compiler.is_exporting() or hidden.is_meta) and not bool(found.any()):
                return hidden
            block = cast(AggregatorLayer, self.blocks[str(index)])
            dtype, flat = block.input_proj.weight.dtype, hidden.flatten(0, 1)
            count = cells[0].shape[0] * cells[0].shape[1]
            # where each query is in this pass; one that is not there asks for the first position, and is not heard
            stands = torch.zeros(count + 1, dtype=torch.long, device=hidden.device)
            order = torch.arange(len(flat), device=hidden.device)
            stands = stands.scatter(0, torch.where(found, number, count).flatten(), order)[:count]
            asked = flat[stands].unflatten(0, cells[0].shape[:2]).to(dtype)
            made = block(asked, overview.to(dtype), [cell.to(dtype) for cell in cells], log_gate).flatten(0, 1)
            return torch.where(found[..., None], hidden + made[number].to(hidden.dtype), hidden)

        return {int(name): LayerVisitor(after=partial(read, int(name))) for name in self.blocks}

    @torch.no_grad()
    def calibrate(self, text: Float[Tensor, "k d"], visual: VisualTokens) -> None:
        self.inline.calibrate(text, visual)

    def init_weights(self) -> None:
        self.inline.init_weights()
        for block in self.blocks.values():
            layer = cast(AggregatorLayer, block)
            init_as_torch(layer)
            layer.draw_positions()
            if self.init == "zero":
                nn.init.zeros_(layer.mlp.fc2.weight)


def cells_of(tokens: TokenSpec) -> tuple[tuple[int, int], list[int]]:
    """The grid of the queries, and how many tokens of each source a query reads.

    Raises:
        CompositionError: E-STACK when there are no such sources.
    """
    grids = [source.grid for source in tokens.sources]
    fits = tokens.grid is not None and all(
        grid is not None and grid[0] % tokens.grid[0] == grid[1] % tokens.grid[1] == 0 for grid in grids
    )
    if not grids or not fits or len({source.dim for source in tokens.sources}) > 1:
        raise CompositionError(
            "E-STACK",
            "fusion=sva reads the encoders' features that visual tokens were made of, by the cells of their grid, and "
            "they do not come along with these",
            groups=("resampler", "fusion"),
            fix="set resampler=sva, with views=single and a connector that keeps its tokens (connector=auto)",
        )
    assert tokens.grid is not None
    rows, columns = tokens.grid
    return (rows, columns), [(grid[0] // rows) * (grid[1] // columns) for grid in grids if grid is not None]
