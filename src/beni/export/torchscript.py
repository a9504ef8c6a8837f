"""Components as traces of TorchScript, in files that ``torch.jit.load`` reads. Torch has deprecated it; a trace keeps
what its example decided, which the second example shows.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from beni.export.components import Component
from beni.export.formats import Export
from beni.export.programs import quiet, write_programs


def write(export: Export) -> None:
    """Writes a program for each component, and parity.json, into ``export.out``."""
    write_programs(export, "torchscript", ".ts", traced)


def traced(part: Component, path: Path) -> tuple[Callable[..., Tensor], str | None]:
    """The program as it comes from disk; no reason why it takes one shape only, since a trace takes any."""
    with quiet():
        torch.jit.save(torch.jit.trace(part.module, part.example, check_trace=False), path)
        return torch.jit.load(path), None
