"""The stage contract: what selector, resampler, connector and views have in common.

A stage maps visual tokens to visual tokens and can say, without weights, what it will do to a ``TokenSpec``: that is
how an impossible combination fails before any weight is loaded, and where the spec table's numbers come from.

Signature convention, checked for every part: constructor arguments *before* ``*`` are handed over by name while
building, and a part lists those it needs: ``tokens`` (the incoming spec), ``dim_out`` (the llm's width). Those *after*
``*`` are the keys of the part's YAML file.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

from jaxtyping import Int
from torch import Tensor, nn

from beni.types import ImageLayout, Prompt, VisualTokens


@dataclass(frozen=True)
class TokenSpec:
    """What is known of an image's visual tokens before any exists.

    Attributes:
        n: visual tokens of one row: of one view, or of one image where the views of an image have been joined.
        dim: their width.
        grid: (rows, columns) while the tokens form a dense row-major grid, else None.
        space: ``vision`` until something maps the tokens to the llm's width, then ``llm``.
        levels: width of the features of further encoder layers that come along (``VisualTokens.levels``), 0 for none.
        sources: of each encoder where several look at one picture (``VisualTokens.sources``).
        scale: which of a stage's nested lengths is meant (``Nested``).
    """

    n: int
    dim: int
    grid: tuple[int, int] | None = None
    space: Literal["vision", "llm"] = "vision"
    levels: int = 0
    sources: tuple[TokenSpec, ...] = ()
    scale: int = 0


@dataclass(frozen=True)
class Nested:
    """Several numbers of tokens that a stage can make of a row, the fewer contained in the more.

    Scale 0 is that of evaluation and generation, 1 to ``drawn`` are those of training.

    Attributes:
        drawn: scales of training.
        every: training sees each sample at all of them, instead of at one that is drawn for it.
    """

    drawn: int
    every: bool


@dataclass
class StageContext:
    """What a stage may know beside the tokens, and where it leaves what the loss needs.

    Attributes:
        step: optimizer step, for schedules inside a stage.
        aux: named auxiliary losses, already weighted; the model adds them to the loss.
        layouts: how each image became views, in order; empty when each row is an image of one view.
        prompt: what is asked about each row's image; only for stages that set ``uses_prompt``, and None where the model
            was given no text.
        scales: of each row, for a stage with nested lengths; empty where all are 0.
    """

    step: int = 0
    layouts: tuple[ImageLayout, ...] = ()
    prompt: Prompt | None = None
    scales: tuple[int, ...] = ()
    aux: dict[str, Tensor] = field(default_factory=dict)

    def of_rows(self, rows: Int[Tensor, "k"]) -> StageContext:
        """The same for some rows, repeated or left out as wished; with auxiliary losses of its own."""
        prompt = None if self.prompt is None else self.prompt.select(rows)
        scales = tuple(self.scales[i] for i in rows.tolist()) if self.scales else ()
        return replace(self, prompt=prompt, scales=scales, aux={})


class Stage(nn.Module, ABC):
    """Base of every part that maps visual tokens to visual tokens. Subclasses are final.

    Attributes:
        uses_prompt: the stage reads ``StageContext.prompt``.
        nested: the stage can make several numbers of tokens, of which training draws.
    """

    uses_prompt: ClassVar[bool] = False
    nested: Nested | None = None

    @abstractmethod
    def spec(self, tokens: TokenSpec) -> TokenSpec:
        """What ``forward`` makes of such tokens. Pure.

        Raises:
            CompositionError: when the stage cannot work on them.
        """

    @abstractmethod
    def forward(self, tokens: VisualTokens, context: StageContext) -> VisualTokens:
        """``(i, n, d) -> (i, m, d')``; padding in ``tokens`` never influences a real token."""

    @abstractmethod
    def flops(self, tokens: TokenSpec) -> int:
        """Forward FLOPs (2 x multiply-accumulates of matmuls, convolutions and attention products) for one view."""

    @abstractmethod
    def init_weights(self) -> None:
        """Draw every parameter from torch's global generator (the builder puts a named stream there)."""


class PassThrough(Stage):
    """``(i, n, d) -> (i, n, d)``, the same object: what the ``none`` option of a group derives from."""

    def spec(self, tokens: TokenSpec) -> TokenSpec:
        return tokens

    def forward(self, tokens: VisualTokens, context: StageContext) -> VisualTokens:
        return tokens

    def flops(self, tokens: TokenSpec) -> int:
        return 0

    def init_weights(self) -> None:
        """Nothing to draw."""
