"""State dicts of published modules -> beni's names, where more than a name changes."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor


def rename(state: dict[str, Tensor], pairs: Iterable[tuple[str, str]]) -> dict[str, Tensor]:
    """Parts of names replaced in order; a later pair sees what an earlier one made."""
    out = {}
    for name, tensor in state.items():
        for theirs, ours in pairs:
            name = name.replace(theirs, ours)
        out[name] = tensor
    return out


def split_projections(state: dict[str, Tensor], stacked: str, names: tuple[str, ...]) -> dict[str, Tensor]:
    """One matrix (and its bias) that makes several things at once -> one for each, in their order."""
    out = {}
    for name, tensor in state.items():
        if stacked in name:
            parts = tensor.chunk(len(names))
            out |= {name.replace(stacked, ours): part for ours, part in zip(names, parts, strict=True)}
        else:
            out[name] = tensor
    return out


def from_multihead(state: dict[str, Tensor], theirs: str) -> dict[str, Tensor]:
    """``torch.nn.MultiheadAttention`` called ``theirs`` -> ``attention``."""
    names = tuple(f"attention.{x}_proj." for x in "qkv")
    state = split_projections(state, f"{theirs}.in_proj_", names)
    return rename(state, [(f"{theirs}.out_proj", "attention.o_proj")])
