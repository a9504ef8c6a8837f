"""What a family is: one class of transformers, which compositions are one, and how weights and inputs get there."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin

from beni.fusion.inline import InlineFusion
from beni.model.modeling import BeniForConditionalGeneration
from beni.pruner.none import NoPruner
from beni.quantization.none import NoQuantization
from beni.types import ImageLayout
from beni.vision.hf import HFVision


@dataclass(frozen=True)
class Shown:
    """The images of a prompt, as a model sees them.

    Attributes:
        views: of each image the pixels ``(3, height, width)`` of its views.
        layouts: how each image was cut.
    """

    views: Sequence[Sequence[Tensor]]
    layouts: Sequence[ImageLayout]


@dataclass(frozen=True)
class Vocabulary:
    """Ids of the exported model.

    Attributes:
        image: the placeholder of visual tokens.
        size: rows of the embedding table, which has one for every id of the tokenizer.
        trained: rows that the llm of the run has.
    """

    image: int
    size: int
    trained: int


@dataclass(frozen=True)
class Expected:
    """The part that a family wants of a group.

    Attributes:
        kind: its class.
        option: that names it on the command line.
    """

    kind: type[Any]
    option: str


class Family(ABC):
    """A class of transformers for vision-language models. Subclasses are final.

    Attributes:
        architecture: the model class.
        separator: text between an image and the words after it, in prompts that are compared.
        reads_text_alone: whether it answers prompts without an image.
        notes: what a user of the exported folder must know beyond what was measured.
    """

    architecture: type[PreTrainedModel]
    separator = ""
    reads_text_alone = True
    notes: tuple[str, ...] = ()

    @abstractmethod
    def differences(self, model: BeniForConditionalGeneration) -> Iterator[str]:
        """What of the composition this class cannot be; nothing where it can be all of it."""

    @abstractmethod
    def config(self, model: BeniForConditionalGeneration, vocabulary: Vocabulary) -> PreTrainedConfig:
        """The configuration with which the class is that composition."""

    @abstractmethod
    def weights(self, model: BeniForConditionalGeneration) -> dict[str, Tensor]:
        """The weights under the names of the class; its llm has as many ids as in the run."""

    @abstractmethod
    def inputs(self, shown: Shown | None, ids: Tensor, image: int) -> dict[str, Any]:
        """What ``forward`` of the class takes beside ``input_ids``.

        Args:
            shown: None for text alone.
            ids: ``(1, t)``.
            image: the placeholder.
        """

    @abstractmethod
    def processor(
        self, model: BeniForConditionalGeneration, tokenizer: PreTrainedTokenizerBase, template: str
    ) -> ProcessorMixin:
        """The processor of transformers that makes the same of text and images."""


def unlike(
    model: BeniForConditionalGeneration, wanted: Mapping[str, Expected], attention: Sequence[str] = ("causal",)
) -> Iterator[str]:
    """In what a composition differs from what every family wants of it.

    Args:
        wanted: group -> the part that a family wants there.
        attention: values of ``fusion.image_attention`` that the class has.
    """
    alike = {
        "vision": Expected(HFVision, "an encoder of transformers"),
        "fusion": Expected(InlineFusion, "inline"),
        "pruner": Expected(NoPruner, "none"),
        "quantization": Expected(NoQuantization, "none"),
    }
    for group, expected in {**alike, **wanted}.items():
        part = getattr(model, group)
        if not isinstance(part, expected.kind):
            yield f"{group} is {type(part).__name__}, expected {expected.kind.__name__} ({group}={expected.option})"
    if isinstance(fusion := model.fusion, InlineFusion):
        if fusion.image_attention not in attention:
            yield f"fusion.image_attention={fusion.image_attention}, expected {' or '.join(attention)}"
        if fusion.match_text_rms or not isinstance(fusion.norm, nn.Identity):
            yield "fusion.match_text_rms or fusion.out_norm sizes the visual tokens, expected neither"
    if isinstance(vision := model.vision, HFVision) and vision.levels:
        yield f"vision.levels={vision.levels}, expected []"


def last_state(model: BeniForConditionalGeneration, kinds: Sequence[str] = ()) -> Iterator[str]:
    """For classes that read the last hidden state of the encoder, after its norm.

    Args:
        kinds: types of the encoders that the class has; any where there are none.
    """
    if not isinstance(vision := model.vision, HFVision):
        return
    if vision.layer != -1:
        yield f"vision.layer={vision.layer}, expected -1"
    if kinds and vision.config.model_type not in kinds:
        yield f"vision.architecture.model_type={vision.config.model_type}, expected {' or '.join(kinds)}"
