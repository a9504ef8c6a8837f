"""What a model says: token ids after prompts, and the answer to a question; and what it looks at meanwhile.

``transformers``' ``generate`` runs inside, on the llm. What it does by default stands in the model's generation_config,
which a run saves with its own end tokens (``model/saving.py``).
"""

from __future__ import annotations

from collections.abc import Sequence as Several
from dataclasses import replace
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import GenerationConfig
from transformers.utils.generic import ModelOutput

from beni.errors import ConfigError, DataError
from beni.fusion.base import Fusion
from beni.model.context import Reader, context_of, embedded, evaluating, owners_of
from beni.model.foreign_calls import require_obeyed
from beni.model.inputs import StepInputs, merged, on_device
from beni.model.options import over_saved, with_prompts
from beni.model.pictures import Attention, Looked, attention_on
from beni.model.processing import BeniProcessor, Picture
from beni.pruner.base import Pruner
from beni.stage import Sink, StageContext
from beni.types import ImageInputs, Pixels, SampleInputs, Sequence, VisualTokens, to_device


@runtime_checkable
class Answerer(Reader, Protocol):
    """What is asked of a model here. No property that loads something: a check of this protocol reads each of them."""

    generation_config: GenerationConfig
    fusion: Fusion
    pruner: Pruner

    def encode_images(self, pixels: Pixels, context: StageContext, keys: Several[str]) -> VisualTokens:
        """Pixels of all views to visual tokens of the llm's width."""
        ...


class Answering:
    """The methods of a model that generate; ``BeniForConditionalGeneration`` has them."""

    @torch.no_grad()
    def generate(
        self: Answerer,
        input_ids: Int[Tensor, "b t"] | None = None,
        pixels: Pixels | None = None,
        attention_mask: Int[Tensor, "b t"] | None = None,
        images: ImageInputs | Several[ImageInputs] = ImageInputs(),
        samples: SampleInputs | Several[SampleInputs] = SampleInputs(),
        **options: Any,
    ) -> Int[Tensor, "rows t_and_new"] | ModelOutput:
        """Left-padded prompts, each with the new token ids behind it, by a key/value cache; with
        ``return_dict_in_generate`` what transformers makes of them. There are as many rows as prompts, times
        ``num_return_sequences``.

        The answers are ``out[:, input_ids.shape[1]:]``, as with other models of transformers. Streamers are given new
        ids alone.

        ``images`` and ``samples`` are those of ``forward``, or lists with those of each row. ``options`` go to
        ``transformers``' ``generate`` (``max_new_tokens``, ``do_sample``, ``eos_token_id`` ...); what they leave out is
        as ``generation_config`` says. ``max_length`` counts the prompt, its visual tokens included; ``max_new_tokens``
        wins where both are given.

        Raises:
            ConfigError: when the prompt is as long as ``max_length``, or an option cannot be obeyed.
            DataError: when there is no prompt, or it is padded on the right.
            ValueError: when an option is none of ``transformers``' ``generate``.
        """
        require_obeyed(options)
        inputs = options.pop("inputs", None)  # as transformers calls them
        input_ids = prompts_of(inputs if input_ids is None else input_ids, attention_mask)
        batched = images
        images, samples = merged(images, samples, len(input_ids))
        if images is not batched and images.pixels is not None:
            pixels = images.pixels
        sequence = prompt_of(self, input_ids, pixels, attention_mask, images, samples)
        taken, limit = sequence.embeds.shape[1], self.llm.max_positions
        options = over_saved(self.generation_config, options, input_ids, taken, limit)
        return with_prompts(input_ids, self.llm.generate(sequence, **options))

    @torch.no_grad()
    def prompt(
        self: Answerer,
        input_ids: Int[Tensor, "b t"],
        pixels: Pixels | None = None,
        attention_mask: Int[Tensor, "b t"] | None = None,
        images: ImageInputs = ImageInputs(),
        samples: SampleInputs = SampleInputs(),
    ) -> Sequence:
        """What the llm reads in front of an answer: embeddings of text and images at their positions, and what else the
        llm is told of them. The arguments are those of ``generate``.
        """
        return prompt_of(self, input_ids, pixels, attention_mask, images, samples)

    @torch.no_grad()
    def look(
        self: Answerer,
        input_ids: Int[Tensor, "b t"],
        pixels: Pixels | None = None,
        labels: Int[Tensor, "b t"] | None = None,
        attention_mask: Int[Tensor, "b t"] | None = None,
        position_ids: Int[Tensor, "b t"] | None = None,
        images: ImageInputs = ImageInputs(),
        samples: SampleInputs = SampleInputs(),
        layers: int = 0,
    ) -> Looked:
        """What the stages leave of the images to be drawn, and what the supervised tokens look at.

        The arguments are those of ``forward``.

        Args:
            layers: the last layers of the llm whose attention is read, of a padded micro-batch; 0 reads none.
        """
        images, samples = on_device(images, samples, input_ids.device)
        text = embedded(self, input_ids, labels, attention_mask, position_ids, samples)
        sink = Sink(wants_pictures=True)
        context = replace(context_of(self, text, pixels, images, samples, StepInputs()), sink=sink)
        if pixels is None:
            return Looked({})
        visual = self.encode_images(pixels, context, images.keys)
        if not layers:
            return Looked(sink.pictures)
        if self.pruner.pruning is not None:
            why = "no attention overlay: a pruner takes image tokens out of the llm between its layers"
            return Looked(sink.pictures, Attention(unread=why))
        owners = owners_of(images.owners, len(visual.mask), len(text.lengths()))
        sequence = self.fusion(text, visual, images.owners)
        placed = visual.of_whole() if "parts" in self.fusion.reads_beside else visual
        return Looked(sink.pictures, attention_on(self.llm, sequence, placed, owners, layers))

    def answer(
        self: Any,
        images: Picture | list[Picture] | None,
        question: str,
        *,
        processor: BeniProcessor | None = None,
        **options: Any,
    ) -> str:
        """What the model says when it is asked about images, as the run that trained it asked.

        Args:
            images: one (decoded, the path of a file, or its content), several, or None. They stand in front of the
                question; where it holds ``<image>`` as often as there are images they stand there.
            question: what the user says.
            processor: of the model; the one beside its weights when None.
            options: of ``generate``, for instance ``max_new_tokens=50``; greedy without any.

        Raises:
            ConfigError: when no processor was saved beside the model.
            DataError: when an image cannot be read.
        """
        own: BeniProcessor = self.processor if processor is None else processor
        inputs = own.apply_chat_template([own.question(images, question)], add_generation_prompt=True, tokenize=True)
        with evaluating(self):
            said = self.generate(**inputs.to(self.device), **options)
        ids = said["sequences"] if isinstance(said, ModelOutput) else said
        return own.renderer.decode(ids[0, inputs["input_ids"].shape[1] :])

    @property
    def processor(self: Any) -> BeniProcessor:
        """The processor that was saved beside this model, read when it is first asked for.

        Raises:
            ConfigError: when the model was not read from a folder.
        """
        if self.kept_processor is None:
            if not self.config.name_or_path:
                raise ConfigError(
                    "this model was not read from a saved folder, which would hold its tokenizer and template\n"
                    "  fix: give processor=BeniProcessor.from_pretrained(folder), or read the model with "
                    "AutoModel.from_pretrained(folder)"
                )
            self.kept_processor = BeniProcessor.from_pretrained(self.config.name_or_path)
            self.kept_processor.viewer = self.viewer
        return self.kept_processor

    @processor.setter
    def processor(self: Any, processor: BeniProcessor) -> None:
        self.kept_processor = processor


def prompts_of(input_ids: Any, attention_mask: Int[Tensor, "b t"] | None) -> Int[Tensor, "b t"]:
    """The ids that are given, each row with an end that can be gone on from.

    Raises:
        DataError: when one has none.
    """
    fix = "\n  fix: give what processor.apply_chat_template(..., add_generation_prompt=True, tokenize=True) returns"
    if not isinstance(input_ids, Tensor) or input_ids.ndim != 2 or not input_ids.numel():
        shape = tuple(input_ids.shape) if isinstance(input_ids, Tensor) else f"a {type(input_ids).__name__}"
        raise DataError(
            f"generate goes on after input_ids, which are {shape}, expected (rows, tokens), none empty{fix}"
        )
    if attention_mask is not None and not bool(attention_mask[:, -1].all()):
        raise DataError(f"generate goes on after the last position of a row, and attention_mask ends with padding{fix}")
    return input_ids


def prompt_of(
    model: Answerer,
    input_ids: Int[Tensor, "b t"],
    pixels: Pixels | None,
    attention_mask: Int[Tensor, "b t"] | None,
    images: ImageInputs,
    samples: SampleInputs,
) -> Sequence:
    """Left-padded prompts, with what fusion and pruner make of their images."""
    images, samples = on_device(images, samples, input_ids.device)
    mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
    text = replace(embedded(model, input_ids, attention_mask=mask), left_padded=True)
    pixels = to_device(pixels, input_ids.device)
    context = context_of(model, text, pixels, images, samples, StepInputs())
    visual = images.visual if pixels is None else model.encode_images(pixels, context, images.keys)
    return model.pruner(model.fusion(text, visual, images.owners))
