"""Gates on attention: a number a key that is added to its logits before the softmax (``log_gate``).

0 leaves a key open, log(k) lets it count as k equal keys, -inf closes it. On a grid of plain attention that would take
a mask of the size queries x keys; here the number travels in the key instead: queries get one more channel with a
constant, keys one with the number over that constant and the scale. Any kernel computes that, flash attention included,
without a mask, and gives the gradient to the gate with that of the key.

-inf is taken as ``CLOSED``, which no kernel turns into NaN, neither forward nor backward. Its exponential is 0 in every
precision, so beside an open key a closed one weighs nothing at all, as long as their products do not differ by as much.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

CLOSED = -30000.0
"""From here down a gate is closed. fp16, which ends at 65504, holds it."""


def is_open(log_gate: Float[Tensor, "*k"]) -> Bool[Tensor, "*k"]:
    """True where a key weighs anything."""
    return log_gate > CLOSED


def openness(log_gate: Float[Tensor, "*k"]) -> Float[Tensor, "*k"]:
    """What the gates multiply weights by: 1 for an open key, exactly 0 for a closed one, without NaN in a gradient."""
    return log_gate.clamp(min=CLOSED).exp()


def open_mean(
    x: Float[Tensor, "*g d"], log_gate: Float[Tensor, "*g"], mean: Callable[[Tensor], Tensor]
) -> Float[Tensor, "*m d"]:
    """A mean of tokens in which each counts as much as its gate lets it; zeros where all are closed.

    Args:
        mean: of ``(..., d)`` over places, linear, with weights that are not negative.
    """
    weight = openness(log_gate).to(x.dtype)[..., None]
    return mean(x * weight) / mean(weight).clamp(min=torch.finfo(x.dtype).tiny)


def widened(
    q: Float[Tensor, "*q dk"],
    k: Float[Tensor, "*k dk"],
    v: Float[Tensor, "*k dv"],
    log_gate: Float[Tensor, "*g"],
    scale: float,
) -> tuple[Float[Tensor, "*q w"], Float[Tensor, "*k w"], Float[Tensor, "*k w"]]:
    """Queries, keys and values whose plain attention is that of the given ones with gates on the keys.

    Heads of all three become w wide, a multiple of 8 as flash attention wants it. The result must be asked for with
    ``scale``, since the width no longer says it, and cut to the width of the values.

    Args:
        log_gate: may be expanded to the keys without their last axis.
        scale: what attention multiplies the products by.
    """
    device = q.device.type
    casts = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)  # not on meta
    dtype = torch.get_autocast_dtype(device) if casts else q.dtype
    constant = 2.0 ** round(-math.log2(scale))  # exact in any precision, and near what keeps the key's channel small
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    number = (log_gate.to(wide).clamp(min=CLOSED) / (constant * scale)).expand(k.shape[:-1])
    channels = torch.stack([part.to(k.dtype) for part in _parts(number, dtype)], -1)
    more = channels.shape[-1]
    width = -(-max(q.shape[-1] + more, v.shape[-1]) // 8) * 8
    constants = q.new_full((*q.shape[:-1], more), constant)
    return (
        F.pad(torch.cat([q, constants], -1), (0, width - q.shape[-1] - more)),
        F.pad(torch.cat([k, channels], -1), (0, width - k.shape[-1] - more)),
        F.pad(v, (0, width - v.shape[-1])),
    )


def _count(dtype: torch.dtype) -> int:
    return 3 if dtype.itemsize < 4 else 1


def _parts(number: Tensor, dtype: torch.dtype) -> list[Tensor]:
    """Numbers of ``dtype`` that add up to ``number``: half precision keeps 8 or 11 bits of 24, so it takes three. The
    gradient goes through the first.
    """
    parts, rest = [number.to(dtype)], number.detach()
    while len(parts) < _count(dtype):
        rest = rest - parts[-1].detach().to(rest.dtype)
        parts.append(rest.to(dtype))
    return parts
