"""A router: an image gets many visual tokens or few, whichever it deserves.

Reference: ``transformers`` ``GraniteDoclingDensityRouter`` for the head, equal to 1e-5 in fp32 and 1e-10 in fp64 with
its weights; the release has no paper. It looks at all views of an image and gives P(fine). There labels say which pages
are dense, and two connector paths merge blocks of two sizes; here the loss of the model itself teaches the head, and
the two budgets are average poolings of one grid. Views on grids of different shapes are routed shape by shape.

In ``phase=soft`` both budgets are in the text, and the logarithms of P(fine) and P(coarse), relaxed by Gumbel noise
(arXiv 1611.00712), are gates on attention to them: what one gains the other loses, so the gradient compares them. In
``phase=drop`` the tokens of the other budget are taken out, and the rest have the positions that they had.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from beni.config.ranges import Above, AtLeast, AtMost, Below
from beni.errors import CompositionError, ConfigError
from beni.nn.choose import Budget, Positions, chosen_spec, grid_within, kept
from beni.nn.gate_distributions import EDGE
from beni.nn.grid import from_map, grid_of, regrid, to_map
from beni.nn.queries import draw_layers
from beni.selector.gate import BOUND, unbounded
from beni.selector.multiplier import SPEED, lagrangian
from beni.stage import Stage, StageContext
from beni.types import TokenSpec, VisualTokens

PART = "selector=router"


class DensityRouter(nn.Module):
    """``(i, n, d) -> (i,)``: the logit of P(fine) of the image of each row.

    Each view becomes a mean of its tokens, weighted by attention, an image the mean of its views, and an MLP says the
    rest.

    Args:
        dim: width of the tokens.
        hidden: of the MLP's middle layer.
    """

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.att = nn.Linear(dim, 1, bias=False)  # a bias would say nothing behind a softmax
        self.norm = nn.LayerNorm(dim)
        self.fc1, self.fc2 = nn.Linear(dim, hidden), nn.Linear(hidden, 1)

    def forward(self, x: Float[Tensor, "i n d"], context: StageContext) -> Float[Tensor, "i"]:
        """Rows of one image say the same, to the last bit."""
        views = (x * self.att(x).softmax(1)).sum(1)
        images = [*context.by_image(len(views))]
        means = torch.stack([views[rows].mean(0) for rows in images])
        said = self.fc2(F.gelu(self.fc1(self.norm(means))))[:, 0]
        return said[owners_in(images, len(views))]


def owners_in(images: Sequence[Int[Tensor, "_"]], count: int) -> Int[Tensor, "i"]:
    """The rows of each image -> the number of the image of each row."""
    owners = torch.empty(count, dtype=torch.long)
    for number, rows in enumerate(images):
        owners[rows] = number
    return owners


class Router(Stage):
    """``(i, rows * columns, d) -> (i, fine + coarse, d)`` with gates; in ``phase=drop`` with one of both dropped.

    Args:
        tokens: spec of the incoming visual tokens.
        phase: ``soft`` adds gates to attention, ``drop`` takes one budget out. Both have the same weights.
        coarse: tokens of a view that needs few, at most: a whole number, or a share (a float, at most 1.0).
        fine: tokens of one that needs many.
        hidden: width of the head (channels).
        start: P(fine) at the start.
        temperature: of the relaxation.
        threshold: least P(fine) of an image that gets the fine budget in evaluation and in ``phase=drop``.
        positions: ``preserve`` the position ids that the tokens of each budget have beside the other's, or ``compact``.
        target_fine: share of the images that should get the fine budget; null for none. A multiplier, which is learned,
            times the difference holds the mean of P(fine) there.
        target_weight: of the square of what each image's P(fine) differs by, which keeps the multiplier from swinging;
            0.0 without a target.
        price: weight of the mean of P(fine) in the loss; 0.0 for none.

    Raises:
        CompositionError: E-GRID when the tokens form no dense grid, E-GATE when they have gates.
        ConfigError: budgets of which the coarse one is not the smaller, ``positions=compact`` where nothing is dropped,
            or the weight of a target that there is not.
    """

    def __init__(
        self,
        tokens: TokenSpec,
        *,
        phase: Literal["soft", "drop"],
        coarse: Annotated[int, AtLeast(1)] | Annotated[float, Above(0), AtMost(1)],
        fine: Annotated[int, AtLeast(1)] | Annotated[float, Above(0), AtMost(1)],
        hidden: Annotated[int, AtLeast(1)],
        start: Annotated[float, AtLeast(0.01), AtMost(0.99)],
        temperature: Annotated[float, Above(0)],
        threshold: Annotated[float, Above(0), Below(1)],
        positions: Literal["preserve", "compact"],
        target_fine: Annotated[float, Above(0), Below(1)] | None,
        target_weight: Annotated[float, AtLeast(0)],
        price: Annotated[float, AtLeast(0)],
    ) -> None:
        super().__init__()
        self.phase, self.coarse, self.fine = phase, Budget(coarse), Budget(fine)
        self.start, self.temperature, self.threshold = start, temperature, threshold
        self.positions: Positions = positions
        self.target_fine, self.target_weight, self.price = target_fine, target_weight, price
        if positions == "compact" and phase == "soft":
            raise ConfigError(
                "selector.positions=compact with selector.phase=soft, where all tokens have places\n"
                "  fix: set selector.positions=preserve, or selector.phase=drop"
            )
        if target_fine is None and target_weight:
            raise ConfigError(
                f"selector.target_fine=null with selector.target_weight={target_weight}\n"
                "  fix: set selector.target_weight=0.0, or selector.target_fine=0.5"
            )
        few, many = (math.prod(self._grids(grid_of(tokens, PART))[which]) for which in (1, 0))
        if few >= many:
            raise ConfigError(
                f"selector.coarse={coarse} leaves {few} tokens of {tokens.n}, selector.fine={fine} leaves {many}: "
                "expected fewer of the first\n  fix: set selector.coarse=0.25 selector.fine=1.0"
            )
        self.router = DensityRouter(tokens.dim, hidden)
        self.multiplier = None if target_fine is None else nn.Parameter(torch.empty(1))
        wanted = {"target": target_fine is not None, "price": price > 0}
        self.auxiliary = {name: "rows" for name, there in wanted.items() if there}

    def spec(self, tokens: TokenSpec) -> TokenSpec:
        if tokens.gated:
            raise CompositionError(
                "E-GATE",
                f"the tokens before {PART} are gated, and it pools tokens without a look at their gates: closed ones "
                "would come back",
                groups=("selector",),
                fix="put router first",
            )
        fine, coarse = (math.prod(grid) for grid in self._grids(grid_of(tokens, PART)))
        both = replace(regrid(tokens, (1, fine + coarse), tokens.dim), grid=None, gated=True)
        if self.phase == "soft":
            return both
        rate = self.target_fine
        mean = None if rate is None else rate * fine + (1 - rate) * coarse
        return replace(chosen_spec(both, None, self.positions), mean=mean)

    def forward(self, tokens: VisualTokens, context: StageContext) -> VisualTokens:
        logits = self.router(tokens.x, context)
        logits = BOUND * torch.tanh((logits if logits.dtype == torch.float64 else logits.float()) / BOUND)
        features = to_map(tokens)
        fine, coarse = (
            from_map(F.adaptive_avg_pool2d(features, grid), tokens)
            for grid in self._grids((features.shape[2], features.shape[3]))
        )
        both = VisualTokens.cat([fine, coarse])
        first = torch.arange(both.mask.shape[1], device=both.x.device) < fine.x.shape[1]
        chosen = (logits.detach().sigmoid() >= self.threshold)[:, None] == first  # (i, fine + coarse)
        self._losses(logits, chosen[:, 0], context)
        gated = replace(both, log_gate=self._gates(logits, first, chosen, context))
        return gated if self.phase == "soft" else kept(gated, chosen, None, self.positions)

    def _gates(
        self, logits: Float[Tensor, "i"], first: Bool[Tensor, "n"], chosen: Bool[Tensor, "i n"], context: StageContext
    ) -> Float[Tensor, "i n"]:
        """Gates of the tokens of both budgets: relaxed while training in ``phase=soft``, else open or closed, where an
        open one has the gradient of the logarithm of its probability.
        """
        relaxed = self.phase == "soft" and self.training
        if relaxed:
            noise = torch.logit(context.noise("route", logits).to(logits.dtype), EDGE)
            images = [*context.by_image(len(logits))]  # views of an image are routed alike
            noise = torch.stack([noise[rows[0]] for rows in images])[owners_in(images, len(logits))]
            logits = (logits + noise) / self.temperature
        gates = torch.where(first, F.logsigmoid(logits)[:, None], F.logsigmoid(-logits)[:, None])
        if not relaxed:
            gates = gates - gates.detach()
            gates = gates if self.phase == "drop" else torch.where(chosen, gates, -torch.inf)
        return gates if self.multiplier is None else gates + 0.0 * self.multiplier

    def _losses(self, logits: Float[Tensor, "i"], fine: Bool[Tensor, "i"], context: StageContext) -> None:
        """Leaves auxiliary losses and metrics."""
        p = logits.sigmoid()
        context.metric("fine", p.sum(), len(p))
        context.metric("fine_hard", fine.sum(), len(p))
        if self.price:
            context.loss("price", self.price * p.sum(), len(p))
        if self.multiplier is not None and self.target_fine is not None:
            excess = p - self.target_fine
            square = self.target_weight * excess.square().sum()
            context.loss("target", square + lagrangian(self.multiplier, excess.sum()), len(p))
            context.metric("multiplier", SPEED * self.multiplier.sum(), 1)

    def init_weights(self) -> None:
        draw_layers(self.router, lambda weight: nn.init.normal_(weight, std=weight.shape[1] ** -0.5))
        nn.init.normal_(self.router.fc2.weight, std=0.1 * self.router.fc2.in_features**-0.5)
        nn.init.constant_(self.router.fc2.bias, unbounded(math.log(self.start / (1 - self.start))))
        if self.multiplier is not None:
            nn.init.zeros_(self.multiplier)

    def _grids(self, grid: tuple[int, int]) -> tuple[tuple[int, int], tuple[int, int]]:
        """Rows and columns of the fine budget, and of the coarse one."""
        return grid_within(grid, self.fine), grid_within(grid, self.coarse)
