"""resampler=pixel_shuffle with the connectors that make it the projector of each published system."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import nn
from transformers import Idefics3Config, InternVLConfig, Lfm2VlConfig, Llama4Config, Llama4VisionConfig, Mistral3Config
from transformers.models.idefics3.modeling_idefics3 import Idefics3Connector
from transformers.models.internvl.modeling_internvl import InternVLModel, InternVLMultiModalProjector
from transformers.models.lfm2_vl.modeling_lfm2_vl import Lfm2VlMultiModalProjector
from transformers.models.llama4.modeling_llama4 import Llama4MultiModalProjector, Llama4VisionPixelShuffleMLP
from transformers.models.mistral3.modeling_mistral3 import Mistral3MultiModalProjector
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLPatchMerger
from transformers.models.qwen2_vl.modeling_qwen2_vl import PatchMerger

from beni.connector.mlp import MlpConnector
from beni.resampler.pixel_shuffle import PixelShuffle
from beni.types import TokenSpec
from reference.harness import ReferenceCase, grid_tokens, renamed

PATCH = 2  # pixels, where a reference asks for the size of the image


class Pair(nn.Module):
    """A resampler and the connector behind it."""

    def __init__(self, grid, dim, dim_out, resampler, connector):
        super().__init__()
        tokens = TokenSpec(n=grid[0] * grid[1], dim=dim, grid=grid)
        values = {"pad": "error", "norm": "none", "merge": None} | resampler
        self.resampler = PixelShuffle(tokens, **values)
        values = {"hidden": "auto", "norm": "none", "dropout": 0.0, "init_std": 0.02} | connector
        self.connector = MlpConnector(self.resampler.spec(tokens), dim_out, **values)

    def forward(self, tokens, context):
        return self.connector(self.resampler(tokens, context), context)


def text(model_type, dim, **fields):
    sizes = {"hidden_size": dim, "num_attention_heads": 1, "num_key_value_heads": 1, "num_hidden_layers": 1}
    return {"model_type": model_type, **sizes, **fields}


def siglip(dim):
    return {"model_type": "siglip_vision_model", "hidden_size": dim, "num_attention_heads": 1}


def as_torch_has_it(module):
    """RMSNorms of transformers round to fp32 inside, so 1e-10 would be out of reach."""
    for norm in module.modules():
        if type(norm).__name__.endswith("RMSNorm"):
            norm.forward = lambda x, norm=norm: F.rms_norm(x, norm.weight.shape, norm.weight, norm.variance_epsilon)
    return module


# --- Idefics3: square grids only, it guesses the side. (grid, width in, width out, r)
IDEFICS3 = (((4, 4), 8, 24, 2), ((6, 6), 6, 20, 3), ((8, 8), 5, 16, 4))


def idefics3(shape):
    _, dim, dim_out, r = shape
    vision = {"hidden_size": dim, "num_attention_heads": 1}
    return Idefics3Connector(Idefics3Config(vision_config=vision, text_config=text("llama", dim_out), scale_factor=r))


def ours_idefics3(shape):
    grid, dim, dim_out, r = shape
    return Pair(grid, dim, dim_out, {"r": r}, {"depth": 1, "bias": False})


# --- InternVL: (grid, width in, width out, r); r is a power of two, its float arithmetic refuses others
INTERNVL = (((4, 6), 8, 24, 2), ((8, 4), 6, 20, 4), ((2, 10), 10, 16, 2))


def internvl(shape):
    _, dim, dim_out, r = shape
    vision = {"model_type": "internvl_vision", "hidden_size": dim, "num_attention_heads": 1}
    config = InternVLConfig(vision_config=vision, text_config=text("llama", dim_out), downsample_ratio=1 / r)
    module = InternVLMultiModalProjector(config)
    module.r = r
    return module


def call_internvl(module, tokens):
    maps = tokens.x.unflatten(1, tokens.grid)
    return module(InternVLModel.pixel_shuffle(None, maps, 1 / module.r).flatten(1, 2))


def ours_internvl(shape):
    grid, dim, dim_out, r = shape
    return Pair(grid, dim, dim_out, {"r": r}, {"depth": 2, "bias": True, "norm": "layernorm"})


# --- LFM2-VL: (grid, width in, width out, r, width between, norm, biases)
LFM2 = (
    ((4, 6), 8, 24, 2, 18, True, True),
    ((6, 3), 6, 20, 3, 33, False, True),
    ((2, 10), 10, 16, 2, 12, True, False),
)


def lfm2(shape):
    _, dim, dim_out, r, hidden, norm, bias = shape
    return Lfm2VlMultiModalProjector(
        Lfm2VlConfig(
            vision_config=siglip(dim) | {"model_type": "siglip2_vision_model"},
            text_config=text("lfm2", dim_out),
            downsample_factor=r,
            projector_hidden_size=hidden,
            projector_use_layernorm=norm,
            projector_bias=bias,
        )
    )


def ours_lfm2(shape):
    grid, dim, dim_out, r, hidden, norm, bias = shape
    head = {"depth": 2, "bias": bias, "hidden": hidden, "norm": "layernorm" if norm else "none"}
    return Pair(grid, dim, dim_out, {"r": r}, head)


# --- Llama 4: square grids only, as Idefics3. (grid, width in, width out, r, width between)
LLAMA4 = (((4, 4), 8, 24, 2, 18), ((8, 8), 6, 20, 4, 30), ((6, 6), 5, 16, 2, 7))


class Llama4(nn.Module):
    def __init__(self, shape):
        super().__init__()
        _, dim, dim_out, r, hidden = shape
        vision = Llama4VisionConfig(
            hidden_size=dim,
            intermediate_size=r * r * dim,
            projector_input_dim=hidden,
            projector_output_dim=hidden,
            vision_output_dim=hidden,
            pixel_shuffle_ratio=1 / r,
            num_attention_heads=1,
        )
        self.shuffle = Llama4VisionPixelShuffleMLP(vision)
        fields = {"hidden_size": dim_out, "num_attention_heads": 1, "num_key_value_heads": 1, "num_hidden_layers": 1}
        self.projector = Llama4MultiModalProjector(Llama4Config(vision_config=vision.to_dict(), text_config=fields))

    def forward(self, x):
        return self.projector(self.shuffle(x))


def ours_llama4(shape):
    grid, dim, dim_out, r, hidden = shape
    return Pair(grid, dim, dim_out, {"r": r}, {"depth": 3, "bias": False, "hidden": hidden})


# --- Qwen2-VL and Qwen2.5-VL: (grid, width in, width out, r)
QWEN = (((4, 6), 8, 24, 2), ((6, 3), 6, 20, 3), ((2, 10), 10, 16, 2))


def qwen(shape, merger):
    _, dim, dim_out, r = shape
    module = as_torch_has_it(merger(dim_out, dim, r))
    module.r = r
    return module


def call_qwen(module, tokens):
    """Its processor orders the patches so that those of a block follow each other."""
    rows, columns = (side // module.r for side in tokens.grid)
    images, _, dim = tokens.x.shape
    blocks = tokens.x.view(images, rows, module.r, columns, module.r, dim).permute(0, 1, 3, 2, 4, 5)
    return module(blocks.reshape(-1, dim)).view(images, rows * columns, -1)


def ours_qwen(shape, norm):
    grid, dim, dim_out, r = shape
    return Pair(grid, dim, dim_out, {"r": r, "norm": norm}, {"depth": 2, "bias": True, "hidden": "input"})


# --- Mistral 3: (grid, width in, width out, r, biases)
MISTRAL3 = (((4, 6), 8, 24, 2, False), ((6, 3), 6, 20, 3, True), ((2, 10), 10, 16, 2, False))


def mistral3(shape):
    _, dim, dim_out, r, bias = shape
    vision = {"model_type": "pixtral", "hidden_size": dim, "num_attention_heads": 1, "patch_size": PATCH}
    config = Mistral3Config(
        vision_config=vision,
        text_config=text("mistral", dim_out, rms_norm_eps=1e-6, head_dim=dim_out),
        spatial_merge_size=r,
        multimodal_projector_bias=bias,
        vision_feature_layer=-1,
    )
    return as_torch_has_it(Mistral3MultiModalProjector(config))


def call_mistral3(module, tokens):
    sizes = [(PATCH * tokens.grid[0], PATCH * tokens.grid[1])] * len(tokens.x)
    return module(tokens.x.flatten(0, 1), sizes).unflatten(0, (len(tokens.x), -1))


def ours_mistral3(shape):
    grid, dim, dim_out, r, bias = shape
    return Pair(grid, dim, dim_out, {"r": r, "norm": "rmsnorm", "merge": "same"}, {"depth": 2, "bias": bias})


def convert_mistral3(state):
    dim = len(state["norm.weight"])
    merging = state["patch_merger.merging_layer.weight"].unflatten(1, (dim, -1))  # channel, place in the block
    state["patch_merger.merging_layer.weight"] = merging.transpose(1, 2).flatten(1)
    names = renamed(
        norm="resampler.norm",
        patch_merger__merging_layer="resampler.merge",
        linear_1="connector.layers.0",
        linear_2="connector.layers.1",
    )
    return names(state)


# --- NVILA: sides that r does not divide, filled with zeros; derived with loops. (grid, width in, width out, r)
NVILA = (((3, 5), 8, 24, 2), ((5, 4), 6, 20, 2), ((4, 5), 5, 16, 3))


class Nvila(nn.Module):
    def __init__(self, shape):
        super().__init__()
        _, dim, dim_out, self.r = shape
        wide = self.r**2 * dim
        self.norm = nn.LayerNorm(wide)
        self.first, self.second = nn.Linear(wide, dim_out), nn.Linear(dim_out, dim_out)

    def forward(self, x, grid):
        rows, columns = grid
        merged = []
        for top in range(0, rows, self.r):
            for left in range(0, columns, self.r):
                places = [(top + dy, left + dx) for dy in range(self.r) for dx in range(self.r)]
                inside = [y < rows and column < columns for y, column in places]
                parts = [
                    x[:, y * columns + column] if real else torch.zeros_like(x[:, 0])
                    for (y, column), real in zip(places, inside, strict=True)
                ]
                merged.append(torch.cat(parts, -1))
        return self.second(F.gelu(self.first(self.norm(torch.stack(merged, 1)))))


def ours_nvila(shape):
    grid, dim, dim_out, r = shape
    return Pair(grid, dim, dim_out, {"r": r, "pad": "zeros"}, {"depth": 2, "bias": True, "norm": "layernorm"})


def case(name, paper, reference, shapes, build_ref, build_ours, call_ref, convert, option="resampler=pixel_shuffle"):
    return ReferenceCase(
        name=f"pixel_shuffle {name}",
        option=option,
        paper=paper,
        reference=reference if isinstance(reference, str) else f"{reference.__module__}.{reference.__name__}",
        shapes=shapes,
        build_ref=build_ref,
        build_ours=build_ours,
        inputs=lambda shape, generator, dtype: grid_tokens(shape[0], shape[1], generator, dtype),
        call_ref=call_ref,
        convert=convert,
    )


def on_features(module, tokens):
    return module(tokens.x)


CASES = [
    case(
        "idefics3",
        "arXiv 2408.12637",
        Idefics3Connector,
        IDEFICS3,
        idefics3,
        ours_idefics3,
        on_features,
        renamed(modality_projection__proj="connector.layers.0"),
    ),
    case(
        "internvl",
        "arXiv 2404.16821",
        InternVLMultiModalProjector,
        INTERNVL,
        internvl,
        ours_internvl,
        call_internvl,
        renamed(layer_norm="connector.norm", linear_1="connector.layers.0", linear_2="connector.layers.1"),
    ),
    case(
        "lfm2",
        "arXiv 2511.23404",
        Lfm2VlMultiModalProjector,
        LFM2,
        lfm2,
        ours_lfm2,
        lambda module, tokens: module(tokens.x.unflatten(1, tokens.grid)).flatten(1, 2),
        renamed(layer_norm="connector.norm", linear_1="connector.layers.0", linear_2="connector.layers.1"),
    ),
    case(
        "llama4",
        "Llama 4 (Meta, 2025)",
        Llama4VisionPixelShuffleMLP,
        LLAMA4,
        Llama4,
        ours_llama4,
        on_features,
        renamed(
            shuffle__mlp__fc1="connector.layers.0",
            shuffle__mlp__fc2="connector.layers.1",
            projector__linear_1="connector.layers.2",
        ),
        option="connector=llama4",
    ),
    *(
        case(
            name,
            paper,
            merger,
            QWEN,
            partial(qwen, merger=merger),
            partial(ours_qwen, norm=norm),
            call_qwen,
            renamed(ln_q="resampler.norm", mlp__0="connector.layers.0", mlp__2="connector.layers.1"),
        )
        for name, paper, merger, norm in (
            ("qwen2_vl", "arXiv 2409.12191", PatchMerger, "layernorm"),
            ("qwen2_5_vl", "arXiv 2502.13923", Qwen2_5_VLPatchMerger, "rmsnorm"),
        )
    ),
    case(
        "mistral3",
        "Mistral Small 3.1 (Mistral AI, 2025)",
        Mistral3MultiModalProjector,
        MISTRAL3,
        mistral3,
        ours_mistral3,
        call_mistral3,
        convert_mistral3,
    ),
    case(
        "nvila",
        "arXiv 2412.04468",
        "loops over blocks",
        NVILA,
        Nvila,
        ours_nvila,
        lambda module, tokens: module(tokens.x, tokens.grid),
        renamed(norm="connector.norm", first="connector.layers.0", second="connector.layers.1"),
    ),
]
