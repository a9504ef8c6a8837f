"""D-Abstractor of Honeybee (arXiv 2312.06742): a grid of queries reads the visual tokens by deformable attention.

Reference: ``DAbstractor`` of Honeybee's ``projectors.py``, a decoder of Deformable DETR (arXiv 2010.04159) on one map;
equal to 1e-5 in fp32 and 1e-10 in fp64 to ``transformers``' ``DeformableDetrDecoder`` with its weights, and drawn as
that model draws its own. A query's reference point is free, as there: one that leaves the picture reads zeros.
Deviations: grids need not be square, nor that of the queries, and a single row or column of queries starts in the
middle, there at the border; other grids than that of the positions resize them; places and sampling are in fp32 and the
rest in the dtype of the tokens, there all is in fp32. Gates are not read: where a query looks and how much each place
weighs follows from the query alone, so there are no logits of a token to add them to.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Annotated, Literal, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from beni.config.ranges import AtLeast, AtMost, Below, Example
from beni.errors import CompositionError
from beni.nn.attention import GroupedQueryAttention
from beni.nn.grid import from_map, grid_of, regrid, to_map
from beni.nn.honeybee import LearnedPositions, append_tokens, appended, learned_tokens, pooled_grid
from beni.nn.mlp import FeedForward
from beni.nn.queries import draw_layers, head_dim_of
from beni.stage import Stage, StageContext
from beni.types import TokenSpec, VisualTokens

PART = "resampler=d_abstractor"


class DAbstractor(Stage):
    """``(i, rows * columns, d) -> (i, side^2 + num_eos_tokens, dim_out)``.

    A query has a content, which the layers change, and a position, which is added wherever it attends. One of the two
    is the map, pooled to the grid of the queries; the other is learned.

    Args:
        tokens: spec of the incoming visual tokens.
        dim_out: width of the llm.
        side: rows and columns of the queries (tokens), at most those of the grid; ``auto`` is half of each, rounded up.
        hidden_size: width to work at.
        depth: layers, at least 1.
        num_heads: heads of both attentions; divides ``hidden_size``.
        num_points: places that each head of a query reads, at least 1.
        intermediate_size: width inside the feed-forward layers.
        pooled_as: the pooled map is the queries' ``position`` or ``content``; with ``none`` both are learned.
        num_eos_tokens: learned tokens after those of each view; with any, the result forms no grid.
        dropout: probability in [0, 1) after each attention and feed-forward layer.

    Raises:
        CompositionError: E-GRID when the tokens form no dense grid, E-DIV when it is smaller than that of the queries,
            E-HEADS when ``num_heads`` does not divide ``hidden_size``, E-DEPTH when ``depth`` or ``num_points`` is
            below 1.
    """

    def __init__(
        self,
        tokens: TokenSpec,
        dim_out: int,
        *,
        side: Annotated[int, AtLeast(1)] | Literal["auto"],
        hidden_size: Annotated[int, AtLeast(1)],
        depth: Annotated[int, AtLeast(1), AtMost(1000)],
        num_heads: Annotated[int, AtLeast(1)],
        num_points: Annotated[int, AtLeast(1)],
        intermediate_size: Annotated[int, AtLeast(1)],
        pooled_as: Literal["position", "content", "none"],
        num_eos_tokens: Annotated[int, AtLeast(0)],
        dropout: Annotated[float, AtLeast(0), Below(1), Example("0.1")],
    ) -> None:
        super().__init__()
        self.dim_out, self.pooled_as = dim_out, pooled_as
        self.map_grid = grid_of(tokens, PART)
        self.grid = pooled_grid(side, self.map_grid, PART)
        for name, value in (("depth", depth), ("num_points", num_points)):
            if value < 1:
                raise CompositionError(
                    "E-DEPTH", f"{PART}: {name}={value}, expected at least 1", fix=f"set resampler.{name}=1 or more"
                )
        dim, head_dim, m = hidden_size, head_dim_of(hidden_size, num_heads, PART), self.grid[0] * self.grid[1]
        self.input_proj = nn.Identity() if tokens.dim == dim else nn.Linear(tokens.dim, dim)
        self.positions = LearnedPositions(self.map_grid, dim)
        self.queries = nn.Parameter(torch.empty(m, 2 * dim if pooled_as == "none" else dim))
        self.reference_points = nn.Parameter(torch.empty(m, 2))
        layers = nn.ModuleList(
            DeformableLayer(dim, num_heads, head_dim, num_points, intermediate_size, dropout) for _ in range(depth)
        )
        self.layers = cast("list[DeformableLayer]", layers)  # a ModuleList's items are typed as plain modules
        self.eos = learned_tokens(num_eos_tokens, dim)
        self.output_proj = nn.Identity() if dim_out == dim else nn.Linear(dim, dim_out)

    def spec(self, tokens: TokenSpec) -> TokenSpec:
        grid_of(tokens, PART)
        return appended(replace(regrid(tokens, self.grid, self.dim_out), space="llm"), self.eos)

    def forward(self, tokens: VisualTokens, context: StageContext) -> VisualTokens:
        seen = self.positions(tokens.with_features(self.input_proj(tokens.x)))
        features = to_map(seen)
        pooled = from_map(F.adaptive_avg_pool2d(features, self.grid), tokens)
        learned = self.queries.to(seen.x.dtype).expand(len(seen.x), -1, -1)
        if self.pooled_as == "position":
            content, position = learned, pooled.x
        elif self.pooled_as == "content":
            content, position = pooled.x, learned
        else:
            position, content = learned.chunk(2, -1)
        for layer in self.layers:
            content = layer(content, position, features, self.reference_points)
        read = append_tokens(pooled.with_features(content), self.eos)
        return read.with_features(self.output_proj(read.x))

    def init_weights(self) -> None:
        draw_layers(self, lambda weight: nn.init.normal_(weight, std=0.02))
        for layer in self.layers:
            layer.encoder_attn.init_weights()
        self.positions.init_weights()
        nn.init.normal_(self.queries, std=0.02)
        if self.eos is not None:
            nn.init.trunc_normal_(self.eos, std=0.02)
        y, x = (start_line(out, side) for out, side in zip(self.grid, self.map_grid, strict=True))
        rows, columns = torch.meshgrid(y, x, indexing="ij")
        with torch.no_grad():
            self.reference_points.copy_(torch.stack([columns, rows], -1).flatten(0, 1))


def start_line(queries: int, side: int) -> Float[Tensor, "queries"]:
    """Where queries start along one axis, in [0, 1]: from the centre of the first patch to that of the last."""
    return torch.linspace(0.5, side - 0.5, queries) / side if queries > 1 else torch.tensor([0.5])


class DeformableLayer(nn.Module):
    """``(i, m, d), (i, d, rows, columns) -> (i, m, d)``: queries see each other, read the map, feed-forward; post-norm.

    The names are those of ``transformers``' ``DeformableDetrDecoderLayer``.
    """

    def __init__(
        self, dim: int, num_heads: int, head_dim: int, num_points: int, intermediate_size: int, dropout: float
    ) -> None:
        super().__init__()
        self.self_attn = GroupedQueryAttention(dim, num_heads, num_heads, head_dim, bias=True)
        self.self_attn_layer_norm = nn.LayerNorm(dim)
        self.encoder_attn = DeformableAttention(dim, num_heads, num_points)
        self.encoder_attn_layer_norm = nn.LayerNorm(dim)
        self.mlp = FeedForward(dim, intermediate_size, dim, nn.ReLU(), bias=True)
        self.final_layer_norm = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        queries: Float[Tensor, "i m d"],
        positions: Float[Tensor, "i m d"],
        features: Float[Tensor, "i d rows columns"],
        reference_points: Float[Tensor, "m 2"],
    ) -> Float[Tensor, "i m d"]:
        placed = queries + positions
        seen = self.self_attn(placed, placed, values=queries)
        queries = self.self_attn_layer_norm(queries + self.dropout(seen))
        read = self.encoder_attn(queries + positions, features, reference_points)
        queries = self.encoder_attn_layer_norm(queries + self.dropout(read))
        return self.final_layer_norm(queries + self.dropout(self.mlp(queries)))


class DeformableAttention(nn.Module):
    """``(i, m, d), (i, d, rows, columns) -> (i, m, d)``: each head of a query reads the map at a few places.

    The query alone says where, as offsets from its reference point in cells of the map, and with which weights. Between
    cells the map is bilinear, outside it is zero.
    """

    def __init__(self, dim: int, num_heads: int, num_points: int) -> None:
        super().__init__()
        self.num_heads, self.num_points = num_heads, num_points
        self.sampling_offsets = nn.Linear(dim, num_heads * num_points * 2)
        self.attention_weights = nn.Linear(dim, num_heads * num_points)
        self.value_proj = nn.Linear(dim, dim)
        self.output_proj = nn.Linear(dim, dim)

    def forward(
        self,
        queries: Float[Tensor, "i m d"],
        features: Float[Tensor, "i d rows columns"],
        reference_points: Float[Tensor, "m 2"],
    ) -> Float[Tensor, "i m d"]:
        heads, points = self.num_heads, self.num_points
        images, _, rows, columns = features.shape
        values = self.value_proj(features.flatten(2).transpose(1, 2)).transpose(1, 2)
        values = values.reshape(images * heads, -1, rows, columns)
        # bf16 cannot tell apart places that are 1/256 of the picture from each other
        wide = torch.float64 if features.dtype == torch.float64 else torch.float32
        offsets = self.sampling_offsets(queries).to(wide).unflatten(-1, (heads, points, 2))  # (i, m, h, p, 2), (x, y)
        offsets = torch.stack([offsets[..., 0] / columns, offsets[..., 1] / rows], -1)
        places = reference_points.to(wide)[:, None, None] + offsets
        weights = self.attention_weights(queries).to(wide).unflatten(-1, (heads, points)).softmax(-1)
        sampled = F.grid_sample(
            values.to(wide),
            2 * places.transpose(1, 2).flatten(0, 1) - 1,  # -1 and 1 are the borders of the map
            mode="bilinear",
            padding_mode="zeros",
            align_corners=False,
        )  # (i * h, dh, m, p)
        read = (sampled * weights.transpose(1, 2).flatten(0, 1)[:, None]).sum(-1)
        return self.output_proj(read.reshape(images, -1, read.shape[-1]).transpose(1, 2).to(queries.dtype))

    def init_weights(self) -> None:
        """Offsets begin as in Deformable DETR: each head looks its own way, its k-th point k cells away."""
        angles = torch.arange(self.num_heads) * (2 * math.pi / self.num_heads)
        directions = torch.stack([angles.cos(), angles.sin()], -1)
        directions = directions / directions.abs().amax(-1, keepdim=True)
        steps = torch.arange(1, self.num_points + 1)
        with torch.no_grad():
            self.sampling_offsets.bias.copy_((directions[:, None] * steps[:, None]).flatten())
        nn.init.zeros_(self.sampling_offsets.weight)
        nn.init.zeros_(self.attention_weights.weight)
        nn.init.zeros_(self.attention_weights.bias)
        for projection in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(projection.weight)
            nn.init.zeros_(projection.bias)
