"""What an llm can be asked for: samples packed into one row, positions that look ahead, gates on visual tokens."""

from __future__ import annotations

from typing import Literal

from beni.errors import CompositionError
from beni.llm.base import Llm
from beni.llm.hf import isolates_segments

Layout = Literal["packed", "padded"]


def layout_of(llm: Llm, wanted: Layout, *, looks_ahead: bool, gated: bool) -> Layout:
    """The layout in which the llm can be trained: ``padded`` where it cannot keep packed samples apart.

    One probe answers for all three: whatever of the llm mixes positions must go through the attention that it is told
    to use, with all that it is told, or packed samples see each other.

    Args:
        looks_ahead: some positions attend to later ones, as fusion says.
        gated: visual tokens come with gates.

    Raises:
        CompositionError: E-ATTN when it does not pass beni's attention on, and positions look ahead or have gates.
    """
    if not (wanted == "packed" or looks_ahead or gated) or isolates_segments(llm):
        return wanted
    if looks_ahead:
        raise CompositionError(
            "E-ATTN",
            f"{llm.config.model_type} does not pass beni's segment attention on, so no position of it can look ahead",
            groups=("fusion", "llm"),
            fix="set fusion.image_attention=causal",
        )
    if gated:
        raise CompositionError(
            "E-ATTN",
            f"{llm.config.model_type} does not pass beni's attention on, so gates on visual tokens do not reach it",
            groups=("selector", "llm"),
            fix="choose another llm, for instance llm=qwen3, or resampler=perceiver, which reads the gates",
        )
    return "padded"
