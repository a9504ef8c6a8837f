"""Gates against their papers: DynamicViT's predictor layer by layer; cosines, L0's hard concrete and HardKuma token by
token, with the same noise in both.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from beni.selector.gate import BOUND, Gate
from beni.stage import StageContext
from beni.types import Prompt, TokenSpec
from reference.harness import ReferenceCase, grid_tokens
from support.options import node

# (grid, width in, width of the scorer, width of the llm)
SHAPES = (((3, 4), 16, 16, 12), ((2, 5), 12, 24, 8), ((4, 4), 20, 8, 16))


def ours(option):
    def build(shape):
        grid, dim, hidden, dim_out = shape
        values = {name: value for name, value in node("selector", option).items() if name != "_target_"}
        return Gate(TokenSpec(n=grid[0] * grid[1], dim=dim, grid=grid), dim_out, **values | {"hidden": hidden})

    return build


def inputs(shape, generator, dtype):
    """Two tokens of the second row are not there."""
    tokens = grid_tokens(shape[0], shape[1], generator, dtype)
    mask = tokens.mask.clone()
    mask[1, -2:] = False
    return replace(tokens, mask=mask, grid=None)


def asked(tokens, width):
    """A prompt of three and of two embeddings."""
    embeds = torch.linspace(-1, 1, 6 * width, dtype=tokens.x.dtype).sin().view(2, 3, width)
    return Prompt(embeds, torch.tensor([[True, True, True], [True, True, False]]))


def noise(tokens):
    return torch.linspace(0.07, 0.93, tokens.mask.numel(), dtype=tokens.x.dtype).view(tokens.mask.shape)


class PredictorLG(nn.Module):
    """By the names of the published weights; ``policy`` is 1 at tokens that are left."""

    def __init__(self, shape):
        super().__init__()
        _, dim, hidden, _ = shape
        self.in_conv = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, hidden), nn.GELU())
        second, third = nn.Linear(hidden // 2, hidden // 4), nn.Linear(hidden // 4, 2)
        self.out_conv = nn.Sequential(nn.Linear(hidden, hidden // 2), nn.GELU(), second, nn.GELU(), third)

    def forward(self, tokens):
        policy = tokens.mask[..., None].to(tokens.x.dtype)
        rows = []
        for x, left in zip(self.in_conv(tokens.x), policy, strict=True):
            half = x.shape[1] // 2
            mean = sum(token[half:] * weight for token, weight in zip(x, left, strict=True)) / left.sum()
            rows.append(torch.stack([torch.cat([token[:half], mean]) for token in x]))
        log_probabilities = self.out_conv(torch.stack(rows)).log_softmax(-1)
        return log_probabilities[..., :1] - log_probabilities[..., 1:]


def from_predictor(state):
    names = {"in_conv.0": "in_norm", "in_conv.1": "in_proj"}
    names |= {f"out_conv.{2 * i}": f"fc{i + 1}" for i in range(3)}
    renamed = {f"scorer.{names[name.rpartition('.')[0]]}.{name.rpartition('.')[2]}": t for name, t in state.items()}
    return renamed | {"offset": torch.zeros(1, dtype=next(iter(state.values())).dtype)}


class Written(nn.Module):
    """A gate token by token; the tensors are those of beni's part."""

    def __init__(self, shape, option):
        super().__init__()
        self.part, self.option = ours(option)(shape), option

    def forward(self, tokens):
        scorer, x, prompt = self.part.scorer, tokens.x, asked(tokens, self.part.scorer.prompt_proj.in_features)
        centred = x - x.mean(-1, keepdim=True)
        normed = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        u = (normed * scorer.norm.weight + scorer.norm.bias) @ scorer.token_proj.weight.T + scorer.token_proj.bias
        rows = []
        for row, there, words, told in zip(u, tokens.mask, prompt.embeds, prompt.mask, strict=True):
            t = words[told].mean(0) @ scorer.prompt_proj.weight.T + scorer.prompt_proj.bias
            rows.append(torch.stack([self.parameters_of(token, t, row[there].mean(0)) for token in row]))
        said = BOUND * torch.tanh((torch.stack(rows) + self.part.offset) / BOUND)
        return self.sample(said, noise(tokens))

    def parameters_of(self, token, t, mean):
        scorer = self.part.scorer
        if self.option == "gate_gumbel":
            return (1 + scorer.steepness.exp()).log() * (token @ t) / (token.norm() * t.norm())
        hidden = torch.cat([token, t, token * t, mean]) @ scorer.fc1.weight.T + scorer.fc1.bias
        gelu = hidden * 0.5 * (1 + torch.erf(hidden / 2**0.5))
        return gelu @ scorer.fc2.weight.T + scorer.fc2.bias

    def sample(self, said, u):
        logistic = u.log() - (1 - u).log()
        if self.option == "gate_gumbel":
            return torch.sigmoid((said[..., 0] + logistic) / 0.5)  # the temperature that it ends with
        if self.option == "gate_hard_concrete":
            s = torch.sigmoid((said[..., 0] + logistic) / 0.6667)
        else:
            a, b = said[..., 0].exp(), (-said[..., 1]).exp()
            s = (1 - (1 - u) ** (1 / b)) ** (1 / a)
        return (s * 1.2 - 0.1).clamp(0, 1)


def sampled(stage, tokens):
    context = StageContext(prompt=asked(tokens, stage.scorer.prompt_proj.in_features))
    return stage.gates(tokens, context).log_gate(noise(tokens)).exp()


def case(option, paper, reference):
    return ReferenceCase(
        name=option,
        option=f"selector={option}",
        paper=paper,
        reference=reference,
        shapes=SHAPES,
        build_ref=lambda shape: Written(shape, option),
        build_ours=ours(option),
        inputs=inputs,
        call_ref=lambda module, tokens: module(tokens),
        call_ours=sampled,
        convert=lambda state: {name.removeprefix("part."): tensor for name, tensor in state.items()},
    )


CASES = [
    ReferenceCase(
        name="dynamicvit",
        option="selector=dynamicvit",
        paper="arXiv 2106.02034",
        reference="PredictorLG, token by token",
        shapes=SHAPES,
        build_ref=PredictorLG,
        build_ours=ours("dynamicvit"),
        inputs=inputs,
        call_ref=lambda module, tokens: module(tokens),
        call_ours=lambda stage, tokens: stage.scorer(tokens, None),
        convert=from_predictor,
    ),
    case("gate_gumbel", "arXiv 1611.00712", "cosine and binary concrete, token by token"),
    case("gate_hard_concrete", "arXiv 1712.01312", "an MLP and L0's gate, token by token"),
    case("gate_hardkuma", "arXiv 1905.08160", "an MLP and HardKuma, token by token"),
]
