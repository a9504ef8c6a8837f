"""resampler=d_abstractor against the decoder of Deformable DETR in transformers, from which Honeybee makes it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn
from transformers import DeformableDetrConfig
from transformers.models.deformable_detr.modeling_deformable_detr import DeformableDetrDecoder

from beni.resampler.d_abstractor import DAbstractor
from beni.types import TokenSpec
from reference.harness import ReferenceCase, grid_tokens

# (grid, width in, hidden, width out, depth, heads, points, side, the pooled map is, end tokens)
SHAPES = (
    ((4, 4), 12, 16, 24, 2, 4, 3, 2, "position", 0),
    ((5, 7), 16, 16, 16, 1, 2, 4, 3, "content", 2),
    ((6, 3), 8, 24, 12, 3, 3, 2, "auto", "none", 1),
)


class Honeybee(nn.Module):
    """What Honeybee puts around the decoder."""

    def __init__(self, shape):
        super().__init__()
        grid, dim, hidden, dim_out, depth, heads, points, side, pooled_as, ends = shape
        self.side = [(n + 1) // 2 for n in grid] if side == "auto" else (side, side)
        self.grid, self.pooled_as, m = grid, pooled_as, self.side[0] * self.side[1]
        config = DeformableDetrConfig(
            d_model=hidden,
            decoder_layers=depth,
            decoder_attention_heads=heads,
            decoder_n_points=points,
            decoder_ffn_dim=2 * hidden,
            num_feature_levels=1,
            disable_custom_kernels=True,
            attn_implementation="eager",
        )
        self.input_proj = nn.Identity() if dim == hidden else nn.Linear(dim, hidden)
        self.pos_emb = nn.Parameter(torch.empty(grid[0] * grid[1], hidden))
        self.queries = nn.Parameter(torch.empty(m, 2 * hidden if pooled_as == "none" else hidden))
        self.reference_points = nn.Parameter(torch.empty(m, 2))
        self.decoder = DeformableDetrDecoder(config)
        self.eos = nn.Parameter(torch.empty(ends, hidden)) if ends else None
        self.output_proj = nn.Identity() if dim_out == hidden else nn.Linear(hidden, dim_out)

    def forward(self, x):
        v = self.input_proj(x) + self.pos_emb
        pooled = F.adaptive_avg_pool2d(v.transpose(1, 2).unflatten(2, self.grid), self.side).flatten(2).transpose(1, 2)
        learned = self.queries.expand(len(x), -1, -1)
        position, content = {
            "position": (pooled, learned),
            "content": (learned, pooled),
            "none": learned.split(v.shape[-1], -1) if self.pooled_as == "none" else None,
        }[self.pooled_as]
        out = self.decoder(
            inputs_embeds=content,
            encoder_hidden_states=v,
            object_queries_position_embeddings=position,
            reference_points=self.reference_points.expand(len(x), -1, -1),
            spatial_shapes=torch.tensor([self.grid]),
            spatial_shapes_list=[self.grid],
            level_start_index=torch.tensor([0]),
            valid_ratios=x.new_ones(len(x), 1, 2),
        ).last_hidden_state
        if self.eos is not None:
            out = torch.cat([out, self.eos.expand(len(x), -1, -1)], 1)
        return self.output_proj(out)


def convert(state):
    out = {}
    for name, tensor in state.items():
        name = name.removeprefix("decoder.")
        out["positions.weight" if name == "pos_emb" else name] = tensor
    return out


def ours(shape):
    grid, dim, hidden, dim_out, depth, heads, points, side, pooled_as, ends = shape
    return DAbstractor(
        TokenSpec(n=grid[0] * grid[1], dim=dim, grid=grid),
        dim_out,
        side=side,
        hidden_size=hidden,
        depth=depth,
        num_heads=heads,
        num_points=points,
        intermediate_size=2 * hidden,
        pooled_as=pooled_as,
        num_eos_tokens=ends,
        dropout=0.1,
    )


CASES = [
    ReferenceCase(
        name="d_abstractor",
        option="resampler=d_abstractor",
        paper="arXiv 2312.06742",
        reference="transformers.models.deformable_detr.modeling_deformable_detr.DeformableDetrDecoder",
        shapes=SHAPES,
        build_ref=Honeybee,
        build_ours=ours,
        inputs=lambda shape, generator, dtype: grid_tokens(shape[0], shape[1], generator, dtype),
        call_ref=lambda module, tokens: module(tokens.x),
        convert=convert,
    )
]
