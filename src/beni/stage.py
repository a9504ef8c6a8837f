"""The stage contract: what selector, resampler, connector and views have in common.

A stage maps visual tokens to visual tokens and can say, without weights, what it will do to a ``TokenSpec``: that is
how an impossible combination fails before any weight is loaded, and where the spec table's numbers come from.

Signature convention, checked for every part: constructor arguments *before* ``*`` are handed over by name while
building, and a part lists those it needs: ``tokens`` (the incoming spec), ``dim_out`` (the llm's width). Those *after*
``*`` are the keys of the part's YAML file.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal, Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from beni.errors import CompositionError
from beni.nn.streams import derive
from beni.types import ImageLayout, Nested, Prompt, TokenSpec, VisualTokens

Reads = Literal["prompt", "prompt_text", "prompt_hidden", "attn", "keys", "log_gate"]
"""What a stage may ask for beside the features: see ``Stage.reads``."""

PROMPTS: frozenset[Reads] = frozenset({"prompt", "prompt_text", "prompt_hidden"})
"""Those for which ``StageContext.prompt`` is made, each with its own part of it."""


@dataclass(frozen=True)
class Row:
    """Whose tokens a row holds.

    Attributes:
        image: number of its image in the micro-batch, in reading order.
        sample: number of its sample in the micro-batch.
        key: names the row within the data: the id of its sample, which image of it, which view, which nested length.
        view: number of the row within its image.
    """

    image: int
    sample: int
    key: str
    view: int = 0


class Sink:
    """Where stages leave what does not go on with the tokens, under their own names.

    Attributes:
        losses: ``<stage>/<name>`` -> sum and count of an auxiliary loss.
        metrics: likewise, of what is logged and nothing else.
        pictures: ``<stage>/<name>`` -> (number of an image, values of its tokens in [0, 1] with their places), to be
            drawn over it; only where ``wants_pictures``.
    """

    def __init__(self, wants_pictures: bool = False) -> None:
        self.wants_pictures = wants_pictures
        self.losses: dict[str, tuple[Tensor, int]] = {}
        self.metrics: dict[str, tuple[Tensor, int]] = {}
        self.pictures: dict[str, list[tuple[int, Picture]]] = {}


@dataclass(frozen=True)
class Picture:
    """Values to be drawn over a picture: how far each token is open, what it is attended to.

    Attributes:
        values: in [0, 1].
        yx: centre of each token in its view.
        view: number of the view within its image.
        grid: (rows, columns) of the cells that the tokens fill, where these are no patches of the encoder.
    """

    values: Float[Tensor, "n"]
    yx: Float[Tensor, "n 2"]
    view: int = 0
    grid: tuple[int, int] | None = None


@dataclass(frozen=True)
class StageContext:
    """What a stage may know beside the tokens (read only), and where it leaves what the loss and the log need.

    Attributes:
        step: optimizer steps that are finished, for schedules inside a stage.
        steps: of the whole run; 0 outside of training.
        layouts: how each image became views, in order; empty when each row is an image of one view.
        rows: whose tokens each row holds; empty where nobody knows, and then each row is an image and a sample.
        prompt: what is asked about each row's image; only for stages that read it (``Stage.reads``), and None where the
            model was given no text.
        scales: of each row, for a stage with nested lengths; empty where all are 0.
        seed: of the run.
        stage: whose context this is; the model fills it in.
        sink: where auxiliary losses, metrics and pictures go; None for a call that counts for nothing.
    """

    step: int = 0
    steps: int = 0
    layouts: tuple[ImageLayout, ...] = ()
    rows: tuple[Row, ...] = ()
    prompt: Prompt | None = None
    scales: tuple[int, ...] = ()
    seed: int = 0
    stage: str = ""
    sink: Sink | None = None

    def of_rows(self, rows: Int[Tensor, "k"]) -> StageContext:
        """The context of some rows, repeated or left out as wished; layouts are of images, and stay."""
        chosen = rows.tolist()
        return replace(
            self,
            rows=tuple(self.rows[i] for i in chosen) if self.rows else (),
            prompt=None if self.prompt is None else self.prompt.select(rows),
            scales=tuple(self.scales[i] for i in chosen) if self.scales else (),
        )

    def at(self, stage: str) -> StageContext:
        """The context for a stage of that name."""
        return replace(self, stage=stage)

    def by_image(self, count: int) -> Iterator[Int[Tensor, "k"]]:
        """The rows of each image, of ``count`` in all, in order; each row is an image where nobody knows."""
        images: dict[int, list[int]] = {}
        for row in range(count):
            images.setdefault(self.rows[row].image if self.rows else row, []).append(row)
        yield from (torch.tensor(rows) for rows in images.values())

    def loss(self, name: str, total: Float[Tensor, ""], count: int) -> None:
        """Adds to an auxiliary loss: a sum over ``count`` rows or tokens, as ``Stage.auxiliary`` says. The step divides
        by the count over all of its micro-batches and ranks.
        """
        if self.sink is not None:
            _add(self.sink.losses, f"{self.stage}/{name}", total, count)

    def metric(self, name: str, total: Float[Tensor, ""], count: int) -> None:
        """Adds to a metric, the mean of which is logged as ``train/<stage>/<name>``."""
        if self.sink is not None:
            _add(self.sink.metrics, f"{self.stage}/{name}", total.detach(), count)

    def picture(
        self,
        name: str,
        row: int,
        values: Float[Tensor, "n"],
        yx: Float[Tensor, "n 2"],
        grid: tuple[int, int] | None = None,
    ) -> None:
        """Leaves values in [0, 1] of the tokens of a row to be drawn over its image, where somebody will look; ``grid``
        where they fill its cells instead of patches of the encoder.
        """
        if self.sink is not None and self.sink.wants_pictures:
            of = self.rows[row] if self.rows else Row(row, row, str(row))
            drawn = Picture(values.detach().float().cpu(), yx.detach().float().cpu(), of.view, grid)
            self.sink.pictures.setdefault(f"{self.stage}/{name}", []).append((of.image, drawn))

    def drawn(self, name: str, values: Float[Tensor, "i n"], tokens: VisualTokens) -> None:
        """Leaves values in [0, 1] of all real tokens to be drawn over their images, where somebody will look."""
        if self.sink is not None and self.sink.wants_pictures:
            for row, real in enumerate(tokens.mask):
                self.picture(name, row, values[row][real], tokens.yx[row][real])

    def noise(self, name: str, like: Tensor, draw: Callable[..., Tensor] = torch.rand) -> Tensor:
        """Random values of the shape of ``like`` ``(rows, ...)``: uniform in [0, 1), or as ``draw`` (``torch.randn``).

        The values of a row depend on the run's seed, the step, the sample and the name alone: not on how samples are
        dealt to ranks and micro-batches, nor on what other parts draw, nor on how often the layer is computed again.
        """
        keys = [row.key for row in self.rows] or [str(i) for i in range(len(like))]
        drawn = []
        for key in keys:
            generator = torch.Generator().manual_seed(derive(self.seed, "noise", self.step, self.stage, name, key))
            drawn.append(draw(like.shape[1:], generator=generator))
        return torch.stack(drawn).to(like.device)


def _add(sums: dict[str, tuple[Tensor, int]], name: str, total: Tensor, count: int) -> None:
    before, counted = sums.get(name, (0.0, 0))
    sums[name] = (before + total, counted + count)


class Stage(nn.Module, ABC):
    """Base of every part that maps visual tokens to visual tokens. Subclasses are final.

    Attributes:
        reads: what the stage asks for, and is given only then: the ``prompt`` as embeddings of the llm, what the user
            says as text (``prompt_text``) or the llm's hidden states of the prompt (``prompt_hidden``: a pass through
            the llm more, without a gradient), all in ``StageContext.prompt``; the
            encoder's attention (``attn``) and ``keys``; the ``log_gate`` of tokens that it merges or attends to.
        auxiliary: name of each auxiliary loss -> what its sum runs over, ``rows`` or incoming ``tokens`` (as many as
            the spec says): how many those are in a whole step must be known before its first backward pass.
        nested: the stage can make several numbers of tokens, of which training draws.
    """

    reads: frozenset[Reads] = frozenset()
    auxiliary: Mapping[str, Literal["rows", "tokens"]] = {}
    nested: Nested | None = None

    @abstractmethod
    def spec(self, tokens: TokenSpec) -> TokenSpec:
        """What ``forward`` makes of such tokens. Pure.

        Raises:
            CompositionError: when the stage cannot work on them.
        """

    @abstractmethod
    def forward(self, tokens: VisualTokens, context: StageContext) -> VisualTokens:
        """``(i, n, d) -> (i, m, d')``; padding and dropped tokens never influence a real token."""

    @abstractmethod
    def init_weights(self) -> None:
        """Draw every parameter from torch's global generator (the builder puts a named stream there)."""


class Drawn(Protocol):
    """A part of a stage that draws its own weights."""

    def init_weights(self) -> None:
        """Draws every parameter from torch's global generator."""
        ...


class PassThrough(Stage):
    """``(i, n, d) -> (i, n, d)``, the same object: what the ``none`` option of a group derives from."""

    def spec(self, tokens: TokenSpec) -> TokenSpec:
        return tokens

    def forward(self, tokens: VisualTokens, context: StageContext) -> VisualTokens:
        return tokens

    def init_weights(self) -> None:
        """Nothing to draw."""


def require_gates_kept(stage: Stage, before: TokenSpec, after: TokenSpec, group: str, name: str) -> None:
    """Raises CompositionError (E-GATE) where gated tokens come to a stage that neither reads gates nor hands them on.

    Args:
        before: spec of what comes to the stage.
        after: spec of what it makes of that.
        group: of the stage.
        name: of the stage, for the message.
    """
    if before.gated and not after.gated and "log_gate" not in stage.reads:
        raise CompositionError(
            "E-GATE",
            f"the tokens before {group}={name} are gated, and it merges tokens without a look at their gates: closed "
            "ones would come back",
            groups=tuple(dict.fromkeys(("selector", group))),
            fix="set resampler=none, or resampler=perceiver, which reads gates",
        )
