"""Hiding some visual tokens from the llm: an ablation of what the encoder, and all behind it, have already made."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from beni.fusion.base import Fusion
from beni.nn.streams import numpy_stream
from beni.types import VisualTokens


def can_drop(fusion: Fusion) -> bool:
    """Whether a fusion reads nothing but the tokens that it is given: one that also reads the encoders' features they
    were made of, cell by cell of a whole grid, would still be told what they show.
    """
    return "sources" not in fusion.reads_beside


@contextmanager
def dropping(fusion: nn.Module, share: float) -> Iterator[None]:
    """Inside the block the fusion is given ``share`` fewer visual tokens of each picture.

    They are taken out as those of a selector with ``positions=preserve`` are: the others keep their position ids.
    """
    if not share:
        yield
        return

    def before(module: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
        sequence, visual, *rest = given
        return (sequence, None if visual is None else dropped(visual, share), *rest)

    hook = fusion.register_forward_pre_hook(before)
    try:
        yield
    finally:
        hook.remove()


def dropped(visual: VisualTokens, share: float) -> VisualTokens:
    """``(i, n, d) -> (i, n, d)``: without ``share`` of the real tokens of each row, rounded down, so one stays at
    least. Which ones depends on how many there are, and on nothing else.
    """
    kept = visual.mask.clone()
    for row, real in zip(kept, visual.mask, strict=True):
        places = real.nonzero()[:, 0]
        order = numpy_stream(0, "eval.dropped", len(places)).permutation(len(places))
        row[places[torch.from_numpy(order[: int(len(places) * share)]).to(places.device)]] = False
    return visual.drop(kept)
