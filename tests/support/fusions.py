"""A fusion beside the llm that it belongs to, and text with images for both."""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F

from beni.config.build import build
from beni.llm.hf import HFLlm
from beni.nn.streams import torch_stream
from beni.types import Sequence, TokenSpec, VisualTokens
from support.families import EAGER, LLMS
from support.options import node
from support.shrink import shrink_stage

SPEC = TokenSpec(n=4, dim=32, grid=(2, 2), space="llm")


ASIDE = 3
"""Tokens of parts of a picture, behind those of the whole, where both are told apart."""


def spec_for(option):
    """Visual tokens as an option wants them."""
    if option == "hybrid":
        return replace(SPEC, n=SPEC.n + ASIDE, grid=None, parted=True)
    if option == "deepstack_views":
        return replace(SPEC, deep=2 * SPEC.dim)
    if option == "sva":
        sources = tuple(TokenSpec(n=side * side, dim=16, grid=(side, side)) for side in (2, 4))
        return replace(SPEC, sources=sources)
    return replace(SPEC, levels=3 * 12) if option == "deepstack" else SPEC


def family(name, scale=0.1, **fields):
    """A small llm of a family, its weights so large that what it reads matters."""
    torch.manual_seed(0)
    llm = HFLlm(
        name=None,
        weights="random",
        architecture={"model_type": name, **LLMS[name], **fields},
        attn_implementation="eager" if name in EAGER else "sdpa",
        tokenizer="embedded",
    ).eval()
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in llm.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * scale)
    return llm


def fusion_of(option, llm, opened=True, **values):
    """An option of the group, installed; ``opened`` moves all of it away from its initial state."""
    with torch_stream(0, "fusion", option), torch.no_grad():
        small = shrink_stage("fusion", option, node("fusion", option)) | values
        fusion = build(small, replace(spec_for(option), dim=llm.hidden_size), llm.hidden_size)
        fusion.install(llm)
        fusion.init_weights()
        if opened:
            for parameter in fusion.parameters():
                parameter.add_(0.3 * torch.randn_like(parameter))
    return fusion.eval()


def images_of(count, spec=SPEC, seed=1):
    """So many images, all tokens of them real."""
    generator = torch.Generator().manual_seed(seed)
    drawn = VisualTokens.drawn(spec, count, lambda *shape: torch.randn(*shape, generator=generator))
    return replace(drawn, whole=(torch.arange(spec.n) < SPEC.n).expand(count, -1)) if spec.parted else drawn


def rows_of(llm, fusion, *rows, spec=SPEC):
    """Rows of text with images in them, ``.#.`` for one in the middle, padded on the left."""
    taken = sum(part for part in fusion.markup((spec.n,)) if isinstance(part, int))
    laid = [row.replace("#", "#" * taken) for row in rows]
    longest = max(len(row) for row in laid)
    places = torch.tensor([[one == "#" for one in row.rjust(longest, ".")] for row in laid])
    mask = torch.tensor([[int(one != " ") for one in row.rjust(longest)] for row in laid])
    ids = torch.stack([_words(llm.vocab_size, row, longest) for row in laid])
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    text = Sequence.plain(llm.embed(ids).detach())
    return replace(text, images=places.long() - 1, mask=mask, position_ids=positions, left_padded=True)


def _words(vocabulary, row, longest):
    """Ids that depend on the row alone, wherever it stands."""
    generator = torch.Generator().manual_seed(len(row) + 31 * row.find("#"))
    return F.pad(torch.randint(3, vocabulary, (len(row),), generator=generator), (longest - len(row), 0))
