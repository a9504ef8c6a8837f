"""A fusion with layers of its own, which no option of beni has yet: text attends to visual tokens (Flamingo's way)."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from beni.fusion.base import Beside, Decoder, Fusion
from beni.types import LayerCall, LayerVisitor, Markup, Sequence, TokenSpec, VisualTokens

NOBODY = -2
"""Owner of the tokens of a blank image: no position, padding (-1) included, belongs to it."""


class CrossAttention(nn.Module):
    """Hidden states ``(b, t, d)`` with what they see of visual tokens ``(k, d)`` added; exactly they where they see
    none.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.query, self.key, self.value, self.out = (nn.Linear(dim, dim, bias=False) for _ in range(4))
        self.gate = nn.Parameter(torch.empty(1))  # FSDP2 takes no scalars

    def forward(
        self, hidden: Float[Tensor, "b t d"], visual: Float[Tensor, "k d"], seen: Bool[Tensor, "b t k"]
    ) -> Float[Tensor, "b t d"]:
        logits = self.query(hidden) @ self.key(visual).T * hidden.shape[-1] ** -0.5
        weights = logits.masked_fill(~seen, -1e4).softmax(-1) * seen
        return hidden + self.gate.tanh() * self.out(weights @ self.value(visual))


class CrossFusion(Fusion):
    """Visual tokens take no position in the text: every position attends to those of its sample's images, in front of
    every second layer of the llm.
    """

    def __init__(self, tokens: TokenSpec, dim: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleDict()

    def markup(self, parts: Markup) -> Markup:
        return tuple(part for part in parts if isinstance(part, str))

    @property
    def reads_gates(self) -> bool:
        return False

    @property
    def reads_beside(self) -> frozenset[Beside]:
        return frozenset()

    def install(self, llm: Decoder) -> None:
        for index in range(0, len(llm.layers()), 2):
            self.blocks[str(index)] = CrossAttention(llm.hidden_size)

    def layers(self) -> list[nn.Module]:
        return list(self.blocks.values())

    def forward(
        self, sequence: Sequence, visual: VisualTokens | None, owners: Int[Tensor, "k"] | None = None
    ) -> Sequence:
        if visual is None:
            return sequence
        images, samples = len(visual.x), len(sequence.lengths())
        if owners is None:
            owners = torch.arange(images, device=visual.x.device) * samples // images
        return self._visited(sequence, visual, owners)

    def blank(self, sequence: Sequence, visual: VisualTokens) -> Sequence:
        return self._visited(sequence, visual, torch.full((len(visual.x),), NOBODY, device=visual.x.device))

    def _visited(self, sequence: Sequence, visual: VisualTokens, owners: Tensor) -> Sequence:
        flat, owner = visual.x[visual.mask], owners[:, None].expand_as(visual.mask)[visual.mask]
        visitors = {
            int(index): LayerVisitor(before=partial(attend, block=block, visual=flat, owner=owner))
            for index, block in self.blocks.items()
        }
        return replace(sequence, visitors=visitors)

    @property
    def looks_ahead(self) -> bool:
        return False

    @property
    def reads_along(self) -> frozenset[int]:
        return frozenset()

    @property
    def calibrates(self) -> bool:
        return False

    def calibrate(self, text: Float[Tensor, "k d"], visual: VisualTokens) -> None:
        """Nothing is measured."""

    def init_weights(self) -> None:
        for block in self.blocks.values():
            nn.init.constant_(block.gate, 0.5)
            for linear in (block.query, block.key, block.value, block.out):
                nn.init.normal_(linear.weight, std=0.2)


def attend(hidden: Tensor, call: LayerCall, block: nn.Module, visual: Tensor, owner: Tensor) -> Tensor:
    return block(hidden, visual.to(hidden.dtype), call.samples[..., None] == owner)
