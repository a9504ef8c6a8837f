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

import hashlib
import json
from collections import abc
from collections.abc import Callable, Collection, Iterable
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import cache
from itertools import pairwise
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from beni.config.schema import COMPONENTS
from beni.llm.base import Llm
from beni.measure.flops import count_flops, count_training_flops
from beni.model.costing.bill import Bill
from beni.model.costing.rates import LONG, Rate, Staircase
from beni.model.modeling import BeniForConditionalGeneration
from beni.stage import PROMPTS, Stage, StageContext
from beni.types import IGNORE, Batch, ImageLayout, Prompt, Sequence, TokenSpec, VisualTokens
from beni.vision.base import VisionEncoder

Recomputing = Callable[[abc.Sequence[nn.Module]], AbstractContextManager[None]]
"""Around a call: the layers give up activations and compute them again, as they do in this run."""


class Count(NamedTuple):
    """FLOPs of a part: of its forward pass, of both passes, and of what its layers compute again."""

    forward: int
    useful: int
    again: int


class Rates(NamedTuple):
    """The same of an llm, at any length."""

    forward: Rate | Staircase
    useful: Rate | Staircase
    again: Rate | Staircase


class Visual(NamedTuple):
    """The same of all components before the llm, by component."""

    forward: dict[str, int]
    useful: dict[str, int]
    again: int


class Counted:
    """What this process has counted of backbones: whoever plans many runs meets the same ones again."""

    def __init__(self) -> None:
        self._counts: dict[object, Count] = {}

    def get(self, key: object, count: Callable[[], Count]) -> Count:
        """The count of ``key``, counted now where it is not known."""
        if key not in self._counts:
            self._counts[key] = count()
        return self._counts[key]


COUNTED = Counted()


class Costs:
    """Bills micro-batches. What it has found out about a size, a grid or an llm it keeps until ``recount``.

    Args:
        twin: the model on the meta device, with its plan applied.
        image_token_id: the placeholder in batches, where some are billed.
        recomputing: of the run's activation checkpointing; None where there is none.
        attention_kept: attention is not among what is computed again.
    """

    def __init__(
        self,
        twin: BeniForConditionalGeneration,
        image_token_id: int = -1,
        recomputing: Recomputing | None = None,
        attention_kept: bool = False,
    ) -> None:
        self.twin, self._image = twin.eval(), image_token_id
        self._recomputing, self._attention_kept = recomputing, attention_kept
        self._known: dict[object, Count] = {}
        self._rates: dict[bool, Rates] = {}
        self._rated: bool | None = None
        self._signatures: dict[nn.Module, str] = {}

    def recount(self, trained: Collection[str]) -> None:
        """From now on the parameters of these names train, and no others."""
        for name, parameter in self.twin.named_parameters():
            parameter.requires_grad_(name in trained)
        self._known.clear()
        self._rates.clear()
        self._signatures.clear()

    def prefill(self, layout: ImageLayout, length: int, label_rows: int) -> dict[str, int]:
        """Forward FLOPs of each component, for one sample of ``length`` positions with one such image.

        Args:
            label_rows: positions that the head is on.
        """
        own = self._visual((layout,), (0,)).forward
        own["llm"] = self._llm(reached=self._reached((layout,))).forward.of([length], label_rows)
        return own

    def training(self, layout: ImageLayout, length: int, label_rows: int) -> dict[str, int]:
        """Forward and backward FLOPs of each component, for such a sample."""
        own = self._visual((layout,), (0,)).useful
        own["llm"] = self._llm(reached=self._reached((layout,))).useful.of([length], label_rows)
        return own

    def bill(self, batch: Batch, kept: abc.Sequence[int] | None = None) -> Bill:
        """What the forward and backward pass of a micro-batch cost. Reads its values, so it must lie on the CPU.

        Args:
            kept: positions of each sample that the llm was given, where fusion has dropped some.
        """
        visual = self._visual(batch.layouts, self._asked(batch))
        llm = self._llm(reached=self._reached(batch.layouts))
        lengths, labels = list(kept or batch.lengths), batch.num_labels
        laid_out = lengths
        if batch.attention_mask is not None and not self.twin.fusion.looks_ahead:
            width = max(kept) if kept else batch.input_ids.shape[1]
            laid_out = [width] * len(lengths)  # padding is computed again like the rest
        alone = self._read_alone(batch)
        asked = llm.forward.of(alone, 0) if alone else 0
        return Bill(
            components=visual.useful | {"llm": llm.useful.of(lengths, labels) + asked},
            causal=round(llm.useful.pair * sum(n**2 for n in lengths) / 2),
            recomputed=visual.again + llm.again.of(laid_out, 0),
            padding=self._padding(batch, llm.useful, kept),
        )

    def _visual(self, layouts: abc.Sequence[ImageLayout], asked: abc.Sequence[int]) -> Visual:
        """What everything before the llm costs for such images, with prompts of so many positions."""
        forward: dict[str, int] = dict.fromkeys(COMPONENTS, 0)
        useful, again = dict(forward), 0
        for layout, prompt in zip(layouts, asked, strict=True):
            specs = self.twin.row_specs(layout)
            counts = [("vision", self._view(size)) for size in layout.views]
            for before, stage in pairwise(("views", "selector", "resampler", "connector")):
                counts += [(stage, self._stage(stage, row, prompt)) for row in specs[before]]
            tokens = self.twin.viewer.visual_tokens(layout)
            counts.append(("fusion", self._fusion(replace(specs["connector"][0], n=tokens, grid=None))))
            for component, count in counts:
                forward[component] += count.forward
                useful[component] += count.useful
                again += count.again
        return Visual(forward, useful, again)

    def _reached(self, layouts: abc.Sequence[ImageLayout]) -> bool:
        """Whether a gradient is wanted of the llm's input."""
        return self._embeddings_train() or (bool(layouts) and self._trains(*COMPONENTS[:-1]))

    def _padding(self, batch: Batch, rate: Rate | Staircase, kept: abc.Sequence[int] | None) -> int:
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
        counts = self._prompts(batch)
        return [counts[owner] for owner in batch.owners.tolist()]

    def _read_alone(self, batch: Batch) -> list[int]:
        """Positions of the prompts that the llm reads by themselves, for stages that want its states of them."""
        if "prompt_hidden" not in self.twin.prompt_reads or batch.owners is None:
            return []
        counts = self._prompts(batch)
        return [counts[owner] for owner in sorted(set(batch.owners.tolist()))]

    def _prompts(self, batch: Batch) -> list[int]:
        """Positions of the prompt of each sample."""
        asked = ((batch.labels == IGNORE) & (batch.input_ids != self._image)).flatten()
        if batch.cu_seqlens is None:
            mask = torch.ones_like(batch.input_ids) if batch.attention_mask is None else batch.attention_mask
            return (asked.view_as(mask) & mask.bool()).sum(1).tolist()
        return [int(asked[a:b].sum()) for a, b in pairwise(batch.cu_seqlens.tolist())]

    def _trains(self, *components: str) -> bool:
        return any(p.requires_grad for name in components for p in getattr(self.twin, name).parameters())

    def _embeddings_train(self) -> bool:
        return any(p.requires_grad for p in self.twin.get_input_embeddings().parameters())

    def _view(self, size: tuple[int, int]) -> Count:
        """The encoder on a view of (height, width): on the pixels that the view becomes, which several encoders see on
        one canvas.
        """
        if ("vision", size) not in self._known:
            vision, transform = self.twin.vision, self.twin.vision.transform
            shape = transform.shape if size == transform.tile else transform.at(size).shape

            def forward() -> Iterable[Tensor]:
                with torch.set_grad_enabled(self._trains("vision")):
                    return vision(torch.empty(1, 3, *shape, device="meta")).features()

            with vision.dry_run():
                inputs = (shape, self.twin.specs["vision"])  # which tells of side channels that it gives
                self._known["vision", size] = self._shared(vision, inputs, forward, vision.blocks)
        return self._known["vision", size]

    def _stage(self, name: str, row: TokenSpec, asked: int) -> Count:
        """A stage on one row of its tokens, with a prompt of so many positions."""
        stage: Stage = getattr(self.twin, name)
        asked = asked if stage.reads & PROMPTS else 0
        key = (name, row, asked)
        if key not in self._known:
            before = COMPONENTS[: COMPONENTS.index(name)]

            def forward() -> Iterable[Tensor]:
                prompt = None
                if asked:
                    embeds = torch.empty(1, asked, self.twin.llm.hidden_size, device="meta")
                    embeds.requires_grad_(self._embeddings_train())
                    hidden = torch.empty(1, asked, self.twin.llm.hidden_size, device="meta")
                    # a text of as many words
                    prompt = Prompt(
                        embeds, torch.ones(1, asked, dtype=torch.bool, device="meta"), hidden, ("a " * asked,)
                    )
                context = StageContext(scales=(row.scale,) if stage.nested else (), prompt=prompt)
                return stage(_tokens(row, self._trains(*before)), context).features()

            self._known[key] = self._count(stage, forward)
        return self._known[key]

    def _fusion(self, row: TokenSpec) -> Count:
        """The fusion on the tokens of one image, of which all take part."""
        key = ("fusion", row)
        if key not in self._known:
            fusion, before = self.twin.fusion, COMPONENTS[: COMPONENTS.index("fusion")]

            def forward() -> Iterable[Tensor]:
                places = fusion.placeholders(row.n)
                with torch.device("meta"):
                    text = Sequence.plain(torch.empty(1, places + 1, self.twin.llm.hidden_size))
                    images = torch.zeros(1, places + 1, dtype=torch.long)
                return [fusion(replace(text, images=images), _tokens(row, self._trains(*before))).embeds]

            self._known[key] = self._count(fusion, forward)
        return self._known[key]

    def _llm(self, reached: bool) -> Rates:
        """The llm, with embeddings that want a gradient or do not."""
        llm = self.twin.llm
        if reached not in self._rates:

            @cache
            def count(length: int, rows: int = 1) -> Count:
                rehearsed = self._rehearsed(length, rows, reached)
                return self._shared(llm, (length, rows, reached), lambda: [rehearsed()], llm.layers)

            short = [Rate.fit(lambda n, k, name=name: getattr(count(n, k), name)) for name in Count._fields]
            if self._has_rate(short[0]):
                forward, useful, again = short
                again = replace(again, pair=0.0) if self._attention_kept else again
                self._rates[reached] = Rates(forward, useful, again)
            else:
                pairs = zip(Count._fields, short, strict=True)
                self._rates[reached] = Rates(
                    *(Staircase(lambda n, name=name: getattr(count(n), name), rate) for name, rate in pairs)
                )
        return self._rates[reached]

    def _has_rate(self, forward: Rate) -> bool:
        """Whether what short sequences cost tells what long ones do, within 1 %."""
        if self._rated is None:

            def run() -> Count:
                return Count(count_flops(self._rehearsed(LONG, 1, reached=False)), 0, 0)

            counted = COUNTED.get((self._signature(self.twin.llm), LONG), run).forward
            self._rated = abs(forward.of([LONG], 1) - counted) <= 0.01 * counted
        return self._rated

    def _rehearsed(self, length: int, rows: int, reached: bool) -> Callable[[], Tensor]:
        with torch.device("meta"):
            embeds = torch.empty(1, length, self.twin.llm.hidden_size, requires_grad=reached)
        return self.twin.llm.rehearsal(embeds, rows)

    def _shared(
        self,
        backbone: VisionEncoder | Llm,
        inputs: object,
        forward: Callable[[], Iterable[Tensor]],
        layers: Callable[[], abc.Sequence[nn.Module]],
    ) -> Count:
        """A backbone on such inputs, counted once a process where nothing is computed again."""
        if self._recomputing is not None:
            return self._count(backbone, forward, layers())
        return COUNTED.get((self._signature(backbone), inputs), lambda: self._count(backbone, forward))

    def _signature(self, backbone: VisionEncoder | Llm) -> str:
        """What decides what a backbone computes: its architecture, its tensors, and which of them train."""
        if backbone not in self._signatures:
            tensors = [(name, tuple(p.shape), p.requires_grad) for name, p in backbone.named_parameters()]
            tensors += [(name, tuple(buffer.shape), False) for name, buffer in backbone.named_buffers()]
            told = json.dumps([type(backbone).__name__, backbone.resolved(), tensors], default=str, sort_keys=True)
            self._signatures[backbone] = hashlib.sha256(told.encode()).hexdigest()
        return self._signatures[backbone]

    def _count(
        self, part: nn.Module, forward: Callable[[], Iterable[Tensor]], layers: abc.Sequence[nn.Module] = ()
    ) -> Count:
        before, useful = count_training_flops(forward)
        again = 0
        if self._recomputing is not None and layers:
            with self._recomputing(layers):
                again = count_training_flops(forward)[1] - useful
            if self._attention_kept:
                with _Attention() as attention:
                    list(forward())
                again -= attention.flops
        part.zero_grad(set_to_none=True)
        return Count(before, useful, again)


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
        tokens = VisualTokens.drawn(spec, 1, torch.empty)
    for features in tokens.features():
        features.requires_grad_(wants_gradient)
    return tokens
