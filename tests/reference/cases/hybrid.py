"""Hybrid fusion against its rule written out: inline, then a block of torch's own layers over the tiles of images that
have begun. No release of NVLM-H can be loaded.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import torch

from beni.fusion.hybrid import HybridFusion
from beni.types import LayerCall, Sequence, TokenSpec
from reference.cases.cross_attention import Assembled, from_torch
from reference.harness import ReferenceCase, grid_tokens

# (width, heads, grid, tokens of the whole picture)
SHAPES = ((24, 4, (3, 2), 2), (32, 2, (2, 5), 1), (16, 4, (4, 4), 7))
TEXT = (2, 1, 3)
"""Positions of text before, between and after the two images of a sample."""


def ours(shape, sees):
    dim, heads, *_ = shape
    fusion = HybridFusion(
        TokenSpec(n=1, dim=dim, space="llm"),
        dim,
        **{"every": 1, "first": 0, "num_heads": heads, "num_kv_heads": heads, "head_dim": dim // heads},
        **{"expansion": 4.0, "norm": "layernorm", "head_norm": False, "mlp": "gelu", "gate": "scalar", "sees": sees},
        **{"image_attention": "causal", "out_norm": "none", "match_text_rms": False},
    )
    fusion.install(SimpleNamespace(hidden_size=dim, layers=lambda: [torch.nn.Identity()], heads=lambda: None))
    return fusion


def whole_of(tokens):
    """How many tokens of each image are of the whole picture: the last ones."""
    return next(whole for dim, _, grid, whole in SHAPES if (grid, dim) == (tokens.grid, tokens.x.shape[-1]))


def words_of(tokens):
    """Embeddings of text that depend on nothing, two samples of it."""
    size = (2, sum(TEXT), tokens.x.shape[-1])
    return torch.linspace(-2, 2, size[0] * size[1] * size[2], dtype=tokens.x.dtype).sin().view(size)


def call_ours(fusion, tokens):
    n, whole = tokens.x.shape[1], whole_of(tokens)
    words = words_of(tokens)
    taken = words.new_zeros(2, whole, words.shape[2])
    before, between, after = words.split(TEXT, 1)
    text = Sequence.plain(torch.cat([before, taken, between, taken, after], 1))
    stands = [False] * TEXT[0] + [True] * whole + [False] * TEXT[1] + [True] * whole + [False] * TEXT[2]
    text = replace(text, images=torch.tensor([stands, stands]).long() - 1)
    fused = fusion(text, replace(tokens, grid=None, whole=(torch.arange(n) >= n - whole).expand(4, -1)))
    return fused.visitors[0].before(fused.embeds, LayerCall(*fused.numbered(), {}))


def call_written_out(block, tokens, sees):
    """Each position by itself, over the tiles that it sees."""
    whole, words, out = whole_of(tokens), words_of(tokens), []
    for sample in range(2):
        first, second = tokens.x[2 * sample], tokens.x[2 * sample + 1]
        before, between, after = words[sample].split(TEXT)
        hidden = torch.cat([before, first[-whole:], between, second[-whole:], after])
        tiles = [first[:-whole], second[:-whole]]
        begins = [TEXT[0], TEXT[0] + whole + TEXT[1]]
        for place, state in enumerate(hidden):
            seen = [own for own, begin in zip(tiles, begins, strict=True) if begin <= place]
            if seen:
                read = torch.cat(seen if sees == "all" else seen[-1:])[None]
                state = block(state[None, None], read, None)[0, 0]
            out.append(state)
    return torch.stack(out).unflatten(0, (2, -1))


CASES = [
    ReferenceCase(
        name=f"hybrid, {'the latest image' if sees == 'latest' else 'all images'}",
        option="fusion=hybrid",
        paper="arXiv 2409.11402",
        reference="torch.nn.MultiheadAttention",
        shapes=SHAPES,
        build_ref=lambda shape: Assembled(*shape[:2]),
        build_ours=partial(ours, sees=sees),
        inputs=lambda shape, generator, dtype: grid_tokens(shape[2], shape[0], generator, dtype, images=4),
        call_ref=partial(call_written_out, sees=sees),
        call_ours=call_ours,
        convert=lambda state: {f"blocks.0.{name}": tensor for name, tensor in from_torch(state).items()},
    )
    for sees in ("latest", "all")
]
