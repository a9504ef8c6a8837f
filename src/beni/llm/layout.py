"""What an llm can be asked for: samples packed into one row, positions that look ahead, gates on visual tokens."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import torch

from beni.errors import CompositionError
from beni.llm.base import Llm
from beni.llm.hf import isolates_segments
from beni.types import Sequence

Layout = Literal["packed", "padded"]

CLOSED_AT = 2
"""The position whose gate is closed to see whether it reaches later ones."""


def layout_of(llm: Llm, wanted: Layout, *, looks_ahead: bool, gated: bool) -> Layout:
    """The layout in which the llm can be trained: ``padded`` where it cannot keep packed samples apart.

    Args:
        looks_ahead: some positions attend to later ones, as fusion says.
        gated: visual tokens come with gates.

    Raises:
        CompositionError: E-ATTN when it does not pass beni's attention on, and positions look ahead or have gates.
    """
    more_than_causal = looks_ahead or gated
    apart = not (wanted == "packed" or more_than_causal) or isolates_segments(llm)
    if not more_than_causal or (apart and heeds_gates(llm)):
        return wanted if apart else "padded"
    if looks_ahead:
        raise CompositionError(
            "E-ATTN",
            f"{llm.config.model_type} does not pass beni's segment attention on, so no position of it can look ahead",
            groups=("fusion", "llm"),
            fix="set fusion.image_attention=causal",
        )
    raise CompositionError(
        "E-ATTN",
        f"{llm.config.model_type} does not pass beni's attention on, so gates on visual tokens do not reach it",
        groups=("selector", "llm"),
        fix="choose another llm, for instance llm=qwen3, or resampler=perceiver, which reads the gates",
    )


@torch.no_grad()
def heeds_gates(llm: Llm) -> bool:
    """Whether a closed position reaches no later one in either layout (difference at most 1e-3 of the logits' range).

    That every layer uses the attention it is told to use does not follow from packed samples being kept apart: some
    models (GPT-J) ignore the name, and transformers' own masks see where positions begin anew.
    """
    ids = torch.arange(8, device=next(llm.parameters()).device)[None] * 7919 % llm.vocab_size
    plain = Sequence.plain(llm.embed(ids))
    gates = torch.zeros_like(plain.embeds[..., 0])
    gates[:, CLOSED_AT] = -torch.inf
    training = llm.training
    llm.eval()
    try:
        for sequence in (replace(plain, log_gate=gates), replace(plain, log_gate=gates).end_to_end()[0]):
            other = sequence.embeds.clone()
            other[:, CLOSED_AT] = other[:, -1]
            before, after = (llm(replace(sequence, embeds=x))[:, CLOSED_AT + 1 :] for x in (sequence.embeds, other))
            if (before - after).abs().max() > 1e-3 * before.abs().max().clamp(min=1e-6):
                return False
    except (TypeError, ValueError, KeyError):
        return False
    finally:
        llm.train(training)
    return True
