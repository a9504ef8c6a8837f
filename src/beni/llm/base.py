"""What beni asks of an llm: embeddings in, logits of chosen positions out, and its repeated layers by name."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor, nn

from beni.types import Heads, LayerVisitor, Places, Pruning, Sequence


@dataclass(frozen=True)
class Description:
    """What there is to say of an llm beside its sizes.

    Attributes:
        kind: its family, as messages name it.
        intermediate_size: width inside of a layer's MLP.
        rope_type: kind of its rotary positions; None for the usual ones and for none.
    """

    kind: str
    intermediate_size: int
    rope_type: str | None


@dataclass(frozen=True)
class Attended:
    """A pass in which attention was read.

    Attributes:
        hidden: what the head is given at every position.
        weights: what each place attends to, over the positions of its row: the mean over heads and layers, in single
            precision or better; None where no layer was met that could be read.
    """

    hidden: Float[Tensor, "b t d"]
    weights: Float[Tensor, "k t"] | None


class Capabilities(ABC):
    """What an llm can do. Each is found out when it is first asked for, and known from then on: what needs a forward
    pass is asked for when weights are there, adapters in place and nothing is sharded yet.
    """

    @property
    @abstractmethod
    def reads_embeddings(self) -> bool:
        """It makes of embeddings what it makes of the ids that they belong to: visual tokens have no ids."""

    @property
    @abstractmethod
    def packed(self) -> bool:
        """A packed row gives each sample the logits that it has alone."""

    @property
    @abstractmethod
    def gates(self) -> bool:
        """Every layer adds ``Sequence.log_gate`` to its attention, in either layout."""

    @property
    @abstractmethod
    def lends_queries(self) -> frozenset[int]:
        """Layers whose attention can be read along with (``LayerVisitor.within``), in either layout."""

    @property
    @abstractmethod
    def prunes(self) -> bool:
        """Tokens can leave between its layers (``Sequence.pruning``), in either layout."""

    @property
    @abstractmethod
    def moves_positions(self) -> bool:
        """Tokens behind those that leave can move up: layers, not embeddings, are told of positions."""

    @property
    @abstractmethod
    def shows_attention(self) -> bool:
        """What positions attend to can be read (``Llm.attended``)."""

    @property
    @abstractmethod
    def splits_head(self) -> bool:
        """``hidden`` and then ``head`` give the logits of the whole."""

    @property
    @abstractmethod
    def linear_head(self) -> bool:
        """The head is a plain ``nn.Linear``, and nothing follows it."""

    @property
    @abstractmethod
    def generates(self) -> bool:
        """It can go on after embeddings, and not after ids only. Needs no forward pass."""

    @property
    @abstractmethod
    def varying_positions(self) -> bool:
        """What it makes of a position depends on the longest sample of the call. Needs no forward pass."""


class Llm(nn.Module, ABC):
    """A causal language model driven through its input embeddings. Subclasses are final.

    Attributes:
        max_positions: of one sample; None where there is no limit.
        capabilities: what it can do.
    """

    hidden_size: int
    vocab_size: int
    max_positions: int | None
    capabilities: Capabilities

    @abstractmethod
    def describe(self) -> Description:
        """What messages and estimates say of it."""

    @abstractmethod
    def input_embeddings(self) -> nn.Module:
        """The module that maps ids to embeddings, before any scaling (``embed``)."""

    @abstractmethod
    def embed(self, ids: Int[Tensor, "b t"]) -> Float[Tensor, "b t d"]:
        """Token embeddings, with whatever scaling the model applies to them."""

    @abstractmethod
    def forward(self, sequence: Sequence, keep: Int[Tensor, "k"] | None = None) -> Float[Tensor, "b k v"]:
        """Logits at the positions ``keep`` of every row (all positions when None)."""

    @abstractmethod
    def hidden(self, sequence: Sequence) -> Float[Tensor, "b t d"]:
        """What the head is given at every position."""

    @abstractmethod
    def attended(self, sequence: Sequence, places: Places, last: int) -> Attended:
        """``hidden`` of a padded sequence, without a gradient, and what the places attend to in the last layers that
        attend; the places of a row are together.

        Raises:
            ValueError: when the sequence is packed.
        """

    @abstractmethod
    def head(self, hidden: Float[Tensor, "k d"]) -> Float[Tensor, "k v"]:
        """Logits of such rows, with whatever scaling and capping the model applies to them."""

    @abstractmethod
    def output_layer(self) -> nn.Module | None:
        """The module that maps to the vocabulary."""

    @abstractmethod
    def generate(self, sequence: Sequence, **options: Any) -> Any:
        """``(b, t, d) -> (rows, new)``: token ids after the samples of a left-padded sequence.

        The samples are seen as they are: blocks, gates and kept positions included. ``options`` are those of
        ``transformers`` ``generate``.
        """

    @abstractmethod
    def layers(self) -> list[nn.Module]:
        """The decoder layers, in order: the units of sharding and of activation checkpointing."""

    @abstractmethod
    def heads(self) -> Heads:
        """Sizes of its attention.

        Raises:
            CompositionError: E-ATTN when it has none.
        """

    @abstractmethod
    def around_layers(self, visitors: Mapping[int, LayerVisitor]) -> AbstractContextManager[None]:
        """Inside the block every call has these visitors around its decoder layers, by their numbers, outside of those
        that a ``Sequence`` brings.

        Raises:
            ValueError: when there is no layer of such a number.
        """

    @abstractmethod
    def tied_keys(self, prefix: str) -> dict[str, str]:
        """State-dict keys that share their tensor with another: ``{key: key it is tied to}``, behind ``prefix``."""

    @abstractmethod
    def dry_run(
        self, embeds: Float[Tensor, "1 t d"], label_rows: int, images: int = 0, pruning: Pruning | None = None
    ) -> Callable[[], Float[Tensor, "1 k v"]]:
        """A forward pass on the meta device, to be counted: one sequence, the head on its first ``label_rows``.

        Args:
            images: its first positions that are of images.
            pruning: what leaves of those between layers.
        """

    @abstractmethod
    def load_pretrained(self) -> None:
        """Replace the weights by the pretrained ones.

        Raises:
            WeightsError: when they cannot be had.
        """

    @abstractmethod
    def resolved(self) -> dict[str, Any]:
        """The YAML values that ``save_pretrained`` must add so that this llm can be rebuilt without a hub."""
