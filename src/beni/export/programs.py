"""Components of a model as programs, each compared with eager; torch_export.py and torchscript.py make them.

A program is made from one example, saved, loaded again and run on that example and on one of another shape. What
cannot be exported, or only at one shape, is said with the reason.
"""

from __future__ import annotations

import contextlib
import json
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.table import Table
from torch import Tensor, nn

from beni.export.components import Component, NoComponent, components
from beni.export.formats import Export

PARITY = "parity.json"

Maker = Callable[[Component, Path], tuple[Callable[..., Tensor], str | None]]
"""Writes a component as a program to a file; gives it as it comes from there, and why it takes one shape only."""


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


@torch.no_grad()
def write_programs(export: Export, kind: str, suffix: str, make: Maker) -> list[Parity]:
    """Writes every component into ``export.out``, and shows how near to eager it is.

    Args:
        kind: the format's name, for parity.json.
        suffix: of the files.
        make: how one becomes a program.
    """
    found = []
    for part in components(export.trained.model, export.text):
        if isinstance(part, NoComponent):
            found.append(Parity(part.name, None, [], [], reason=part.reason))
            continue
        export.show(f"{part.name} ...", style="dim")
        found.append(compared(part, export.out / f"{part.name}{suffix}", make))
    trained = export.trained
    told = {"run": trained.folder.name, "step": trained.step, "average": export.average, "format": kind}
    told |= {"components": [one.to_dict() for one in found]}
    (export.out / PARITY).write_text(json.dumps(told, indent=1))
    export.show(parity_table(found))
    for one in found:
        if one.reason is not None:
            export.show(f"{one.component}: {one.reason}", highlight=False, soft_wrap=True)
    return found


def compared(part: Component, path: Path, make: Maker) -> Parity:
    """Makes the program at ``path`` and compares it with eager."""
    shapes, second_shapes = ([list(t.shape) for t in inputs] for inputs in (part.example, part.second))
    parity = Parity(part.name, path.name, shapes, second_shapes)
    try:
        program, parity.reason = make(part, path)
        parity.max_abs, parity.max_rel = _difference(part.module, program, part.example)
    except Exception as error:  # whatever a compiler says is the answer to why there is no program
        path.unlink(missing_ok=True)
        parity.file, parity.reason = None, said(error)
        return parity
    try:
        parity.second_abs, parity.second_rel = _difference(part.module, program, part.second)
    except Exception as error:
        parity.reason = parity.reason or said(error)
    return parity


def parity_table(found: Sequence[Parity]) -> Table:
    """How near each program is to eager."""
    out = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("component", "program", "shape", "max abs", "max rel", "second shape", "max abs", "max rel"):
        out.add_column(name, justify="right" if "max" in name else "left", no_wrap=True)
    for one in found:
        first, second = (" ".join("x".join(map(str, s)) for s in shapes) for shapes in (one.shapes, one.second_shapes))
        numbers = [
            "-" if value is None else f"{value:.1e}"
            for value in (one.max_abs, one.max_rel, one.second_abs, one.second_rel)
        ]
        out.add_row(one.component, one.file or "none", first, *numbers[:2], second, *numbers[2:])
    return out


def _difference(eager: nn.Module, program: Callable[..., Tensor], inputs: tuple[Tensor, ...]) -> tuple[float, float]:
    expected, made = eager(*inputs), program(*inputs)
    if made.shape != expected.shape:
        raise ValueError(f"the program gives {tuple(made.shape)}, eager {tuple(expected.shape)}")
    largest = float((made - expected).abs().max())
    return largest, largest / max(float(expected.abs().max()), 1e-12)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Tracers warn of every number that they take for constant; the second shape tells whether that matters."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def said(error: Exception) -> str:
    """The first line of an error that says something."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:300]
