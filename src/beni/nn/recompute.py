"""Activation checkpointing (arXiv 1604.06174) of a module, inside its own ``forward``: what hooks do around it, the
gathering of sharded weights for instance, is done once for the backward pass and not again for the recomputation.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint


def recomputed(
    forward: Callable[..., Any], through: Callable[..., Any] = checkpoint, **options: Any
) -> Callable[..., Any]:
    """A ``forward`` that keeps its inputs only, and computes the rest again in the backward pass.

    Args:
        through: calls a function with its arguments so that they alone are kept.
        options: of ``through``. Without ``use_reentrant`` frozen modules stay out of the graph.
    """

    @functools.wraps(forward)
    def run(*arguments: Any, **named: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*arguments, **named)
        return through(forward, *arguments, **options, **named)

    return run
