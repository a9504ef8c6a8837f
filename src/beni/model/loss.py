"""From the llm's hidden states at label rows to the summed token loss.

``full`` keeps the logits of all label rows, some 12 bytes for each of rows times vocabulary. ``chunked`` takes the rows
in pieces and computes a piece's gradients right after its loss, so that one piece's logits exist at a time and nothing
is computed twice (the way of Liger-Kernel, arXiv 2410.10989, in plain torch: any head, sharded and tied ones too).
``fused`` is torch's own ``linear_cross_entropy``, for GPUs: on a CPU it is several times slower than ``full``.
"""

from __future__ import annotations

from collections import abc
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from beni.errors import CompositionError, ConfigError
from beni.llm.base import Llm
from beni.model.inputs import Loss
from beni.model.predict import hidden_states, predict
from beni.types import Places, Sequence

CHUNK_BYTES = 256 * 2**20
"""Bytes of the fp32 logits of one piece: 1365 rows of 49,152 words, 523 of 128,256."""


def chunk_rows(vocabulary: int) -> int:
    """Label rows of one piece."""
    return max(1, CHUNK_BYTES // (4 * vocabulary))


def resolve(llm: Llm, wanted: Loss) -> Loss:
    """What ``compute.loss`` comes to for this llm; ``auto`` stays where pieces are possible.

    Raises:
        ConfigError: ``fused`` with a torch that does not have it.
        CompositionError: E-HEAD, the llm's head cannot be computed that way.
    """
    name = llm.describe().kind
    if wanted == "fused" and not hasattr(F, "linear_cross_entropy"):
        raise ConfigError(
            f"compute.loss=fused needs torch 2.13 or newer, this is {torch.__version__}\n"
            "  fix: set compute.loss=chunked"
        )
    if wanted == "full" or llm.capabilities.splits_head:
        if wanted == "fused" and not llm.capabilities.linear_head:
            raise CompositionError(
                "E-HEAD",
                f"compute.loss=fused needs logits that are one matrix product, and {name} scales, caps or adapts them",
                groups=("llm",),
                fix="set compute.loss=chunked",
            )
        return wanted
    if wanted == "auto":
        return "full"
    raise CompositionError(
        "E-HEAD",
        f"compute.loss={wanted} computes the head by itself, and {name} does not give the same logits then",
        groups=("llm",),
        fix="set compute.loss=full",
    )


def token_loss(
    llm: Llm, sequence: Sequence, places: Places, targets: Int[Tensor, "k"], how: Loss
) -> tuple[Float[Tensor, ""], Float[Tensor, "k v"] | None]:
    """The summed loss of the labels that stand behind ``places``, and their logits where ``how`` keeps them."""
    if how == "auto":
        how = "full" if len(targets) <= chunk_rows(llm.vocab_size) else "chunked"
    if how == "full":
        logits = predict(llm, sequence, places)
        return F.cross_entropy(logits.float(), targets, reduction="sum"), logits
    hidden = hidden_states(llm, sequence, places)
    return (fused if how == "fused" else chunked)(llm, hidden, targets), None


def chunked(llm: Llm, hidden: Float[Tensor, "k d"], targets: Int[Tensor, "k"]) -> Float[Tensor, ""]:
    """The summed loss, one piece of rows after the other."""
    total, towards_hidden = torch.zeros((), device=hidden.device), []
    towards_weights: dict[Tensor, Tensor] = {}
    size = chunk_rows(llm.vocab_size)
    for rows, wanted in zip(hidden.split(size), targets.split(size), strict=True):
        rows = rows.detach().requires_grad_(hidden.requires_grad)
        loss = F.cross_entropy(llm.head(rows).float(), wanted, reduction="sum")
        total += loss.detach()
        if not loss.requires_grad:
            continue
        leaves = _leaves(loss)
        with torch.autocast(hidden.device.type, enabled=False):  # as a backward pass, which runs outside of it
            gradients = dict(zip(leaves, torch.autograd.grad(loss, leaves), strict=True))
        if hidden.requires_grad:
            towards_hidden.append(gradients.pop(rows))
        for leaf, gradient in gradients.items():
            if leaf in towards_weights:
                towards_weights[leaf] += gradient
            else:
                towards_weights[leaf] = gradient.float()  # pieces add up in fp32 whatever FSDP computes in
    known = {leaf: gradient.to(leaf.dtype) for leaf, gradient in towards_weights.items()}
    if towards_hidden:
        known[hidden] = torch.cat(towards_hidden)
    return _Known.apply(total, tuple(known.values()), *known)


def fused(llm: Llm, hidden: Float[Tensor, "k d"], targets: Int[Tensor, "k"]) -> Float[Tensor, ""]:
    """The summed loss by ``torch.nn.functional.linear_cross_entropy``."""
    head: Any = llm.output_layer()
    kind = hidden.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype
    bias = None if head.bias is None else head.bias.to(dtype)
    options = torch.nn.LinearCrossEntropyOptions()
    with torch.autocast(kind, enabled=False):
        each = F.linear_cross_entropy(
            hidden.to(dtype), head.weight.to(dtype), targets, linear_bias=bias, reduction="none", options=options
        )
    return each.float().sum()  # torch's own sum has the dtype of its inputs: three digits in bf16


def _leaves(loss: Tensor) -> abc.Sequence[Tensor]:
    """The tensors that want a gradient of ``loss``."""
    found: dict[Tensor, None] = {}
    seen, waiting = set(), [loss.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if isinstance(variable := getattr(node, "variable", None), Tensor):
            found[variable] = None
        waiting += [before for before, _ in node.next_functions]
    return list(found)


class _Known(torch.autograd.Function):
    """A value whose gradients were computed with it."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, gradients: tuple[Tensor, ...], *_: Tensor) -> Tensor:
        ctx.save_for_backward(*gradients)
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *towards: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, *(gradient * towards[0].to(gradient.dtype) for gradient in ctx.saved_tensors)
