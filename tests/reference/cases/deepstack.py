"""DeepStack's mergers against those of Qwen3-VL for the levels of its encoder, blocks of pixels shuffled before."""

from __future__ import annotations

from transformers.models.qwen3_vl.configuration_qwen3_vl import Qwen3VLVisionConfig
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLVisionPatchMerger

from beni.fusion.deepstack import Merger
from beni.nn.grid import space_to_depth
from reference.convert import rename
from reference.harness import ReferenceCase, grid_tokens

# (grid, width, width of the llm, rows and columns of a block)
SHAPES = (((4, 6), 12, 20, 2), ((6, 3), 8, 24, 3), ((4, 4), 10, 16, 1))


def qwen3(shape):
    _, dim, dim_out, r = shape
    config = Qwen3VLVisionConfig(hidden_size=dim, out_hidden_size=dim_out, spatial_merge_size=r)
    return Qwen3VLVisionPatchMerger(config, use_postshuffle_norm=True)


def ours(shape):
    _, dim, dim_out, r = shape
    return Merger(r * r * dim, dim_out)


def blocks(tokens):
    r = next(r for grid, dim, _, r in SHAPES if (grid, dim) == (tokens.grid, tokens.x.shape[-1]))
    return space_to_depth(tokens, (r, r)).x


CASES = [
    ReferenceCase(
        name="deepstack merger of Qwen3-VL",
        option="fusion=deepstack",
        paper="arXiv 2406.04334",
        reference="transformers.models.qwen3_vl.modeling_qwen3_vl.Qwen3VLVisionPatchMerger",
        shapes=SHAPES,
        build_ref=qwen3,
        build_ours=ours,
        inputs=lambda shape, generator, dtype: grid_tokens(shape[0], shape[1], generator, dtype),
        call_ref=lambda module, tokens: module(blocks(tokens)).unflatten(0, (len(tokens.x), -1)),
        call_ours=lambda module, tokens: module(blocks(tokens).flatten(0, 1)).unflatten(0, (len(tokens.x), -1)),
        convert=lambda state: rename(state, [("linear_fc", "fc")]),
    )
]
