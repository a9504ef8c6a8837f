"""What a micro-batch costs in FLOPs, by component, under the plan of freezing that holds now.

The rule is the field's: a component costs its forward pass once where it is frozen and off the gradient's way, twice
where it is frozen but on it (an llm above a connector that trains), three times where it trains. It is not applied but
observed: each part is rehearsed on the meta device, forward and backward, with the flags of the real parameters. So
what the rule leaves out is right too: adapters, a first layer whose input wants no gradient, a tensor frozen by itself.

Billed is what the task needs: a view of a picture for its patches, attention for each segment by itself (the sum of
squared lengths, causal or not), the head for the rows that predict a label. Padding is billed to nobody and told apart,
as is what activation checkpointing computes again.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from beni.config.schema import COMPONENTS
from beni.measure.flops import count_flops, count_training_flops
from beni.model.modeling import BeniForConditionalGeneration
from beni.stage import Stage, StageContext
from beni.types import IGNORE, Batch, Prompt, TokenSpec, VisualTokens
from beni.vision.hf import HFVision
from beni.vision.probe import dry_run

Recomputing = Callable[[Sequence[nn.Module]], AbstractContextManager[None]]
"""Around a call: the layers give up activations and compute them again, as they do in this run."""

SHORT = 8
"""Positions of the shortest rehearsal of an llm."""

LONG = 300
"""Positions at which a rate is tried: more than the chunks of Mamba 2 (256), few for models with a loop over them."""

BLOCK = 64
"""Positions between two counts of an llm that has no rate."""


@dataclass(frozen=True)
class Bill:
    """FLOPs of one micro-batch or several.

    Attributes:
        components: useful ones, by component; causal attention in full.
        causal: of these, what causal attention need not compute: half of its products.
        recomputed: what activation checkpointing computes again, beside the useful ones.
        padding: what positions that hold nothing cost, beside the useful ones.
    """

    components: dict[str, int] = field(default_factory=lambda: dict.fromkeys(COMPONENTS, 0))
    causal: int = 0
    recomputed: int = 0
    padding: int = 0

    @property
    def useful(self) -> int:
        return sum(self.components.values())

    def __add__(self, other: Bill) -> Bill:
        return Bill.of([a + b for a, b in zip(self.values(), other.values(), strict=True)])

    def scaled(self, component: str, share: float) -> Bill:
        """With only a share of one component: a feature bank has the rest."""
        return replace(self, components=self.components | {component: round(self.components[component] * share)})

    def values(self) -> list[int]:
        """As a list, for sums over ranks."""
        return [*(self.components[name] for name in COMPONENTS), self.causal, self.recomputed, self.padding]

    @staticmethod
    def of(values: Sequence[int]) -> Bill:
        """The inverse of ``values``."""
        rest = values[len(COMPONENTS) :]
        return Bill(dict(zip(COMPONENTS, values, strict=False)), *rest)


@dataclass(frozen=True)
class Rate:
    """What an llm costs: FLOPs of a call, of each position, each pair of positions, each row of the head."""

    call: float
    position: float
    pair: float
    row: float

    def of(self, lengths: Sequence[int], rows: int) -> int:
        """A call on sequences of these lengths that see nothing of each other."""
        return round(
            self.call
            + self.position * sum(lengths)
            + self.pair * sum(length**2 for length in lengths)
            + self.row * rows
        )

    @staticmethod
    def fit(count: Callable[[int, int], int]) -> Rate:
        """From ``count(length, rows)`` of one short sequence, which is of this form."""
        one, two, three = (count(SHORT * times, 1) for times in (1, 2, 3))
        row = (count(SHORT, 3) - one) / 2
        pair = (three - 2 * two + one) / (2 * SHORT**2)
        position = (two - one) / SHORT - 3 * SHORT * pair
        return Rate(one - position * SHORT - pair * SHORT**2 - row, position, pair, row)


class Staircase:
    """What an llm costs that works through a sequence in chunks (Mamba 2, xLSTM, Qwen3-Next).

    It is counted at the beginning of each block of lengths that occurs, and where a block is full. Longer ones cost in
    addition what short sequences say of positions and pairs. Right for chunks of one block or several, whether a part
    of a chunk costs as much as a whole one (Mamba 2) or is computed position by position (xLSTM).

    Args:
        count: FLOPs of one sequence of so many positions, the head on one of them.
        short: fitted to short sequences; its head and its attention are those of long ones.
    """

    def __init__(self, count: Callable[[int], int], short: Rate) -> None:
        self._count, self._short, self.pair = cache(count), short, short.pair

    def of(self, lengths: Sequence[int], rows: int) -> int:
        """As of ``Rate``."""
        return round(sum(map(self._sequence, lengths)) + self._short.row * rows)

    def _sequence(self, length: int) -> int:
        counted = length if length % BLOCK == 0 else max(SHORT, length // BLOCK * BLOCK + 1)
        return self._count(counted) - self._short.of([counted], 1) + self._short.of([length], 0)


class Costs:
    """Bills micro-batches. What it has found out about a size, a grid or an llm it keeps until ``recount``.

    Args:
        twin: the model on the meta device, with its plan applied.
        image_token_id: the placeholder in batches.
        recomputing: of the run's activation checkpointing; None where there is none.
        attention_kept: attention is not among what is computed again.
    """

    def __init__(
        self,
        twin: BeniForConditionalGeneration,
        image_token_id: int,
        recomputing: Recomputing | None = None,
        attention_kept: bool = False,
    ) -> None:
        self.twin, self._image = twin.eval(), image_token_id
        self._recomputing, self._attention_kept = recomputing, attention_kept
        self._known: dict[object, tuple[int, int]] = {}
        self._rates: dict[bool, tuple[Rate | Staircase, Rate | Staircase]] = {}

    def recount(self, trained: Collection[str]) -> None:
        """From now on the parameters of these names train, and no others."""
        for name, parameter in self.twin.named_parameters():
            parameter.requires_grad_(name in trained)
        self._known.clear()
        self._rates.clear()

    def bill(self, batch: Batch, kept: Sequence[int] | None = None) -> Bill:
        """What the forward and backward pass of a micro-batch cost. Reads its values, so it must lie on the CPU.

        Args:
            kept: positions of each sample that the llm was given, where fusion has dropped some.
        """
        own: dict[str, int] = dict.fromkeys(COMPONENTS, 0)
        recomputed = 0
        for layout, asked in zip(batch.layouts, self._asked(batch), strict=True):
            specs = self.twin.row_specs(layout)
            for size in layout.views:
                useful, again = self._view(size)
                own["vision"], recomputed = own["vision"] + useful, recomputed + again
            for before, stage in pairwise(("vision", "views", "selector", "resampler", "connector")):
                own[stage] += sum(self._stage(stage, row, asked) for row in specs[before])

        reached = self._embeddings_train() or (bool(batch.layouts) and self._trains(*COMPONENTS[:-1]))
        if reached not in self._rates:
            self._rates[reached] = self._rehearse_llm(reached)
        useful, again = self._rates[reached]
        lengths, labels = list(kept or batch.lengths), batch.num_labels
        own["llm"] = useful.of(lengths, labels)
        laid_out = lengths
        if batch.attention_mask is not None and not self.twin.fusion.looks_ahead:
            width = max(kept) if kept else batch.input_ids.shape[1]
            laid_out = [width] * len(lengths)  # padding is computed again like the rest
        recomputed += again.of(laid_out, 0)
        causal = round(useful.pair * sum(n**2 for n in lengths) / 2)
        return Bill(own, causal, recomputed, self._padding(batch, useful, kept))

    def _padding(self, batch: Batch, rate: Rate | Staircase, kept: Sequence[int] | None) -> int:
        """What a padded batch costs more; fusions that look ahead lay its rows end to end first."""
        if batch.attention_mask is None or self.twin.fusion.looks_ahead:
            return 0
        rows, width = batch.input_ids.shape
        columns = int((batch.labels != IGNORE).any(0).sum())  # the head is on the same columns of all rows
        laid_out = [max(kept) if kept else width] * rows
        return rate.of(laid_out, rows * columns) - rate.of(list(kept or batch.lengths), batch.num_labels)

    def _asked(self, batch: Batch) -> list[int]:
        """Positions of the prompt of each image; 0 where no stage reads it."""
        if not self.twin.uses_prompt or batch.owners is None:
            return [0] * len(batch.layouts)
        asked = ((batch.labels == IGNORE) & (batch.input_ids != self._image)).flatten()
        if batch.cu_seqlens is None:
            mask = torch.ones_like(batch.input_ids) if batch.attention_mask is None else batch.attention_mask
            counts = (asked.view_as(mask) & mask.bool()).sum(1).tolist()
        else:
            counts = [int(asked[a:b].sum()) for a, b in pairwise(batch.cu_seqlens.tolist())]
        return [counts[owner] for owner in batch.owners.tolist()]

    def _trains(self, *components: str) -> bool:
        return any(p.requires_grad for name in components for p in getattr(self.twin, name).parameters())

    def _embeddings_train(self) -> bool:
        return any(p.requires_grad for p in self.twin.get_input_embeddings().parameters())

    def _view(self, size: tuple[int, int]) -> tuple[int, int]:
        """Useful and recomputed FLOPs of the encoder on a view of that size."""
        if size not in self._known:
            vision = self.twin.vision

            def forward() -> Iterable[Tensor]:
                with torch.set_grad_enabled(self._trains("vision")):
                    return vision(torch.empty(1, 3, *size, device="meta")).features()

            with ExitStack() as contexts:
                for encoder in vision.modules():
                    if isinstance(encoder, HFVision):
                        contexts.enter_context(dry_run(encoder.model))
                self._known[size] = self._count(vision, forward, vision.blocks())
        return self._known[size]

    def _stage(self, name: str, row: TokenSpec, asked: int) -> int:
        """FLOPs of a stage on one row of its tokens, with a prompt of so many positions."""
        stage: Stage = getattr(self.twin, name)
        if name == "views":  # wants whole pictures; it has no products to rehearse
            return stage.flops(row)
        asked = asked if "prompt" in stage.reads else 0
        key = (name, row, asked)
        if key not in self._known:
            before = COMPONENTS[: COMPONENTS.index(name)]

            def forward() -> Iterable[Tensor]:
                prompt = None
                if asked:
                    embeds = torch.empty(1, asked, self.twin.llm.hidden_size, device="meta")
                    embeds.requires_grad_(self._embeddings_train())
                    prompt = Prompt(embeds, torch.ones(1, asked, dtype=torch.bool, device="meta"))
                context = StageContext(scales=(row.scale,) if stage.nested else (), prompt=prompt)
                return stage(_tokens(row, self._trains(*before)), context).features()

            self._known[key] = self._count(stage, forward)
        return self._known[key][0]

    def _rehearse_llm(self, reached: bool) -> tuple[Rate | Staircase, Rate | Staircase]:
        """What it costs and computes again, with embeddings that want a gradient or do not."""

        @cache
        def count(length: int, rows: int = 1) -> tuple[int, int]:
            rehearsed = self._rehearsed(length, rows, reached)
            return self._count(self.twin.llm, lambda: [rehearsed()], self.twin.llm.layers())

        useful, again = (Rate.fit(lambda n, k, which=which: count(n, k)[which]) for which in (0, 1))
        if not self._has_rate:
            return Staircase(lambda n: count(n)[0], useful), Staircase(lambda n: count(n)[1], again)
        return useful, replace(again, pair=0.0) if self._attention_kept else again

    @cached_property
    def _has_rate(self) -> bool:
        """Whether what short sequences cost tells what long ones do, within 1 %."""

        @cache
        def count(length: int) -> int:
            return count_flops(self._rehearsed(length, 1, reached=False))

        said = Rate.fit(lambda length, _: count(length)).of([LONG], 1)
        return abs(said - count(LONG)) <= 0.01 * count(LONG)

    def _rehearsed(self, length: int, rows: int, reached: bool) -> Callable[[], Tensor]:
        with torch.device("meta"):
            embeds = torch.empty(1, length, self.twin.llm.hidden_size, requires_grad=reached)
        return self.twin.llm.rehearsal(embeds, rows)

    def _count(
        self, part: nn.Module, forward: Callable[[], Iterable[Tensor]], layers: Sequence[nn.Module] = ()
    ) -> tuple[int, int]:
        """Useful FLOPs, and those that the layers compute again."""
        with _Attention() as attention:
            useful = count_training_flops(forward)
        again = 0
        if self._recomputing is not None and layers:
            with self._recomputing(layers):
                again = count_training_flops(forward) - useful
            again -= attention.flops if self._attention_kept else 0
        part.zero_grad(set_to_none=True)
        return useful, again


class _Attention(TorchFunctionMode):
    """Counts the forward products of scaled-dot-product attention that a gradient passes."""

    flops = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func is F.scaled_dot_product_attention and out.requires_grad:
            q, k, v = (*args, *((kwargs or {})[name] for name in ("query", "key", "value")[len(args) :]))[:3]
            self.flops += 2 * q.shape[:-1].numel() * k.shape[-2] * (q.shape[-1] + v.shape[-1])
        return out


def _tokens(spec: TokenSpec, wants_gradient: bool) -> VisualTokens:
    """One row of such tokens on the meta device."""
    with torch.device("meta"):
        x = torch.empty(1, spec.n, spec.dim, requires_grad=wants_gradient)
        levels = torch.empty(1, spec.n, spec.levels, requires_grad=wants_gradient) if spec.levels else None
        dense = VisualTokens.dense(x, spec.grid or (1, spec.n))
    sources = tuple(_tokens(source, wants_gradient) for source in spec.sources)
    return replace(dense, grid=spec.grid, levels=levels, sources=sources)
