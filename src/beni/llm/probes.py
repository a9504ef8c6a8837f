"""What an llm can do, found out by trying it: small forward passes whose results must agree.

What families of decoders promise in their code is not to be relied on: one that ignores a registered attention, or the
borders of packed samples, leaks between them without a word.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, TypeVar, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from beni.errors import CompositionError
from beni.llm.base import Capabilities, Llm
from beni.llm.columns import plan_in
from beni.llm.forward import with_forward
from beni.llm.row_attention import RowPlan
from beni.types import Candidates, Cut, LayerCall, LayerVisitor, Pruning, Sequence

T = TypeVar("T")

VARYING_ROPE = ("longrope", "dynamic")
"""Kinds of rotary positions whose frequencies depend on the longest sample of a call."""


CLOSED_AT = 2
"""The position whose gate is closed to see whether it reaches later ones."""


@dataclass(frozen=True, eq=False)
class Probed(Capabilities):
    """What an llm around one of Hugging Face's models can do, found out by trying."""

    llm: Llm
    model: PreTrainedModel
    known: dict[str, Any] = field(default_factory=dict)

    @property
    def reads_embeddings(self) -> bool:
        return self._once("reads_embeddings", lambda: reads_embeddings(self.llm, self.model))

    @property
    def packed(self) -> bool:
        return self._once("packed", lambda: isolates_segments(self.llm))

    @property
    def gates(self) -> bool:
        return self._once("gates", lambda: heeds_gates(self.llm))

    @property
    def prunes(self) -> bool:
        return self._once("prunes", lambda: leave_like_closed(self.llm))

    @property
    def moves_positions(self) -> bool:
        return self._once("moves_positions", lambda: moves_up(self.llm))

    @property
    def shows_attention(self) -> bool:
        return self._once("shows_attention", lambda: shows_attention(self.llm))

    @property
    def splits_head(self) -> bool:
        return self._once("splits_head", lambda: splits_head(self.llm))

    @property
    def linear_head(self) -> bool:
        return self._once("linear_head", lambda: is_linear(self.llm))

    @property
    def generates(self) -> bool:
        """Whether transformers generates from embeddings; with Zamba 2 and others it takes ids only."""
        prepare = cast(Any, self.model).prepare_inputs_for_generation
        return "inputs_embeds" in inspect.signature(prepare).parameters

    @property
    def varying_positions(self) -> bool:
        return self.llm.describe().rope_type in VARYING_ROPE

    @property
    def lends_queries(self) -> frozenset[int]:
        return self._once("lends_queries", lambda: lending(self.llm))

    def _once(self, name: str, probe: Callable[[], T]) -> T:
        if name not in self.known:
            self.known[name] = probe()
        return self.known[name]


def require_embeddings(llm: Llm) -> None:
    """Raises CompositionError (E-EMBED) where an llm makes more of ids than of their embeddings."""
    if not llm.capabilities.reads_embeddings:
        raise CompositionError(
            "E-EMBED",
            f"{llm.describe().kind} computes other logits from embeddings than from the ids they belong to, and "
            "visual tokens have no ids",
            groups=("llm",),
            fix="choose another llm, for instance llm=qwen3",
        )


@contextmanager
def evaluating(llm: Llm) -> Iterator[None]:
    """Inside the block there is no dropout, which would make any two passes differ, and no gradient."""
    training = llm.training
    llm.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        llm.train(training)


def reads_embeddings(llm: Llm, model: PreTrainedModel) -> bool:
    """Whether ids and their embeddings, with positions from 0 on, give the same logits (difference at most 1e-3 of
    their range). Not so with per-layer embeddings (Gemma 3n), or positions that begin elsewhere (RoBERTa).
    """
    ids = _ids(llm)
    with evaluating(llm):
        own = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits
        given = llm(Sequence.plain(llm.embed(ids)))
    return not (given - own).abs().max() > 1e-3 * own.abs().max().clamp(min=1e-6)


def splits_head(llm: Llm) -> bool:
    """Whether hidden states and then the head give the logits of the whole (difference at most 1e-5 of their range)."""
    with evaluating(llm):
        sequence = Sequence.plain(llm.embed(_ids(llm)))
        try:
            whole = llm(sequence)[0]
            split = llm.head(llm.hidden(sequence)[0])
        except (TypeError, ValueError, KeyError, AttributeError):
            return False
    return split.shape == whole.shape and bool((split - whole).abs().max() <= 1e-5 * whole.abs().max().clamp(min=1e-6))


@torch.no_grad()
def is_linear(llm: Llm) -> bool:
    """Whether the head is a plain ``nn.Linear`` and nothing follows it."""
    head = llm.output_layer()
    if type(head) is not nn.Linear:  # an adapted or quantised one computes something else
        return False
    rows = llm.embed(_ids(llm))[0]
    plain, own = F.linear(rows, head.weight, head.bias), llm.head(rows)
    return bool((plain - own).abs().max() <= 1e-5 * plain.abs().max().clamp(min=1e-6))


def shows_attention(llm: Llm) -> bool:
    """Whether its attention can be read: it passes beni's on, and that makes of a row what its own makes of it
    (difference at most 1e-3 of the range), windows and chunks included.
    """
    sequence = Sequence.plain(llm.embed(_ids(llm)))
    last = torch.tensor([sequence.embeds.shape[1] - 1], device=sequence.embeds.device)
    try:
        # asked after training: layers that are compiled for it would be compiled once more
        with evaluating(llm), narrow_windows(llm), torch.compiler.set_stance("force_eager"):
            own, read = llm.hidden(sequence), llm.attended(sequence, (torch.zeros_like(last), last), 1)
    except (TypeError, ValueError, KeyError):
        return False
    return read.weights is not None and bool((read.hidden - own).abs().max() <= 1e-3 * own.abs().max().clamp(min=1e-6))


def _ids(llm: Llm) -> torch.Tensor:
    """A row of eight."""
    return torch.arange(8, device=next(llm.parameters()).device)[None] * 7919 % llm.vocab_size


def isolates_segments(llm: Llm) -> bool:
    """Whether a packed row gives each sample the logits it has alone (difference at most 1e-3 of their range).

    Models that do not pass the registered attention or its keyword arguments on are found here, and those that have a
    window or chunks of attention in their mask only (Phi-MoE, Llama 4); for them the padded layout is the one to use.
    """
    with evaluating(llm):
        try:
            if not _isolates(llm):
                return False
            with narrow_windows(llm):
                return _isolates(llm)
        except (TypeError, ValueError, KeyError):
            return False


def _isolates(llm: Llm) -> bool:
    device = next(llm.parameters()).device
    ids = torch.arange(12, device=device) * 7919 % llm.vocab_size
    embeds = llm.embed(ids[None])
    alone = [Sequence.plain(embeds[:, a:b]) for a, b in ((0, 7), (7, 12))]
    both = Sequence(
        embeds=embeds,
        position_ids=torch.cat([one.position_ids for one in alone], 1),
        images=torch.full_like(ids[None], -1),
        cu_seqlens=torch.tensor([0, 7, 12], device=device),
    )
    packed, alone = llm(both), [llm(one) for one in alone]
    reference = torch.cat(alone, dim=1)
    return bool((packed - reference).abs().max() <= 1e-3 * reference.abs().max().clamp(min=1e-6))


WINDOWS = ("sliding_window", "attention_chunk_size")
"""What transformers' masks read from a config in every call, and layers keep for their attention."""


@contextmanager
def narrow_windows(llm: Llm) -> Iterator[None]:
    """Inside the block windows and chunks of attention reach 3 positions, so that a short segment is longer."""
    holders = {id(holder): holder for module in llm.modules() for holder in (module, getattr(module, "config", None))}
    before = [(h, name, getattr(h, name, None)) for h in holders.values() for name in WINDOWS]
    wide = [(holder, name, reach) for holder, name, reach in before if isinstance(reach, int) and reach > 3]
    for holder, name, _ in wide:
        setattr(holder, name, 3)
    try:
        yield
    finally:
        for holder, name, reach in wide:
            setattr(holder, name, reach)


def heeds_gates(llm: Llm) -> bool:
    """Whether a closed position reaches no later one in either layout (difference at most 1e-3 of the logits' range).

    That every layer uses the attention it is told to use does not follow from packed samples being kept apart: some
    models (GPT-J) ignore the name, and transformers' own masks see where positions begin anew.
    """
    plain = Sequence.plain(llm.embed(_ids(llm)))
    gates = torch.zeros_like(plain.embeds[..., 0])
    gates[:, CLOSED_AT] = -torch.inf
    try:
        with evaluating(llm):
            for sequence in (replace(plain, log_gate=gates), replace(plain, log_gate=gates).end_to_end()[0]):
                other = sequence.embeds.clone()
                other[:, CLOSED_AT] = other[:, -1]
                before, after = (llm(replace(sequence, embeds=x))[:, CLOSED_AT + 1 :] for x in (sequence.embeds, other))
                if (before - after).abs().max() > 1e-3 * before.abs().max().clamp(min=1e-6):
                    return False
    except (TypeError, ValueError, KeyError):
        return False
    return True


class _Reader:
    """Reads nothing where attention has read something, and notes which layers ask it, and with what sizes."""

    def __init__(self, llm: Llm) -> None:
        self.heads, self.inside, self.honest = llm.heads(), -1, set[int]()

    def visitors(self, depth: int) -> dict[int, LayerVisitor]:
        return {i: LayerVisitor(before=partial(self._enter, i), within=partial(self._read, i)) for i in range(depth)}

    def _enter(self, index: int, hidden: torch.Tensor, call: LayerCall) -> torch.Tensor:
        self.inside = index
        return hidden

    def _read(self, index: int, query: torch.Tensor, read: torch.Tensor, scaling: float) -> torch.Tensor:
        queries, width = self.heads.queries, self.heads.width
        if index == self.inside and query.shape[1::2] == read.shape[2:] == (queries, width):
            self.honest.add(index)
        return torch.zeros_like(read)


def lending(llm: Llm) -> frozenset[int]:
    """Layers that hand queries of the declared sizes to a reader within attention, in either layout, as long as what it
    reads matters. Some families (BLOOM) accept the name of an attention and ignore it; others (Falcon) know none.
    """
    plain = Sequence.plain(llm.embed(_ids(llm)))
    found: list[set[int]] = []
    try:
        reader = _Reader(llm)
        visitors = reader.visitors(len(llm.layers()))
        with evaluating(llm):
            for sequence in (plain, plain.end_to_end()[0]):
                reader.honest = set()
                if llm(replace(sequence, visitors=visitors)).equal(llm(sequence)):
                    return frozenset()
                found.append(reader.honest)
    except (TypeError, ValueError, KeyError, CompositionError):
        return frozenset()
    return frozenset(set.intersection(*found))


def leave_like_closed(llm: Llm) -> bool:
    """Whether a token that leaves before the second layer is to others as one that is closed to attention from there
    on, in either layout and whichever attention is looked at (difference at most 1e-3 of the logits' range).
    """
    plain = _with_image(llm)
    stay = plain.images[0] != LEAVING
    gates = torch.zeros_like(plain.embeds[..., 0])
    try:
        with evaluating(llm):
            for sequence in (plain, plain.end_to_end()[0]):
                open_ = replace(sequence, log_gate=gates)
                with closed_from(llm.layers(), 1, gates.masked_fill(~stay, -torch.inf)):
                    closed = llm(open_)[:, stay]
                for sees in ("before", "next"):
                    left = llm(replace(sequence, pruning=Pruning({1: Cut(0.5, _first, sees)})))[:, stay]
                    if not (left - closed).abs().max() <= 1e-3 * closed.abs().max().clamp(min=1e-6):
                        return False
    except (TypeError, ValueError, KeyError):
        return False
    return True


def moves_up(llm: Llm) -> bool:
    """Whether it makes a difference that tokens move up when others leave: not with learned positions, for instance,
    which are a part of the embeddings.
    """
    with evaluating(llm):
        kept, moved = (
            llm(replace(_with_image(llm), pruning=Pruning({1: Cut(0.5, _first, "before")}, compact=compact)))[:, -1]
            for compact in (False, True)
        )
    return not kept.equal(moved)


class _Closed:
    """A layer's ``forward`` with gates on attention to the positions."""

    def __init__(self, layer: nn.Module, gates: Float[Tensor, "b t"]) -> None:
        self.forward: Callable[..., Any] = layer.forward
        self.gates = gates

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        plan = plan_in(named)
        if isinstance(plan, RowPlan):
            return self.forward(*arguments, **named | {"rows": replace(plan, log_gate=self.gates, masks={})})
        return self.forward(*arguments, **named | {"segments": replace(plan, log_gate=self.gates[0])})


@contextmanager
def closed_from(layers: list[nn.Module], first: int, gates: Float[Tensor, "b t"]) -> Iterator[None]:
    """Inside the block the layers from ``first`` on attend to positions as gates let them, instead of those that the
    sequence has: what leaving tokens are compared with.
    """
    with ExitStack() as replaced:
        for layer in layers[first:]:
            replaced.enter_context(with_forward(layer, _Closed(layer, gates)))
        yield


LEAVING = 1
"""The number of the image token that leaves in probes; 0 stays."""


def _with_image(llm: Llm) -> Sequence:
    """A row of eight with two image tokens."""
    plain = Sequence.plain(llm.embed(_ids(llm)))
    images = torch.full_like(plain.images, -1)
    images[:, CLOSED_AT], images[:, CLOSED_AT + 1] = 0, LEAVING
    return replace(plain, images=images)


def _first(candidates: Candidates) -> torch.Tensor:
    """The earlier a token the higher; attention is looked at all the same."""
    weights = candidates.attention.weights(candidates.last[:, None])
    return -torch.arange(weights.shape[-1], device=weights.device).float().expand(len(weights), -1)
