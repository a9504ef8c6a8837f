"""Several selectors one after another: ``selector=[prompt_topk,tome]`` on the command line.

Each has the tokens that the one before it leaves, its own stream of initial weights, and its own name in metrics,
losses and pictures (``selector/prompt_topk/asked``).
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any, cast

import torch
from torch import nn

from beni.errors import CompositionError, ConfigError
from beni.nn.streams import torch_stream
from beni.stage import Sink, Stage, StageContext, require_gates_kept
from beni.types import TokenSpec, VisualTokens


class Chain(Stage):
    """``(i, n, d) -> (i, m, d')``, what the last of its stages makes.

    Args:
        tokens: spec of the incoming visual tokens.
        dim_out: width of the llm.
        stages: name -> a whole selector node with ``_partial_: true``, which leaves the building to this class.

    Raises:
        ConfigError: without stages.
        CompositionError: what a stage raises; E-GATE when one would open gates of the one before it, E-SIDE when one
            reads what the one before it has lost.
    """

    def __init__(self, tokens: TokenSpec, dim_out: int, *, stages: dict[str, partial[Stage]]) -> None:
        super().__init__()
        if not stages:
            raise ConfigError("selector.stages is empty\n  fix: set selector='[prompt_topk,tome]', or selector=none")
        self.stages = nn.ModuleDict()
        for name, node in stages.items():
            stage = _built(node, {"tokens": tokens, "dim_out": dim_out})
            made = stage.spec(tokens)
            require_gates_kept(stage, tokens, made, "selector", name)
            self.stages[name], tokens = stage, made
        own = self._own()
        self.reads = frozenset(read for stage in own.values() for read in stage.reads)
        self.auxiliary = {f"{name}/{loss}": unit for name, s in own.items() for loss, unit in s.auxiliary.items()}
        self.nested = next((stage.nested for stage in own.values() if stage.nested), None)

    def spec(self, tokens: TokenSpec) -> TokenSpec:
        given = tokens
        for name, stage in self._own().items():
            for channel in ("attn", "keys"):
                if channel in stage.reads and getattr(given, channel) and not getattr(tokens, channel):
                    raise CompositionError(
                        "E-SIDE",
                        f"the selector {name} reads {channel} of the encoder, which those before it have not kept",
                        groups=("selector",),
                        fix=f"put {name} first",
                    )
            tokens = stage.spec(tokens)
        return tokens

    def forward(self, tokens: VisualTokens, context: StageContext) -> VisualTokens:
        places = tokens.mask.numel()
        for name, stage in self._own().items():
            sink = _sharing(context.sink)
            tokens = stage(tokens, replace(context, stage=f"{context.stage}/{name}", sink=sink))
            for loss, (total, count) in ({} if sink is None else sink.losses).items():
                own = f"{name}/{loss.removeprefix(f'{context.stage}/{name}/')}"
                # the step counts the tokens that come into the chain, this stage those that come to it
                counted = count if self.auxiliary[own] == "rows" else places
                context.loss(own, total * (counted / count), counted)
        return tokens

    def init_weights(self) -> None:
        for name, stage in self._own().items():
            with torch_stream(torch.initial_seed(), name):
                stage.init_weights()

    def _own(self) -> dict[str, Stage]:
        return cast("dict[str, Stage]", dict(self.stages.items()))


def _built(node: partial[Stage], known: Mapping[str, Any]) -> Stage:
    """A stage with what its constructor asks for before ``*``."""
    parameters = inspect.signature(node.func).parameters.values()
    wanted = [p.name for p in parameters if p.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD]
    if unknown := [name for name in wanted if name not in known]:
        raise ConfigError(
            f"selector.stages: {node.func.__qualname__} asks for {', '.join(unknown)} before *; a selector can be "
            f"given {', '.join(known)}\n  fix: put selectors into the list"
        )
    return node(*(known[name] for name in wanted))


def _sharing(sink: Sink | None) -> Sink | None:
    """A sink with losses of its own, and the metrics and pictures of another."""
    if sink is None:
        return None
    shared = Sink(sink.wants_pictures)
    shared.metrics, shared.pictures = sink.metrics, sink.pictures
    return shared
