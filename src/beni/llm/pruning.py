"""Image tokens that leave between decoder layers (``Sequence.pruning``), for the time of one call of an llm.

From a cut on the layers are given what is left and nothing else: hidden states, rotary positions and whatever else has
an entry a position are gathered, and beni's attention is handed the plan of the shorter sequence. After the last layer
all is put back, so that the head finds every position where it was; a token that has left keeps the hidden state that
it left with. In generation the prompt is cut when it is read, and the caches of layers behind a cut hold what is left
of it: every later pass hands those layers the plan of their own keys. That equals closing those tokens to attention
from the cut on, which a probe (llm/probes.py) makes sure of for each llm.

Layers are replaced as those with visitors are (llm/visits.py), outside of visitors and of what recomputes activations:
a cut is made once, and the backward pass computes layers again on what they were given.
"""

from __future__ import annotations

from collections import abc
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import cached_property, partial
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from beni.llm.choice import parted, precise, ranked, recycled
from beni.llm.columns import (
    PLANS,
    Left,
    Plan,
    columns_of,
    entries,
    has_entries,
    joined_columns,
    mapped,
    plan_in,
    plan_of,
    put_back,
    repeated,
)
from beni.llm.forward import with_forward
from beni.llm.row_attention import RowPlan
from beni.llm.visits import Places, parameter_names
from beni.llm.watch import Given, Grid, Looks, Watch, found, looked_at
from beni.types import Candidates, Cut, Pruning, Sequence


class Passing:
    """A sequence on its way through the layers; under generation its prompt, and then one new position after another.

    Args:
        sequence: as it begins.
        pruning: what leaves.
        places: of the visitors, who are told what is left.
    """

    def __init__(self, sequence: Sequence, pruning: Pruning, places: Places) -> None:
        self.whole = replace(sequence, embeds=sequence.embeds.detach())
        self.pruning, self.places = pruning, places
        self.first: bool | None = None
        """Whether the pass that goes on reads the sequence itself; None before any."""
        self._left: dict[int, Left] = {}
        self._put: Tensor | None = None
        self._tables: dict[tuple[int, str], list[Any]] = {}

    @property
    def width(self) -> int:
        """Columns of the whole sequence."""
        return self.whole.embeds.shape[1]

    def begin(self, plan: Plan, hidden: Float[Tensor, "b t d"]) -> None:
        """A pass of the llm comes to the first layers that matter.

        Raises:
            ValueError: when only a part of the prompt is read.
        """
        past = plan.past if isinstance(plan, RowPlan) else 0
        if past == 0 and hidden.shape[1] == self.width and self.first is None:
            self.first = True
            if (rows := len(self.whole.images)) != len(hidden):  # beams
                self.whole = repeated(self.whole, len(hidden) // rows)
        elif past >= self.width and self.first is not None:
            self.first = False
        else:
            raise ValueError(
                f"a prompt whose image tokens leave between layers is read at once, and once; {hidden.shape[1]} "
                f"positions of {self.width} were read after {past}\n"
                "  fix: leave out past_key_values"
            )

    def cut(self, layer: int, hidden: Float[Tensor, "b t d"], look: Callable[[], Given]) -> Float[Tensor, "b k d"]:
        """Hidden states of what is left in front of a layer.

        Args:
            look: what the attention that the cut looks at was given.
        """
        cut, before = self.pruning.cuts[layer], self._behind(layer)
        sequence = self.whole if before is None else before.sequence
        grid = Grid.of(sequence)
        image = grid.rows(sequence.is_image & sequence.asked) & grid.real
        now = image.sum(1)
        keep = self._keep(layer, cut, now)
        if not bool((keep < now).any()):
            return hidden
        with torch.no_grad(), precise(hidden):
            scores = cut.score(self._candidates(sequence, before, hidden, grid, image, keep, look()))
        ranks = ranked(scores, image)
        kept = ~image | (ranks < keep[:, None])
        if cut.recycling is not None and not hidden.is_meta:
            hidden, kept = recycled(cut.recycling, hidden, grid, ranks, kept)
        return self._leave(layer, hidden, before, grid.back(kept, sequence.real))

    def arguments(self, layer: int, given: abc.Mapping[str, Any]) -> dict[str, Any]:
        """What a layer is handed, cut as its hidden states are."""
        left, plan = self._behind(layer), plan_in(given)
        if left is None:
            return dict(given)
        name = next(name for name in PLANS if name in given)
        if self.first:
            rows, width, chosen = len(left.index), self.width, dict(given)
            for key, value in given.items():
                if has_entries(value, rows, width):
                    chosen[key] = mapped(partial(columns_of, order=left.moved), value)
                    if self.pruning.compact:
                        self._tables[layer, key] = [value]
            return chosen | {name: left.plan}
        assert isinstance(plan, RowPlan)
        assert isinstance(left.plan, RowPlan)
        gone = self.width - left.index.shape[1]
        return {**given, **self._moved_on(layer, left, given, plan.past), name: left.plan.after(plan.past - gone)}

    def end(self, hidden: Float[Tensor, "b k d"], layer: int) -> Float[Tensor, "b t d"]:
        """Hidden states of all positions, behind the last layer."""
        left = self._behind(layer)
        return hidden if left is None or self._put is None else put_back(self._put, left, hidden)

    def _behind(self, layer: int) -> Left | None:
        """What is left where that layer reads; None where that is all."""
        cuts = [cut for cut in self._left if cut <= layer]
        return self._left[max(cuts)] if cuts else None

    @cached_property
    def _at_first(self) -> list[int]:
        """Image tokens of each sample that may leave, before any has."""
        grid = Grid.of(self.whole)
        return (grid.rows(self.whole.is_image & self.whole.asked) & grid.real).sum(1).tolist()

    @cached_property
    def _raters(self) -> Bool[Tensor, "b t"]:
        """The text that was chosen to judge, on the device of masks."""
        raters = torch.zeros_like(self.whole.real)
        if self.pruning.raters is None:
            return raters
        whole, grid = self.whole, Grid.of(self.whole)
        image, asked = (grid.rows(x) & grid.real for x in (whole.is_image & whole.asked, whole.asked))
        after = image.cumsum(1) > 0
        pictures, words = parted(image, grid.real), parted(~image, grid.real)
        parts: list[Tensor] = []
        for columns, true in ((pictures, image), (words, asked & ~image & after)):
            parts += [whole.embeds.flatten(0, 1)[grid.index.gather(1, columns).to(whole.embeds.device)].float()]
            parts += [true.gather(1, columns).to(whole.embeds.device)]
        with torch.no_grad(), precise(whole.embeds):
            chosen = self.pruning.raters(parts[0], parts[1], parts[2], parts[3])
        if chosen.is_meta:
            return raters
        return grid.back(torch.zeros_like(image).scatter(1, words, chosen), raters)

    def _keep(self, layer: int, cut: Cut, now: Int[Tensor, "s"]) -> Int[Tensor, "s"]:
        """How many image tokens of each sample stay as they are."""
        if layer in self.pruning.counts:
            return torch.full_like(now, self.pruning.counts[layer])
        pairs = zip(self._at_first, now.tolist(), strict=True)
        return torch.tensor([cut.keep(first, there) for first, there in pairs], device=now.device)

    def _candidates(
        self,
        sequence: Sequence,
        before: Left | None,
        hidden: Float[Tensor, "b t d"],
        grid: Grid,
        image: Bool[Tensor, "s l"],
        keep: Int[Tensor, "s"],
        given: Given,
    ) -> Candidates:
        device, raters = hidden.device, self._raters
        if before is not None:
            raters = raters.gather(1, before.index)
        stood = None if before is None else before.plan.columns
        stood = sequence.numbered()[1] if stood is None else stood.view_as(sequence.images)
        columns, blocks, gates = (
            None if x is None else grid.rows(x).to(device) for x in (stood, sequence.blocks, sequence.log_gate)
        )
        assert columns is not None
        there = grid.to(device)
        return Candidates(
            hidden=grid.rows(hidden.detach()),
            real=there.real,
            image=image.to(device),
            asked=(grid.rows(sequence.asked) & grid.real).to(device),
            raters=(grid.rows(raters) & grid.real).to(device),
            words=parted(~image, grid.real).to(device),
            keep=keep.to(device),
            attention=Looks(given, there, columns, blocks, gates),
        )

    def _leave(
        self, layer: int, hidden: Float[Tensor, "b t d"], before: Left | None, kept: Bool[Tensor, "b t"]
    ) -> Float[Tensor, "b k d"]:
        self._put = hidden if before is None or self._put is None else put_back(self._put, before, hidden)
        sequence = self.whole if before is None else before.sequence
        order, real = sequence.order(kept)
        shorter = sequence.at(order, real, kept)
        index = order if before is None else before.index.gather(1, order)
        samples, columns = (x.gather(1, index) for x in self.whole.numbered())
        self.places.samples, self.places.columns = samples.masked_fill(~real, -1), columns
        moved = index
        if self.pruning.compact:
            flat = Grid.of(self.whole).index
            sample, column = shorter.numbered()
            moved = flat[sample.clamp(min=0), column] % self.width
        _, plan = plan_of(shorter, None if self.pruning.compact else columns)
        self._left[layer] = Left(shorter, real, index, moved, plan)
        return columns_of(hidden, order)

    def _moved_on(self, layer: int, left: Left, given: abc.Mapping[str, Any], past: int) -> dict[str, Any]:
        """Rotary positions of new tokens where those before them have moved up: those that earlier ones have had."""
        moved: dict[str, Any] = {}
        ends = left.real.sum(1) + self.width - self.whole.lengths()  # new tokens stand behind left-padded prompts
        for name, table in ((name, table) for (of, name), table in self._tables.items() if of == layer):
            table.append(given[name])
            new = torch.arange(past - self.width, entries(given[name]) + past - self.width, device=ends.device)
            moved[name] = mapped(partial(joined_columns, order=ends[:, None] + new), *table)
        return moved


class PrunedForward:
    """A layer's ``forward`` on what is left of a sequence.

    Args:
        layer: with its visitors.
        own: its forward without them.
        index: its number.
        first: the number of the first layer that is replaced.
        last: of the last layer.
        passing: the sequence.
    """

    def __init__(
        self, layer: nn.Module, own: Callable[..., Any], index: int, first: int, last: int, passing: Passing
    ) -> None:
        self.forward: Callable[..., Any] = layer.forward
        self.names, self.own, self.index = parameter_names(type(layer)), own, index
        self.begins, self.ends, self.passing = index == first, index == last, passing
        self.watched: Watch | None = None
        self.watching: PrunedForward | None = None

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        return leaving(self, self.forward(**arriving(self, dict(zip(self.names, arguments, strict=False)) | named)))

    def arrive(self, given: dict[str, Any]) -> dict[str, Any]:
        """What the layer is called with, where the model calls it with ``given``."""
        name, passing = self.names[0], self.passing
        if self.begins:
            passing.begin(plan_in(given), given[name])
        hidden = given.pop(name)
        cut = passing.pruning.cuts.get(self.index) if passing.first else None
        if cut is not None:
            hidden = passing.cut(self.index, hidden, partial(self._look, cut, given | {name: hidden}))
        given = passing.arguments(self.index, given)
        if passing.first and self.watching is not None:
            given["watch"] = self.watching.watched = Watch()
        return {name: hidden} | given

    def leave(self, out: Any) -> Any:
        """What the model is given back."""
        if not (self.ends and self.passing.first):
            return out
        found = self.passing.end(out[0] if isinstance(out, tuple) else out, self.index)
        return (found, *out[1:]) if isinstance(out, tuple) else found

    def _look(self, cut: Cut, given: dict[str, Any]) -> Given:
        """What the attention that a cut looks at was given."""
        if cut.sees == "next":
            name = self.names[0]
            hidden = given.pop(name)
            return looked_at(self.own, name, {name: hidden} | self.passing.arguments(self.index, given))
        watch, self.watched = self.watched, None
        return found(watch)


@torch.compiler.disable  # how much is left depends on values
def arriving(layer: PrunedForward, given: dict[str, Any]) -> dict[str, Any]:
    """``PrunedForward.arrive``."""
    return layer.arrive(given)


@torch.compiler.disable
def leaving(layer: PrunedForward, out: Any) -> Any:
    """``PrunedForward.leave``."""
    return layer.leave(out)


@contextmanager
def pruned(layers: abc.Sequence[nn.Module], own: abc.Sequence[Callable[..., Any]], passing: Passing) -> Iterator[None]:
    """Inside the block what is to leave the sequence leaves it between the layers.

    Args:
        layers: all, with their visitors.
        own: the forward of each without them.

    Raises:
        ValueError: when there is no layer of such a number, or nothing before it.
    """
    cuts, last = passing.pruning.cuts, len(layers) - 1
    if beyond := sorted(index for index in cuts if not 1 <= index <= last):
        raise ValueError(f"tokens were to leave before layer {beyond[0]}, but this llm has the layers 0 to {last}")
    first = min(cuts) - 1
    with ExitStack() as replaced:
        before: PrunedForward | None = None
        for index in range(first, last + 1):
            forward = PrunedForward(layers[index], own[index], index, first, last, passing)
            if before is not None and index in cuts and cuts[index].sees == "before":
                before.watching = forward
            replaced.enter_context(with_forward(layers[index], forward))
            before = forward
        yield
