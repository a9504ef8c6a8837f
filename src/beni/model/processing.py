"""``BeniProcessor``: messages and images to what ``forward`` and ``generate`` take, as the run's training had them.

Text is rendered and tokenised by the run's own renderer (``data/render/template.py``), images are cut into views by the
model's own ``Viewer``, so a prompt has the ids that evaluation gives the model. What part of an image stands where in
the text depends on its size; so images come with the text.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor
from transformers import AutoModel, AutoProcessor, AutoTokenizer, BatchFeature, PreTrainedTokenizerBase, ProcessorMixin
from transformers.processing_utils import MultiModalData
from transformers.utils.generic import to_py_obj

from beni.data.batch.collate import content, stack_views
from beni.data.images import Image, decode
from beni.data.render.identity import require_own_chat_template, require_trained
from beni.data.render.template import Renderer
from beni.data.render.tokens import IMAGE
from beni.data.sample import Message, Sample
from beni.errors import ConfigError, DataError
from beni.model.chat_template import chat_template
from beni.model.configuration import BeniConfig
from beni.model.messages import Conversation, Picture, as_conversations, as_image, as_sample
from beni.model.processor_options import Form, form_of, require_neutral
from beni.model.viewer import Viewer, placeholders
from beni.types import IGNORE, ImageInputs, SampleInputs, ViewedImage


class BeniProcessor(ProcessorMixin):
    """Text with images to the inputs of a model.

    Args:
        tokenizer: of the saved folder.
        config: of the model; ``template`` says how conversations are rendered.
        viewer: of the model, how it sees images; None builds the model without weights when the first image comes.

    Attributes:
        renderer: what turns conversations into token ids, and generated ids into text (``renderer.decode``).

    Raises:
        ConfigError: when no template was saved with the model, or the tokenizer is another than it was trained with.
    """

    tokenizer: PreTrainedTokenizerBase

    def __init__(self, tokenizer: PreTrainedTokenizerBase, config: BeniConfig, viewer: Viewer | None = None) -> None:
        template = saved_template(config)
        self.renderer = Renderer(tokenizer, dict(template))
        fix = "use the tokenizer that was saved with the model; python -m beni.export <run folder> writes both"
        require_trained(self.renderer, template, tokenizer.name_or_path or "the tokenizer", fix)
        tokenizer.padding_side = "left"  # what is generated follows the last position of a row
        tokenizer.chat_template = chat_template(template["jinja"], template["system"])
        super().__init__(tokenizer, chat_template=tokenizer.chat_template)
        self.config, self._viewer = config, viewer

    @classmethod
    def from_pretrained(  # pyright: ignore[reportIncompatibleMethodOverride]
        cls, pretrained_model_name_or_path: str | Path, **options: Any
    ) -> BeniProcessor:
        """The processor of a saved folder or a repository of the hub; ``options`` are those of ``AutoTokenizer`` and
        ``AutoConfig``.
        """
        tokenizer = AutoTokenizer.from_pretrained(pretrained_model_name_or_path, **options)
        config = BeniConfig.from_pretrained(pretrained_model_name_or_path, **options)
        require_own_chat_template(tokenizer, saved_template(config), str(pretrained_model_name_or_path))
        return cls(tokenizer, config)

    def to_dict(self) -> dict[str, Any]:
        """What processor_config.json says: all else is in config.json and the tokenizer's files."""
        return {"processor_class": type(self).__name__}

    @property
    def viewer(self) -> Viewer:
        """How the model sees images."""
        if self._viewer is None:
            with torch.device("meta"):
                self._viewer = AutoModel.from_config(self.config, dtype=torch.float32).viewer
        return self._viewer

    @viewer.setter
    def viewer(self, viewer: Viewer) -> None:
        self._viewer = viewer

    def question(self, images: Picture | Sequence[Picture] | None, text: str) -> dict[str, Any]:
        """A user's message about images, which stand in front of the text, or where it holds ``<image>``.

        Raises:
            DataError: when it holds ``<image>``, and not as often as there are images.
        """
        pictures = [] if images is None else list(_listed(images))
        pieces = text.split(IMAGE) if IMAGE in text else [*[""] * len(pictures), text]
        if len(pieces) != len(pictures) + 1:
            raise DataError(
                f"the question holds {IMAGE} {len(pieces) - 1} times for {len(pictures)} images\n"
                f"  fix: write {IMAGE} once for each image, or leave it out: images stand in front of the question"
            )
        parts: list[dict[str, Any]] = [{"type": "text", "text": pieces[0]}]
        for picture, piece in zip(pictures, pieces[1:], strict=True):
            parts += [{"type": "image", "image": picture}, {"type": "text", "text": piece}]
        return {"role": "user", "content": parts}

    def __call__(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        images: Picture | Sequence[Picture] | Sequence[Sequence[Picture]] | None = None,
        text: str | Sequence[str] | None = None,
        *,
        return_tensors: str | None = "pt",
        **options: Any,
    ) -> BatchFeature:
        """Prompts as text, with ``<image>`` where an image stands -> a left-padded batch.

        Args:
            images: of all prompts in reading order, or a list of them for each prompt.
            text: a prompt or several, as ``apply_chat_template(..., tokenize=False, add_generation_prompt=True)`` gives
                them: the ids are those in front of which an answer was learned.
            return_tensors: ``pt``, as the model takes them; ``np`` gives arrays, None lists.
            options: how the batch is padded (``processor_options.Form``), and others at values that ask for nothing.

        Returns:
            ``input_ids`` and ``attention_mask`` ``(b, t)``, ``pixels`` of all views, ``images`` (their layouts and
            owners) and ``samples``: the arguments of ``forward`` and ``generate``.

        Raises:
            DataError: when placeholders and images differ in number, an image cannot be read, a text is none, or an
                option asks for another prompt than that of training.
        """
        form, rows = form_of(return_tensors, options), []
        texts = _texts(images, text)
        for one, pictures in zip(texts, _by_prompt(images, texts), strict=True):
            if form.add_special_tokens is False:
                self._require_begun(one)
            sources = [as_image(picture) for picture in pictures]
            seen = [self.viewer(decode(source)) for source in sources]
            ids = self.renderer.prompt_ids(one, sources, [image.markup for image in seen])
            rows.append(_Row(ids, seen))
        return self._batch(rows, form)

    def apply_chat_template(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        conversation: Conversation | Sequence[Conversation],
        chat_template: str | None = None,
        *,
        add_generation_prompt: bool = False,
        tokenize: bool = False,
        return_dict: bool = True,
        return_tensors: str | None = "pt",
        continue_final_message: bool = False,
        **options: Any,
    ) -> Any:
        """A conversation or several as the model was trained on them.

        Args:
            chat_template: None, or the model's own.
            add_generation_prompt: end where the assistant's next answer begins. Without it the conversation ends with
                an answer, and the batch has ``labels`` of what the assistant says in it.
            tokenize: give the batch of ``__call__`` instead of text. Of text an image is left as ``<image>``.
            return_dict: give the whole batch instead of ``input_ids`` alone.
            return_tensors: as of ``__call__``.
            continue_final_message: end within the assistant's last message, which generation goes on with.
            options: as of ``__call__``, also as ``processor_kwargs``.

        Raises:
            DataError: when a message has another form, an image cannot be read, the template loses a text, or an option
                asks for another prompt than that of training.
        """
        form = form_of(return_tensors, options)
        if chat_template != self.chat_template:
            require_neutral({"chat_template": chat_template})
        if continue_final_message and (add_generation_prompt or not tokenize):
            raise DataError(
                "continue_final_message=True, expected tokenize=True and no add_generation_prompt\n"
                "  fix: leave out one of them"
            )
        talks, one = as_conversations(conversation)
        samples = [as_sample(talk, tokenize) for talk in talks]
        if not tokenize:
            texts = [self._text(sample, add_generation_prompt) for sample in samples]
            return texts[0] if one else texts
        rows = [self._row(sample, add_generation_prompt, continue_final_message) for sample in samples]
        batch = self._batch(rows, form)
        return batch if return_dict else batch["input_ids"]

    def decode(self, token_ids: Any, skip_special_tokens: bool = True, **options: Any) -> Any:
        """Ids -> their text, without special tokens, end tokens and the spaces around it; rows of ids -> a list.

        Args:
            skip_special_tokens: False leaves all of it.
            options: of the tokenizer's ``decode``.
        """
        ids = to_py_obj(token_ids)
        if isinstance(ids, list) and ids and isinstance(ids[0], list):
            return [self.decode(row, skip_special_tokens, **options) for row in ids]
        text = self._decoded(ids, skip_special_tokens, options)
        return text.strip() if skip_special_tokens else text

    def batch_decode(self, token_ids: Any, skip_special_tokens: bool = True, **options: Any) -> list[str]:
        """Rows of ids -> their texts, as ``decode`` gives them."""
        return [self.decode(row, skip_special_tokens, **options) for row in token_ids]

    def post_process_image_text_to_text(
        self, generated_outputs: Any, skip_special_tokens: bool = True, **options: Any
    ) -> list[str]:
        """Rows of ids -> their texts with the spaces around them: the text of a prompt begins that of its answer, by
        which pipelines tell them apart.
        """
        return [self._decoded(to_py_obj(row), skip_special_tokens, options) for row in generated_outputs]

    def _decoded(self, ids: Any, skip: bool, options: Mapping[str, Any]) -> str:
        kept: list[int] = [ids] if isinstance(ids, int) else ids
        if skip:  # some templates end answers with a token that their tokenizer does not call special
            kept = [token for token in kept if token not in self.renderer.tokens.eos]
        options = {"clean_up_tokenization_spaces": False, **options, "skip_special_tokens": skip}
        return cast(str, self.tokenizer.decode(kept, **options))

    def _get_num_multimodal_tokens(
        self, image_sizes: Sequence[Sequence[int]] | None = None, **options: Any
    ) -> MultiModalData:
        """Positions that images take in a prompt, by which inference engines plan.

        Args:
            image_sizes: (height, width) in pixels of each.
            options: none: images have the settings of the model.

        Returns:
            ``num_image_tokens``, placeholders of visual tokens, and ``num_image_patches``, views of each image.
        """
        if options:
            raise DataError(f"{', '.join(options)} of an image, which nothing reads\n  fix: leave them out")
        layouts = [self.viewer.plan((height, width)) for height, width in image_sizes or ()]
        return MultiModalData(
            num_image_tokens=[placeholders(self.viewer.markup(layout)) for layout in layouts],
            num_image_patches=[len(layout.views) for layout in layouts],
        )

    def _text(self, sample: Sample, prompt: bool) -> str:
        if prompt:
            return self.renderer.prompt_text(_to_answer(sample))
        turns = [{"role": m.role, "content": _shown(m)} for m in sample.messages]
        return cast(str, self.tokenizer.apply_chat_template(turns, tokenize=False))

    def _row(self, sample: Sample, prompt: bool, going_on: bool) -> _Row:
        seen = [self.viewer(decode(image)) for image in sample.images]
        markups = [image.markup for image in seen]
        if prompt:
            return _Row(self.renderer.prompt(_to_answer(sample), markups).ids, seen, sample.asked)
        encoded = self.renderer.encode(sample, markups, fit=False)
        labels = encoded.labels.copy()
        if going_on:
            return _Row(_unended(encoded.ids, labels, self.renderer.tokens.eos), seen, sample.asked)
        labels[0] = IGNORE  # nothing stands before it
        return _Row(encoded.ids, seen, sample.asked, labels)

    def _require_begun(self, text: str) -> None:
        bos, ids = self.renderer.tokens.bos, self.tokenizer(text, add_special_tokens=False)["input_ids"]
        if bos is not None and ids[:1] != [bos]:  # pyright: ignore[reportArgumentType]
            raise DataError(
                f"add_special_tokens=False, and the prompt {text!r:.40} begins without "
                f"{self.tokenizer.bos_token}, which stood in front of every prompt in training\n"
                "  fix: leave it out: the token is never doubled"
            )

    def _batch(self, rows: Sequence[_Row], form: Form) -> BatchFeature:
        if not all(len(row.ids) for row in rows):
            raise DataError("a prompt is empty\n  fix: ask something in it, or take it out of the batch")
        images = [image for row in rows for image in row.images]
        owners = [number for number, row in enumerate(rows) for _ in row.images]
        ids = [row.ids for row in rows]
        width = form.width([len(row) for row in ids], self.tokenizer.model_max_length)
        batch: dict[str, Any] = {
            "input_ids": _left(ids, width, self.renderer.tokens.pad),
            "attention_mask": _left([np.ones_like(row) for row in ids], width, 0),
            "samples": SampleInputs(
                ids=() if rows[0].labels is not None else tuple(content(row.images) for row in rows),
                prompts=tuple(row.asked for row in rows if row.asked is not None),
            ),
        }
        if images:
            batch["pixels"] = stack_views([view for image in images for view in image.pixels])
            layouts = tuple(image.layout for image in images)
            kept = batch["pixels"] if rows[0].labels is None else None
            batch["images"] = ImageInputs(layouts, torch.tensor(owners), pixels=kept)
        labels = [row.labels for row in rows if row.labels is not None]
        return BatchFeature(form.given(batch | ({"labels": _left(labels, width, IGNORE)} if labels else {})))


def saved_template(config: BeniConfig) -> Mapping[str, Any]:
    """The template that a model was trained with: the section of its run, ``jinja``, ``hash`` and ``specimen``.

    Raises:
        ConfigError: when none was saved with the model.
    """
    if config.template is None:
        raise ConfigError(
            f"{config.name_or_path or 'this model'} was saved without the template that it was trained with\n"
            "  fix: write it again with python -m beni.export <run folder>"
        )
    return config.template


@dataclass(frozen=True)
class _Row:
    """One conversation of a batch.

    Attributes:
        images: in reading order.
        asked: what the user says; None for a prompt that came as text, where nobody can tell.
        labels: of what the assistant says; None for a prompt.
    """

    ids: np.ndarray
    images: list[ViewedImage]
    asked: str | None = None
    labels: np.ndarray | None = None


def _to_answer(sample: Sample) -> Sample:
    """The conversation with an answer to come: a prompt ends where the last one begins."""
    return Sample(sample.id, (*sample.messages, Message("assistant", ("",))))


def _unended(ids: np.ndarray, labels: np.ndarray, eos: Sequence[int]) -> np.ndarray:
    """The ids up to the end token of the last answer."""
    last = int(np.flatnonzero(labels != IGNORE)[-1])
    return ids[: last + (int(ids[last]) not in eos)]


def _shown(message: Message) -> str:
    return "".join(IMAGE if isinstance(part, Image) else part for part in message.content)


def _by_prompt(images: Any, texts: Sequence[str]) -> list[list[Any]]:
    """The images of each prompt, in any of their forms."""
    if images is None:
        return [[] for _ in texts]
    images = _listed(images)
    if any(isinstance(one, list | tuple) for one in images):
        if len(images) != len(texts):
            raise DataError(
                f"{len(images)} lists of images for {len(texts)} prompts\n  fix: give a list for each, [] for none"
            )
        return [list(one) for one in images]
    counts = [text.count(IMAGE) for text in texts]
    if sum(counts) != len(images):
        raise DataError(
            f"the prompts have {sum(counts)} {IMAGE} placeholders for {len(images)} images\n"
            f"  fix: write {IMAGE} where each image stands"
        )
    left = iter(images)
    return [[next(left) for _ in range(count)] for count in counts]


def _texts(images: Any, text: Any) -> list[str]:
    """The prompts of one call."""
    order = f"images come first: processor(images=..., text='... {IMAGE} ...')"
    if text is None:
        what = f"text=None beside images={images!r:.40}" if isinstance(images, str) else "text=None"
        raise DataError(f"{what}, expected a prompt\n  fix: give one, or use apply_chat_template; {order}")
    texts = [text] if isinstance(text, str) else list(text) if isinstance(text, list | tuple) else None
    if not texts or not all(isinstance(one, str) for one in texts):
        raise DataError(f"text={text!r:.80}, expected a text or a list of texts\n  fix: {order}")
    for picture in [images] if isinstance(images, str) else []:
        if "://" not in picture and not picture.startswith("data:") and not os.path.isfile(picture):
            raise DataError(f"images={picture!r:.80}, and there is no such file\n  fix: name one; {order}")
    return texts


def _listed(images: Any) -> Sequence[Any]:
    """Images in a list or tuple; all else is one, a tensor or array too, which is then named in the refusal."""
    return images if isinstance(images, list | tuple) else [images]


def _left(rows: Sequence[np.ndarray], width: int, fill: int) -> Int[Tensor, "b t"]:
    """Rows that end together."""
    out = np.full((len(rows), width), fill, dtype=np.int64)
    for number, row in enumerate(rows):
        out[number, width - len(row) :] = row
    return torch.from_numpy(out)


AutoProcessor.register(BeniConfig, BeniProcessor)
