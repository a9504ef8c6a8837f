"""The harness: a published implementation and beni's, the same random weights in both, equal outputs and gradients."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, nn

TOLERANCES = {torch.float32: 1e-5, torch.float64: 1e-10}


@dataclass(frozen=True)
class ReferenceCase:
    """One mechanism against one published implementation.

    Attributes:
        name: of the case, for the test's id.
        build_ref: the published module.
        build_ours: beni's.
        key_map: parts of the reference's state-dict keys and what they are called in beni.
        inputs: a seeded generator and a dtype -> features, mask (True = real) or None.
        call_ref: how the published module is called with (module, features, mask).
        call_ours: the same for beni's.
        tolerances: dtype -> largest absolute difference of outputs, and of input gradients relative to the largest.
    """

    name: str
    build_ref: Callable[[], nn.Module]
    build_ours: Callable[[], nn.Module]
    inputs: Callable[[torch.Generator, torch.dtype], tuple[Tensor, Tensor | None]]
    call_ref: Callable[[Any, Tensor, Tensor | None], Tensor]
    call_ours: Callable[[Any, Tensor, Tensor | None], Tensor]
    key_map: dict[str, str] = field(default_factory=dict)
    tolerances: dict[torch.dtype, float] = field(default_factory=lambda: dict(TOLERANCES))


@pytest.fixture
def reference_case() -> type[ReferenceCase]:
    return ReferenceCase


def scramble(module: nn.Module, seed: int) -> None:
    """N(0, 0.2) on every tensor, norms and latents too: ones and zeros of an initial state hide bugs."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * 0.2)


@pytest.fixture
def scrambled() -> Callable[[nn.Module, int], None]:
    return scramble


@pytest.fixture
def compare() -> Callable[[ReferenceCase, torch.dtype, int], None]:
    """Asserts that a case holds in a dtype for a seed."""

    def check(case: ReferenceCase, dtype: torch.dtype, seed: int) -> None:
        theirs, ours = case.build_ref().to(dtype).eval(), case.build_ours().to(dtype).eval()
        scramble(theirs, seed)
        ours.load_state_dict({_renamed(k, case.key_map): v for k, v in theirs.state_dict().items()}, strict=True)
        x, mask = case.inputs(torch.Generator().manual_seed(seed + 1), dtype)
        results = []
        for call, module in ((case.call_ref, theirs), (case.call_ours, ours)):
            leaf = x.clone().requires_grad_()
            out = call(module, leaf, mask)
            weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(7), dtype=torch.float64).to(dtype)
            (gradient,) = torch.autograd.grad((out * weight).sum(), leaf)
            results.append((out.detach(), gradient))
        (out_ref, grad_ref), (out, grad) = results
        tolerance = case.tolerances[dtype]
        assert out_ref.std() > 1e-3
        assert grad_ref.abs().max() > 1e-3
        assert (out - out_ref).abs().max() <= tolerance
        assert (grad - grad_ref).abs().max() <= tolerance * max(1.0, float(grad_ref.abs().max()))

    return check


def _renamed(key: str, key_map: dict[str, str]) -> str:
    for theirs, ours in key_map.items():
        key = key.replace(theirs, ours)
    return key
