"""The repeated layers while they train: which activations are kept for the backward pass, and compilation.

Recomputing is done inside a layer's ``forward`` (``nn/recompute.py``), within FSDP's hooks.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
import torch._functorch.config
import torch.nn.attention.varlen  # registers its operation
from torch import nn
from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts

from beni.model.modeling import BeniForConditionalGeneration
from beni.nn.recompute import recomputed

Mode = Literal["none", "full", "selective", "memory_budget"]

PRODUCTS = tuple(getattr(torch.ops.aten, name).default for name in ("mm", "addmm"))
ATTENTION = (
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,
    torch.ops.aten._scaled_dot_product_flash_attention.default,
    torch.ops.aten._scaled_dot_product_efficient_attention.default,
    torch.ops.aten._scaled_dot_product_cudnn_attention.default,
    torch.ops.torch_attn._varlen_attn.default,
)


def recompute(blocks: Sequence[nn.Module], mode: Mode) -> None:
    """Makes ``blocks`` give up activations and compute them again in the backward pass.

    Args:
        mode: ``none`` keeps all; ``full`` keeps a block's inputs only; ``selective`` keeps the results of attention and
            of every second matrix product (torchtitan's rule); ``memory_budget`` leaves the choice to the compiler
            (``compile_blocks``).
    """
    if mode in ("full", "selective"):
        for block in blocks:
            options = {"context_fn": _contexts} if mode == "selective" else {}
            block.forward = recomputed(block.forward, use_reentrant=False, **options)


@contextmanager
def recomputing(blocks: Sequence[nn.Module], mode: Mode) -> Iterator[None]:
    """Layers recompute, as ``recompute`` has it, inside the block only; for counting."""
    before = [block.__dict__.get("forward") for block in blocks]
    recompute(blocks, mode)
    try:
        yield
    finally:
        for block, forward in zip(blocks, before, strict=True):
            del block.forward
            if forward is not None:
                block.forward = forward


def prepare_blocks(model: BeniForConditionalGeneration, settings: Mapping[str, Any]) -> None:
    """What the ``compute`` section says of repeated layers; before sharding, whose hooks go around."""
    mode = settings["activation_checkpointing"]
    recompute(model.layers_with_gradient(), mode)
    if settings["compile"]:
        budget = settings["memory_budget"] if mode == "memory_budget" else 1.0
        compile_blocks([*model.vision.blocks(), *model.llm.layers()], budget)


def compile_blocks(blocks: Sequence[nn.Module], budget: float = 1.0) -> None:
    """Compiles each block by itself, in place: equal blocks share one compilation, and names stay as they are.

    Args:
        budget: share in [0, 1] of what keeping all activations would take, within which the compiler keeps some; it
            holds for whatever this process compiles from then on.
    """
    torch._functorch.config.activation_memory_budget = budget
    for block in blocks:
        block.compile()


def _contexts() -> Any:
    """A policy of its own for each call: it counts the products of one pass."""
    seen = {False: 0, True: 0}

    def choose(context: Any, operation: Any, *_: Any, **__: Any) -> CheckpointPolicy:
        if operation in ATTENTION:
            return CheckpointPolicy.MUST_SAVE
        if operation in PRODUCTS:
            seen[context.is_recompute] += 1
            return CheckpointPolicy.MUST_SAVE if seen[context.is_recompute] % 2 else CheckpointPolicy.PREFER_RECOMPUTE
        return CheckpointPolicy.PREFER_RECOMPUTE

    return create_selective_checkpoint_contexts(choose)
