"""Stages that no option of beni is, for tests of what stages may do."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import nn

from beni.stage import Stage, StageContext
from beni.types import Prompt, TokenSpec, VisualTokens


class KeepBright(Stage):
    """A selector that keeps the tokens whose first feature is at least the mean of their view: as many as the picture
    deserves, at least one.
    """

    def __init__(self, tokens: TokenSpec) -> None:
        super().__init__()

    def spec(self, tokens: TokenSpec) -> TokenSpec:
        return replace(tokens, fixed=False, grid=None, sources=())

    def forward(self, tokens: VisualTokens, context: StageContext) -> VisualTokens:
        first = tokens.x[..., 0].detach().masked_fill(~tokens.mask, 0)
        return tokens.drop(first >= first.sum(1, keepdim=True) / tokens.mask.sum(1, keepdim=True))

    def init_weights(self) -> None:
        """Nothing to draw."""


class Gated(Stage):
    """A selector that says how far each token is open, and closes those whose first feature is low in their view."""

    def __init__(self, tokens: TokenSpec) -> None:
        super().__init__()
        self.direction = nn.Parameter(torch.empty(tokens.dim))

    def spec(self, tokens: TokenSpec) -> TokenSpec:
        return replace(tokens, gated=True)

    def forward(self, tokens: VisualTokens, context: StageContext) -> VisualTokens:
        gates = F.logsigmoid(tokens.x @ self.direction)
        first = tokens.x[..., 0]
        low = first < first.mean(1, keepdim=True) - 0.5 * first.std(1, keepdim=True)
        return replace(tokens, log_gate=gates.masked_fill(low, -torch.inf))

    def init_weights(self) -> None:
        nn.init.normal_(self.direction)


class Weighed(Stage):
    """A selector that leaves the tokens as they are beside their gates, which a linear layer makes of them; another
    one's weights are known to an auxiliary loss alone.
    """

    auxiliary: ClassVar[dict[str, str]] = {"guess": "tokens"}

    def __init__(self, tokens: TokenSpec) -> None:
        super().__init__()
        self.gate, self.guess = nn.Linear(tokens.dim, 4), nn.Linear(tokens.dim, 8)

    def spec(self, tokens: TokenSpec) -> TokenSpec:
        return replace(tokens, gated=True)

    def forward(self, tokens: VisualTokens, context: StageContext) -> VisualTokens:
        context.loss("guess", self.guess(tokens.x).square().sum(), tokens.mask.numel())
        return replace(tokens, log_gate=F.logsigmoid(self.gate(tokens.x).mean(-1)))

    def init_weights(self) -> None:
        for linear in (self.gate, self.guess):
            nn.init.normal_(linear.weight, std=linear.in_features**-0.5)
            nn.init.zeros_(linear.bias)


class Peeking(Stage):
    """A selector that reads a value to decide what it computes, which cannot be counted."""

    def __init__(self, tokens: TokenSpec) -> None:
        super().__init__()

    def spec(self, tokens: TokenSpec) -> TokenSpec:
        return tokens

    def forward(self, tokens: VisualTokens, context: StageContext) -> VisualTokens:
        return tokens.with_features(tokens.x * 2) if float(tokens.x.sum()) > 0 else tokens

    def init_weights(self) -> None:
        """Nothing to draw."""


class Rated(Stage):
    """A selector with two auxiliary losses, one a row and one a token, and a metric; it changes no token."""

    auxiliary: ClassVar[dict[str, str]] = {"row": "rows", "token": "tokens"}

    def __init__(self, tokens: TokenSpec) -> None:
        super().__init__()
        self.direction = nn.Parameter(torch.empty(tokens.dim))

    def spec(self, tokens: TokenSpec) -> TokenSpec:
        return tokens

    def forward(self, tokens: VisualTokens, context: StageContext) -> VisualTokens:
        scores = tokens.x @ self.direction
        context.loss("row", scores.mean(1).square().sum(), len(scores))
        context.loss("token", scores.sigmoid().sum(), scores.numel())
        context.metric("score", scores.sum(), scores.numel())
        return tokens

    def init_weights(self) -> None:
        nn.init.normal_(self.direction)


class Listener(Stage):
    """A selector that adds to every token the mean of the llm's hidden states of the prompt and the text's length, and
    remembers what it was told.
    """

    reads = frozenset({"prompt_text", "prompt_hidden"})

    def __init__(self, tokens: TokenSpec, dim_out: int) -> None:
        super().__init__()
        self.proj = nn.Linear(dim_out, tokens.dim)
        self.told: list[Prompt | None] = []

    def spec(self, tokens: TokenSpec) -> TokenSpec:
        return tokens

    def forward(self, tokens: VisualTokens, context: StageContext) -> VisualTokens:
        prompt = context.prompt
        self.told.append(prompt)
        if prompt is None:
            return tokens.with_features(tokens.x + self.proj(tokens.x.new_zeros(1, self.proj.in_features))[:, None])
        if prompt.hidden is None or not prompt.texts:
            raise ValueError("the prompt came without what was asked for")
        hidden = prompt.hidden.masked_fill(~prompt.mask[..., None], 0)
        mean = hidden.sum(1) / prompt.mask.sum(1, keepdim=True).clamp(min=1)
        words = tokens.x.new_tensor([len(text) for text in prompt.texts])
        said = self.proj(mean.to(tokens.x.dtype)) + 0.01 * words[:, None]
        return tokens.with_features(tokens.x + said[:, None])

    def init_weights(self) -> None:
        nn.init.normal_(self.proj.weight, std=self.proj.in_features**-0.5)
        nn.init.zeros_(self.proj.bias)


class Attended(Stage):
    """A selector that keeps the two tokens to which the encoder pays most attention, and remembers what it read."""

    reads = frozenset({"attn", "keys"})

    def __init__(self, tokens: TokenSpec) -> None:
        super().__init__()
        self.seen: list[VisualTokens] = []

    def spec(self, tokens: TokenSpec) -> TokenSpec:
        return replace(tokens, n=2, grid=None, sources=())

    def forward(self, tokens: VisualTokens, context: StageContext) -> VisualTokens:
        if tokens.attn is None:
            raise ValueError("no attention came along")
        self.seen.append(tokens)
        attn = tokens.attn.masked_fill(~tokens.mask, -1)
        return tokens.gather(attn.topk(2, dim=1).indices.sort(1).values)

    def init_weights(self) -> None:
        """Nothing to draw."""


class Shaken(Stage):
    """A selector that, while training, adds noise to its tokens: of ``StageContext`` or, as a stage must not, of
    generators that know nothing of samples; and that leaves an auxiliary loss.
    """

    auxiliary: ClassVar[dict[str, str]] = {"size": "rows"}
    draws: ClassVar[str] = "context"
    forgets: ClassVar[str] = ""

    def __init__(self, tokens: TokenSpec) -> None:
        super().__init__()

    def spec(self, tokens: TokenSpec) -> TokenSpec:
        return tokens

    def forward(self, tokens: VisualTokens, context: StageContext) -> VisualTokens:
        rows = len(tokens.x)
        if self.forgets != "loss":
            context.loss("size", tokens.x.square().mean((1, 2)).sum(), rows * (5 if self.forgets == "count" else 1))
        if not self.training and self.forgets != "mode":
            return tokens
        noise = context.noise("shake", tokens.mask)
        if self.draws == "places":
            generator = torch.Generator().manual_seed(context.step)
            noise = torch.rand(tokens.mask.shape, generator=generator)
        return tokens.with_features(tokens.x + noise[..., None])

    def init_weights(self) -> None:
        """Nothing to draw."""
