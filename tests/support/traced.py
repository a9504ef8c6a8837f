"""Visual tokens with a field more than they have, to see whether whatever passes them on passes that on too."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace

import torch
from torch import Tensor

from beni.types import VisualTokens
from beni.types.visual import PER_TOKEN

OPTIONAL = ("levels", "log_gate", "deep", "attn", "keys")
"""Fields of the class itself that are marked too."""


@dataclass(frozen=True)
class Traced(VisualTokens):
    """Visual tokens, each with a number of its own, which nobody but these tests knows of.

    Attributes:
        mark: from 1; 0 at tokens that have come from elsewhere.
        marked: the optional fields that hold the mark, and not what a stage reads.
    """

    mark: Tensor | None = field(default=None, metadata=PER_TOKEN)
    marked: tuple[str, ...] = OPTIONAL


def traced(tokens: VisualTokens, written: tuple[str, ...] = ()) -> Traced:
    """The tokens with a mark, which stands in each of the optional fields as well that they do not have.

    Args:
        written: optional fields that the stage itself writes.
    """
    own = {f.name: getattr(tokens, f.name) for f in fields(tokens)}
    mark = torch.arange(1.0, tokens.mask.numel() + 1).view(tokens.mask.shape)
    wide = mark[..., None].expand(-1, -1, 2)
    marked = {"levels": wide, "deep": wide, "keys": wide, "log_gate": -mark, "attn": mark}
    marked = {name: tensor for name, tensor in marked.items() if own[name] is None and name not in written}
    sources = tuple(traced(source, written) for source in tokens.sources)
    return Traced(**own | marked | {"mark": mark, "marked": tuple(marked), "sources": sources})


def shifted(x: Tensor) -> Tensor:
    """The features, those of one token a little larger."""
    moved = x.clone()
    moved[-1, 1] += 1e-2
    return moved


def marks(tokens: VisualTokens) -> Tensor | None:
    """The marks, which all optional fields must agree on; None where the tokens were made anew.

    Raises:
        AssertionError: when a field has gone with other tokens, or has been lost while others came along.
    """
    if not isinstance(tokens, Traced):
        return None
    assert tokens.mark is not None
    for name in tokens.marked:
        own = getattr(tokens, name)
        assert own is not None, f"{name} was lost on the way"
        seen = own if own.ndim == 2 else own[..., 0]
        assert (-seen if name == "log_gate" else seen).equal(tokens.mark), f"{name} went with other tokens"
    return tokens.mark


def follow(run: Callable[[VisualTokens], VisualTokens], tokens: Traced) -> bool:
    """Whether marks come out of ``run``; they must do so with the features of the tokens they were given to.

    Raises:
        AssertionError: when a mark comes out with features of other tokens.
    """
    before = run(tokens)
    found = marks(before)
    if found is None:
        return False
    assert tokens.mark is not None
    other = replace(tokens, x=shifted(tokens.x))
    (ours,) = tokens.mark[(other.x != tokens.x).any(-1)].tolist()
    after = run(other)
    assert after.x.shape == before.x.shape
    changed = (after.x != before.x).any(-1)
    assert (found > 0).any()
    assert changed[found == ours].all(), f"token {ours:.0f} has gone elsewhere than its mark"
    assert not changed[(found != ours) & (found > 0)].any(), "marks have gone with other tokens"
    return True
