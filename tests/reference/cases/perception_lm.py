"""resampler=perception_lm against transformers' PerceptionLMMultiModalProjector, which takes square grids only."""

from __future__ import annotations

from types import SimpleNamespace

from transformers.models.perception_lm.modeling_perception_lm import PerceptionLMMultiModalProjector

from beni.resampler.perception_lm import PerceptionLm
from beni.types import TokenSpec
from reference.harness import ReferenceCase, grid_tokens, renamed

# (side of the grid, width in, width out, ratio); the second has bins that overlap, the third pools nothing
SHAPES = ((6, 12, 24, 2), (7, 10, 16, 3), (3, 9, 20, 1))


def theirs(shape):
    _, dim, dim_out, ratio = shape
    # of its config only these are read; the real one asks for timm
    vision, text = SimpleNamespace(model_args={"embed_dim": dim}), SimpleNamespace(hidden_size=dim_out)
    return PerceptionLMMultiModalProjector(
        SimpleNamespace(vision_config=vision, text_config=text, projector_pooling_ratio=ratio)
    )


def ours(shape):
    side, dim, dim_out, ratio = shape
    return PerceptionLm(TokenSpec(n=side**2, dim=dim, grid=(side, side)), dim_out, ratio=ratio, init_std=0.02)


CASES = [
    ReferenceCase(
        name="perception_lm",
        option="resampler=perception_lm",
        paper="arXiv 2504.13180",
        reference="transformers.models.perception_lm.modeling_perception_lm.PerceptionLMMultiModalProjector",
        shapes=SHAPES,
        build_ref=theirs,
        build_ours=ours,
        inputs=lambda shape, generator, dtype: grid_tokens((shape[0], shape[0]), shape[1], generator, dtype),
        call_ref=lambda module, tokens: module(tokens.x),
        convert=renamed(linear_1="mlp.fc1", linear_2="mlp.fc2"),
    )
]
