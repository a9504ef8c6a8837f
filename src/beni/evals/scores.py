"""Scores of held-out examples: exact answers, choices by likelihood, and losses – with the true or a blank image."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal

import torch
from PIL.Image import Image as Picture
from torch import Tensor

from beni.data.collate import Item, collate
from beni.data.images import Image, blank_like, decode
from beni.data.loader import Views
from beni.data.sample import Sample, Task
from beni.data.template import Renderer
from beni.model.modeling import BeniForConditionalGeneration
from beni.nn.precision import autocast

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
    """

    model: BeniForConditionalGeneration
    renderer: Renderer
    views: Views
    task: Task
    layout: str
    precision: str
    batch_size: int

    def score(self, samples: Sequence[Sample], variant: Variant) -> Iterator[dict[str, Any]]:
        """One row per sample: the fields of scores.jsonl but ``step``."""
        per_sample = max((len(s.choices) for s in samples), default=1) if self.task == "choice" else 1
        for group in _groups(samples, max(1, self.batch_size // max(1, per_sample))):
            yield from self._group(group, variant)

    @torch.no_grad()
    def _group(self, samples: list[Sample], variant: Variant) -> Iterator[dict[str, Any]]:
        choosing = self.task == "choice"
        asked = [s.with_answer(c) for s in samples for c in s.choices] if choosing else samples
        owner = [i for i, s in enumerate(samples) for _ in (s.choices if choosing else (None,))]
        pixels = [self._pixels(s, variant) for s in samples]
        items = [Item(s.id, self.renderer.encode(s), pixels[i]) for s, i in zip(asked, owner, strict=True)]
        loglik, correct, predicted = self._forward(items, samples, owner, pixels)
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

    def _forward(
        self, items: list[Item], samples: list[Sample], owner: list[int], pixels: list[list[Tensor]]
    ) -> tuple[list[float], list[bool], list[str]]:
        """Mean token log-likelihood, all-correct flag and greedy text of every item's labels."""
        device = next(self.model.parameters()).device
        bare = [dataclasses.replace(item, pixels=[]) for item in items]
        batch = collate(bare, self.layout, self.renderer.tokens.pad).to(device)
        with autocast(device, self.precision):
            visual = None
            views = [view for one in pixels for view in one]
            if views:  # each picture is encoded once, however many questions and choices share it, and blank ones once
                different: dict[bytes, int] = {}
                place = [different.setdefault(view.numpy().tobytes(), len(different)) for view in views]
                chosen = [views[place.index(i)] for i in range(len(different))]
                visual = self.model.encode_images(torch.stack(chosen).to(device))
                first = [sum(len(p) for p in pixels[:i]) for i in range(len(pixels))]
                rows = [place[first[o] + j] for o in owner for j in range(len(pixels[o]))]
                visual = visual.select(torch.tensor(rows, device=device))
            out = self.model(**(batch.model_inputs() | {"pixels": None}), visual=visual)
        tokens = out.logits.float().log_softmax(-1)
        each = tokens.gather(1, out.targets[:, None])[:, 0]
        greedy = tokens.argmax(-1)
        if batch.cu_seqlens is None:
            item_of = out.rows
        else:
            item_of = torch.searchsorted(batch.cu_seqlens.long(), out.columns, right=True) - 1
        loglik, correct, said = [], [], []
        for i in range(len(items)):
            mine = item_of == i
            loglik.append(float(each[mine].mean()))
            correct.append(bool((greedy[mine] == out.targets[mine]).all()))
            said.append(self.renderer.decode(greedy[mine].tolist()))
        return loglik, correct, said

    def _pixels(self, sample: Sample, variant: Variant) -> list[Tensor]:
        look: Callable[[Image], Picture] = decode if variant == "true" else lambda image: blank_like(decode(image))
        return [view for image in sample.images for view in self.views(look(image))]


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
