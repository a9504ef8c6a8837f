"""Gated cross-attention blocks against those of Flamingo, IDEFICS and Llama 3.2, where every position sees an image."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import torch
from torch import nn
from transformers import IdeficsConfig
from transformers.models.idefics.modeling_idefics import IdeficsGatedCrossAttentionLayer
from transformers.models.mllama.configuration_mllama import MllamaTextConfig
from transformers.models.mllama.modeling_mllama import MllamaCrossAttentionDecoderLayer

from beni.fusion.cross_attention import make_block
from beni.fusion.media import Media
from beni.types import LayerCall, Sequence
from reference.cases.pixel_shuffle import as_torch_has_it
from reference.convert import rename, split_projections
from reference.harness import ReferenceCase, grid_tokens

# (width, heads, heads of keys and values, hidden width, text positions, grid)
SHAPES = ((24, 4, 2, 40, 5, (3, 2)), (32, 4, 4, 48, 3, (2, 5)), (48, 6, 1, 30, 7, (4, 4)))


def idefics(shape, vector):
    dim, heads, _, inner, *_ = shape
    config = IdeficsConfig(
        hidden_size=dim,
        num_attention_heads=heads,
        intermediate_size=inner,
        qk_layer_norms=True,
        alpha_type="vector" if vector else "float",
        vision_config={"embed_dim": dim, "num_attention_heads": 1},
        attn_implementation="sdpa",
    )
    return as_torch_has_it(IdeficsGatedCrossAttentionLayer(config, layer_idx=0))


def mllama(shape):
    dim, heads, kv_heads, inner, *_ = shape
    config = MllamaTextConfig(
        hidden_size=dim,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        intermediate_size=inner,
        rms_norm_eps=1e-6,
        attn_implementation="sdpa",
    )
    return as_torch_has_it(MllamaCrossAttentionDecoderLayer(config, layer_idx=0))


class Assembled(nn.Module):
    """Flamingo's block of torch's own layers."""

    def __init__(self, dim, heads):
        super().__init__()
        self.attention_norm, self.mlp_norm = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attention = nn.MultiheadAttention(dim, heads, bias=False, batch_first=True)
        self.up, self.down = nn.Linear(dim, 4 * dim, bias=False), nn.Linear(4 * dim, dim, bias=False)
        self.attention_gate, self.mlp_gate = nn.Parameter(torch.empty(1)), nn.Parameter(torch.empty(1))

    def forward(self, hidden, visual, hides):
        read, _ = self.attention(self.attention_norm(hidden), visual, visual, attn_mask=hides)
        hidden = hidden + self.attention_gate.tanh() * read
        return hidden + self.mlp_gate.tanh() * self.down(nn.functional.gelu(self.up(self.mlp_norm(hidden))))


def assembled(shape):
    return Assembled(*shape[:2])


def flamingo_pytorch(shape, latest):
    import flamingo_pytorch as published

    dim, heads, *_ = shape
    return published.GatedCrossAttentionBlock(
        dim=dim, dim_head=dim // heads, heads=heads, only_attend_immediate_media=latest
    )


def ours(shape, grouped, gates):
    dim, heads, kv_heads, inner, *_ = shape
    head_dim, kv_heads = dim // heads, kv_heads if grouped else heads
    return make_block(dim, heads, kv_heads, head_dim, inner, "rmsnorm", True, "swiglu", gates or dim)


def flamingo(shape):
    dim, heads, *_ = shape
    return make_block(dim, heads, heads, dim // heads, 4 * dim, "layernorm", False, "gelu", 1)


AT = (0, 2)
"""Where the images of a sample stand."""


def text_of(tokens):
    """Hidden states that depend on nothing, and where images stand: two in each row, one of them in front."""
    dim = tokens.x.shape[-1]
    length = next(shape[4] for shape in SHAPES if shape[0] == dim)
    generator = torch.Generator().manual_seed(3)
    hidden = torch.randn(len(tokens.x) // 2, length, dim, generator=generator, dtype=torch.float64)
    stands = torch.zeros(hidden.shape[:2], dtype=torch.bool)
    stands[:, AT] = True
    return hidden.to(tokens.x.dtype), stands


def hidden_keys(tokens, latest):
    """True where a position of a row must not see a token of the row's images."""
    _, stands = text_of(tokens)
    reached = stands[0].cumsum(0)[:, None] - 1
    image = torch.arange(2).repeat_interleave(tokens.x.shape[1])
    return image != reached if latest else image > reached


def call_ours(module, tokens, latest):
    hidden, stands = text_of(tokens)
    sequence = replace(Sequence.plain(hidden), images=stands.long() - 1)
    media = Media.of(sequence, tokens, latest=latest)
    return module(hidden, tokens.x, media.sight(LayerCall(*sequence.numbered(), {})), media, 0)


def call_idefics(module, tokens):
    hidden, _ = text_of(tokens)
    mask = hidden.new_zeros(len(hidden), 1, hidden.shape[1], 2 * tokens.x.shape[1])
    mask = mask.masked_fill(hidden_keys(tokens, latest=False), torch.finfo(mask.dtype).min)
    return module(
        hidden,
        image_hidden_states=tokens.x.unflatten(0, (-1, 2)).flatten(1, 2),
        image_attention_mask=mask,
        cross_attention_gate=torch.ones(hidden.shape[:2]),
    )


def call_mllama(module, tokens):
    hidden, _ = text_of(tokens)
    mask = hidden.new_zeros(len(hidden), 1, hidden.shape[1], 2 * tokens.x.shape[1])
    mask = mask.masked_fill(hidden_keys(tokens, latest=False), torch.finfo(mask.dtype).min)
    return module(hidden, tokens.x.unflatten(0, (-1, 2)).flatten(1, 2), mask, None, None)


def call_assembled(module, tokens, latest):
    visual = tokens.x.unflatten(0, (-1, 2)).flatten(1, 2)
    return module(text_of(tokens)[0], visual, hidden_keys(tokens, latest))


def call_flamingo_pytorch(module, tokens):
    hidden, stands = text_of(tokens)
    return module(hidden, tokens.x.unflatten(0, (-1, 2)), media_locations=stands)


def tokens_of(shape, generator, dtype):
    return grid_tokens(shape[5], shape[0], generator, dtype, images=4)


def from_torch(state):
    state = split_projections(state, "attention.in_proj_", tuple(f"attention.x{x}." for x in "qkv"))
    return rename(state, [("attention.out_proj", "attention.xo"), *MLP])


def from_flamingo_pytorch(state):
    state = split_projections(state, "attn.to_kv.", ("attention.xk.", "attention.xv."))
    pairs = [("attn.norm", "attention_norm"), ("ff.0", "mlp_norm"), ("ff.1", "mlp.x_up"), ("ff.3", "mlp.x_down")]
    pairs += [("attn.to_q", "attention.xq"), ("attn.to_out", "attention.xo")]
    return rename(state, [*pairs, ("attn_gate", "attention_gate"), ("ff_gate", "mlp_gate")])


MLP = [("up.", "mlp.x_up."), ("down.", "mlp.x_down.")]


def gates(state, attention, mlp):
    """The gates, which IDEFICS gives two axes of one more."""
    state = {name: tensor.flatten() if name in (attention, mlp) else tensor for name, tensor in state.items()}
    names = [(attention, "attention_gate"), (mlp, "mlp_gate"), ("post_attention_layernorm", "mlp_norm")]
    heads = [(f"cross_attn.{x}_layer_norm", f"attention.{x}_norm") for x in "qk"]
    heads += [(f"cross_attn.{x}_norm", f"attention.{x}_norm") for x in "qk"]
    halves = [("input_layernorm", "attention_norm"), *((f"cross_attn.{x}_proj", f"attention.x{x}") for x in "qkvo")]
    return rename(state, [*names, *heads, *halves, *((f"mlp.{x}_proj", f"mlp.x_{x}") for x in ("gate", "up", "down"))])


CASES = [
    ReferenceCase(
        name=f"cross_attention of Flamingo, {'the latest image' if latest else 'all images'}",
        option="fusion=flamingo",
        paper="arXiv 2204.14198",
        reference="torch.nn.MultiheadAttention",
        shapes=SHAPES,
        build_ref=assembled,
        build_ours=flamingo,
        inputs=tokens_of,
        call_ref=partial(call_assembled, latest=latest),
        call_ours=partial(call_ours, latest=latest),
        convert=from_torch,
    )
    for latest in (True, False)
]
CASES += [
    ReferenceCase(
        name=f"cross_attention of flamingo_pytorch, {'the latest image' if latest else 'all images'}",
        option="fusion=flamingo",
        paper="arXiv 2204.14198",
        reference="flamingo_pytorch.GatedCrossAttentionBlock",
        shapes=SHAPES,
        build_ref=partial(flamingo_pytorch, latest=latest),
        build_ours=flamingo,
        inputs=tokens_of,
        call_ref=call_flamingo_pytorch,
        call_ours=partial(call_ours, latest=latest),
        convert=from_flamingo_pytorch,
        needs="flamingo_pytorch",
    )
    for latest in (True, False)
]
CASES += [
    ReferenceCase(
        name=f"cross_attention of IDEFICS, {'a gate a channel' if vector else 'one gate'}",
        option="fusion=idefics",
        paper="arXiv 2306.16527",
        reference="transformers.models.idefics.modeling_idefics.IdeficsGatedCrossAttentionLayer",
        shapes=SHAPES,
        build_ref=partial(idefics, vector=vector),
        build_ours=partial(ours, grouped=False, gates=0 if vector else 1),
        inputs=tokens_of,
        call_ref=call_idefics,
        call_ours=partial(call_ours, latest=False),
        convert=partial(gates, attention="alpha_cross_attn", mlp="alpha_dense"),
    )
    for vector in (False, True)
]
CASES += [
    ReferenceCase(
        name="cross_attention of Llama 3.2",
        option="fusion=mllama",
        paper="arXiv 2407.21783",
        reference="transformers.models.mllama.modeling_mllama.MllamaCrossAttentionDecoderLayer",
        shapes=SHAPES,
        build_ref=mllama,
        build_ours=partial(ours, grouped=True, gates=1),
        inputs=tokens_of,
        call_ref=call_mllama,
        call_ours=partial(call_ours, latest=False),
        convert=partial(gates, attention="cross_attn_attn_gate", mlp="cross_attn_mlp_gate"),
    )
]
