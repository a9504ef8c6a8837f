"""``vision.name=<folder>`` takes the vision half of a dual encoder, at the chosen layer, with equal features."""

from __future__ import annotations

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModel,
    Blip2Config,
    Blip2ForConditionalGeneration,
    CLIPConfig,
    CLIPModel,
    Idefics2Config,
    Idefics2ForConditionalGeneration,
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    PaliGemmaConfig,
    PaliGemmaForConditionalGeneration,
    Siglip2Config,
    SiglipConfig,
    SiglipModel,
)

from beni.vision.hf import HFVision

VISION = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": 24,
    "patch_size": 8,
}
TEXT = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 50}


def scramble(model):
    """Large weights on all tensors, norms included: a norm applied or left out then shows."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return model.eval()


def encoder(**fields):
    values = {"mean": [0.5] * 3, "std": [0.5] * 3, "resize": "squash", "attn_implementation": "sdpa", "image_size": 24}
    values |= {"levels": [], "keep_cls": False}
    return HFVision(**{"name": None, "weights": "random", "architecture": None, "layer": -1, **values, **fields})


def load(folder, layer):
    vision = encoder(name=str(folder), weights="pretrained", layer=layer)
    assert next(vision.parameters()).device.type == "meta"
    vision.load_pretrained()
    return vision.eval()


@torch.no_grad()
@pytest.mark.parametrize("layer", [-1, -2])
def test_a_siglip_folder_gives_its_vision_half(tmp_path, layer):
    whole = scramble(SiglipModel(SiglipConfig(vision_config=VISION, text_config=TEXT)))
    whole.save_pretrained(tmp_path)
    vision, pixels = load(tmp_path, layer), torch.randn(2, 3, 24, 24)
    out = whole.vision_model(pixel_values=pixels, output_hidden_states=True)
    expected = out.last_hidden_state if layer == -1 else out.hidden_states[-2]
    torch.testing.assert_close(vision(pixels).x, expected, rtol=1e-5, atol=1e-5)
    assert not any("text" in name for name, _ in vision.named_parameters())
    assert vision.spec().grid == (3, 3)


@torch.no_grad()
@pytest.mark.parametrize("layer", [-1, -2])
def test_a_clip_folder_gives_its_vision_half_without_the_class_token(tmp_path, layer):
    whole = scramble(CLIPModel(CLIPConfig(vision_config=VISION, text_config=TEXT)))
    whole.save_pretrained(tmp_path)
    vision, pixels = load(tmp_path, layer), torch.randn(2, 3, 24, 24)
    out = whole.vision_model(pixel_values=pixels, output_hidden_states=True)
    expected = out.last_hidden_state if layer == -1 else out.hidden_states[-2]
    torch.testing.assert_close(vision(pixels).x, expected[:, 1:], rtol=1e-5, atol=1e-5)
    assert not any("text" in name for name, _ in vision.named_parameters())
    assert len(vision.blocks()) == (3 if layer == -1 else 2)


FAMILIES = {
    "siglip_vision_model": VISION,
    "clip_vision_model": VISION,
    "vit": VISION,
    "dinov2": VISION,
    "dinov2_with_registers": VISION | {"num_register_tokens": 2},
}


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("layer", [-2, -3])
def test_an_earlier_layer_is_the_output_of_that_block_of_the_whole_model(family, layer):
    config = AutoConfig.for_model(family, **FAMILIES[family])
    whole = scramble(AutoModel.from_config(config))
    vision = encoder(architecture={"model_type": family, **FAMILIES[family]}, layer=layer).eval()
    vision.model.load_state_dict(whole.state_dict(), strict=False)
    pixels = torch.randn(2, 3, 24, 24)
    expected = whole(pixel_values=pixels, output_hidden_states=True).hidden_states[layer]
    torch.testing.assert_close(vision(pixels).x, expected[:, -9:], rtol=1e-5, atol=1e-5)


TINY_TEXT = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
TINY_TEXT |= {"num_key_value_heads": 1, "vocab_size": 50}
WHOLE = {
    "blip_2_vision_model": lambda: Blip2ForConditionalGeneration(
        Blip2Config(
            vision_config=VISION,
            qformer_config={"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 9},
            text_config={"model_type": "opt", "hidden_size": 16, "ffn_dim": 32, "num_hidden_layers": 1}
            | {"num_attention_heads": 2, "vocab_size": 50, "word_embed_proj_dim": 16},
        )
    ),
    "idefics2_vision": lambda: Idefics2ForConditionalGeneration(
        Idefics2Config(vision_config=VISION, text_config={"model_type": "mistral", **TINY_TEXT})
    ),
    "idefics3_vision": lambda: Idefics3ForConditionalGeneration(
        Idefics3Config(vision_config=VISION, text_config={"model_type": "llama", **TINY_TEXT})
    ),
    "siglip_vision_model": lambda: PaliGemmaForConditionalGeneration(
        PaliGemmaConfig(
            vision_config={"model_type": "siglip_vision_model", "vision_use_head": False, **VISION},
            text_config={"model_type": "gemma", "head_dim": 8, **TINY_TEXT},
        )
    ),
    "siglip2_vision_model": lambda: AutoModel.from_config(
        Siglip2Config(
            vision_config={k: v for k, v in VISION.items() if k != "image_size"} | {"num_patches": 9},
            text_config=TEXT,
        )
    ),
}


@torch.no_grad()
@pytest.mark.parametrize("family", WHOLE)
def test_an_encoder_is_found_inside_the_model_that_it_was_published_in(tmp_path, family):
    whole = scramble(WHOLE[family]())
    whole.save_pretrained(tmp_path)
    fields = VISION if family != "siglip2_vision_model" else whole.config.vision_config.to_diff_dict()
    architecture = fields | {"model_type": family}
    if family in ("siglip_vision_model", "siglip2_vision_model"):
        architecture["vision_use_head"] = False
    vision = encoder(name=str(tmp_path), weights="pretrained", architecture=architecture)
    vision.load_pretrained()
    theirs = {
        name.rpartition("vision_model.")[2].rpartition("vision_tower.")[2]: p for name, p in whole.named_parameters()
    }
    for name, parameter in vision.eval().model.named_parameters():
        assert parameter.equal(theirs[name]), name
    assert torch.isfinite(vision(torch.randn(2, 3, 24, 24)).x).all()
