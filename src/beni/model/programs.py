"""Components of a model as programs of ``torch.export`` or TorchScript, each compared with eager.

A program is made from one example, saved, loaded again and run on that example and on one of another shape. What
cannot be exported, or only at one shape, is said with the reason.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image as PILImage
from torch import Tensor, nn

from beni.data.batch.collate import stack_views
from beni.model.modeling import BeniForConditionalGeneration
from beni.model.viewer import placeholders
from beni.stage import StageContext
from beni.types import Sequence, TokenSpec, VisualTokens

Format = Literal["torch_export", "torchscript"]
SUFFIX = {"torch_export": ".pt2", "torchscript": ".ts"}


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


@dataclass
class Parity:
    """How near a program is to eager.

    Attributes:
        file: the program; None when there is none.
        shapes: of the example's inputs.
        max_abs: largest difference on the example.
        max_rel: that, divided by the largest value of eager.
        second_shapes: of the second example.
        second_abs: as ``max_abs``; None where the program does not take that shape.
        second_rel: as ``max_rel``.
        reason: why there is no program, or why it takes one shape only.
    """

    component: str
    file: str | None
    shapes: list[list[int]]
    second_shapes: list[list[int]]
    max_abs: float | None = None
    max_rel: float | None = None
    second_abs: float | None = None
    second_rel: float | None = None
    reason: str | None = None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


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


def components(model: BeniForConditionalGeneration, text: int) -> Iterator[Component | Parity]:
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
        reason = "a picture has several views" if not model.uses_prompt else "its visual path reads the prompt"
        yield Parity("whole", None, [], [], reason=f"{reason}, whose layout is no tensor")
        return

    def asked(rows: int, length: int, padding: int) -> tuple[Tensor, Tensor, Tensor]:
        words = torch.randint(model.llm.vocab_size, (rows, length), generator=draw)
        words[words == model.config.image_token_id] = 0
        image = torch.full((rows, taken), model.config.image_token_id)
        ids = torch.cat([words[:, :2], image, words[:, 2:]], 1)
        return ids, random(rows, *shape), mask(*ids.shape, padding)

    yield Component("whole", _Whole(model), asked(2, text, 0), asked(3, text + 5, 2), ((0, 1), (0,), (0, 1)))


@torch.no_grad()
def write_programs(
    model: BeniForConditionalGeneration, kind: Format, folder: Path, text: int, begin: Callable[[str], None]
) -> list[Parity]:
    """Exports every component into ``folder``.

    Args:
        text: tokens of text in the examples.
        begin: is told the component that comes next.
    """
    folder.mkdir(parents=True, exist_ok=True)
    found = []
    for part in components(model, text):
        if isinstance(part, Component):
            begin(part.name)
            part = _written(part, kind, folder)
        found.append(part)
    return found


def _written(part: Component, kind: Format, folder: Path) -> Parity:
    shapes, second_shapes = ([list(t.shape) for t in inputs] for inputs in (part.example, part.second))
    path = folder / f"{part.name}{SUFFIX[kind]}"
    parity = Parity(part.name, path.name, shapes, second_shapes)
    make = _export if kind == "torch_export" else _trace
    try:
        program, parity.reason = make(part, path)
        parity.max_abs, parity.max_rel = _difference(part.module, program, part.example)
    except Exception as error:  # whatever a compiler says is the answer to why there is no program
        path.unlink(missing_ok=True)
        parity.file, parity.reason = None, _said(error)
        return parity
    try:
        parity.second_abs, parity.second_rel = _difference(part.module, program, part.second)
    except Exception as error:
        parity.reason = parity.reason or _said(error)
    return parity


def _export(part: Component, path: Path) -> tuple[Callable[..., Tensor], str | None]:
    """The program as it comes from disk, and why it takes one shape only."""
    free = tuple({axis: torch.export.Dim.DYNAMIC for axis in axes} for axes in part.dynamic)
    fixed = None
    with _quiet():
        try:
            # clones: free axes are marked on the tensors themselves
            program = torch.export.export(part.module, _clones(part.example), dynamic_shapes=free)
        except Exception as error:
            fixed = _said(error)
            program = torch.export.export(part.module, _clones(part.example))
        torch.export.save(program, path)
        return torch.export.load(path).module(), fixed


def _trace(part: Component, path: Path) -> tuple[Callable[..., Tensor], None]:
    with _quiet():
        torch.jit.save(torch.jit.trace(part.module, part.example, check_trace=False), path)
        return torch.jit.load(path), None


def _clones(inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(tensor.clone() for tensor in inputs)


def _difference(eager: nn.Module, program: Callable[..., Tensor], inputs: tuple[Tensor, ...]) -> tuple[float, float]:
    expected, made = eager(*inputs), program(*inputs)
    if made.shape != expected.shape:
        raise ValueError(f"the program gives {tuple(made.shape)}, eager {tuple(expected.shape)}")
    largest = float((made - expected).abs().max())
    return largest, largest / max(float(expected.abs().max()), 1e-12)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Tracers warn of every number that they take for constant; the second shape tells whether that matters."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _said(error: Exception) -> str:
    """The first line of what was said that says something."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:300]
