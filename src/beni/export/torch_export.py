"""Components as programs of ``torch.export``, in files that ``torch.export.load`` reads."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from beni.export.components import Component
from beni.export.formats import Export
from beni.export.programs import quiet, said, write_programs


def write(export: Export) -> None:
    """Writes a program for each component, and parity.json, into ``export.out``."""
    write_programs(export, "torch_export", ".pt2", exported)


def exported(part: Component, path: Path) -> tuple[Callable[..., Tensor], str | None]:
    """The program as it comes from disk, and why it takes one shape only."""
    free = tuple({axis: torch.export.Dim.DYNAMIC for axis in axes} for axes in part.dynamic)
    fixed = None
    with quiet():
        try:
            # clones: free axes are marked on the tensors themselves
            program = torch.export.export(part.module, _clones(part.example), dynamic_shapes=free)
        except Exception as error:
            fixed = said(error)
            program = torch.export.export(part.module, _clones(part.example))
        torch.export.save(program, path)
        return torch.export.load(path).module(), fixed


def _clones(inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(tensor.clone() for tensor in inputs)
