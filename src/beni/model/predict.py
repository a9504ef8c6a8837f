"""Sequences to logits: in which layout the llm is called, and which of its positions are wanted."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from beni.llm.base import Llm
from beni.types import Places, Sequence


def arranged(sequence: Sequence) -> tuple[Sequence, Int[Tensor, "b t"] | None]:
    """The sequence in the layout that the llm is called in, and where in its one row each position has gone where that
    is another one than it had: only segment attention knows of positions that look ahead.
    """
    if sequence.blocks is None or sequence.packed:
        return sequence, None
    return sequence.end_to_end()


def predict(llm: Llm, sequence: Sequence, places: Places | None = None) -> Tensor:
    """Logits at the places, ``(k, v)``, or everywhere, ``(b, t, v)``."""
    laid_out, where = arranged(sequence)
    if places is None:
        logits = llm(laid_out)
        if where is None:
            return logits
        out = logits.new_zeros(*where.shape, logits.shape[-1])
        out[sequence.real] = logits[0]
        return out
    rows, columns = _moved(places, where)
    keep, place = columns.unique(return_inverse=True)
    return llm(laid_out, keep)[rows, place]


def hidden_states(llm: Llm, sequence: Sequence, places: Places) -> Float[Tensor, "k d"]:
    """What the llm's head is given at the places."""
    laid_out, where = arranged(sequence)
    return llm.hidden(laid_out)[_moved(places, where)]


def _moved(places: Places, where: Int[Tensor, "b t"] | None) -> Places:
    return places if where is None else (torch.zeros_like(places[0]), where[places])
