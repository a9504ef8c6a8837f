"""Visitors around decoder layers (``Llm.around_layers``, ``Sequence.visitors``), for the time of one call.

The layer's ``forward`` is replaced, and nothing else: a module's ``__call__``, the hooks of FSDP2 and the compiled
program of a block all lead there, while adapters, packed weights and names inside the layer stay as they are. What
recomputes activations (training/blocks.py) has been put around the layer's own ``forward`` before, and so lies within:
the backward pass computes a layer again after the call has ended, and must not need to know who visited it. Without
visitors nothing is replaced.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import cache
from typing import Any, TypeGuard

import torch
from jaxtyping import Int
from torch import Tensor, nn
from transformers.cache_utils import Cache, CacheLayerMixin

from beni.llm.forward import with_forward
from beni.llm.rotary import rotation, turn_of
from beni.types import LayerCall, LayerVisitor


class Places:
    """Which sample, and which position of it, each position of the hidden states is: of one forward pass, or of the
    next of several in generation.

    Args:
        samples: of each position of the prompt or of the whole sequence, -1 at padding.
        columns: of each.
    """

    def __init__(self, samples: Int[Tensor, "b t"], columns: Int[Tensor, "b t"]) -> None:
        self._prompt = (samples, columns)
        self.samples, self.columns = samples, columns

    def read(self, total: int, new: int) -> None:
        """The next pass reads the last ``new`` of ``total`` positions, those of the prompt included."""
        samples, columns = self._prompt
        more = total - samples.shape[1]
        if more > 0:  # prompts are padded on the left, so their last position is real
            samples = torch.cat([samples, samples[:, -1:].expand(-1, more)], 1)
            ahead = torch.arange(1, more + 1, device=columns.device)
            columns = torch.cat([columns, columns[:, -1:] + ahead], 1)
        self.samples, self.columns = samples[:, total - new : total], columns[:, total - new : total]

    def at(self, rows: int) -> tuple[Int[Tensor, "b t"], Int[Tensor, "b t"]]:
        """Samples and columns for so many rows: several in a row go on with one prompt where beams are searched."""
        times = rows // self.samples.shape[0]
        if times == 1:
            return self.samples, self.columns
        return self.samples.repeat_interleave(times, 0), self.columns.repeat_interleave(times, 0)


class VisitedForward:
    """A layer's ``forward`` with visitors before and after, the first of them outermost."""

    def __init__(self, layer: nn.Module, visitors: tuple[LayerVisitor, ...], places: Places) -> None:
        self.forward: Callable[..., Any] = layer.forward
        self.visitors, self.places = visitors, places
        self.names, self.rotate = parameter_names(type(layer)), rotation(type(layer))

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        given = dict(zip(self.names, arguments, strict=False)) | named
        hidden = given.pop(self.names[0])
        samples, columns = self.places.at(hidden.shape[0])
        call = LayerCall(samples, columns, given, turn_of(self.rotate, given))
        for visitor in self.visitors:
            hidden = _changed(visitor.before, hidden, call)
        if arguments:
            out = self.forward(hidden, *arguments[1:], **named)
        else:
            out = self.forward(**named | {self.names[0]: hidden})
        found = out[0] if isinstance(out, tuple) else out
        for visitor in self.visitors[::-1]:
            found = _changed(visitor.after, found, call)
        return (found, *out[1:]) if isinstance(out, tuple) else found


def _changed(change: Callable[[Tensor, LayerCall], Tensor], hidden: Tensor, call: LayerCall) -> Tensor:
    changed = change(hidden, call)
    if changed.shape != hidden.shape:
        raise ValueError(
            f"a visitor made {tuple(changed.shape)} of hidden states of the shape {tuple(hidden.shape)}; "
            "positions can be taken out by fusion only (Sequence.keep)"
        )
    return changed


@cache
def parameter_names(kind: type[nn.Module]) -> tuple[str, ...]:
    """Names of what a layer of that class can be handed by position, hidden states first."""
    named = list(inspect.signature(kind.forward).parameters.values())[1:]
    return tuple(p.name for p in named if p.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD)


@contextmanager
def visited(
    layers: Sequence[nn.Module], visitors: Sequence[Mapping[int, LayerVisitor]], places: Places
) -> Iterator[None]:
    """Inside the block the layers have the visitors around them, those of the first mapping outermost."""
    with ExitStack() as replaced:
        for index in sorted({index for mapping in visitors for index in mapping}):
            own = tuple(mapping[index] for mapping in visitors if index in mapping)
            replaced.enter_context(with_forward(layers[index], VisitedForward(layers[index], own, places)))
        yield


def require_layers(visitors: Mapping[int, LayerVisitor], depth: int) -> None:
    """Raises ValueError where a visitor is to stand around a layer that there is not."""
    if beyond := sorted(index for index in visitors if not 0 <= index < depth):
        raise ValueError(f"visitors around layer {beyond[0]}, but this llm has the layers 0 to {depth - 1}")


def _counts(cache: object) -> TypeGuard[Cache]:
    return isinstance(cache, Cache) and any(isinstance(layer, CacheLayerMixin) for layer in cache.layers)


@contextmanager
def placed_each_pass(decoder: nn.Module, places: Places) -> Iterator[None]:
    """Inside the block ``places`` are those that the decoder's present pass reads: the prompt, then what was added."""
    names, read = parameter_names(type(decoder)), 0

    def look(_: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        nonlocal read
        given = dict(zip(names, arguments, strict=False)) | named
        tokens: Tensor = given["inputs_embeds"] if given.get("input_ids") is None else given["input_ids"]
        mask, cache, new = given.get("attention_mask"), given.get("past_key_values"), tokens.shape[1]
        if isinstance(mask, Tensor):
            read = mask.shape[-1]
        else:  # transformers drops a mask of ones; a state without positions says nothing of how many it has seen
            read = (cache.get_seq_length() if _counts(cache) else read) + new
        places.read(read, new)

    handle = decoder.register_forward_pre_hook(look, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()
