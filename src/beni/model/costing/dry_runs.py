"""What each part of a model costs, found out by running it without values: on the meta device, forward and backward,
with the flags of the real parameters.

Whether a part has to pass a gradient on to what it reads is observed too, field by field of the visual tokens: a
learned newline, for instance, joins behind the connector, and asks nothing of the parts before it.

Masks count as True everywhere, so parts may choose tokens by them. What else reads a value to decide what it computes
cannot be counted, and is refused (E-FLOPS).
"""

from __future__ import annotations

import hashlib
import json
from collections import abc
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from functools import cached_property
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from beni.errors import CompositionError, reason
from beni.llm.base import Llm
from beni.measure.flops import count_flops, count_training_flops, without_values
from beni.model.costing.rates import Sizes
from beni.model.costing.tokens import Wants, carriers, patches_of, rows_of, tokens_of, wanted
from beni.model.modeling import BeniForConditionalGeneration
from beni.model.viewer import placeholders
from beni.stage import PROMPTS, Sink, Stage, StageContext
from beni.types import ImageLayout, LayerCall, LayerVisitor, Prompt, Reading, Sequence, TokenSpec
from beni.views.two_looks import TwoLooks
from beni.vision.base import VisionEncoder

Recomputing = Callable[[abc.Sequence[nn.Module]], AbstractContextManager[None]]
"""Around a call: the layers give up activations and compute them again, as they do in this run."""


class Count(NamedTuple):
    """FLOPs of a part: of its forward pass, of both passes, and of what its layers compute again."""

    forward: int = 0
    useful: int = 0
    again: int = 0

    def plus(self, other: Count, times: int = 1) -> Count:
        """The count with that of another part added so often."""
        return Count(*(mine + times * theirs for mine, theirs in zip(self, other, strict=True)))


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


class DryRuns:
    """Runs parts of a model without values, and keeps what was counted until it is told to ``forget``.

    Args:
        twin: the model on the meta device, with its plan applied.
        recomputing: of the run's activation checkpointing; None where there is none.
        attention_kept: attention is not among what is computed again.

    Raises:
        CompositionError: E-FLOPS, by any method, when a part reads values to decide what it computes.
    """

    def __init__(
        self, twin: BeniForConditionalGeneration, recomputing: Recomputing | None, attention_kept: bool
    ) -> None:
        self.twin, self._recomputing, self._attention_kept = twin, recomputing, attention_kept
        self._counts: dict[object, Count] = {}
        self._wants: dict[object, Wants] = {}
        self._signatures: dict[nn.Module, str] = {}

    def forget(self) -> None:
        """Other parameters train from now on."""
        self._counts.clear()
        self._wants.clear()
        self._signatures.clear()

    def trains(self, *components: str) -> bool:
        """Whether anything of these components does."""
        return any(p.requires_grad for name in components for p in getattr(self.twin, name).parameters())

    def embeddings_train(self) -> bool:
        """Whether a gradient is wanted of text embeddings."""
        return any(p.requires_grad for p in self.twin.get_input_embeddings().parameters())

    def view(self, size: tuple[int, int], kept: int | None = None) -> Count:
        """The encoder on a view of (height, width): on the pixels that the view becomes, which several encoders see on
        one canvas.

        Args:
            kept: patches that it sees; None for all.
        """
        if ("vision", size, kept) not in self._counts:
            vision, transform = self.twin.vision, self.twin.vision.transform
            shape = transform.shape if size == transform.tile else transform.at(size).shape

            # which ones does not matter; a mask without values would not tell how many
            keep = None if kept is None else (torch.arange(patches_of(vision, vision.spec(size))) < kept)[None]

            def forward() -> Iterable[Tensor]:
                with torch.set_grad_enabled(self.trains("vision")):
                    return vision(torch.empty(1, 3, *shape, device="meta"), keep).features()

            with vision.dry_run():
                inputs = (shape, kept, self.twin.specs["vision"])  # which tells of side channels that it gives
                self._counts["vision", size, kept] = self._shared("vision", inputs, forward)
        return self._counts["vision", size, kept]

    def rows(self, layout: ImageLayout, views: abc.Sequence[TokenSpec], asked: int) -> tuple[Count, Wants]:
        """What views cost where they choose what the encoder sees, else nothing, since they move tokens (``Views``);
        and the fields whose gradient is wanted when the encoder's tokens of an image have become rows.

        Args:
            asked: positions of the prompt; 0 for none.
        """
        wants: Wants = frozenset({"x", "levels", "sources"} if self.trains("vision") else ())
        if not self.trains("views") and not isinstance(self.twin.views, TwoLooks):
            return Count(), wants
        asked = asked if self.twin.views.reads & PROMPTS else 0
        key = ("views", wants, asked)  # the same for every layout
        if key not in self._counts:

            def forward() -> Iterable[Tensor]:
                rows = rows_of(self.twin, layout, views, self._prompt(asked), wants)
                self._wants[key] = wanted(rows)
                return carriers(rows)

            self._counts[key] = self._count("views", forward)
        return self._counts[key], self._wants[key]

    def stage(self, name: str, row: TokenSpec, asked: int, wants: Wants) -> tuple[Count, Wants]:
        """A stage on one row of its tokens, and of what a gradient is wanted behind it.

        Args:
            asked: positions of the prompt; 0 for none.
            wants: of which fields of the row a gradient is wanted.
        """
        stage: Stage = getattr(self.twin, name)
        asked = asked if stage.reads & PROMPTS else 0
        key = (name, row, asked, wants)
        if key not in self._counts:

            def forward() -> Iterable[Tensor]:
                sink = Sink()
                scales = (row.scale,) if stage.nested else ()
                context = StageContext(scales=scales, prompt=self._prompt(asked), stage=name, sink=sink)
                made = stage(tokens_of(row, wants), context)
                self._wants[key] = wanted(made)
                return [*carriers(made), *(total for total, _ in sink.losses.values())]

            self._counts[key] = self._count(name, forward)
        return self._counts[key], self._wants[key]

    def fusion(self, row: TokenSpec, wants: Wants) -> Count:
        """The fusion on the tokens of one image, of which all take part; without layers of its own."""
        key = ("fusion", row, wants)
        if key not in self._counts:
            places = placeholders(self.twin.fusion.markup((row.n,)))
            self._counts[key] = self._count("fusion", lambda: [self._fused(places + 1, row, wants).embeds])
        return self._counts[key]

    @cached_property
    def fusion_visits(self) -> bool:
        """Whether the fusion has layers of its own around those of the llm."""
        with countable("fusion"), torch.no_grad(), without_values():
            return bool(self._fused(1, self.twin.specs["llm"], frozenset()).visitors)

    def around(self, length: int, tokens: int, wants: Wants, within: bool = True) -> Count:
        """The fusion and its own layers on one sample of ``length`` positions, whose images have so many tokens.

        Args:
            within: what it does within attention too.
        """
        key = ("around", length, tokens, wants, within)
        if key not in self._counts:
            spec, along = self.twin.specs["llm"], Along()
            images = max(1, tokens // spec.n) if spec.sources else 1  # each has sources of its own
            row = replace(spec, n=tokens // images, grid=None)

            def forward() -> Iterable[Tensor]:
                fused = self._fused(length, row, wants, images)
                hidden, call, reads = fused.embeds, LayerCall(*fused.numbered(), {}), []
                for index, visitor in sorted(fused.visitors.items()):
                    hidden = visitor.before(self._between(hidden, index > 0), call)
                    if within and visitor.within is not None:
                        query = self._query(length, self._between(hidden, True).requires_grad)
                        reads.append(along(visitor.within, query))
                        hidden = reached(hidden, reads[-1].requires_grad)
                    hidden = visitor.after(self._between(hidden, True), call)
                return [hidden, *reads]

            self._counts[key] = self._count("fusion", forward, [*self.twin.fusion.layers(), along])
        return self._counts[key]

    def llm(self, length: int, label_rows: int, reached: bool) -> Count:
        """The llm on one sequence of text.

        Args:
            reached: embeddings want a gradient.
        """
        return self._shared("llm", (length, label_rows, reached), self._reading(length, label_rows, reached))

    def visited_llm(self, length: int, label_rows: int, wants: Wants) -> Count:
        """The llm on one sequence with the fusion's own layers around its own, which are not counted here."""
        key = ("llm", length, label_rows, wants)
        if key not in self._counts:
            row = self.twin.specs["llm"]
            self._reading(1, 1, reached=False)  # what an llm finds out at its first dry run is not to be counted

            def forward() -> Iterable[Tensor]:
                fused = self._fused(length, row, wants)
                with self.twin.llm.around_layers(self._reaching(fused.visitors, wants)):
                    return [self.twin.llm.dry_run(fused.embeds, label_rows)()]

            both = self._count("llm", forward, self.twin.llm.layers())
            # of what is computed again only the llm's was; nobody reads along with the attention of its dry run
            own = self.around(length, row.n, wants, within=False)._replace(again=0)
            self._counts[key] = both.plus(own, -1)
        return self._counts[key]

    def pruned_llm(self, sizes: Sizes, label_rows: int, reached: bool) -> Count:
        """The llm on one sequence whose image tokens leave between its layers, as ``sizes`` says.

        Args:
            reached: embeddings want a gradient.
        """
        key = ("pruned", sizes, label_rows, reached)
        if key not in self._counts:
            pruning, llm = self.twin.pruner.pruning, self.twin.llm
            assert pruning is not None
            words, images, *left = sizes
            fixed = replace(pruning, counts=dict(zip(sorted(pruning.cuts), left, strict=True)))
            self._reading(1, 1, reached=False)  # what an llm finds out at its first dry run is not to be counted
            embeds = torch.empty(1, words + images, llm.hidden_size, device="meta", requires_grad=reached)
            run = llm.dry_run(embeds, label_rows, images, fixed)
            self._counts[key] = self._count("llm", lambda: [run()], llm.layers())
        return self._counts[key]

    def passes(self, length: int) -> int:
        """Forward FLOPs of the llm alone, the head on one row."""
        signature, reading = self._signature(self.twin.llm), self._reading(length, 1, reached=False)
        return COUNTED.get((signature, length), lambda: Count(count_flops(reading))).forward

    def _reading(self, length: int, label_rows: int, reached: bool) -> Callable[[], Iterable[Tensor]]:
        embeds = torch.empty(1, length, self.twin.llm.hidden_size, device="meta", requires_grad=reached)
        run = self.twin.llm.dry_run(embeds, label_rows)
        return lambda: [run()]

    def _prompt(self, asked: int) -> Prompt | None:
        """One of so many positions, and a text of as many words."""
        if not asked:
            return None
        with torch.device("meta"):
            embeds, hidden = (torch.empty(1, asked, self.twin.llm.hidden_size) for _ in range(2))
            embeds.requires_grad_(self.embeddings_train())
            return Prompt(embeds, torch.ones(1, asked, dtype=torch.bool), hidden, ("a " * asked,))

    def _fused(self, length: int, row: TokenSpec, wants: Wants, images: int = 1) -> Sequence:
        """A sequence of one sample, all of it placeholders of its images, as the fusion leaves it."""
        with torch.device("meta"):
            text = Sequence.plain(torch.empty(1, length, self.twin.llm.hidden_size))
            text.embeds.requires_grad_(torch.is_grad_enabled() and self.embeddings_train())
            places, owners = torch.zeros(1, length, dtype=torch.long), torch.zeros(images, dtype=torch.long)
            return self.twin.fusion(replace(text, images=places), tokens_of(row, wants, images), owners)

    def _reaching(self, visitors: Mapping[int, LayerVisitor], wants: Wants) -> dict[int, LayerVisitor]:
        """Visitors as the llm's dry run takes them: where they read within attention a gradient is wanted from there
        on. The first such layer is billed that of its queries too, which in truth want none.
        """
        wanted_within = torch.is_grad_enabled() and (bool(wants) or self.trains("fusion"))

        def entered(visitor: LayerVisitor) -> LayerVisitor:
            if visitor.within is None:
                return visitor
            return replace(visitor, before=lambda hidden, call: reached(visitor.before(hidden, call), wanted_within))

        return {index: entered(visitor) for index, visitor in visitors.items()}

    def _query(self, length: int, reached: bool) -> Tensor:
        """Queries of attention, of which a gradient is wanted or not."""
        heads = self.twin.llm.heads()
        return torch.empty(1, heads.queries, length, heads.width, device="meta", requires_grad=reached)

    def _between(self, hidden: Tensor, layers: bool) -> Tensor:
        """Hidden states after layers of the llm, whose parameters may want a gradient from there on."""
        return reached(hidden, layers and torch.is_grad_enabled() and self.trains("llm"))

    def _shared(self, name: str, inputs: object, forward: Callable[[], Iterable[Tensor]]) -> Count:
        """A backbone on such inputs, counted once a process where nothing is computed again."""
        backbone: VisionEncoder | Llm = getattr(self.twin, name)
        if self._recomputing is None:
            return COUNTED.get((self._signature(backbone), inputs), lambda: self._count(name, forward))
        if (name, inputs) not in self._counts:
            layers = backbone.layers() if isinstance(backbone, Llm) else backbone.blocks()
            self._counts[name, inputs] = self._count(name, forward, layers)
        return self._counts[name, inputs]

    def _signature(self, backbone: VisionEncoder | Llm) -> str:
        """What decides what a backbone computes: its architecture, its tensors, and which of them train."""
        if backbone not in self._signatures:
            tensors = [(name, tuple(p.shape), p.requires_grad) for name, p in backbone.named_parameters()]
            tensors += [(name, tuple(buffer.shape), False) for name, buffer in backbone.named_buffers()]
            told = json.dumps([type(backbone).__name__, backbone.resolved(), tensors], default=str, sort_keys=True)
            self._signatures[backbone] = hashlib.sha256(told.encode()).hexdigest()
        return self._signatures[backbone]

    def _count(self, name: str, forward: Callable[[], Iterable[Tensor]], layers: abc.Sequence[nn.Module] = ()) -> Count:
        again = 0
        with countable(name):
            before, useful = count_training_flops(forward)
            if self._recomputing is not None and layers:
                with self._recomputing(layers):
                    again = count_training_flops(forward)[1] - useful
                if self._attention_kept:
                    with torch.enable_grad(), without_values(), KeptAttention() as attention:
                        list(forward())
                    again -= attention.flops
        self.twin.zero_grad(set_to_none=True)
        return Count(before, useful, again)


class Along(nn.Module):
    """What a visitor does within attention, computed again where layers are."""

    def forward(self, within: Reading, query: Tensor) -> Tensor:
        """On queries ``(1, h, t, dh)`` that have read as much."""
        return within(query, query.transpose(1, 2), 1.0)


def reached(hidden: Tensor, wanted: bool) -> Tensor:
    """Hidden states of which a gradient is wanted from here on, or as they are."""
    return hidden + torch.empty_like(hidden, requires_grad=True) if wanted else hidden


class KeptAttention(TorchFunctionMode):
    """Counts the forward products of scaled-dot-product attention that a gradient passes."""

    flops = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func is F.scaled_dot_product_attention and out.requires_grad:
            q, k, v = (*args, *((kwargs or {})[name] for name in ("query", "key", "value")[len(args) :]))[:3]
            self.flops += 2 * q.shape[:-1].numel() * k.shape[-2] * (q.shape[-1] + v.shape[-1])
        return out


@contextmanager
def countable(name: str) -> Iterator[None]:
    """Around a dry run of a component.

    Raises:
        CompositionError: E-FLOPS when it cannot be run without values.
    """
    try:
        yield
    except (RuntimeError, KeyError, ValueError) as error:
        raise CompositionError(
            "E-FLOPS",
            f"{name} cannot be run without values, as counting its FLOPs does: {reason(error)}",
            groups=(name,),
            fix=f"choose another option of {name}; one of your own may choose tokens by a mask, and must not let other "
            "values decide what it computes",
        ) from error
