"""What positions attend to, read while the llm attends: registered with transformers as ``beni_reads``.

``output_attentions`` would make every layer write out all weights, in the model's own eager attention, which knows
neither gates nor blocks. Here the attention is that of rows (``beni_rows``), and beside it the weights of a few queries
are computed from the same queries and keys: softmax over all keys that they may attend to, with everything that changes
the logits. Nothing is read while a model trains.
"""

from __future__ import annotations

from collections import deque
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn
from transformers import AttentionInterface

from beni.llm.dense_attention import scale_of
from beni.llm.row_attention import RowPlan, allowed_once, row_attention
from beni.nn.gates import CLOSED
from beni.types.sequence import Places

NAME = "beni_reads"


class Reads:
    """The attention of some positions in the last layers that attend.

    Args:
        places: rows and columns of the queries, those of a row together.
        last: layers whose attention is kept; 0 keeps none.
    """

    def __init__(self, places: Places, last: int) -> None:
        rows, columns = places
        self.groups = [(int(row), columns[rows == row]) for row in rows.unique_consecutive()]
        self.layers: deque[Float[Tensor, "q t"]] = deque(maxlen=last)

    def mean(self) -> Float[Tensor, "q t"] | None:
        """The mean over heads and layers, a row for each query; None where no layer was met."""
        return torch.stack(list(self.layers)).mean(0) if self.layers else None


def read_attention(
    module: nn.Module,
    query: Float[Tensor, "b h t dk"],
    key: Float[Tensor, "b kv t dk"],
    value: Float[Tensor, "b kv t dv"],
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    rows: RowPlan | None = None,
    reads: Reads | None = None,
    **kwargs: Any,
) -> tuple[Float[Tensor, "b t h dv"], None]:
    """``row_attention``, which leaves the weights of some queries in ``reads``."""
    if rows is None or reads is None:
        raise ValueError(f"{NAME} attention needs to be told what to read; the model did not pass it on")
    length = query.shape[2]
    allowed, gates = allowed_once(rows, length, length, sliding_window), rows.gates(length, length)
    reads.layers.append(
        torch.cat(
            [
                weights(
                    query[row][:, columns],
                    key[row],
                    allowed[row, 0, columns],
                    scaling,
                    softcap,
                    None if gates is None else gates[row],
                ).mean(0)
                for row, columns in reads.groups
            ]
        )
    )
    told = (scaling, dropout, sliding_window, softcap, rows)
    return row_attention(module, query, key, value, attention_mask, *told, **kwargs)


def weights(
    q: Float[Tensor, "h q dk"],
    k: Float[Tensor, "kv t dk"],
    allowed: Bool[Tensor, "q t"],
    scaling: float | None,
    softcap: float | None,
    log_gate: Float[Tensor, "t"] | None,
) -> Float[Tensor, "h q t"]:
    """What each query of a row weighs the keys with, in single precision or better; the sum of each is 1."""
    wide = torch.promote_types(q.dtype, torch.float32)
    with torch.autocast(q.device.type, enabled=False):
        keys = k.to(wide).repeat_interleave(q.shape[0] // k.shape[0], 0)
        logits = q.to(wide) @ keys.transpose(-1, -2) * scale_of(q, scaling)
    if softcap is not None:
        logits = softcap * (logits / softcap).tanh()
    if log_gate is not None:
        logits = logits + log_gate.clamp(min=CLOSED).to(wide)
    return F.softmax(logits.masked_fill(~allowed, float("-inf")), -1)


AttentionInterface.register(NAME, read_attention)
