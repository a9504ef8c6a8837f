"""The whole model against LlavaForConditionalGeneration: CLIP at layer -2, mlp2x_gelu, Llama, the same weights."""

from __future__ import annotations

import pytest
import torch
from transformers import LlavaConfig, LlavaForConditionalGeneration

IMAGE = 90
VISION = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": 24,
    "patch_size": 8,
    "projection_dim": 16,
}
TEXT = {
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 97,
    "max_position_embeddings": 64,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
}
KEYS = {
    "model.vision_tower.": "vision.model.",
    "model.multi_modal_projector.linear_1": "connector.layers.0",
    "model.multi_modal_projector.linear_2": "connector.layers.1",
    "model.language_model.": "llm.model.model.",
    "lm_head.": "llm.model.lm_head.",
}


@pytest.fixture
def both(tiny_run, scrambled):
    from beni.model.build import build_model

    config = LlavaConfig(
        vision_config={"model_type": "clip_vision_model", **VISION},
        text_config={"model_type": "llama", **TEXT},
        image_token_id=IMAGE,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        tie_word_embeddings=False,
    )
    theirs = LlavaForConditionalGeneration(config).eval()
    scrambled(theirs, 0)
    run = tiny_run("vision=clip", "connector=mlp2x_gelu", "vision.weights=random", "vision.image_size=24")
    assert run["vision"]["layer"] == -2
    run["vision"]["architecture"] = {"model_type": "clip_vision_model", **VISION}
    run["llm"]["architecture"] = {"model_type": "llama", **TEXT}
    ours = build_model(run, IMAGE).eval()
    renamed = {}
    for key, value in theirs.state_dict().items():
        for before, after in KEYS.items():
            if key.startswith(before):
                renamed[after + key.removeprefix(before)] = value
    wanted = ours.state_dict()
    # the last block is not built and the final norm is not applied at layer -2
    left_out = {k for k in renamed if ".layers.2." in k and k.startswith("vision.")}
    assert set(wanted) == set(renamed) - left_out
    ours.load_state_dict({k: renamed[k] for k in wanted})
    return ours, theirs


def conversation(images):
    generator = torch.Generator().manual_seed(3)
    text = torch.randint(0, IMAGE, (2, 20), generator=generator)
    for row, start in enumerate((2, 7)):
        for image in range(images):
            text[row, start + image * 9 : start + image * 9 + 9] = IMAGE
    pixels = torch.randn(2 * images, 3, 24, 24, generator=generator)
    return text, pixels


@torch.no_grad()
def test_beni_equals_llava_with_its_weights(both):
    ours, theirs = both
    ids, pixels = conversation(images=1)
    expected = theirs(input_ids=ids, pixel_values=pixels).logits
    assert expected.std() > 0.1
    assert (ours(ids, pixels).logits - expected).abs().max() <= 1e-5


@torch.no_grad()
def test_beni_equals_llava_in_padded_batches(both):
    ours, theirs = both
    ids, pixels = conversation(images=1)
    mask = torch.ones_like(ids)
    mask[1, 17:] = 0
    expected = theirs(input_ids=ids, pixel_values=pixels, attention_mask=mask).logits
    logits = ours(ids, pixels, attention_mask=mask).logits
    assert (logits - expected)[mask.bool()].abs().max() <= 1e-5


def test_beni_has_the_loss_of_llava(both):
    ours, theirs = both
    ids, pixels = conversation(images=1)
    labels = ids.masked_fill(ids == IMAGE, -100)
    labels[:, :5] = -100
    expected = theirs(input_ids=ids, pixel_values=pixels, labels=labels).loss
    torch.testing.assert_close(ours(ids, pixels, labels=labels).loss, expected, rtol=1e-6, atol=1e-6)
