"""Generation with a key/value cache after what fusion left in a sequence: blocks, gates, positions with gaps, padding.

transformers generates; the prompt is read in its first call of the model, as training and scoring read it. Positions
are handed over (new ones count on from the last), and where attention is more than causal every call is told of the
prompt's keys, those of later steps too.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

from transformers import PreTrainedModel, StaticCache

from beni.llm.forward import with_forward
from beni.llm.row_attention import RowPlan
from beni.types import Sequence


def generate(model: PreTrainedModel, sequence: Sequence, plan: RowPlan | None, **options: Any) -> Any:
    """``(b, t, d) -> (rows, new)``: token ids after the samples of a left-padded sequence.

    Args:
        model: set to ``beni_rows`` attention where there is a plan.
        plan: of the rows, where plain causal attention does not describe them.
        options: of transformers' ``generate``.

    Raises:
        ValueError: when the sequence is packed or does not end with its samples; when such a cache is asked for that
            does not tell how much of it is filled.
    """
    if sequence.packed or not bool(sequence.real[:, -1].all()):
        raise ValueError("generation needs samples at the ends of their rows: left-padded, not packed")
    prompt: dict[str, Any] = {"inputs_embeds": sequence.embeds, "attention_mask": sequence.real.long()}
    if "position_ids" in inspect.signature(model.forward).parameters:
        prompt["position_ids"] = sequence.position_ids
    if plan is None:
        return model.generate(**prompt, **options)
    with told_of(model, plan):
        return model.generate(**prompt, **options)


@contextmanager
def told_of(model: PreTrainedModel, plan: RowPlan) -> Iterator[None]:
    """Inside the block every call of the model is told of the rows, and of how much its cache holds."""
    call = model.forward

    @wraps(call)
    def forward(*args: Any, **kwargs: Any) -> Any:
        cache = kwargs.get("past_key_values")
        if isinstance(cache, StaticCache):
            raise ValueError(
                "a prompt with gates, positions that look ahead or tokens that leave cannot be kept in a static cache\n"
                "  fix: leave out cache_implementation"
            )
        rows = plan.after(0 if cache is None else cache.get_seq_length())
        out = call(*args, rows=rows, **kwargs)
        if not rows.masks:
            raise ValueError(
                f"{type(model).__name__} does not pass beni's attention on: gates, blocks and what leaves are lost"
            )
        return out

    with with_forward(model, forward):
        yield
