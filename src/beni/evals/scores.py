"""Scores of held-out examples: exact answers, choices by likelihood, and losses – with the true or a blank image."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, Literal

import torch
from PIL.Image import Image as Picture

from beni.data.batch.collate import Item, collate, stack_views
from beni.data.batch.loader import Viewer, item
from beni.data.images import BadImage, Image, blank_like, decode
from beni.data.render.template import Renderer
from beni.data.sample import Sample, Task
from beni.model.modeling import BeniForConditionalGeneration
from beni.nn.precision import autocast
from beni.stage import StageContext
from beni.types import ViewedImage, VisualTokens, to_device

Variant = Literal["true", "blank"]


@dataclass(frozen=True)
class Scorer:
    """Scores samples with one model.

    Attributes:
        task: ``answer``: the greedy answer, end token included, is the expected one (teacher-forced argmax at every
            label, which is the same event); ``choice``: the expected answer has the highest mean token log-likelihood
            among the sample's choices; ``loss``: only the loss.
        precision: ``bf16`` or ``fp32``, as in training.
        batch_size: sequences of one forward pass.
        device: that computes; weights may live elsewhere (``fsdp.offload``).
        between: called before every forward pass, by all ranks alike; may raise to end the evaluation.
    """

    model: BeniForConditionalGeneration
    renderer: Renderer
    viewer: Viewer
    task: Task
    layout: str
    precision: str
    batch_size: int
    device: torch.device
    between: Callable[[], None] = lambda: None

    def score(self, samples: Sequence[Sample], variant: Variant) -> Iterator[dict[str, Any]]:
        """One row per sample whose pictures can be read: the fields of scores.jsonl but ``step``."""
        per_sample = max((len(s.choices) for s in samples), default=1) if self.task == "choice" else 1
        for group in _groups(samples, max(1, self.batch_size // max(1, per_sample))):
            self.between()
            yield from self._group(group, variant)

    @torch.no_grad()
    def _group(self, asked_for: list[Sample], variant: Variant) -> Iterator[dict[str, Any]]:
        samples, viewed = self._readable(asked_for, variant)
        if not samples:
            return
        choosing = self.task == "choice"
        asked = [s.with_answer(c) for s in samples for c in s.choices] if choosing else samples
        owner = [i for i, s in enumerate(samples) for _ in (s.choices if choosing else (None,))]
        items = [item(s, self.renderer, viewed[i]) for s, i in zip(asked, owner, strict=True)]
        loglik, correct, predicted = self._forward(items)
        for i, sample in enumerate(samples):
            mine = [k for k, o in enumerate(owner) if o == i]
            if choosing:
                best = max(mine, key=lambda k: loglik[k])
                said = sample.choices[mine.index(best)]
                true = mine[sample.choices.index(sample.answer)]
                score: float | None = float(said == sample.answer)
            else:
                true = mine[0]
                said = predicted[true]
                score = float(correct[true]) if self.task == "answer" else None
            yield {
                "id": sample.id,
                "kind": sample.kind,
                "cluster": sample.cluster,
                "variant": variant,
                "score": score,
                "loss": -loglik[true],
                "prediction": said if self.task != "loss" else None,
                "expected": sample.answer,
                "chance": 1 / len(sample.choices) if sample.choices else None,
            }

    def _forward(self, items: list[Item]) -> tuple[list[float], list[bool], list[str]]:
        """Mean token log-likelihood, all-correct flag and greedy text of every item's labels."""
        device = self.device
        batch = collate(items, self.layout, self.renderer.tokens.pad).to(device)
        with autocast(device, self.precision):
            inputs = batch.model_inputs()
            if not self.model.uses_prompt:  # then what an image becomes does not depend on what is asked about it
                visual = self._encode_once(items, device)
                inputs |= {"pixels": None, "images": replace(inputs["images"], visual=visual)}
            out = self.model(**inputs)
        tokens = out.logits.float().log_softmax(-1)
        each = tokens.gather(1, out.targets[:, None])[:, 0]
        greedy = tokens.argmax(-1)
        loglik, correct, said = [], [], []
        for i in range(len(items)):
            mine = out.samples == i
            loglik.append(float(each[mine].mean()))
            correct.append(bool((greedy[mine] == out.targets[mine]).all()))
            said.append(self.renderer.decode(greedy[mine].tolist()))
        return loglik, correct, said

    def _encode_once(self, items: list[Item], device: torch.device) -> VisualTokens | None:
        """Every picture encoded once, however many questions and choices share it, and all blank ones once."""
        images = [image for one in items for image in one.images]
        if not images:
            return None
        different: dict[bytes, int] = {}
        different_images: list[ViewedImage] = []
        place = []
        for image in images:
            key = repr(image.layout).encode() + b"".join(view.numpy().tobytes() for view in image.pixels)
            if key not in different:
                different_images.append(image)
            place.append(different.setdefault(key, len(different)))
        pixels = to_device(stack_views([view for image in different_images for view in image.pixels]), device)
        visual = self.model.encode_images(
            pixels, StageContext(layouts=tuple(image.layout for image in different_images))
        )
        return visual.select(torch.tensor(place, device=device))

    def _readable(self, samples: Sequence[Sample], variant: Variant) -> tuple[list[Sample], list[list[ViewedImage]]]:
        """The samples whose pictures can be decoded, and their views."""
        kept, viewed = [], []
        for sample in samples:
            try:
                viewed.append(self._viewed(sample, variant))
            except BadImage:
                continue
            kept.append(sample)
        return kept, viewed

    def _viewed(self, sample: Sample, variant: Variant) -> list[ViewedImage]:
        look: Callable[[Image], Picture] = decode if variant == "true" else lambda image: blank_like(decode(image))
        return [self.viewer(look(image)) for image in sample.images]


def summarise(rows: Iterable[dict[str, Any]], variant: Variant) -> dict[str, float]:
    """Rows of one variant to the flat keys of metrics.jsonl."""
    chosen = [row for row in rows if row["variant"] == variant]
    suffix = "" if variant == "true" else "_blank"
    values = {f"eval/loss{suffix}": _mean(row["loss"] for row in chosen)}
    scored = [row for row in chosen if row["score"] is not None]
    if scored:
        values[f"eval/accuracy{suffix}"] = _mean(row["score"] for row in scored)
        if variant == "true" and all(row["chance"] is not None for row in scored):
            values["eval/chance"] = _mean(row["chance"] for row in scored)
        for kind in sorted({row["kind"] for row in scored if row["kind"]}):
            values[f"eval/accuracy{suffix}/{kind}"] = _mean(row["score"] for row in scored if row["kind"] == kind)
    return values


def _mean(values: Iterable[float]) -> float:
    numbers = list(values)
    return sum(numbers) / len(numbers)


def _groups(samples: Sequence[Sample], size: int) -> Iterator[list[Sample]]:
    iterator = iter(samples)
    while group := list(islice(iterator, size)):
        yield group
