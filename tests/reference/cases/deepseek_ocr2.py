"""resampler=deepseek_ocr2 against transformers' DeepseekOcr2VisionEncoder and the queries that are put behind."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn
from transformers.models.deepseek_ocr2.configuration_deepseek_ocr2 import DeepseekOcr2VisionEncoderConfig
from transformers.models.deepseek_ocr2.modeling_deepseek_ocr2 import (
    DeepseekOcr2VisionEncoder,
    DeepseekOcr2VisionRMSNorm,
)

from beni.resampler.deepseek_ocr2 import DeepSeekOcr2
from beni.types import TokenSpec
from reference.convert import rename
from reference.harness import ReferenceCase, grid_tokens

# (grid, width, depth, queries, heads, kv heads, hidden width)
SHAPES = (((4, 6), 24, 2, 5, 4, 2, 40), ((3, 3), 16, 1, 9, 4, 4, 28), ((2, 7), 30, 3, 4, 3, 1, 20))


class Reference(nn.Module):
    def __init__(self, shape):
        super().__init__()
        _, dim, depth, queries, heads, kv_heads, hidden = shape
        config = DeepseekOcr2VisionEncoderConfig(
            hidden_size=dim,
            num_hidden_layers=depth,
            num_attention_heads=heads,
            num_key_value_heads=kv_heads,
            intermediate_size=hidden,
            rope_parameters={"rope_type": "default", "rope_theta": 1e6},
        )
        config._attn_implementation = "sdpa"  # eager computes its softmax in fp32, whatever the dtype
        self.encoder = DeepseekOcr2VisionEncoder(config)
        for norm in self.modules():  # they round to fp32 inside, so 1e-10 would be out of reach
            if isinstance(norm, DeepseekOcr2VisionRMSNorm):
                norm.forward = lambda x, norm=norm: F.rms_norm(x, norm.weight.shape, norm.weight, norm.variance_epsilon)
        self.queries = nn.Parameter(torch.empty(queries, dim))

    def forward(self, x):
        both = torch.cat([x, self.queries.expand(len(x), -1, -1)], 1)
        return self.encoder(inputs_embeds=both, num_patches=x.shape[1]).last_hidden_state[:, x.shape[1] :]


def ours(shape):
    grid, dim, depth, queries, heads, kv_heads, hidden = shape
    return DeepSeekOcr2(
        TokenSpec(n=grid[0] * grid[1], dim=dim, grid=grid),
        hidden_size="auto",
        depth=depth,
        num_queries=queries,
        num_heads=heads,
        num_kv_heads=kv_heads,
        intermediate_size=hidden,
        rope_theta=1e6,
    )


NAMES = [
    ("encoder.", ""),
    ("self_attn.", ""),
    ("input_layernorm", "attention_norm"),
    ("post_attention_layernorm", "mlp_norm"),
]

CASES = [
    ReferenceCase(
        name="deepseek_ocr2",
        option="resampler=deepseek_ocr2",
        paper="arXiv 2601.20552",
        reference="transformers.models.deepseek_ocr2.modeling_deepseek_ocr2.DeepseekOcr2VisionEncoder",
        shapes=SHAPES,
        build_ref=Reference,
        build_ours=ours,
        inputs=lambda shape, generator, dtype: grid_tokens(shape[0], shape[1], generator, dtype),
        call_ref=lambda module, tokens: module(tokens.x),
        convert=lambda state: rename(state, NAMES),
    )
]
