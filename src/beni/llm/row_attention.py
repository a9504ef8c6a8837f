"""Attention inside rows of the padded layout, with and without a cache, registered with transformers as ``beni_rows``.

It is for rows that plain causal attention does not describe: some positions look ahead (blocks), or some keys have
gates. transformers' masks know neither, and take a mask that is given as it is for layers with and without a sliding
window. Unknown attention names skip their building, so here what is known of the keys travels as a ``RowPlan`` in the
keyword arguments, and each layer says its window itself.

Under generation the keys are those of the prompt and then the new ones, of which a layer with a window may keep only
the last. So the plan counts from the end: the queries are the last of all positions so far, the keys the last before
and with them. What was said of the prompt holds for its keys in every later step; new ones are plain.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import AttentionInterface

from beni.llm.dense_attention import dense
from beni.llm.readings import Readings, reread
from beni.llm.watch import Watch, noted
from beni.types import Sequence

NAME = "beni_rows"


@dataclass(frozen=True)
class RowPlan:
    """What attention must know of rows; built once a call of the model and used by every layer.

    Attributes:
        real: True at positions that are no padding.
        blocks: as in ``Sequence``.
        log_gate: as in ``Sequence``.
        past: positions that a cache already holds.
        readings: by layer, what changes what it reads (``LayerVisitor.within``).
        columns: where each position stood before others left, by which a window is measured; None for where it is.
        masks: by queries, keys and window, as they are asked for.
    """

    real: Bool[Tensor, "b t"]
    blocks: Int[Tensor, "b t"] | None = None
    log_gate: Float[Tensor, "b t"] | None = None
    past: int = 0
    readings: Readings = field(default_factory=dict, compare=False, repr=False)
    columns: Int[Tensor, "b t"] | None = None
    masks: dict[tuple[int, int, int | None], Tensor] = field(default_factory=dict, compare=False, repr=False)

    @staticmethod
    def of(sequence: Sequence, readings: Readings | None = None) -> RowPlan:
        """The plan of a padded sequence that is read from its beginning."""
        return RowPlan(sequence.real, sequence.blocks, sequence.log_gate, readings=readings or {})

    def after(self, past: int) -> RowPlan:
        """The plan when a cache holds ``past`` positions.

        Raises:
            ValueError: when positions that look ahead would be read before what they see.
        """
        if self.blocks is not None and 0 < past < self.real.shape[1]:
            raise ValueError(
                f"a prompt whose positions look ahead is read at once, not after {past} of {self.real.shape[1]}\n"
                "  fix: leave out past_key_values"
            )
        return replace(self, past=past, masks={})

    def allowed(self, queries: int, keys: int, window: int | None) -> Bool[Tensor, "b 1 q k"]:
        """Which of the last ``keys`` positions each of the last ``queries`` may attend to: earlier real ones inside the
        window, those of its block, and itself.
        """
        where = torch.arange(keys, device=self.real.device)
        distance = where[keys - queries :, None] - where
        mask = distance >= 0
        if self.columns is None or window is None:
            mask = mask & (distance < (window or keys))
        else:
            stood = self._columns(queries, keys)
            mask = mask & (stood[:, keys - queries :, None] - stood[:, None] < window)
        if self.blocks is not None:
            own = self._last(self.blocks, queries, keys, -1)
            same = own[:, keys - queries :, None] == own[:, None]
            mask = mask | (same & (own >= 0)[:, None])
        mask = mask & self._last(self.real, queries, keys, True)[:, None]
        return (mask | (distance == 0))[:, None]  # padding sees itself, lest it become NaN

    def gates(self, queries: int, keys: int) -> Float[Tensor, "b k"] | None:
        """The log-gates of the last ``keys`` positions."""
        return None if self.log_gate is None else self._last(self.log_gate, queries, keys, 0.0)

    def _columns(self, queries: int, keys: int) -> Int[Tensor, "b k"]:
        """Where the last ``keys`` positions stood; those after the prompt count on from its last."""
        assert self.columns is not None
        total = self.past + queries
        ahead = torch.arange(1, max(0, total - self.columns.shape[1]) + 1, device=self.columns.device)
        return torch.cat([self.columns, self.columns[:, -1:] + ahead], 1)[:, total - keys : total]

    def _last(self, values: Tensor, queries: int, keys: int, new: float) -> Tensor:
        """Values at the last ``keys`` positions; ``new`` at those after the prompt."""
        total = self.past + queries
        return F.pad(values, (0, max(0, total - values.shape[1])), value=new)[:, total - keys : total]


@torch.compiler.disable  # what one layer has made is found by the next
def allowed_once(rows: RowPlan, queries: int, keys: int, window: int | None) -> Bool[Tensor, "b 1 q k"]:
    """``RowPlan.allowed``, made by the first layer that asks."""
    asked = (queries, keys, window)
    if asked not in rows.masks:
        rows.masks[asked] = rows.allowed(queries, keys, window)
    return rows.masks[asked]


def row_attention(
    module: nn.Module,
    query: Float[Tensor, "b h q dk"],
    key: Float[Tensor, "b kv k dk"],
    value: Float[Tensor, "b kv k dv"],
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    rows: RowPlan | None = None,
    watch: Watch | None = None,
    **kwargs: Any,
) -> tuple[Float[Tensor, "b q h dv"], None]:
    """Attention of queries to the keys so far; several rows in turn may share one of the plan (beams)."""
    if watch is not None:
        noted(watch, query, key, scaling, sliding_window, softcap)
    if rows is None or query.shape[0] % len(rows.real):
        raise ValueError(f"{NAME} attention needs the plan of its rows; the model did not pass it on")
    queries, keys, times = query.shape[2], key.shape[2], query.shape[0] // len(rows.real)
    if keys > rows.past + queries:
        raise ValueError(f"{NAME} attention was given {keys} keys after {rows.past + queries} positions")
    q, k, v = query, key, value
    if q.is_cuda and torch.is_autocast_enabled("cuda"):  # as torch's own attention does
        q, k, v = (x.to(torch.get_autocast_dtype("cuda")) for x in (q, k, v))
    allowed, gates = allowed_once(rows, queries, keys, sliding_window).to(q.device), rows.gates(queries, keys)
    if times > 1:
        allowed = allowed.repeat_interleave(times, 0)
        gates = None if gates is None else gates.repeat_interleave(times, 0)
    read = dense(q, k, v, allowed, scaling, dropout, softcap, gates)
    return reread(module, rows.readings, query, read.transpose(1, 2).to(query.dtype), scaling), None


AttentionInterface.register(NAME, row_attention)
