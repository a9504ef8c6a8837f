"""Choosing some of the visual tokens: how many, which, and what becomes of the places of the others.

A selector ranks the tokens of each row; what is here turns a ranking into fewer tokens. Whether the kept ones keep the
places in the text that they had (``preserve``), or the text is laid out for the kept ones only (``compact``), decides
the position ids that the llm sees; arXiv 2506.21873 found that preserving alone is worth tens of points of grounding
where nothing is trained.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from beni.nn.gates import is_open, openness
from beni.types import TokenSpec, VisualTokens

Positions = Literal["preserve", "compact"]


@dataclass(frozen=True)
class Budget:
    """How many tokens are kept.

    Attributes:
        keep: a whole number of tokens, or a share (a float, at most 1.0) of those that come in; never less than one.
    """

    keep: int | float

    def of(self, n: int | float) -> int:
        """How many of ``n`` tokens are kept."""
        wanted = self.keep if isinstance(self.keep, int) else int(self.keep * n + 0.5)
        return max(1, min(wanted, int(n)))

    def each(self, real: Int[Tensor, "i"]) -> Int[Tensor, "i"]:
        """How many of so many real tokens each row keeps."""
        if isinstance(self.keep, int):
            return real.clamp(max=self.keep)
        return torch.minimum((self.keep * real.double() + 0.5).long().clamp(min=1), real)


def grid_within(grid: tuple[int, int], budget: Budget) -> tuple[int, int]:
    """(rows, columns) of no more cells than a budget keeps of a grid: the largest of those shaped most like it."""
    rows, columns = grid
    most, shape = budget.of(rows * columns), columns / rows
    fitting = [(r, min(columns, most // r)) for r in range(1, min(rows, most) + 1)]

    def likeness(cells: tuple[int, int]) -> float:
        stretched = cells[1] / cells[0] / shape
        return -max(stretched, 1 / stretched)

    return max(fitting, key=lambda cells: (likeness(cells), cells[0] * cells[1]))


def chosen_spec(tokens: TokenSpec, budget: Budget | None, positions: Positions) -> TokenSpec:
    """What is known of tokens of which a budget is kept, or as many as the picture deserves; they form no grid."""
    left = replace(tokens, grid=None, sources=())
    if budget is None:
        return replace(left, fixed=False, mean=None)
    if positions == "preserve":
        return replace(left, fixed=False, mean=budget.of(tokens.mean or tokens.n))
    mean = None if tokens.mean is None else float(budget.of(tokens.mean))
    return replace(left, n=budget.of(tokens.n), mean=mean)


def chosen(tokens: VisualTokens, ranking: Int[Tensor, "i m"], budget: Budget, positions: Positions) -> VisualTokens:
    """``(i, n, d) -> (i, n, d)`` with the others marked as dropped, or ``(i, k, d)`` where positions are compact. What
    is kept stays in reading order.

    Args:
        ranking: places of each row, the best first and padding last; as many as the budget may ask for, or more.
    """
    return kept(tokens, best(tokens, ranking, budget), budget, positions)


def best(tokens: VisualTokens, ranking: Int[Tensor, "i m"], budget: Budget) -> Bool[Tensor, "i n"]:
    """True at the tokens of each row that its budget keeps."""
    counts = budget.each(tokens.mask.sum(1))
    wanted = torch.arange(ranking.shape[1], device=ranking.device) < counts[:, None]
    # a place may stand in the ranking again, behind those that are wanted
    return (torch.zeros_like(tokens.mask).long().scatter_add(1, ranking, wanted.long()) > 0) & tokens.mask


def kept(tokens: VisualTokens, which: Bool[Tensor, "i n"], budget: Budget | None, positions: Positions) -> VisualTokens:
    """The tokens where ``which`` is True, of which no row has more than the budget, where there is one.

    Without a budget the text is laid out for all; what is not kept is taken out by fusion, which closes the gaps
    in the position ids where they are compact. With one, and compact positions, rows that keep fewer than others
    are filled with tokens that are not real.
    """
    if positions == "preserve" or budget is None:
        return replace(tokens.drop(which), compact=positions == "compact")
    return gathered(tokens, which, budget.of(tokens.mask.shape[1]))


def gathered(tokens: VisualTokens, which: Bool[Tensor, "i n"], width: int) -> VisualTokens:
    """``(i, n, d) -> (i, width, d)``: the tokens where ``which`` is True, in order, in front of others, which count as
    dropped where any had been before, else as padding.
    """
    places = torch.argsort((~which).long(), dim=1, stable=True)[:, :width]
    fewer = tokens.gather(places)
    mask = which.gather(1, places)
    return replace(fewer, mask=mask, dropped=None if tokens.dropped is None else ~mask)


def by_score(scores: Float[Tensor, "i n"], tokens: VisualTokens) -> Int[Tensor, "i n"]:
    """Places of each row, the highest score first, of equal ones the first; then tokens behind closed gates, whose
    scores say nothing; padding last.
    """
    low = torch.finfo(scores.dtype).min
    told = scores.clamp(min=low / 2).masked_fill(~legible(tokens), low).masked_fill(~tokens.mask, -torch.inf)
    return torch.argsort(told, dim=1, descending=True, stable=True)


def legible(tokens: VisualTokens) -> Bool[Tensor, "i n"]:
    """True at real tokens whose gate, where they have one, is not closed."""
    return tokens.mask if tokens.log_gate is None else tokens.mask & is_open(tokens.log_gate)


def spread(mask: Bool[Tensor, "i n"], budget: Budget) -> Int[Tensor, "i n"]:
    """Places of each row, those of real tokens at even distances first, as many as its budget keeps."""
    real = mask.sum(1, keepdim=True)
    wanted = budget.each(real[:, 0])[:, None].clamp(min=1)
    order = torch.arange(mask.shape[1], device=mask.device).expand_as(mask)
    numbers = torch.div((2 * order + 1) * real, 2 * wanted, rounding_mode="floor")  # of the j-th among the real ones
    reading = torch.argsort((~mask).long(), dim=1, stable=True)
    return reading.gather(1, numbers.clamp(max=mask.shape[1] - 1))


def with_gates(tokens: VisualTokens, gates: Float[Tensor, "i n"] | None) -> VisualTokens:
    """The tokens with gates beside those that they have."""
    if gates is None:
        return tokens
    return replace(tokens, log_gate=gates if tokens.log_gate is None else tokens.log_gate + gates)


Work = Callable[[VisualTokens, int], tuple[VisualTokens, Bool[Tensor, "g n"]]]
"""(rows of equal length without padding, how many to keep) -> the tokens, changed or not, and True at those to keep."""


def in_full_rows(tokens: VisualTokens, budget: Budget | None, work: Work) -> tuple[VisualTokens, Bool[Tensor, "i n"]]:
    """Lets ``work`` choose among the legible tokens of rows that have equally many, without padding between them.

    Args:
        budget: None where ``work`` decides how many; it is told all then.

    Returns:
        The tokens as ``work`` has changed them, and True at those to keep: where a row has fewer legible tokens than
        its budget asks for, tokens behind closed gates too.
    """
    readable = legible(tokens)
    order = torch.argsort((~readable).long(), dim=1, stable=True)
    which, fields = torch.zeros_like(tokens.mask), tokens.per_token()
    for rows, count, k in _alike(tokens, readable, budget):
        places = order[rows, :count]
        made, chosen_here = work(tokens.select(rows).gather(places), k)
        at = (rows[:, None], places)
        which = which.index_put(at, chosen_here)
        for name, tensor in made.per_token().items():
            if tensor.is_floating_point():
                fields[name] = fields[name].to(tensor.dtype).index_put(at, tensor)
    if budget is not None:
        which = best(tokens, torch.argsort(2 - 2 * which.long() + (~tokens.mask).long(), dim=1, stable=True), budget)
    return replace(tokens, **fields), which


def _alike(
    tokens: VisualTokens, readable: Bool[Tensor, "i n"], budget: Budget | None
) -> Iterator[tuple[Int[Tensor, "g"], int, int]]:
    """Rows that have as many legible tokens and keep as many of them: (rows, legible tokens, how many to keep)."""
    images, n = readable.shape
    if readable.is_meta:  # a dry run, where every token is real
        yield torch.arange(images, device=readable.device), n, budget.of(n) if budget else n
        return
    legibles = readable.sum(1)
    wanted = legibles if budget is None else torch.minimum(budget.each(tokens.mask.sum(1)), legibles)
    groups: dict[tuple[int, int], list[int]] = {}
    for row, sizes in enumerate(zip(legibles.tolist(), wanted.tolist(), strict=True)):
        groups.setdefault(sizes, []).append(row)
    for (count, k), rows in groups.items():
        if k:
            yield torch.tensor(rows, device=readable.device), count, k


def at_places(places: Int[Tensor, "g k"], n: int) -> Bool[Tensor, "g n"]:
    """True at the places."""
    return torch.zeros(len(places), n, dtype=torch.bool, device=places.device).scatter(1, places, True)


def unit(x: Float[Tensor, "*n d"]) -> Float[Tensor, "*n d"]:
    """Vectors of length one in single precision or better, for cosines; a zero vector stays one."""
    return F.normalize(x if x.dtype == torch.float64 else x.float(), dim=-1)


def taken_up(tokens: VisualTokens, weights: Float[Tensor, "i n n"], sizes: Float[Tensor, "i n n"]) -> VisualTokens:
    """The tokens, each with a weighted sum of others added to its features, and shares of others to its size. A token
    keeps its own gate.

    Args:
        weights: of each token (last axis) in each.
        sizes: the share of each token's patches (last axis) that each stands for from now on.
    """
    x = tokens.x + weights.to(tokens.x.dtype) @ tokens.x
    return replace(tokens, x=x, size=tokens.size + (sizes * tokens.size[:, None]).sum(2))


def openness_of(tokens: VisualTokens) -> Float[Tensor, "i n"]:
    """How far the gate of each token is open; 1 where there are none."""
    return torch.ones_like(tokens.size) if tokens.log_gate is None else openness(tokens.log_gate)
