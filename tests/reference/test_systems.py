"""Recipes against the systems they are named after: tiny sizes, the same weights, the same pictures, equal logits.

``test_llava.py`` does LLaVA itself in more detail; Qwen2-VL's merger is a case of ``cases/pixel_shuffle.py``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image as PILImage
from transformers import (
    Blip2Config,
    Blip2ForConditionalGeneration,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Idefics2Config,
    Idefics2ForConditionalGeneration,
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    InternVLConfig,
    InternVLForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    Ovis2Config,
    Ovis2ForConditionalGeneration,
    PaliGemmaConfig,
    PaliGemmaForConditionalGeneration,
)

from beni.config.compose import compose
from beni.data.batch.collate import stack_views
from beni.model.build import build_model
from beni.types import ImageInputs
from reference.convert import rename
from reference.harness import all_cases

IMAGE = 90
VISION = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": 32,
    "patch_size": 8,
}
TEXT = {
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 97,
    "max_position_embeddings": 1024,
    "pad_token_id": 0,
    "tie_word_embeddings": False,
}
GEMMA = TEXT | {"head_dim": 12, "tie_word_embeddings": True}
OPT = {
    "hidden_size": 48,
    "ffn_dim": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 97,
    "max_position_embeddings": 1024,
    "word_embed_proj_dim": 48,
    "tie_word_embeddings": False,
}
PERCEIVER = {"resampler_n_latents": 5, "resampler_depth": 2, "resampler_n_heads": 2, "resampler_head_dim": 8}
QFORMER = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}


@dataclass(frozen=True)
class System:
    """One published system and the recipe that is to equal it.

    Attributes:
        config, model: of transformers.
        overrides: of the recipe, to tiny sizes.
        vision, llm: architectures.
        names: parts of their names of tensors and what stands there in ours.
        inputs: (views stacked to theirs, picture's size, ids, positions that ask) -> what their model is called with.
        option: reference case whose ``convert`` knows the projector's tensors, and where these are in each.
        pictures: (height, width) in pixels.
    """

    config: Any
    model: Any
    overrides: tuple[str, ...]
    vision: dict[str, Any]
    llm: dict[str, Any]
    names: tuple[tuple[str, str], ...]
    inputs: Callable[[list[torch.Tensor], tuple[int, int], torch.Tensor], dict[str, Any]]
    case: tuple[str, str, str] | None = None
    pictures: tuple[tuple[int, int], ...] = ((40, 60), (70, 30), (32, 32))
    attention: dict[str, Any] = field(default_factory=dict)


def plain(views, size, ids):
    return {"pixel_values": torch.stack(views)}


def nested(views, size, ids):
    return {"pixel_values": torch.stack(views)[None]}


def with_size(views, size, ids):
    return nested(views, size, ids) | {"image_sizes": torch.tensor([size])}


def padded(views, size, ids):
    tall, wide = (max(view.shape[axis] for view in views) for axis in (1, 2))
    pixels, mask = torch.zeros(1, len(views), 3, tall, wide), torch.zeros(1, len(views), tall, wide, dtype=torch.long)
    for i, view in enumerate(views):
        pixels[0, i, :, : view.shape[1], : view.shape[2]] = view
        mask[0, i, : view.shape[1], : view.shape[2]] = 1
    return {"pixel_values": pixels, "pixel_attention_mask": mask}


def image_types(views, size, ids):
    return plain(views, size, ids) | {"token_type_ids": (ids == IMAGE).long()}


def prefix_types(views, size, ids):
    return plain(views, size, ids) | {"token_type_ids": torch.zeros_like(ids)}


TOWER = ("model.vision_tower.", "vision.model.")
TEXT_MODEL = ("model.language_model.", "llm.model.model.")
HEAD = ("lm_head.", "llm.model.lm_head.")

SYSTEMS = {
    "llava_next": System(
        LlavaNextConfig(
            vision_config={"model_type": "clip_vision_model", "projection_dim": 16, **VISION},
            text_config={"model_type": "llama", **TEXT},
            image_token_id=IMAGE,
            vision_feature_layer=-2,
            vision_feature_select_strategy="default",
            image_grid_pinpoints=[[32, 64], [64, 32], [64, 64], [96, 32], [32, 96]],
            tie_word_embeddings=False,
        ),
        LlavaNextForConditionalGeneration,
        ("vision.image_size=32",),
        {"model_type": "clip_vision_model", "projection_dim": 16, **VISION},
        {"model_type": "llama", **TEXT},
        (
            TOWER,
            ("model.multi_modal_projector.linear_1", "connector.layers.0"),
            ("model.multi_modal_projector.linear_2", "connector.layers.1"),
            ("model.image_newline", "views.newline"),
            TEXT_MODEL,
            HEAD,
        ),
        with_size,
    ),
    "ovis2": System(
        Ovis2Config(
            vision_config=VISION | {"hidden_stride": 2, "vocab_size": 30},
            text_config={"model_type": "llama", **TEXT},
            image_token_id=IMAGE,
            visual_indicator_token_ids=[91, 92, 93, 94, 95],
            vocab_size=97,
            hidden_size=48,
            tie_word_embeddings=False,
        ),
        Ovis2ForConditionalGeneration,
        ("vision.image_size=32", "resampler.vocabulary=25"),
        {"model_type": "aimv2_vision_model", "use_head": False, **VISION},
        {"model_type": "llama", **TEXT},
        (
            ("model.vision_tower.transformer.embeddings.patch_embedding", "vision.model.embeddings.patch_embed"),
            ("model.vision_tower.transformer.", "vision.model."),
            TEXT_MODEL,
            HEAD,
        ),
        plain,
        ("resampler=ovis", "model.", "resampler."),
    ),
    "idefics2": System(
        Idefics2Config(
            vision_config=VISION | {"image_size": 56},
            text_config={"model_type": "mistral", **TEXT},
            perceiver_config={"hidden_size": 48, "num_key_value_heads": 1, **PERCEIVER},
            image_token_id=IMAGE,
            tie_word_embeddings=False,
        ),
        Idefics2ForConditionalGeneration,
        (
            *("vision.image_size=56", "views.shortest=16", "views.longest=56", "resampler.expansion=2"),
            *("resampler.depth=2", "resampler.num_latents=5", "resampler.num_heads=2", "resampler.head_dim=8"),
            "resampler.num_kv_heads=1",
        ),
        {"model_type": "idefics2_vision", **VISION, "image_size": 56},
        {"model_type": "mistral", **TEXT},
        (
            ("model.vision_model.", "vision.model."),
            ("model.connector.modality_projection.", "resampler.projection."),
            ("model.connector.perceiver_resampler.", "resampler.perceiver."),
            ("model.text_model.", "llm.model.model."),
            HEAD,
        ),
        padded,
    ),
    "idefics3": System(
        Idefics3Config(
            vision_config=VISION,
            text_config={"model_type": "llama", **TEXT},
            scale_factor=2,
            image_token_id=IMAGE,
            tie_word_embeddings=False,
        ),
        Idefics3ForConditionalGeneration,
        ("vision.image_size=32", "views.longest=3"),
        {"model_type": "idefics3_vision", **VISION},
        {"model_type": "llama", **TEXT},
        (
            ("model.vision_model.", "vision.model."),
            ("model.connector.modality_projection.proj", "connector.layers.0"),
            ("model.text_model.", "llm.model.model."),
            HEAD,
        ),
        nested,
    ),
    "internvl": System(
        InternVLConfig(
            vision_config=VISION | {"image_size": [32, 32], "patch_size": [8, 8]},
            text_config={"model_type": "qwen2", **TEXT},
            image_token_id=IMAGE,
            tie_word_embeddings=False,
        ),
        InternVLForConditionalGeneration,
        ("vision.image_size=32", "views.max_tiles=6"),
        {"model_type": "internvl_vision", **VISION},
        {"model_type": "qwen2", **TEXT},
        (
            TOWER,
            ("model.multi_modal_projector.layer_norm", "connector.norm"),
            ("model.multi_modal_projector.linear_1", "connector.layers.0"),
            ("model.multi_modal_projector.linear_2", "connector.layers.1"),
            TEXT_MODEL,
            HEAD,
        ),
        plain,
    ),
    "paligemma": System(
        PaliGemmaConfig(
            vision_config={
                "model_type": "siglip_vision_model",
                "vision_use_head": False,
                "projection_dim": 48,
                **VISION,
            },
            text_config={"model_type": "gemma", **GEMMA},
            image_token_id=IMAGE,
            projection_dim=48,
        ),
        PaliGemmaForConditionalGeneration,
        ("vision.image_size=32",),
        {"model_type": "siglip_vision_model", "vision_use_head": False, **VISION},
        {"model_type": "gemma", **GEMMA},
        (TOWER, ("model.multi_modal_projector.linear", "connector.proj"), TEXT_MODEL, HEAD),
        prefix_types,
    ),
    "gemma3": System(
        Gemma3Config(
            vision_config={"model_type": "siglip_vision_model", "vision_use_head": False, **VISION},
            text_config={"model_type": "gemma3_text", "sliding_window": 8, **GEMMA, "num_hidden_layers": 6},
            image_token_id=IMAGE,
            mm_tokens_per_image=4,
        ),
        Gemma3ForConditionalGeneration,
        ("vision.image_size=32", "resampler.r=2"),
        {"model_type": "siglip_vision_model", "vision_use_head": False, **VISION},
        {"model_type": "gemma3_text", "sliding_window": 8, **GEMMA, "num_hidden_layers": 6},
        (TOWER, TEXT_MODEL, HEAD),
        image_types,
        ("resampler=gemma3", "model.multi_modal_projector.", "resampler."),
    ),
    "blip2": System(
        Blip2Config(
            vision_config=VISION,
            qformer_config=QFORMER | {"encoder_hidden_size": 32, "vocab_size": 30},
            text_config={"model_type": "opt", **OPT},
            num_query_tokens=5,
            image_token_index=IMAGE,
        ),
        Blip2ForConditionalGeneration,
        (
            *("vision.image_size=32", "resampler.hidden_size=32", "resampler.depth=2", "resampler.num_queries=5"),
            *("resampler.num_heads=4", "resampler.intermediate_size=64"),
        ),
        {"model_type": "blip_2_vision_model", **VISION},
        {"model_type": "opt", **OPT},
        (("vision_model.", "vision.model."), ("language_model.", "llm.model.")),
        plain,
        ("resampler=qformer", "", "resampler."),
    ),
}


def scramble(model):
    """N(0, 0.1) everywhere, norms around their usual weight: larger and the logits say nothing."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator) * 0.1
            usual = 1.0 if parameter.ndim == 1 and "norm" in name.lower() and name.endswith("weight") else 0.0
            parameter.copy_(noise + usual)
    return model.eval()


def ours_of(name, system, theirs):
    run = compose([f"recipe={name}", "vision.weights=random", *system.overrides, "template.max_length=1024"])
    run["vision"] |= {"architecture": dict(system.vision)}
    run["llm"] |= {"architecture": dict(system.llm)}
    model = build_model(run, IMAGE).eval()
    state = dict(theirs.state_dict())
    converted = {}
    if system.case is not None:
        option, before, after = system.case
        inner = {key.removeprefix(before): value for key, value in state.items() if key.startswith(before)}
        if name == "blip2":  # the case has names of its own for what lies around the Q-Former
            inner = {
                key: value for key, value in inner.items() if key.startswith(("query", "qformer.", "language_proj"))
            }
            inner = rename(inner, [("language_projection.", "proj."), ("query_tokens", "queries")])
            inner["queries"] = inner["queries"][0]
        convert = next(case.convert for case in all_cases() if case.option == option)
        converted = {after + key: value for key, value in convert(inner).items()}
    renamed = converted | rename(
        {key: value for key, value in state.items() if key.startswith(tuple(before for before, _ in system.names))},
        list(system.names),
    )
    wanted = model.state_dict()
    missing = sorted(set(wanted) - set(renamed))
    assert not missing, missing
    unread = {key for key in renamed if key not in wanted}
    assert all(".layers.2." in key or "post_layernorm" in key or ".layer.2." in key for key in unread), unread
    model.load_state_dict({key: renamed[key] for key in wanted})
    return model


def conversation(markup):
    """Text ids with the image's placeholders between; one more text token where the markup has a text."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(3, IMAGE, (3,), generator=generator).tolist()
    for part in markup:
        ids += [IMAGE] * part if isinstance(part, int) else [int(torch.randint(3, IMAGE, (1,), generator=generator))]
    return torch.tensor([[*ids, *torch.randint(3, IMAGE, (6,), generator=generator).tolist()]])


@pytest.mark.parametrize("name", SYSTEMS)
@torch.no_grad()
def test_the_recipe_equals_the_system(name):
    system = SYSTEMS[name]
    theirs = scramble(system.model(system.config))
    ours = ours_of(name, system, theirs)
    for size in system.pictures:
        noise = np.random.default_rng(size).integers(0, 256, (*size, 3), dtype=np.uint8)
        seen = ours.viewer(PILImage.fromarray(noise))
        ids = conversation(seen.markup)
        expected = theirs(input_ids=ids, **system.inputs(seen.pixels, size, ids)).logits
        logits = ours(ids, stack_views(seen.pixels), images=ImageInputs((seen.layout,))).logits
        assert expected.std() > 0.05
        assert (logits - expected).abs().max() <= 1e-4, size
        # and the image matters
        other = ours.viewer(PILImage.fromarray(255 - noise))
        assert (
            ours(ids, stack_views(other.pixels), images=ImageInputs((other.layout,))).logits - expected
        ).abs().max() > 1e-3
