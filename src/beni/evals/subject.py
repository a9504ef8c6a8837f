"""The model under evaluation: what it makes of answers that it reads, and what it says itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Int
from PIL.Image import Image as Picture
from torch import Tensor
from transformers.generation.streamers import BaseStreamer

from beni.data.batch.collate import Item, collate, content, stack_views
from beni.data.batch.loader import Viewer
from beni.data.metric import Reading
from beni.data.render.template import Encoded, Renderer
from beni.data.sample import Sample
from beni.model.context import rows_of
from beni.model.modeling import BeniForConditionalGeneration
from beni.model.padding import reads_padding
from beni.model.pictures import Looked
from beni.nn.precision import autocast
from beni.stage import StageContext
from beni.types import IGNORE, ImageInputs, Pixels, SampleInputs, ViewedImage, VisualTokens, to_device

LONGEST_ANSWER = 32
"""New tokens of a generated answer."""


@dataclass(frozen=True)
class Asked:
    """A sample's last question, and the pictures in front of its answer as the model is to see them."""

    sample: Sample
    pictures: Sequence[Picture]


@dataclass(frozen=True)
class Subject:
    """A model, and how it is called.

    Attributes:
        layout: ``packed`` or ``padded``.
        precision: ``bf16`` or ``fp32``, as in training.
        batch_size: sequences of one forward pass.
        device: that computes; weights may live elsewhere (``fsdp.offload``).
        together: the model is sharded over several ranks, so in generation they go on until all have their answers.
        between: called before every forward pass, by all ranks alike; may raise to end the evaluation.
    """

    model: BeniForConditionalGeneration
    renderer: Renderer
    viewer: Viewer
    layout: str
    precision: str
    batch_size: int
    device: torch.device
    together: bool = False
    between: Callable[[], None] = lambda: None

    @torch.no_grad()
    def read(self, items: Sequence[Item]) -> list[Reading]:
        """One batch: what the model gives for the labels of every item."""
        if self.model.uses_prompt:  # else pictures are encoded by themselves, under that name too
            items = [replace(item, id=content(item.images)) if item.images else item for item in items]
        batch = collate(items, self.layout, self.renderer.tokens.pad).to(self.device)
        with autocast(self.device, self.precision):
            inputs = batch.model_inputs()
            if not self.model.uses_prompt:  # then what an image becomes does not depend on what is asked about it
                visual = self._encode_once([image for one in items for image in one.images])
                inputs |= {"pixels": None, "images": replace(inputs["images"], visual=visual)}
            out = self.model(**inputs)
        tokens = out.logits.float().log_softmax(-1)
        each = tokens.gather(1, out.targets[:, None])[:, 0]
        greedy = tokens.argmax(-1)
        readings = []
        for i in range(len(items)):
            mine = out.samples == i
            exact = bool((greedy[mine] == out.targets[mine]).all())
            said = self.renderer.decode(greedy[mine].tolist())
            readings.append(Reading(float(each[mine].mean()), exact, said, int(mine.sum())))
        return readings

    def answer(self, asked: Sequence[Asked]) -> list[str]:
        """What the model says, as text."""
        return [self.renderer.decode(ids) for ids in self.say(asked)]

    def say(self, asked: Sequence[Asked], most: int = LONGEST_ANSWER) -> list[list[int]]:
        """What the model says, greedily, up to its first end token; in batches, and yet to each question alone.

        An llm that takes the padding of a batch for text is asked one by one, and so are questions of which one leaves
        no position for the longest answer: it would end the others, too.

        Args:
            most: new tokens of an answer, where the llm has positions for them.
        """
        prompts = [self.prompt(one) for one in asked]
        size = (
            1
            if len(prompts) > 1 and reads_padding(self.model, self.renderer.tokens, self.device, self.precision)
            else self.batch_size
        )
        said = []
        for first in range(0, len(prompts), size):
            self.between()
            batch = prompts[first : first + size]
            rooms = [min(most, self._room(prompt)) for prompt in batch]
            if min(rooms) == most:
                said += self.generate(batch, most)
            else:
                said += [self.generate([prompt], room)[0] for prompt, room in zip(batch, rooms, strict=True)]
        return said

    @torch.no_grad()
    def look(self, asked: Asked, said: Sequence[int], layers: int) -> Looked:
        """What the model keeps of the pictures in front of an answer, and what that answer looks at.

        Args:
            said: the answer.
            layers: the last layers whose attention is read; 0 reads none.
        """
        prompt, tokens, answer = self.prompt(asked), self.renderer.tokens, np.asarray(said, dtype=np.int64)
        answer = np.where(answer == tokens.image, tokens.pad, answer)  # said, it is a token like any other
        ids = np.concatenate([prompt.encoded.ids, answer])
        labels = np.concatenate([np.full(len(prompt.encoded.ids), IGNORE), answer])
        item = replace(prompt, encoded=Encoded(ids, labels))
        batch = collate([item], "padded", tokens.pad).to(self.device)
        self.between()
        with autocast(self.device, self.precision):
            return self.model.look(**batch.model_inputs(), layers=layers)

    def prompt(self, asked: Asked) -> Item:
        """The sample up to where the answer begins."""
        sample, images = asked.sample, [self.viewer(picture) for picture in asked.pictures]
        encoded = self.renderer.prompt(sample, [image.markup for image in images])
        return Item(content(images) if images else sample.id, encoded, images, sample.source, sample.asked)

    @torch.no_grad()
    def generate(
        self,
        prompts: Sequence[Item],
        most: int = LONGEST_ANSWER,
        least: int = 0,
        streamer: BaseStreamer | None = None,
    ) -> list[list[int]]:
        """One batch of left-padded prompts.

        Args:
            most, least: new tokens of an answer; an end token ends none that is shorter.
            streamer: is given each new token as it comes.
        """
        tokens = self.renderer.tokens
        images = [image for prompt in prompts for image in prompt.images]
        owners = [row for row, prompt in enumerate(prompts) for _ in prompt.images]
        ids, mask = left_padded([torch.from_numpy(prompt.encoded.ids) for prompt in prompts], tokens.pad)
        with autocast(self.device, self.precision):
            said = self.model.generate(
                ids.to(self.device),
                self._pixels(images) if images else None,
                attention_mask=mask.to(self.device),
                images=ImageInputs(
                    tuple(image.layout for image in images),
                    torch.tensor(owners, device=self.device) if images else None,
                ),
                samples=SampleInputs(
                    ids=tuple(prompt.id for prompt in prompts), prompts=tuple(prompt.asked for prompt in prompts)
                ),
                max_new_tokens=most,
                min_new_tokens=least,
                do_sample=False,
                pad_token_id=tokens.pad,
                eos_token_id=list(tokens.eos),
                streamer=streamer,
                synced_gpus=self.together,  # ranks whose arithmetic differs may end at different tokens
            )
        return [_to_end(row.tolist(), tokens.eos) for row in said[:, ids.shape[1] :]]

    def _room(self, prompt: Item) -> int:
        """New tokens that the llm has positions for behind a prompt; 1 where it has none, as in ``model.generate``."""
        limit = self.model.llm.max_positions
        return 2**31 if limit is None else max(1, limit - len(prompt.encoded.ids))

    def _encode_once(self, images: Sequence[ViewedImage]) -> VisualTokens | None:
        """Every picture encoded once, however many questions and choices share it, and all blank ones once."""
        if not images:
            return None
        different: dict[str, int] = {}
        different_images: list[ViewedImage] = []
        place = []
        for image in images:
            key = content([image])
            if key not in different:
                different_images.append(image)
            place.append(different.setdefault(key, len(different)))
        layouts = tuple(image.layout for image in different_images)
        numbers, count = list(range(len(layouts))), lambda layout: len(self.model.row_specs(layout)["views"])
        rows = rows_of(layouts, numbers, tuple(different), count)
        context = StageContext(layouts=layouts, rows=rows, seed=self.model.config.seed)
        visual = self.model.encode_images(self._pixels(different_images), context)
        return visual.select(torch.tensor(place, device=self.device))

    def _pixels(self, images: Sequence[ViewedImage]) -> Pixels:
        return to_device(stack_views([view for image in images for view in image.pixels]), self.device)


def _to_end(ids: Sequence[int], eos: Sequence[int]) -> list[int]:
    """The ids up to the first end token, which is among them."""
    end = next((i + 1 for i, token in enumerate(ids) if token in eos), len(ids))
    return list(ids[:end])


def left_padded(rows: Sequence[Int[Tensor, "_"]], pad: int) -> tuple[Int[Tensor, "b t"], Int[Tensor, "b t"]]:
    """Rows of ids ended together, and a mask that is 1 where they are real."""
    width = max(len(row) for row in rows)
    ids = torch.stack([torch.nn.functional.pad(row, (width - len(row), 0), value=pad) for row in rows])
    lengths = torch.tensor([len(row) for row in rows])
    return ids, (torch.arange(width) >= width - lengths[:, None]).long()
