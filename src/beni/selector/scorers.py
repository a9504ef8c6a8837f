"""Networks that give each visual token the parameters of its gate, with a look at the prompt or without one.

What a network says is near 0 at the start, on average, so that a gate begins as open as its caller has it begin.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from beni.nn.gates import openness
from beni.nn.queries import draw_layers
from beni.prompt.asked import Asked
from beni.stage import Reads
from beni.types import Prompt, VisualTokens

STEEP = 8.0
"""Initial factor of a cosine, which lies within [-1, 1]: alone it would give probabilities from 0.27 to 0.73 only."""


class Scorer(nn.Module, ABC):
    """``(i, n, d) -> (i, n, outputs)``. Subclasses are final.

    Attributes:
        reads: forms of the prompt that it reads.
    """

    reads: frozenset[Reads] = frozenset()

    @abstractmethod
    def forward(self, tokens: VisualTokens, prompt: Prompt | None) -> Float[Tensor, "i n outputs"]:
        """No token's parameters depend on padding, on closed tokens or on another row."""

    @abstractmethod
    def init_weights(self) -> None:
        """Draws every parameter from torch's global generator."""


class CosineScorer(Scorer):
    """``factor * cos(W x, V t)``, with t what is asked.

    V has a bias, which is what tokens are compared with where there is no prompt.

    Args:
        dim: width of the tokens.
        asked: what is asked, as a vector.
        hidden: width in which they are compared.
    """

    def __init__(self, dim: int, asked: Asked, hidden: int, outputs: int) -> None:
        super().__init__()
        self.asked, self.reads = asked, asked.reads
        self.norm = nn.LayerNorm(dim)
        self.token_proj, self.prompt_proj = nn.Linear(dim, hidden), nn.Linear(asked.dim, hidden)
        self.steepness = nn.Parameter(torch.empty(outputs))

    def forward(self, tokens: VisualTokens, prompt: Prompt | None) -> Float[Tensor, "i n outputs"]:
        x = self.token_proj(self.norm(tokens.x))
        t = self.prompt_proj(self.asked(tokens.x, prompt)[0])
        if x.dtype != torch.float64:  # norms of half precision would round the angle
            x, t = x.float(), t.float()
        cosine = (F.normalize(x, dim=-1) * F.normalize(t, dim=-1)[:, None]).sum(-1, keepdim=True)
        return F.softplus(self.steepness) * cosine.to(tokens.x.dtype)

    def init_weights(self) -> None:
        draw_layers(self, _by_width)
        nn.init.normal_(self.prompt_proj.bias, std=self.prompt_proj.out_features**-0.5)
        nn.init.constant_(self.steepness, math.log(math.expm1(STEEP)))


class MlpScorer(Scorer):
    """An MLP of each token, what is asked, their product, and the mean of all tokens.

    Args:
        dim: width of the tokens.
        asked: what is asked, as a vector.
        hidden: width to which all of them are mapped, and of the hidden layer.
    """

    def __init__(self, dim: int, asked: Asked, hidden: int, outputs: int) -> None:
        super().__init__()
        self.asked, self.reads = asked, asked.reads
        self.norm = nn.LayerNorm(dim)
        self.token_proj, self.prompt_proj = nn.Linear(dim, hidden), nn.Linear(asked.dim, hidden)
        self.fc1, self.fc2 = nn.Linear(4 * hidden, hidden), nn.Linear(hidden, outputs)

    def forward(self, tokens: VisualTokens, prompt: Prompt | None) -> Float[Tensor, "i n outputs"]:
        x = self.token_proj(self.norm(tokens.x))
        t = self.prompt_proj(self.asked(tokens.x, prompt)[0])[:, None].expand_as(x)
        everywhere = mean_token(x, tokens)[:, None].expand_as(x)
        return self.fc2(F.gelu(self.fc1(torch.cat([x, t, x * t, everywhere], -1))))

    def init_weights(self) -> None:
        draw_layers(self, _by_width)
        nn.init.normal_(self.prompt_proj.bias, std=self.prompt_proj.out_features**-0.5)


class DynamicVitScorer(Scorer):
    """DynamicViT's predictor (arXiv 2106.02034; ``PredictorLG`` of https://github.com/raoyongming/DynamicViT), which
    reads no prompt: half of a token's channels as they are, half as their mean over the tokens that are open, then an
    MLP to two log odds, of which the difference counts.

    Args:
        dim: width of the tokens.
        hidden: width of the first layer; the reference has ``dim``.
    """

    def __init__(self, dim: int, hidden: int, outputs: int) -> None:
        super().__init__()
        self.in_norm, self.in_proj = nn.LayerNorm(dim), nn.Linear(dim, hidden)
        self.fc1, self.fc2 = nn.Linear(hidden, hidden // 2), nn.Linear(hidden // 2, hidden // 4)
        self.fc3 = nn.Linear(hidden // 4, 2 * outputs)

    def forward(self, tokens: VisualTokens, prompt: Prompt | None) -> Float[Tensor, "i n outputs"]:
        x = F.gelu(self.in_proj(self.in_norm(tokens.x)))
        local, everywhere = x.tensor_split([x.shape[-1] // 2], -1)
        x = torch.cat([local, mean_token(everywhere, tokens)[:, None].expand_as(everywhere)], -1)
        x = self.fc3(F.gelu(self.fc2(F.gelu(self.fc1(x)))))
        return x[..., ::2] - x[..., 1::2]

    def init_weights(self) -> None:
        draw_layers(self, _by_width)


def make_scorer(kind: str, dim: int, asked: Asked, hidden: int, outputs: int) -> Scorer:
    """The scorer of that name: ``cosine``, ``mlp`` or ``dynamicvit``."""
    if kind == "dynamicvit":
        return DynamicVitScorer(dim, hidden, outputs)
    return (CosineScorer if kind == "cosine" else MlpScorer)(dim, asked, hidden, outputs)


def mean_token(x: Float[Tensor, "i n d"], tokens: VisualTokens) -> Float[Tensor, "i d"]:
    """Mean of features over the real tokens of each row, each as far as its gate is open; zeros where none is."""
    weight = tokens.mask.to(x.dtype)
    if tokens.log_gate is not None:
        weight = weight * openness(tokens.log_gate).to(x.dtype)
    total = torch.where(_there(tokens)[..., None], x * weight[..., None], 0).sum(1)
    return total / weight.sum(1, keepdim=True).clamp(min=torch.finfo(x.dtype).tiny)


def _there(tokens: VisualTokens) -> Bool[Tensor, "i n"]:
    return tokens.mask if tokens.log_gate is None else tokens.mask & (openness(tokens.log_gate) > 0)


def _by_width(weight: Tensor) -> None:
    nn.init.normal_(weight, std=weight.shape[1] ** -0.5)
