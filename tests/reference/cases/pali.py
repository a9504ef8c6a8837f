"""connector=pali against transformers' PaliGemmaMultiModalProjector."""

from __future__ import annotations

from beni.connector.pali import PaliConnector
from beni.types import TokenSpec
from reference.cases.mlp import GRID, SIZES, paligemma
from reference.harness import ReferenceCase, grid_tokens, renamed

CASES = [
    ReferenceCase(
        name="pali",
        option="connector=pali",
        paper="arXiv 2407.07726",
        reference="transformers.models.paligemma.modeling_paligemma.PaliGemmaMultiModalProjector",
        shapes=SIZES,
        build_ref=paligemma,
        build_ours=lambda sizes: PaliConnector(TokenSpec(n=6, dim=sizes[0], grid=GRID), sizes[1]),
        inputs=lambda sizes, generator, dtype: grid_tokens(GRID, sizes[0], generator, dtype),
        call_ref=lambda module, tokens: module(tokens.x),
        convert=renamed(linear="proj"),
    )
]
