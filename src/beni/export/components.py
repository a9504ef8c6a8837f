"""The components of a model as modules of tensors only, each with two examples of what it takes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from PIL import Image as PILImage
from torch import Tensor, nn

from beni.data.batch.collate import stack_views
from beni.model.modeling import BeniForConditionalGeneration
from beni.model.viewer import placeholders
from beni.stage import StageContext
from beni.types import Sequence, TokenSpec, VisualTokens


@dataclass(frozen=True)
class Component:
    """A part of the model as a module of tensors only.

    Attributes:
        example: inputs that the program is made from.
        second: inputs of another shape.
        dynamic: for each input its axes of free length, as ``torch.export`` takes them.
    """

    name: str
    module: nn.Module
    example: tuple[Tensor, ...]
    second: tuple[Tensor, ...]
    dynamic: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class NoComponent:
    """One that this model does not have as a module of tensors, and why."""

    name: str
    reason: str


class _Vision(nn.Module):
    """(i, 3, h, w) -> (i, n, d)."""

    def __init__(self, model: BeniForConditionalGeneration) -> None:
        super().__init__()
        self.vision = model.vision

    def forward(self, pixels: Tensor) -> Tensor:
        return self.vision(pixels).x


class _Stage(nn.Module):
    """(i, n, d) -> (i, m, d), all tokens real and on their grid."""

    def __init__(self, stage: nn.Module, spec: TokenSpec) -> None:
        super().__init__()
        self.stage, self.grid = stage, spec.grid

    def forward(self, x: Tensor) -> Tensor:
        return self.stage(VisualTokens.dense(x, self.grid or (1, x.shape[1])), StageContext()).x


class _Llm(nn.Module):
    """(b, t, d) and a mask (b, t) of real positions -> logits (b, t, v)."""

    def __init__(self, model: BeniForConditionalGeneration) -> None:
        super().__init__()
        self.llm = model.llm

    def forward(self, embeds: Tensor, mask: Tensor) -> Tensor:
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        return self.llm(Sequence(embeds, positions, torch.full_like(positions, -1), mask=mask))


class _Whole(nn.Module):
    """Ids (b, t) with the placeholders of one image a row, pixels and mask (b, t) -> logits (b, t, v)."""

    def __init__(self, model: BeniForConditionalGeneration) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor, pixels: Tensor, mask: Tensor) -> Tensor:
        return self.model(ids, pixels=pixels, attention_mask=mask).logits


def components(model: BeniForConditionalGeneration, text: int) -> Iterator[Component | NoComponent]:
    """The components with their examples; instead of one that has none, why.

    Args:
        text: tokens of text in the example.
    """
    draw = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw)

    def mask(rows: int, length: int, padding: int) -> Tensor:
        real = torch.ones(rows, length, dtype=torch.long)
        real[0, length - padding :] = 0
        return real

    height, width = model.vision.transform.tile
    seen = model.viewer(PILImage.new("RGB", (width, height), (90, 120, 60)))
    view, specs = stack_views(seen.pixels), model.row_specs(seen.layout)
    shape = (3, *view[0].shape[-2:])
    yield Component("vision", _Vision(model), (random(2, *shape),), (random(3, *shape),), ((0,),))
    for name, before in (("resampler", "selector"), ("connector", "resampler")):
        first = specs[before][0]
        stage = _Stage(getattr(model, name), first)
        example, second = (random(rows, first.n, first.dim) for rows in (2, 3))
        yield Component(name, stage, (example,), (second,), ((0,),))
    wide = model.llm.hidden_size
    scale = model.llm.embed(torch.arange(8)[None]).std()
    rows, more = (2, text), (3, text + 5)
    yield Component(
        "llm",
        _Llm(model),
        (random(*rows, wide) * scale, mask(*rows, 0)),
        (random(*more, wide) * scale, mask(*more, 2)),
        ((0, 1), (0, 1)),
    )
    taken = placeholders(seen.markup)
    if len(seen.layout.views) > 1 or model.uses_prompt:
        reason = "an image has several views" if not model.uses_prompt else "its visual path reads the prompt"
        yield NoComponent("whole", f"{reason}, whose layout is no tensor")
        return

    def asked(rows: int, length: int, padding: int) -> tuple[Tensor, Tensor, Tensor]:
        words = torch.randint(model.llm.vocab_size, (rows, length), generator=draw)
        words[words == model.config.image_token_id] = 0
        image = torch.full((rows, taken), model.config.image_token_id)
        ids = torch.cat([words[:, :2], image, words[:, 2:]], 1)
        return ids, random(rows, *shape), mask(*ids.shape, padding)

    yield Component("whole", _Whole(model), asked(2, text, 0), asked(3, text + 5, 2), ((0, 1), (0,), (0, 1)))
