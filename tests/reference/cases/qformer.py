"""The Q-Formers against transformers' Blip2QFormerModel, InstructBlipQFormerModel and Granite 4 Vision's windows."""

from __future__ import annotations

from functools import partial

import torch
from torch import nn
from transformers import (
    Blip2QFormerConfig,
    Blip2QFormerModel,
    Granite4VisionConfig,
    InstructBlipQFormerConfig,
    InstructBlipQFormerModel,
)
from transformers.models.granite4_vision.modeling_granite4_vision import Granite4VisionWindowQFormerDownsampler

from beni.resampler.qformer import QFormer
from beni.resampler.qformer_instruct import QFormerInstruct
from beni.resampler.qformer_window import QFormerWindow
from beni.stage import StageContext
from beni.types import Prompt, TokenSpec
from reference.cases.perceiver import features
from reference.convert import rename
from reference.harness import ReferenceCase, grid_tokens

# (width, queries' width, llm's width, depth, queries, heads, hidden width, cross-attention every, tokens)
SHAPES = (
    (20, 24, 40, 1, 5, 4, 48, 1, 21),
    (16, 32, 12, 4, 7, 2, 40, 2, 12),
    (24, 18, 28, 5, 4, 3, 36, 3, 35),
)

LAYER = [
    ("encoder.layer.", "encoder.layers."),
    (".crossattention.output.dense", ".cross_attn.o_proj"),
    (".crossattention.output.LayerNorm", ".cross_norm"),
    (".crossattention.attention.", ".cross_attn."),
    (".attention.output.dense", ".self_attn.o_proj"),
    (".attention.output.LayerNorm", ".self_norm"),
    (".attention.attention.", ".self_attn."),
    ("_attn.query.", "_attn.q_proj."),
    ("_attn.key.", "_attn.k_proj."),
    ("_attn.value.", "_attn.v_proj."),
    (".intermediate_query.dense", ".mlp.fc1"),
    (".output_query.dense", ".mlp.fc2"),
    (".output_query.LayerNorm", ".mlp_norm"),
    (".intermediate.dense", ".text_mlp.fc1"),
    (".output.dense", ".text_mlp.fc2"),
    (".output.LayerNorm", ".text_norm"),
    ("qformer.embeddings.layernorm", "encoder.norm"),
    ("qformer.layernorm", "encoder.norm"),
    ("qformer.encoder", "encoder"),
]


def config_of(kind, shape):
    dim, width, _, depth, _, heads, hidden, every, _ = shape
    config = kind(
        hidden_size=width,
        num_hidden_layers=depth,
        num_attention_heads=heads,
        intermediate_size=hidden,
        cross_attention_frequency=every,
        encoder_hidden_size=dim,
        vocab_size=11,
    )
    config._attn_implementation = "sdpa"
    return config


class Blip2(nn.Module):
    """Queries, Q-Former, projection: what BLIP-2 has between its encoder and its llm."""

    def __init__(self, shape):
        super().__init__()
        self.qformer = Blip2QFormerModel(config_of(Blip2QFormerConfig, shape))
        self.queries = nn.Parameter(torch.empty(shape[4], shape[1]))
        self.proj = nn.Linear(shape[1], shape[2])

    def forward(self, tokens):
        queries = self.queries.expand(len(tokens.x), -1, -1)
        read = self.qformer(queries, encoder_hidden_states=tokens.x, encoder_attention_mask=tokens.mask.long())
        return self.proj(read.last_hidden_state)


class Words(nn.Module):
    """In the place of BERT's word embeddings: says what it is told, whatever the ids."""

    def forward(self, ids):
        return self.said


class InstructBlip(nn.Module):
    """As above, but the Q-Former sees ``prompt`` mapped to its width where it would look up words."""

    def __init__(self, shape):
        super().__init__()
        self.qformer = InstructBlipQFormerModel(config_of(InstructBlipQFormerConfig, shape))
        self.qformer.embeddings.word_embeddings = Words()
        self.queries = nn.Parameter(torch.empty(shape[4], shape[1]))
        self.prompt_proj = nn.Linear(shape[2], shape[1])
        self.proj = nn.Linear(shape[1], shape[2])

    def forward(self, tokens, prompt):
        queries = self.queries.expand(len(tokens.x), -1, -1)
        self.qformer.embeddings.word_embeddings.said = self.prompt_proj(prompt.embeds)
        seen = torch.cat([prompt.mask.new_ones(queries.shape[:2]), prompt.mask], 1).long()
        read = self.qformer(
            torch.zeros_like(prompt.mask, dtype=torch.long),
            attention_mask=seen,
            query_embeds=queries,
            encoder_hidden_states=tokens.x,
            encoder_attention_mask=tokens.mask.long(),
        )
        return self.proj(read.last_hidden_state[:, : queries.shape[1]])


def ours(shape, kind, **more):
    dim, width, dim_out, depth, queries, heads, hidden, every, n = shape
    return kind(
        TokenSpec(n=n, dim=dim),
        dim_out,
        hidden_size=width,
        depth=depth,
        num_queries=queries,
        num_heads=heads,
        intermediate_size=hidden,
        cross_attention_every=every,
        dropout=0.1,
        **more,
    )


def asked(module, tokens):
    """A question of five positions, one of three and one of none: padding stands at the end."""
    dim = module.prompt_proj.in_features
    embeds = torch.randn(3, 5, dim, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    mask = torch.arange(5)[None] < torch.tensor([5, 3, 0])[:, None]
    return Prompt(embeds.to(tokens.x.dtype), mask)


def from_instruct(state):
    """Without what the last layer makes of the text, which nothing reads."""
    depth = len({name.split(".")[3] for name in state if name.startswith("qformer.encoder.layer.")})
    last = f"qformer.encoder.layer.{depth - 1}."
    kept = {n: t for n, t in state.items() if not n.startswith((f"{last}output.", f"{last}intermediate."))}
    return rename(kept, [*LAYER, ("qformer.embeddings.position_embeddings.weight", "prompt_positions")])


# (rows, columns, width, llm's width, window, side, depth, heads, hidden width)
SQUARE = ((8, 8, 24, 40, 4, 2, 1, 3, 48), (6, 6, 16, 12, 3, 1, 2, 2, 40), (8, 8, 18, 28, 8, 3, 1, 3, 36))
OBLONG = ((4, 8, 24, 40, 4, 2, 1, 3, 48), (9, 3, 16, 12, 3, 2, 2, 2, 40), (2, 6, 18, 28, 2, 1, 1, 3, 36))


def granite(shape, grid_side=None):
    rows, _, dim, dim_out, window, side, depth, heads, hidden = shape
    config = Granite4VisionConfig(
        vision_config={
            "model_type": "clip_vision_model",
            "hidden_size": dim,
            "num_attention_heads": 1,
            "image_size": 2 * (grid_side or rows),
            "patch_size": 2,
        },
        text_config={"model_type": "granite4_vision_text", "hidden_size": dim_out, "num_attention_heads": 1},
        downsample_rate=f"{side}/{window}",
    )
    qformer = config.qformer_config
    qformer.num_attention_heads, qformer.num_hidden_layers, qformer.intermediate_size = heads, depth, hidden
    qformer._attn_implementation = "sdpa"
    return Granite4VisionWindowQFormerDownsampler(config)


def window_of(shape):
    rows, columns, dim, dim_out, window, side, depth, heads, hidden = shape
    return QFormerWindow(
        TokenSpec(n=rows * columns, dim=dim, grid=(rows, columns)),
        dim_out,
        window=window,
        side=side,
        depth=depth,
        num_heads=heads,
        intermediate_size=hidden,
        dropout=0.1,
    )


def from_granite(state):
    layers = {name: tensor for name, tensor in state.items() if name not in ("query", "image_positions")}
    return rename(layers, [*LAYER, ("out_linear", "proj")]) | {
        "queries": state["query"][0],
        "positions": state["image_positions"][0],
    }


def window_by_window(module, tokens):
    """The reference takes square pictures only, but windows do not see each other: each is a picture of its own."""
    w, q = module.window_side, module.query_side
    maps = tokens.x.unflatten(1, tokens.grid)
    rows = [
        torch.cat([module(part.flatten(1, 2)).unflatten(1, (q, q)) for part in strip.split(w, 2)], 2)
        for strip in maps.split(w, 1)
    ]
    return torch.cat(rows, 1).flatten(1, 2)


CASES = (
    [
        ReferenceCase(
            name=f"qformer {kind}",
            option="resampler=qformer",
            paper="arXiv 2301.12597",
            reference="transformers.models.blip_2.modeling_blip_2.Blip2QFormerModel",
            shapes=SHAPES,
            build_ref=Blip2,
            build_ours=partial(ours, kind=QFormer),
            inputs=partial(features, masked=kind == "masked"),
            call_ref=lambda module, tokens: module(tokens),
            convert=partial(rename, pairs=LAYER),
        )
        for kind in ("dense", "masked")
    ]
    + [
        ReferenceCase(
            name=f"qformer_instruct {kind}",
            option="resampler=qformer_instruct",
            paper="arXiv 2305.06500",
            reference="transformers.models.instructblip.modeling_instructblip.InstructBlipQFormerModel",
            shapes=SHAPES,
            build_ref=InstructBlip,
            build_ours=partial(ours, kind=QFormerInstruct, max_prompt=512),
            inputs=partial(features, masked=kind == "masked"),
            call_ref=lambda module, tokens: module(tokens, asked(module, tokens)),
            call_ours=lambda module, tokens: module(tokens, StageContext(prompt=asked(module, tokens))).x,
            convert=from_instruct,
        )
        for kind in ("dense", "masked")
    ]
    + [
        ReferenceCase(
            name=f"qformer_window {kind}",
            option="resampler=qformer_window",
            paper="Granite Vision 4 (model release)",
            reference="transformers.models.granite4_vision.modeling_granite4_vision.Granite4VisionWindowQFormerDownsampler",
            shapes=shapes,
            build_ref=build_ref,
            build_ours=window_of,
            inputs=lambda shape, generator, dtype: grid_tokens(shape[:2], shape[2], generator, dtype),
            call_ref=call_ref,
            convert=from_granite,
        )
        for kind, shapes, build_ref, call_ref in (
            ("square", SQUARE, granite, lambda module, tokens: module(tokens.x)),
            ("oblong", OBLONG, lambda shape: granite(shape, grid_side=shape[4]), window_by_window),
        )
    ]
)
