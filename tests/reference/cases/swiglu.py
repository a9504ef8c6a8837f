"""connector=swiglu against transformers' Idefics2MLP, the modality projection of Idefics2."""

from __future__ import annotations

from transformers.models.idefics2.modeling_idefics2 import Idefics2MLP

from beni.connector.swiglu import SwigluConnector
from beni.types import TokenSpec
from reference.harness import ReferenceCase, grid_tokens

# (width in, width between, width out); the last is the width that "auto" gives
SHAPES = ((24, 56, 40), (40, 17, 24), (18, 80, 20))
GRID = (2, 3)


def ours(shape):
    dim_in, hidden, dim_out = shape
    spec = TokenSpec(n=6, dim=dim_in, grid=GRID)
    width = "auto" if hidden == 4 * dim_out else hidden
    return SwigluConnector(spec, dim_out, hidden=width, norm="none", init_std=0.02)


CASES = [
    ReferenceCase(
        name="swiglu",
        option="connector=swiglu",
        paper="arXiv 2405.02246",
        reference="transformers.models.idefics2.modeling_idefics2.Idefics2MLP",
        shapes=SHAPES,
        build_ref=lambda shape: Idefics2MLP(*shape, "silu"),
        build_ours=ours,
        inputs=lambda shape, generator, dtype: grid_tokens(GRID, shape[0], generator, dtype),
        call_ref=lambda module, tokens: module(tokens.x),
        convert=lambda state: {f"mlp.{name}": tensor for name, tensor in state.items()},
    )
]
