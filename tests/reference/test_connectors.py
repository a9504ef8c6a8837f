"""connector=mlp2x_gelu and connector=linear against the projectors of LLaVA and PaliGemma."""

from __future__ import annotations

import pytest
import torch
from transformers import LlavaConfig, PaliGemmaConfig
from transformers.models.llava.modeling_llava import LlavaMultiModalProjector
from transformers.models.paligemma.modeling_paligemma import PaliGemmaMultiModalProjector

from beni.connector.mlp import MlpConnector
from beni.stage import StageContext, TokenSpec
from beni.types import VisualTokens

SIZES = [(24, 40), (40, 24), (18, 34)]


def llava(dim_in, dim_out):
    vision = {"model_type": "clip_vision_model", "hidden_size": dim_in, "num_attention_heads": 1}
    text = {"model_type": "llama", "hidden_size": dim_out, "num_attention_heads": 1, "num_hidden_layers": 1}
    return LlavaMultiModalProjector(LlavaConfig(vision_config=vision, text_config=text))


def paligemma(dim_in, dim_out):
    vision = {"model_type": "siglip_vision_model", "hidden_size": dim_in, "num_attention_heads": 1}
    vision["projection_dim"] = dim_out
    text = {"model_type": "gemma", "hidden_size": dim_out, "num_attention_heads": 1, "num_hidden_layers": 1}
    return PaliGemmaMultiModalProjector(PaliGemmaConfig(vision_config=vision, text_config=text, projection_dim=dim_out))


REFERENCES = {
    "mlp2x_gelu": (llava, 2, {"linear_1": "layers.0", "linear_2": "layers.1"}),
    "linear": (paligemma, 1, {"linear": "layers.0"}),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["fp32", "fp64"])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("name", REFERENCES)
def test_the_connector_equals_its_reference(reference_case, compare, name, sizes, dtype):
    build_ref, depth, key_map = REFERENCES[name]
    dim_in, dim_out = sizes

    def build_ours():
        spec = TokenSpec(n=6, dim=dim_in, grid=(2, 3))
        return MlpConnector(
            spec, dim_out, depth=depth, bias=True, norm="none", dropout=0.0, init_std=0.02, out_rms=None
        )

    case = reference_case(
        name=name,
        build_ref=lambda: build_ref(dim_in, dim_out),
        build_ours=build_ours,
        key_map=key_map,
        inputs=lambda g, d: (torch.randn(2, 6, dim_in, generator=g, dtype=torch.float64).to(d), None),
        call_ref=lambda module, x, mask: module(x),
        call_ours=lambda module, x, mask: module(VisualTokens.dense(x, (2, 3)), StageContext()).x,
    )
    for seed in range(3):
        compare(case, dtype, seed)
