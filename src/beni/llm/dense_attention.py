"""Attention under a mask that is written out, with what decoders in the wild vary and with gates on the keys."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from beni.nn.gates import CLOSED, widened


def scale_of(q: Float[Tensor, "*q dh"], scaling: float | None) -> float:
    """What attention multiplies products by where the model says nothing."""
    return q.shape[-1] ** -0.5 if scaling is None else scaling


def dense(
    q: Float[Tensor, "b h q dk"],
    k: Float[Tensor, "b kv k dk"],
    v: Float[Tensor, "b kv k dv"],
    allowed: Bool[Tensor, "*b q k"],
    scaling: float | None,
    dropout: float,
    softcap: float | None,
    log_gate: Float[Tensor, "b k"] | None = None,
) -> Float[Tensor, "b h q dv"]:
    """Queries attend to the keys that they are allowed; each must be allowed one.

    Args:
        allowed: the same for all rows, or for each row and head.
        softcap: bounds the logits, before the gates.
        log_gate: is added to the logits of each key. Where all that a query is allowed are closed, they are read as
            though they were open, which only a closed token does: it is always allowed itself.
    """
    groups = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    if softcap is None:
        if log_gate is None:
            return F.scaled_dot_product_attention(q, k, v, attn_mask=allowed, dropout_p=dropout, scale=scaling)
        scale = scale_of(q, scaling)
        wide = widened(q, k, v, log_gate[:, None], scale)
        read = F.scaled_dot_product_attention(*wide, attn_mask=allowed, dropout_p=dropout, scale=scale)
        return read[..., : v.shape[-1]]
    logits = q @ k.transpose(-1, -2) * scale_of(q, scaling)
    logits = softcap * (logits / softcap).tanh()
    if log_gate is not None:
        logits = logits + log_gate.clamp(min=CLOSED)[:, None, None]
    weights = logits.masked_fill(~allowed, float("-inf")).softmax(-1, dtype=torch.float32).to(q.dtype)
    return F.dropout(weights, dropout) @ v
