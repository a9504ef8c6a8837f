"""Queries and keys of one layer, noted on their way through beni's attention, and the weights that follow from them.

What a family of decoders does to hidden states before attention (norms, projections, heads, rotary positions) differs,
and is run as the model has it: the registered attention functions are handed a ``Watch`` among their keyword arguments,
and note what they are given. ``looked_at`` runs a layer no further than that.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from beni.llm.dense_attention import scale_of
from beni.nn.gates import CLOSED
from beni.types import Sequence

CACHES = ("past_key_values", "past_key_value", "layer_past")
"""Names that layers of different families have for what they would write keys into."""


class Given(NamedTuple):
    """What an attention function was called with."""

    query: Float[Tensor, "b h t dk"]
    key: Float[Tensor, "b kv t dk"]
    scaling: float | None
    window: int | None
    softcap: float | None


class Noted(Exception):
    """Ends a layer at its attention: no error, it has told what it was asked."""


@dataclass
class Watch:
    """Notes the first call of the attention that it is handed to, and no later one: a layer may be computed again.

    Attributes:
        only: nothing after the attention is wanted.
    """

    only: bool = False
    given: Given | None = None

    def note(
        self, query: Tensor, key: Tensor, scaling: float | None, window: int | None, softcap: float | None
    ) -> None:
        """Keeps queries ``(b, h, t, dk)`` and keys ``(b, kv, t, dk)`` without a gradient."""
        if self.given is None:
            self.given = Given(query.detach(), key.detach(), scaling, window, softcap)
        if self.only:
            raise Noted


@torch.compiler.disable  # what is noted lies outside of any program
def noted(
    watch: Watch, query: Tensor, key: Tensor, scaling: float | None, window: int | None, softcap: float | None
) -> None:
    """``Watch.note``, from within a layer that may be compiled."""
    watch.note(query, key, scaling, window, softcap)


def looked_at(forward: Callable[..., Any], hidden: str, given: dict[str, Any]) -> Given:
    """What the attention of a layer would be given, were the layer called with ``given``.

    Args:
        hidden: the layer's name for its hidden states.

    Raises:
        ValueError: when the layer does not pass its keyword arguments on.
    """
    watch, fresh = Watch(only=True), {name: None for name in CACHES if name in given}
    try:
        with torch.no_grad():
            forward(given.pop(hidden), **given | fresh, watch=watch)
    except Noted:
        pass
    return found(watch)


def found(watch: Watch | None) -> Given:
    """What was noted; ValueError where nothing was."""
    if watch is None or watch.given is None:
        raise ValueError("the llm does not pass beni's attention on: nothing is known of what its layers attend to")
    return watch.given


@dataclass(frozen=True)
class Grid:
    """Samples of either layout as rows ``(s, l)``, real positions first.

    Attributes:
        index: where each cell is among all positions, rows one after another; 0 at padding.
        real: False at padding.
    """

    index: Int[Tensor, "s l"]
    real: Bool[Tensor, "s l"]

    @staticmethod
    def of(sequence: Sequence) -> Grid:
        """The samples of a sequence. Waits for the device: a length is a shape."""
        samples, columns = sequence.numbered()
        lengths = sequence.lengths()
        longest = int(lengths.max())
        flat, real = torch.arange(samples.numel(), device=samples.device), samples.flatten() >= 0
        index = torch.zeros(len(lengths), longest, dtype=torch.long, device=samples.device)
        index[samples.flatten()[real], columns.flatten()[real]] = flat[real]
        return Grid(index, torch.arange(longest, device=samples.device) < lengths[:, None])

    def to(self, device: torch.device) -> Grid:
        """The grid on a device."""
        return Grid(self.index.to(device), self.real.to(device))

    def rows(self, values: Tensor) -> Tensor:
        """``(b, t, ...) -> (s, l, ...)``."""
        return values.flatten(0, 1)[self.index.to(values.device)]

    def heads(self, values: Float[Tensor, "b h t dk"]) -> Float[Tensor, "s h l dk"]:
        """``(b, h, t, dk) -> (s, h, l, dk)``."""
        return self.rows(values.transpose(1, 2)).transpose(1, 2)

    def back(self, values: Tensor, like: Tensor) -> Tensor:
        """``(s, l) -> (b, t)``, the values of ``like`` at positions that are in no sample."""
        out = like.flatten().clone()
        out[self.index[self.real]] = values[self.real]
        return out.view_as(like)


@dataclass(frozen=True)
class Looks:
    """The attention of a layer, sample by sample.

    Attributes:
        given: what it was called with.
        grid: the samples.
        columns: where each token stood before others left, by which a window is measured.
        blocks: as in ``Sequence``.
        log_gate: as in ``Sequence``.
    """

    given: Given
    grid: Grid
    columns: Int[Tensor, "s l"]
    blocks: Int[Tensor, "s l"] | None
    log_gate: Float[Tensor, "s l"] | None

    def keys(self) -> Float[Tensor, "s kv l dk"]:
        return self.grid.heads(self.given.key)

    def weights(self, columns: Int[Tensor, "s r"]) -> Float[Tensor, "s h r l"]:
        query, key, scaling, window, softcap = self.given
        rows = torch.arange(len(columns), device=columns.device)[:, None]
        asking = query.transpose(1, 2).flatten(0, 1)[self.grid.index[rows, columns]].transpose(1, 2)
        keys = self.keys().repeat_interleave(query.shape[1] // key.shape[1], 1)
        logits = (asking.float() @ keys.float().transpose(-1, -2)) * scale_of(query, scaling)
        if softcap is not None:
            logits = softcap * (logits / softcap).tanh()
        if self.log_gate is not None:
            logits = logits + self.log_gate.float().clamp(min=CLOSED)[:, None, None]
        allowed = self._allowed(columns, window)
        return logits.masked_fill(~allowed[:, None], float("-inf")).softmax(-1)

    def _allowed(self, columns: Int[Tensor, "s r"], window: int | None) -> Bool[Tensor, "s r l"]:
        """What the tokens at some columns may attend to: earlier ones in reach, their block, themselves."""
        distance = self.columns.gather(1, columns)[..., None] - self.columns[:, None]
        order = columns[..., None] - torch.arange(self.columns.shape[1], device=columns.device)
        allowed = order >= 0
        if window is not None:
            allowed = allowed & (distance < window)
        if self.blocks is not None:
            own = self.blocks.gather(1, columns)[..., None]
            allowed = allowed | ((own == self.blocks[:, None]) & (own >= 0))
        return (allowed & self.grid.real[:, None]) | (order == 0)
