"""connector=prefix against ClipCap's linear map, written out."""

from __future__ import annotations

import torch
from torch import nn

from beni.connector.prefix import PrefixConnector
from beni.types import TokenSpec
from reference.harness import ReferenceCase, grid_tokens

# (grid, width in, width out, tokens that each becomes)
SHAPES = (((1, 1), 12, 8, 4), ((2, 3), 8, 12, 1), ((3, 1), 16, 6, 3))


class ClipCap(nn.Module):
    """``(i, n, d) -> (i, n * length, dim_out)``; the features standardised first."""

    def __init__(self, shape):
        super().__init__()
        _, dim, self.dim_out, self.length = shape
        self.linear = nn.Linear(dim, self.length * self.dim_out)

    def forward(self, x):
        centred = x - x.mean(-1, keepdim=True)
        x = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        made = torch.einsum("ind,ed->ine", x, self.linear.weight) + self.linear.bias
        pieces = [
            made[:, token, self.dim_out * k : self.dim_out * (k + 1)]
            for token in range(x.shape[1])
            for k in range(self.length)
        ]
        return torch.stack(pieces, 1)


CASES = [
    ReferenceCase(
        name="prefix",
        option="connector=prefix",
        paper="arXiv 2111.09734",
        reference="einsum",
        shapes=SHAPES,
        build_ref=ClipCap,
        build_ours=lambda shape: PrefixConnector(
            TokenSpec(n=shape[0][0] * shape[0][1], dim=shape[1], grid=shape[0]),
            shape[2],
            length=shape[3],
            dropout=0.5,
            out_rms=0.1,
        ),
        inputs=lambda shape, generator, dtype: grid_tokens(shape[0], shape[1], generator, dtype),
        call_ref=lambda module, tokens: module(tokens.x),
        convert=lambda state: {name.replace("linear.", "proj."): tensor for name, tensor in state.items()},
    )
]
