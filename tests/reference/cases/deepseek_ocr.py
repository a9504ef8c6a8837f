"""resampler=deepseek_ocr against transformers' DeepseekOcr2SamVisionProj."""

from __future__ import annotations

from transformers.models.deepseek_ocr2.configuration_deepseek_ocr2 import DeepseekOcr2SamVisionConfig
from transformers.models.deepseek_ocr2.modeling_deepseek_ocr2 import DeepseekOcr2SamVisionProj

from beni.resampler.deepseek_ocr import DeepSeekOcr
from beni.types import TokenSpec
from reference.harness import ReferenceCase, grid_tokens, renamed

# (grid, width, channels of its two convolutions)
SHAPES = (((8, 12), 8, [16, 24]), ((7, 5), 6, [10, 14]), ((3, 9), 12, [9, 20]))


def theirs(shape):
    _, dim, channels = shape
    return DeepseekOcr2SamVisionProj(DeepseekOcr2SamVisionConfig(output_channels=dim, downsample_channels=channels))


def ours(shape):
    grid, dim, channels = shape
    return DeepSeekOcr(TokenSpec(n=grid[0] * grid[1], dim=dim, grid=grid), channels=channels)


CASES = [
    ReferenceCase(
        name="deepseek_ocr",
        option="resampler=deepseek_ocr",
        paper="arXiv 2510.18234",
        reference="transformers.models.deepseek_ocr2.modeling_deepseek_ocr2.DeepseekOcr2SamVisionProj",
        shapes=SHAPES,
        build_ref=theirs,
        build_ours=ours,
        inputs=lambda shape, generator, dtype: grid_tokens(shape[0], shape[1], generator, dtype),
        call_ref=lambda module, tokens: (
            module(tokens.x.transpose(1, 2).unflatten(2, tokens.grid)).flatten(2).transpose(1, 2)
        ),
        convert=renamed(conv1="convs.0", conv2="convs.1"),
    )
]
