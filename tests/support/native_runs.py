"""Tiny runs of the recipes that a class of transformers is, untrained."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, PreTrainedTokenizerFast

from beni.config.compose import compose
from beni.data.render.template import Renderer
from beni.llm.tokenizer import CARRIED, load_tokenizer
from beni.model.build import build
from beni.trained import Trained
from support.shrink import shrink_llm, shrink_stage, shrink_vision

GEMMA = {
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 12,
    "vocab_size": 640,
    "max_position_embeddings": 4096,
    "pad_token_id": 0,
    "tie_word_embeddings": True,
}
TAGS = ("<fake_token_around_image>", "<global-img>", "<img>", "</img>", "\n\n")


@dataclass(frozen=True)
class Recipe:
    """A recipe at tiny sizes.

    Attributes:
        model: the class that it is.
        processor: of the exported folder.
        overrides: of the recipe.
        side: patches a side of a view, where the smallest do not divide.
        r: of the resampler.
        llm: architecture.
        tagged: whether the tokenizer has the tokens that stand around images.
    """

    model: str
    processor: str
    overrides: tuple[str, ...] = ()
    side: int | None = None
    r: int | None = None
    llm: dict[str, Any] = field(default_factory=dict)
    tagged: bool = False


RECIPES = {
    "llava15": Recipe("LlavaForConditionalGeneration", "LlavaProcessor"),
    "llava_next": Recipe("LlavaNextForConditionalGeneration", "LlavaNextProcessor"),
    "idefics2": Recipe(
        "Idefics2ForConditionalGeneration",
        "Idefics2Processor",
        ("resampler.expansion=1.3333333333333333",),
        tagged=True,
    ),
    "idefics3": Recipe("Idefics3ForConditionalGeneration", "Idefics3Processor", r=3, tagged=True),
    "smolvlm": Recipe("Idefics3ForConditionalGeneration", "Idefics3Processor", r=3, tagged=True),
    "internvl": Recipe("InternVLForConditionalGeneration", "QianfanOCRProcessor", side=4, tagged=True),
    "paligemma": Recipe("PaliGemmaForConditionalGeneration", "LlavaProcessor", llm={"model_type": "gemma", **GEMMA}),
    "gemma3": Recipe(
        "Gemma3ForConditionalGeneration",
        "LlavaProcessor",
        side=4,
        r=2,
        llm={"model_type": "gemma3_text", "sliding_window": 8, **GEMMA, "num_hidden_layers": 6},
    ),
    "blip2": Recipe("Blip2ForConditionalGeneration", "LlavaProcessor"),
    "ovis2": Recipe("Ovis2ForConditionalGeneration", "LlavaProcessor", r=3),
}


def tagged_tokenizer(folder: Path) -> Path:
    """The embedded tokenizer with tokens for the tags around images."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(CARRIED["embedded"])
    tokenizer.add_special_tokens({"additional_special_tokens": list(TAGS)}, replace_extra_special_tokens=False)
    tokenizer.save_pretrained(folder)
    LlamaConfig().save_pretrained(folder)
    return folder


def native_run(name: str, tagged: Path, *overrides: str) -> dict[str, Any]:
    """The composed run of a recipe at tiny sizes.

    Args:
        tagged: folder of ``tagged_tokenizer``.
    """
    recipe = RECIPES[name]
    run = compose([f"recipe={name}", "vision.weights=random", *recipe.overrides, *overrides])
    for group in ("views", "selector", "resampler", "fusion"):
        run[group] = shrink_stage(group, run["choices"][group], run[group])
    run["vision"] = shrink_vision(run["vision"])
    run["llm"] = shrink_llm(run["llm"])
    if recipe.side is not None:
        set_side(run["vision"], recipe.side)
    if recipe.r is not None:
        run["resampler"]["r"] = recipe.r
    if recipe.llm:
        run["llm"]["architecture"] = recipe.llm
    if recipe.tagged:
        run["llm"]["tokenizer"] = str(tagged)
    return run


def set_side(vision: dict[str, Any], side: int) -> None:
    """Sets so many patches a side of a view; where positions are interpolated, they still are."""
    architecture = vision["architecture"]
    interpolates = vision["image_size"] != architecture["image_size"]
    vision["image_size"] = side * architecture["patch_size"]
    architecture["image_size"] = vision["image_size"] * (2 if interpolates else 1)


def as_trained(model: Any, run: dict[str, Any], folder: Path) -> Trained:
    """A model of a run as the commands have it, after its first step."""
    renderer = Renderer(load_tokenizer(run["llm"]), run["template"])
    return Trained.of(folder, model, renderer, run, 1, torch.device("cpu"))


def scrambled_model(run: dict[str, Any]) -> Any:
    """Its model, N(0, 0.1) everywhere and norms around 1, so that no part says nothing."""
    model, generator = build(run), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            usual = 1.0 if parameter.ndim == 1 and "norm" in name.lower() and name.endswith("weight") else 0.0
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1 + usual)
    return model.eval()
