"""RADIO and MoonViT, which are called or read otherwise than the ViTs before them."""

from __future__ import annotations

import torch
from transformers import RadioConfig, RadioModel
from transformers.models.kimi_k25.configuration_kimi_k25 import Kimi_K25VisionConfig
from transformers.models.kimi_k25.modeling_kimi_k25 import Kimi_K25VisionModel

from beni.vision.backbone import model_inputs
from beni.vision.probe import find_layout

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 14}


def pictures(height, width):
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def test_what_moonvit_is_given_ready_made_is_what_it_would_make_of_the_grids():
    config = Kimi_K25VisionConfig(**SMALL, intermediate_size=64, pos_emb_height=6, pos_emb_width=6)
    model = Kimi_K25VisionModel(config).eval()
    torch.nn.init.normal_(model.patch_embed.pos_emb.position_embeddings)
    pixels = pictures(4 * 14, 6 * 14)
    patches = pixels.unfold(2, 14, 14).unfold(3, 14, 14).permute(0, 2, 3, 1, 4, 5)  # (i, 4, 6, 3, 14, 14)
    expected = model(patches.flatten(0, 2), torch.tensor([[1, 4, 6]] * 2)).last_hidden_state
    out = model(**model_inputs(model, pixels))
    torch.testing.assert_close(out.last_hidden_state, expected)
    layout = find_layout(out, config.to_dict(), (56, 84), 2)
    assert layout.grid == (4, 6)
    assert layout.tokens(out.last_hidden_state, 2).equal(expected.unflatten(0, (2, 24)))


@torch.no_grad()
def test_moonvit_takes_a_grid_of_odd_sides_since_nobody_reads_what_it_pools():
    model = Kimi_K25VisionModel(Kimi_K25VisionConfig(**SMALL, intermediate_size=64)).eval()
    assert model(**model_inputs(model, pictures(3 * 14, 5 * 14))).last_hidden_state.shape == (30, 32)


@torch.no_grad()
def test_the_patches_of_radio_stand_behind_its_cls_tokens_and_registers():
    config = RadioConfig(**SMALL, max_img_size=84, num_cls_tokens=3, num_registers=7)
    out = RadioModel(config).eval()(pictures(2 * 14, 3 * 14))
    layout = find_layout(out, config.to_dict(), (28, 42), 2)
    assert (layout.grid, layout.prefix) == ((2, 3), 10)
    assert out.last_hidden_state[:, layout.prefix :].equal(out.features)
