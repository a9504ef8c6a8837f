"""connector=mlp2x_gelu and connector=linear against the projectors of LLaVA and PaliGemma; mlp3x_gelu against torch."""

from __future__ import annotations

from torch import nn
from transformers import LlavaConfig, PaliGemmaConfig
from transformers.models.llava.modeling_llava import LlavaMultiModalProjector
from transformers.models.paligemma.modeling_paligemma import PaliGemmaMultiModalProjector

from beni.connector.mlp import MlpConnector
from beni.types import TokenSpec
from reference.harness import ReferenceCase, grid_tokens, renamed

SIZES = ((24, 40), (40, 24), (18, 34))
GRID = (2, 3)


def vision(dim):
    return {"model_type": "clip_vision_model", "hidden_size": dim, "num_attention_heads": 1}


def text(model_type, dim):
    return {"model_type": model_type, "hidden_size": dim, "num_attention_heads": 1, "num_hidden_layers": 1}


def llava(sizes):
    dim_in, dim_out = sizes
    return LlavaMultiModalProjector(LlavaConfig(vision_config=vision(dim_in), text_config=text("llama", dim_out)))


def paligemma(sizes):
    dim_in, dim_out = sizes
    vision = {"model_type": "siglip_vision_model", "hidden_size": dim_in, "num_attention_heads": 1}
    vision["projection_dim"] = dim_out
    config = PaliGemmaConfig(vision_config=vision, text_config=text("gemma", dim_out), projection_dim=dim_out)
    return PaliGemmaMultiModalProjector(config)


def three_layers(sizes):
    dim_in, dim_out = sizes
    second, third = nn.Linear(dim_out, dim_out), nn.Linear(dim_out, dim_out)
    return nn.Sequential(nn.Linear(dim_in, dim_out), nn.GELU(), second, nn.GELU(), third)


def ours(depth):
    def build(sizes):
        dim_in, dim_out = sizes
        return MlpConnector(
            TokenSpec(n=6, dim=dim_in, grid=GRID),
            dim_out,
            depth=depth,
            hidden="auto",
            bias=True,
            norm="none",
            dropout=0.0,
            init_std=0.02,
        )

    return build


def case(name, paper, reference, build_ref, depth, convert):
    return ReferenceCase(
        name=name,
        option=f"connector={name}",
        paper=paper,
        reference=f"{reference.__module__}.{reference.__name__}",
        shapes=SIZES,
        build_ref=build_ref,
        build_ours=ours(depth),
        inputs=lambda sizes, generator, dtype: grid_tokens(GRID, sizes[0], generator, dtype),
        call_ref=lambda module, tokens: module(tokens.x),
        convert=convert,
    )


CASES = [
    case(
        "mlp2x_gelu",
        "arXiv 2310.03744",
        LlavaMultiModalProjector,
        llava,
        2,
        renamed(linear_1="layers.0", linear_2="layers.1"),
    ),
    case("linear", "arXiv 2304.08485", PaliGemmaMultiModalProjector, paligemma, 1, renamed(linear="layers.0")),
    case(
        "mlp3x_gelu",
        "arXiv 2310.03744",
        nn.Sequential,
        three_layers,
        3,
        lambda state: {f"layers.{int(name[0]) // 2}{name[1:]}": tensor for name, tensor in state.items()},
    ),
]
