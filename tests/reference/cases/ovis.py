"""resampler=ovis against the end of transformers' Ovis2VisionModel and its Ovis2VisualEmbeddingTable."""

from __future__ import annotations

from functools import partial

from torch import nn
from transformers.models.ovis2.configuration_ovis2 import Ovis2VisionConfig
from transformers.models.ovis2.modeling_ovis2 import Ovis2VisionModel, Ovis2VisualEmbeddingTable

from beni.resampler.ovis import Ovis
from beni.types import TokenSpec
from reference.harness import ReferenceCase, grid_tokens

# (side of the grid, width, llm's width, r, visual words); square grids that r divides only
SHAPES = ((4, 8, 24, 2, 30), (8, 6, 20, 4, 41), (6, 10, 16, 3, 17), (3, 9, 12, 1, 25))
MARKS = 5


class Features(nn.Module):
    def forward(self, x):
        return (x,)


class Tokenizer(nn.Module):
    """Ovis2's, whose encoder is left out."""

    def __init__(self, shape, tokenize):
        super().__init__()
        _, dim, dim_out, r, vocabulary = shape
        config = Ovis2VisionConfig(
            hidden_size=dim,
            num_attention_heads=1,
            num_hidden_layers=1,
            hidden_stride=r,
            vocab_size=vocabulary + MARKS,
            num_visual_indicator_tokens=MARKS,
            tokenize_function=tokenize,
        )
        self.vision_tower = Ovis2VisionModel(config)
        self.vision_tower.transformer = Features()
        self.visual_embeddings_table = Ovis2VisualEmbeddingTable(config.vocab_size, dim_out)

    def forward(self, x):
        shares = self.vision_tower(x).pooler_output
        return self.visual_embeddings_table(nn.functional.pad(shares, (0, MARKS)))


def ours(shape, tokenize):
    side, dim, dim_out, r, vocabulary = shape
    tokens = TokenSpec(n=side**2, dim=dim, grid=(side, side))
    return Ovis(tokens, dim_out, r=r, vocabulary=vocabulary, tokenize=tokenize, init_std=0.02)


def convert(state):
    """The vectors of the marks around an image stand last."""
    return {
        "head.weight": state["vision_tower.head_linear.weight"],
        "norm.weight": state["vision_tower.head_norm.weight"],
        "norm.bias": state["vision_tower.head_norm.bias"],
        "words": state["visual_embeddings_table.weight"][:-MARKS],
    }


CASES = [
    ReferenceCase(
        name=f"ovis {ours_called}",
        option="resampler=ovis",
        paper="arXiv 2405.20797",
        reference="transformers.models.ovis2.modeling_ovis2.Ovis2VisualEmbeddingTable",
        shapes=SHAPES,
        build_ref=partial(Tokenizer, tokenize=theirs_called),
        build_ours=partial(ours, tokenize=ours_called),
        inputs=lambda shape, generator, dtype: grid_tokens((shape[0], shape[0]), shape[1], generator, dtype),
        call_ref=lambda module, tokens: module(tokens.x),
        convert=convert,
    )
    for ours_called, theirs_called in (("softmax", "softmax"), ("argmax", "st_argmax"))
]
