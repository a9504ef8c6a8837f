"""The harness: a published implementation and beni's, the same random weights in both, equal outputs and gradients.

A mechanism's cases stand in ``cases/<mechanism>.py`` as a list ``CASES``; that folder is listed by
``test_references.py`` and by ``zoo.py``, which writes docs/zoo.md.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from beni.stage import StageContext
from beni.types import VisualTokens

TOLERANCES = {torch.float32: 1e-5, torch.float64: 1e-10}


def plain(module: Any, tokens: VisualTokens) -> Tensor:
    """How a stage of beni is called when nothing else is said."""
    return module(tokens, StageContext()).x


@dataclass(frozen=True)
class ReferenceCase:
    """One mechanism against one published implementation.

    Attributes:
        name: of the case, for the test's id.
        option: what it verifies, as on the command line: ``resampler=perceiver``.
        paper: where the mechanism was published: ``arXiv 2405.02246``, or a title.
        reference: dotted path of the published class; or, where none can be loaded, what the result was derived from
            (``torch.nn.MultiheadAttention``, ``einsum in float64``).
        shapes: at least three; handed to the functions below.
        build_ref: shape -> the published module (or one assembled from elementary operations).
        build_ours: shape -> beni's.
        inputs: shape, seeded generator, dtype -> visual tokens; some of them padding where that is legal.
        call_ref: how the published module is called.
        call_ours: how beni's is called.
        convert: state dict of the published module -> that of beni's.
        tolerances: dtype -> largest absolute difference of outputs, and of input gradients relative to the largest.
        needs: package without which the case is skipped.
    """

    name: str
    option: str
    paper: str
    reference: str
    shapes: tuple[Any, ...]
    build_ref: Callable[[Any], nn.Module]
    build_ours: Callable[[Any], nn.Module]
    inputs: Callable[[Any, torch.Generator, torch.dtype], VisualTokens]
    call_ref: Callable[[Any, VisualTokens], Tensor]
    call_ours: Callable[[Any, VisualTokens], Tensor] = plain
    convert: Callable[[dict[str, Tensor]], dict[str, Tensor]] = dict
    tolerances: dict[torch.dtype, float] = field(default_factory=lambda: dict(TOLERANCES))
    needs: str | None = None

    @property
    def missing(self) -> bool:
        return self.needs is not None and importlib.util.find_spec(self.needs) is None


def renamed(**parts: str) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    """A ``convert`` that replaces parts of names; ``__`` in a keyword stands for a dot."""
    pairs = [(theirs.replace("__", "."), ours) for theirs, ours in parts.items()]

    def convert(state: dict[str, Tensor]) -> dict[str, Tensor]:
        out = {}
        for name, tensor in state.items():
            for theirs, ours in pairs:
                name = name.replace(theirs, ours)
            out[name] = tensor
        return out

    return convert


def all_cases() -> list[ReferenceCase]:
    """Of every module in cases/, in the order of their names."""
    folder = Path(__file__).parent / "cases"
    names = sorted(path.stem for path in folder.glob("*.py"))
    return [case for name in names for case in importlib.import_module(f"reference.cases.{name}").CASES]


def scramble(module: nn.Module, seed: int) -> None:
    """N(0, 0.2) on every tensor, norms and latents too: ones and zeros of an initial state hide bugs."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * 0.2)


def grid_tokens(
    grid: tuple[int, int], dim: int, generator: torch.Generator, dtype: torch.dtype, images: int = 2
) -> VisualTokens:
    """Random features on a dense grid."""
    x = torch.randn(images, grid[0] * grid[1], dim, generator=generator, dtype=torch.float64)
    return VisualTokens.dense(x.to(dtype), grid)


@dataclass(frozen=True)
class Difference:
    """Largest absolute difference of the outputs, and of the input gradients relative to the largest gradient."""

    output: float
    gradient: float


def difference(case: ReferenceCase, shape: Any, dtype: torch.dtype, seed: int) -> Difference:
    """Runs both implementations with the same random weights on the same input.

    Raises:
        AssertionError: when the outputs or gradients say nothing, because they are all alike.
    """
    theirs, ours = case.build_ref(shape).to(dtype).eval(), case.build_ours(shape).to(dtype).eval()
    scramble(theirs, seed)
    ours.load_state_dict(case.convert(dict(theirs.state_dict())), strict=True)
    tokens = case.inputs(shape, torch.Generator().manual_seed(seed + 1), dtype)
    results = []
    for call, module in ((case.call_ref, theirs), (case.call_ours, ours)):
        leaf = tokens.x.clone().requires_grad_()
        out = call(module, tokens.with_features(leaf))
        weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(7), dtype=torch.float64).to(dtype)
        (gradient,) = torch.autograd.grad((out * weight).sum(), leaf)
        results.append((out.detach(), gradient))
    (out_ref, grad_ref), (out, grad) = results
    assert out.shape == out_ref.shape
    assert out_ref.std() > 1e-3
    assert grad_ref.abs().max() > 1e-3
    return Difference(
        output=float((out - out_ref).abs().max()),
        gradient=float((grad - grad_ref).abs().max()) / max(1.0, float(grad_ref.abs().max())),
    )
