"""What an llm can be asked for: samples packed into one row, positions that look ahead, gates on visual tokens, and
image tokens that leave between its layers.
"""

from __future__ import annotations

from typing import Literal

from beni.errors import CompositionError
from beni.llm.base import Llm
from beni.types import Pruning

Layout = Literal["packed", "padded"]


def layout_of(
    llm: Llm,
    wanted: Layout,
    *,
    looks_ahead: bool,
    gated: bool,
    reads_along: frozenset[int] = frozenset(),
    pruning: Pruning | None = None,
) -> Layout:
    """The layout in which the llm can be trained: ``padded`` where it cannot keep packed samples apart.

    Args:
        looks_ahead: some positions attend to later ones, as fusion says.
        gated: visual tokens come with gates.
        reads_along: layers whose attention the fusion reads along with.
        pruning: what leaves between its layers; None where nothing does.

    Raises:
        CompositionError: E-ATTN when it does not pass beni's attention on, and positions look ahead, have gates or are
            to leave, or the fusion reads along; E-STACK when those that stay cannot move up.
    """
    if silent := sorted(reads_along - llm.capabilities.lends_queries) if reads_along else []:
        raise CompositionError(
            "E-ATTN",
            f"{llm.describe().kind} does not hand the queries of layer {silent[0]} to beni's attention, and this "
            "fusion reads with them",
            groups=("fusion", "llm"),
            fix="choose another llm, for instance llm=qwen3, or fusion=flamingo, which has queries of its own",
        )
    if pruning is not None:
        _require_pruning(llm, pruning)
    more_than_causal = looks_ahead or gated
    apart = not (wanted == "packed" or more_than_causal) or llm.capabilities.packed
    if not more_than_causal or (apart and llm.capabilities.gates):
        return wanted if apart else "padded"
    if looks_ahead:
        raise CompositionError(
            "E-ATTN",
            f"{llm.describe().kind} does not pass beni's segment attention on, so no position of it can look ahead",
            groups=("fusion", "llm"),
            fix="set fusion.image_attention=causal",
        )
    raise CompositionError(
        "E-ATTN",
        f"{llm.describe().kind} does not pass beni's attention on, so gates on visual tokens do not reach it",
        groups=("selector", "llm"),
        fix="choose another llm, for instance llm=qwen3, or resampler=perceiver, which reads the gates",
    )


def _require_pruning(llm: Llm, pruning: Pruning) -> None:
    kind = llm.describe().kind
    if not llm.capabilities.prunes:
        raise CompositionError(
            "E-ATTN",
            f"{kind} does not pass beni's attention on, so no image token can leave between its layers",
            groups=("pruner", "llm"),
            fix="set pruner=none, or choose another llm, for instance llm=qwen3",
        )
    if pruning.compact and not llm.capabilities.moves_positions:
        raise CompositionError(
            "E-STACK",
            f"pruner.positions=compact moves tokens up, and the positions of {kind} are a part of its embeddings",
            groups=("pruner", "llm"),
            fix="set pruner.positions=preserve",
        )
