"""Whether a class of transformers says what the model of the run says: prompts with images, logits, greedy text, and
what its processor makes of the same conversations.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from PIL import Image as PILImage
from torch import Tensor
from transformers import PreTrainedModel, ProcessorMixin

from beni.data.shapes import questions
from beni.data.shapes.scenes import Scene
from beni.errors import CompositionError
from beni.export.native.base import Family, Shown
from beni.model.modeling import BeniForConditionalGeneration
from beni.model.processing import BeniProcessor

BOUND = 1e-5
"""Largest difference of a logit in fp32, in units of the largest logit where that is above 1."""
NEW_TOKENS = 12
SIZES = ((96, 96), (72, 144), (150, 90))
"""(height, width) in pixels of the pictures that prompts show: square, wide and tall."""
SIDE = 160


@dataclass(frozen=True)
class Prompt:
    """A conversation up to an answer, as the run asks it.

    Attributes:
        conversation: messages in transformers' form.
        ids: ``(1, t)``.
        batch: what the model of the run is called with.
        shown: its images; None for text alone.
    """

    conversation: list[dict[str, Any]]
    ids: Tensor
    batch: dict[str, Any]
    shown: Shown | None


@dataclass
class Agreement:
    """How near a class and its processor come to the model of the run.

    Attributes:
        prompts: that were compared, and how many of them have images.
        logits: largest absolute difference.
        largest: largest logit.
        same_text: greedy answers that are equal.
        same_ids: prompts whose ids the processor gives.
        same_pixels: prompts with images whose pixels the processor gives to 1e-6.
        pixels: largest difference of a normalised pixel; None where there are as many, and not of the same shape.
        own_logits: largest difference of the logits from the processor's own pixels, where their shapes agree.
    """

    prompts: int = 0
    images: int = 0
    logits: float = 0.0
    largest: float = 0.0
    same_text: int = 0
    same_ids: int = 0
    same_pixels: int = 0
    pixels: float | None = 0.0
    own_logits: float | None = 0.0
    remarks: list[str] = field(default_factory=list)

    @property
    def bound(self) -> float:
        """The difference of logits that is allowed."""
        return BOUND * max(1.0, self.largest)


def picture(number: int) -> PILImage.Image:
    """A drawn picture of one of the sizes."""
    height, width = SIZES[number % len(SIZES)]
    return Scene.draw(random.Random(number)).render(SIDE).resize((width, height))


def conversations(separator: str) -> list[list[dict[str, Any]]]:
    """One image at each size, two images, a second question, and text alone."""
    draw = random.Random(0)
    said = [questions.ask_one(draw)[1].text for _ in range(6)]

    def user(text: str, *pictures: PILImage.Image) -> dict[str, Any]:
        parts: list[dict[str, Any]] = []
        for one in pictures:
            parts += [{"type": "image", "image": one}, {"type": "text", "text": separator}]
        return {"role": "user", "content": [*parts, {"type": "text", "text": text}]}

    answer = {"role": "assistant", "content": [{"type": "text", "text": "a star"}]}
    one = [[user(said[number], picture(number))] for number in range(len(SIZES))]
    return [
        *one,
        [user(said[3], picture(3), picture(4))],
        [user(said[4], picture(0)), answer, user(said[5])],
        [user(said[5])],
    ]


def prompts(model: BeniForConditionalGeneration, processor: BeniProcessor, family: Family) -> list[Prompt]:
    """The conversations that the family reads, and that leave the llm room for an answer.

    Raises:
        CompositionError: E-TOKENS when none with an image does.
    """
    limit, found = model.llm.max_positions, []
    for talk in conversations(family.separator):
        batch = dict(processor.apply_chat_template(talk, add_generation_prompt=True, tokenize=True))
        if "images" not in batch and not family.reads_text_alone:
            continue
        if limit is None or batch["input_ids"].shape[1] + NEW_TOKENS <= limit:
            found.append(Prompt(talk, batch["input_ids"], batch, _shown(batch)))
    if not any(prompt.shown for prompt in found):
        raise CompositionError(
            "E-TOKENS",
            f"a question about one picture leaves no room in the {limit} positions of the llm, so nothing can be "
            "compared",
            groups=("llm",),
            fix="set --format pretrained",
        )
    return found


def _shown(batch: dict[str, Any]) -> Shown | None:
    if "images" not in batch:
        return None
    layouts = batch["images"].layouts
    left = iter(batch["pixels"])
    return Shown([[next(left) for _ in layout.views] for layout in layouts], layouts)


@torch.no_grad()
def compare_models(
    model: BeniForConditionalGeneration, native: PreTrainedModel, family: Family, asked: Sequence[Prompt], trained: int
) -> Agreement:
    """Logits and greedy answers on the same ids and pixels.

    Args:
        trained: ids of the llm of the run; those beyond are not compared.
    """
    found = Agreement(prompts=len(asked), images=sum(prompt.shown is not None for prompt in asked))
    for prompt in asked:
        inputs = native_inputs(family, prompt, model.config.image_token_id)
        ours = model(**prompt.batch).logits
        theirs = native(**inputs).logits[..., :trained]
        found.logits = max(found.logits, float((ours - theirs).abs().max()))
        found.largest = max(found.largest, float(ours.abs().max()))
        said = model.generate(**prompt.batch, max_new_tokens=NEW_TOKENS)[0, prompt.ids.shape[1] :]
        new = native.generate(**inputs, max_new_tokens=NEW_TOKENS)[0, prompt.ids.shape[1] :]
        found.same_text += bool(said.tolist() == new.tolist())
    return found


def native_inputs(family: Family, prompt: Prompt, image: int) -> dict[str, Any]:
    """What the class is called with for a prompt of the run."""
    inputs: dict[str, Any] = {"input_ids": prompt.ids, "attention_mask": torch.ones_like(prompt.ids)}
    return inputs | family.inputs(prompt.shown, prompt.ids, image)


@torch.no_grad()
def compare_processors(
    found: Agreement, native: PreTrainedModel, processor: ProcessorMixin, family: Family, asked: Sequence[Prompt]
) -> None:
    """Ids and pixels that the processor of the folder makes of the same conversations."""
    for prompt in asked:
        made = _made(processor, prompt)
        same = torch.equal(made["input_ids"], prompt.ids)
        found.same_ids += same
        if not same and not found.remarks:
            found.remarks.append(_first_difference(prompt.ids[0].tolist(), made["input_ids"][0].tolist(), processor))
        if prompt.shown is not None:
            wanted = native_inputs(family, prompt, native.config.image_token_id)
            _compare_pixels(found, native, made, wanted, same)


def _made(processor: ProcessorMixin, prompt: Prompt) -> dict[str, Any]:
    asked: Any = processor.apply_chat_template
    return dict(
        asked(prompt.conversation, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt")
    )


def _compare_pixels(
    found: Agreement, native: PreTrainedModel, made: dict[str, Any], wanted: dict[str, Any], same_ids: bool
) -> None:
    ours, theirs = wanted["pixel_values"], made["pixel_values"]
    if ours.shape != theirs.shape:
        found.pixels = found.own_logits = None
        return
    apart = float((ours - theirs).abs().max())
    found.same_pixels += apart <= 1e-6
    if found.pixels is not None:
        found.pixels = max(found.pixels, apart)
    if same_ids and found.own_logits is not None:
        said = native(**{**wanted, "pixel_values": theirs}).logits
        found.own_logits = max(found.own_logits, float((said - native(**wanted).logits).abs().max()))


def _first_difference(ours: list[int], theirs: list[int], processor: Any) -> str:
    """Where two prompts part, in tokens."""
    place = next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), min(len(ours), len(theirs)))
    shown = [
        " ".join(map(repr, processor.tokenizer.convert_ids_to_tokens(ids[max(0, place - 1) : place + 4])))
        for ids in (ours, theirs)
    ]
    return f"from token {place} on the run has {shown[0]} and the processor {shown[1]}"
