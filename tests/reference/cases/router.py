"""The head of selector=router against transformers' GraniteDoclingDensityRouter, two views of one image and one of
another."""

from __future__ import annotations

import torch
from transformers.models.granite_docling.configuration_granite_docling import (
    GraniteDoclingConfig,
    GraniteDoclingVisionConfig,
)
from transformers.models.granite_docling.modeling_granite_docling import GraniteDoclingDensityRouter

from beni.selector.router import Router
from beni.stage import Row, StageContext
from beni.types import TokenSpec
from reference.harness import ReferenceCase, grid_tokens
from support.options import node

# (grid, width, width of the head)
SHAPES = (((3, 4), 16, 8), ((4, 4), 12, 20), ((2, 6), 10, 5))
IMAGES = (0, 0, 1)


def router(shape):
    _, dim, hidden = shape
    vision = GraniteDoclingVisionConfig(hidden_size=dim, num_attention_heads=1, use_fine_route=True)
    return GraniteDoclingDensityRouter(GraniteDoclingConfig(vision_config=vision, density_router_hidden_size=hidden))


def ours(shape):
    grid, dim, hidden = shape
    values = {name: value for name, value in node("selector", "router").items() if name != "_target_"}
    spec = TokenSpec(n=grid[0] * grid[1], dim=dim, grid=grid)
    return Router(spec, **values | {"hidden": hidden, "target_fine": None, "target_weight": 0.0})


def logits(stage, tokens):
    rows = tuple(Row(image, image, str(i)) for i, image in enumerate(IMAGES))
    return stage.router(tokens.x, StageContext(rows=rows))[[0, 2]]


CASES = [
    ReferenceCase(
        name="router",
        option="selector=router",
        paper="Granite Docling (model release)",
        reference="transformers.models.granite_docling.modeling_granite_docling.GraniteDoclingDensityRouter",
        shapes=SHAPES,
        build_ref=router,
        build_ours=ours,
        inputs=lambda shape, generator, dtype: grid_tokens(shape[0], shape[1], generator, dtype, images=3),
        call_ref=lambda module, tokens: module(tokens.x, torch.tensor(IMAGES), 2),
        call_ours=logits,
        # a bias in front of a softmax says nothing
        convert=lambda state: {f"router.{name}": t for name, t in state.items() if name != "att.bias"},
    )
]
