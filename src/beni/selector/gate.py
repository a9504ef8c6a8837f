"""Gates: every visual token gets a probability of being open, learned with the model, and closed ones are taken out.

In ``phase=soft`` the logarithm of a gate is added to the logits of all attention to its token
(``VisualTokens.log_gate``), in the llm and in a resampler that reads gates. A gate of 0 or 1 is then exactly a token
that is not there, or there, which features multiplied by a gate are not: a norm removes the factor, and a vector of
zeros is still attended to. In ``phase=drop`` closed tokens are dropped, so the sequence is shorter; those that are kept
have the positions that they had.

Training samples gates, evaluation does not: a gate is open where ``P(open) > 1/2``, or where it is among the most open
of its row. Distributions are those of ``beni.nn.gate_distributions``: Gumbel-sigmoid (arXiv 1611.00712), hard concrete
(L0, arXiv 1712.01312) and HardKuma (arXiv 1905.08160). GA-Net (arXiv 1912.00349) is ``straight_through`` with
``target=l1``, DynamicViT (arXiv 2106.02034) with its scorer and ``target=rate``. Deviations: both papers count the
gates that are drawn, here P(open) is counted; DynamicViT's losses of distillation are left out, and it has one stage.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Annotated, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from beni.config.ranges import Above, AtLeast, AtMost, Below
from beni.nn import gate_distributions
from beni.nn.choose import Budget, Positions, best, by_score, chosen_spec, kept, legible
from beni.nn.gate_distributions import GateDistribution
from beni.prompt.asked import Asked
from beni.selector.gate_values import Temperature, start_of, together
from beni.selector.multiplier import SPEED, lagrangian
from beni.selector.scorers import make_scorer
from beni.stage import Stage, StageContext
from beni.types import TokenSpec, VisualTokens

BOUND = 6.0
"""What gives a gate its parameters is kept within this distance of 0 (a hyperbolic tangent), and P(open) so within
0.0025 and 0.9975: a gate that is shut for good would have no gradient to open again."""


class Gate(Stage):
    """``(i, n, d) -> (i, n, d)`` with gates; in ``phase=drop`` with the closed tokens dropped, or ``(i, k, d)``.

    Args:
        tokens: spec of the incoming visual tokens.
        dim_out: width of the llm, and so of the prompt.
        phase: ``soft`` adds gates to attention, ``drop`` takes closed tokens out. Both have the same weights.
        distribution: ``concrete`` (Gumbel-sigmoid), ``straight_through`` (that, 0 or 1 forward), ``hard_concrete``,
            ``hardkuma``, or ``hardkuma_reflected``, of which 1 - z is Kumaraswamy.
        scorer: what a gate depends on: ``cosine`` of token and prompt, an ``mlp`` of both and the mean token, or
            ``dynamicvit``'s predictor, which reads no prompt.
        source: the prompt as the mean of the llm's ``embeddings``, as its ``hidden`` state at the last position, or as
            a frozen ``text_encoder`` reads it; ``embeddings`` where the scorer reads none.
        text_encoder: hub id or folder of one, of a whole CLIP or SigLIP too; null for another source.
        hidden: width of the scorer (channels); ``auto`` takes that of the tokens.
        start: P(open) at the start, where the scorer says nothing.
        temperature: of the relaxation, at the start; null for HardKuma, which has none.
        temperature_end: after half of the steps, and from then on.
        cooling: how it gets there: ``linear``, ``exponential``, or ``constant``.
        keep: which gates are open in evaluation and in ``phase=drop``: those above one half (``threshold``, at least
            one of a row), or the most open of a row, so many (a whole number, or a share up to 1.0).
        positions: ``preserve`` the position ids that kept tokens have among all, or ``compact`` them.
        target: for the probability that a gate is open: ``rate`` (square of its mean over a row minus
            ``target_open``), ``lagrangian`` (that, and a multiplier, which is learned, times the difference, so that
            the mean over all rows gets there whatever the task wants), ``l1`` (its mean), or ``none``.
        target_open: the share that should be open.
        target_weight: of the square, or of the mean.
        prior: ``bernoulli`` [rate], ``beta_binomial`` [alpha, beta] of the rate of a row, ``beta`` [alpha, beta] and
            ``kumaraswamy`` [a, b] of a HardKuma gate, or ``none``.
        prior_values: its parameters.
        prior_weight: of its loss: a KL divergence, or for ``beta_binomial`` the negative log likelihood (nats a token).

    Raises:
        ConfigError: values that do not go together.
    """

    def __init__(
        self,
        tokens: TokenSpec,
        dim_out: int,
        *,
        phase: Literal["soft", "drop"],
        distribution: Literal["concrete", "straight_through", "hard_concrete", "hardkuma", "hardkuma_reflected"],
        scorer: Literal["cosine", "mlp", "dynamicvit"],
        source: Literal["embeddings", "hidden", "text_encoder"],
        text_encoder: str | None,
        hidden: Annotated[int, AtLeast(4)] | Literal["auto"],
        start: Annotated[float, AtLeast(0.01), AtMost(0.99)],
        temperature: Annotated[float, Above(0)] | None,
        temperature_end: Annotated[float, Above(0)] | None,
        cooling: Literal["constant", "linear", "exponential"],
        keep: Literal["threshold"] | Annotated[int, AtLeast(1)] | Annotated[float, Above(0), AtMost(1)],
        positions: Literal["preserve", "compact"],
        target: Literal["none", "rate", "l1", "lagrangian"],
        target_open: Annotated[float, Above(0), Below(1)] | None,
        target_weight: Annotated[float, AtLeast(0)],
        prior: Literal["none", "bernoulli", "beta_binomial", "beta", "kumaraswamy"],
        prior_values: list[Annotated[float, Above(0)]],
        prior_weight: Annotated[float, AtLeast(0)],
    ) -> None:
        super().__init__()
        together(
            phase=phase,
            scorer=scorer,
            source=source,
            distribution=distribution,
            temperature=temperature,
            temperature_end=temperature_end,
            cooling=cooling,
            keep=keep,
            positions=positions,
            target=target,
            target_open=target_open,
            target_weight=target_weight,
            prior=prior,
            prior_values=prior_values,
            prior_weight=prior_weight,
        )
        self.phase, self.distribution = phase, distribution
        self.temperature = Temperature(temperature or 1.0, temperature_end or 1.0, cooling)
        self.budget = None if keep == "threshold" else Budget(keep)
        self.positions: Positions = positions
        self.target, self.target_open, self.target_weight = target, target_open or 0.0, target_weight
        self.prior, self.prior_values, self.prior_weight = prior, prior_values, prior_weight
        self.start = [unbounded(one) for one in start_of(distribution, start, temperature or 1.0)]
        width = tokens.dim if hidden == "auto" else hidden
        asked = Asked(source, dim_out, text_encoder, "selector")
        self.scorer = make_scorer(scorer, tokens.dim, asked, width, len(self.start))
        self.offset = nn.Parameter(torch.empty(len(self.start)))
        self.multiplier = nn.Parameter(torch.empty(1)) if target == "lagrangian" else None
        self.reads = self.scorer.reads
        by_row, asked = {"rate", "lagrangian", "beta_binomial"}, {"target": target, "prior": prior}
        self.auxiliary = {name: "rows" if it in by_row else "tokens" for name, it in asked.items() if it != "none"}

    def spec(self, tokens: TokenSpec) -> TokenSpec:
        if self.phase == "soft":
            return replace(tokens, gated=True)
        return replace(chosen_spec(tokens, self.budget, self.positions), gated=True)

    def forward(self, tokens: VisualTokens, context: StageContext) -> VisualTokens:
        gates = self.gates(tokens, context)
        opened = self.opened(tokens, gates)
        self._losses(tokens, gates, context)
        self._tell(tokens, gates, opened, context)
        if self.phase == "soft" and self.training:
            log_gate = gates.log_gate(context.noise("gate", tokens.mask).to(gates.log_open.dtype))
        else:  # a kept token has a gate of 0 whose gradient says what opening it further would do
            log_gate = gates.log_open - gates.log_open.detach()
        if self.phase == "soft" and not self.training:
            log_gate = torch.where(opened | ~tokens.mask, log_gate, -torch.inf)
        if self.multiplier is not None:  # a rank without images must have a gradient for it, too
            log_gate = log_gate + 0.0 * self.multiplier
        gated = replace(tokens, log_gate=log_gate if tokens.log_gate is None else log_gate + tokens.log_gate)
        if self.phase == "soft":
            return gated
        return kept(gated, opened, self.budget, self.positions)

    def gates(self, tokens: VisualTokens, context: StageContext) -> GateDistribution:
        """The distribution of each token's gate at this step."""
        said = self.scorer(tokens, context.prompt)
        said = (said if said.dtype == torch.float64 else said.float()) + self.offset
        said = BOUND * torch.tanh(said / BOUND)
        at = self._temperature(context)
        if self.distribution == "hard_concrete":
            return gate_distributions.HardConcrete(said[..., 0], at)
        if self.distribution in ("concrete", "straight_through"):
            return gate_distributions.BinaryConcrete(said[..., 0], at, self.distribution == "straight_through")
        reflected = self.distribution == "hardkuma_reflected"
        log_a, log_b = (sign * said[..., i] for i, sign in enumerate((-1, 1) if reflected else (1, -1)))
        return gate_distributions.HardKuma(log_a, log_b, reflected)

    def _temperature(self, context: StageContext) -> float:
        """The temperature of this step where gates are drawn, else the one that they end with: that of a hard concrete
        gate has a part in P(open), which must not depend on when it is asked for.
        """
        drawn = self.training and self.phase == "soft"
        return self.temperature.at(context.step, context.steps) if drawn else self.temperature.last

    @torch.no_grad()
    def opened(self, tokens: VisualTokens, gates: GateDistribution) -> Bool[Tensor, "i n"]:
        """True at the tokens whose gates count as open when nothing is sampled."""
        odds = gates.log_open - gates.log_closed
        ranking = by_score(odds, tokens)
        if self.budget is not None:
            return best(tokens, ranking, self.budget)
        above = (odds > 0) & legible(tokens)
        return above | (best(tokens, ranking, Budget(1)) & ~above.any(1, keepdim=True))

    def _losses(self, tokens: VisualTokens, gates: GateDistribution, context: StageContext) -> None:
        """Leaves the auxiliary losses, as sums over what ``auxiliary`` says."""
        real, p = tokens.mask, gates.open
        each, opened = real.sum(1).to(p.dtype), torch.where(real, p, 0).sum(1)
        if self.target == "l1":
            context.loss("target", self.target_weight * opened.sum(), real.numel())
        elif self.target != "none":
            excess = opened / each.clamp(min=1) - self.target_open
            loss = self.target_weight * excess.square().sum()
            if self.multiplier is not None:
                loss = loss + lagrangian(self.multiplier, excess.sum())
            context.loss("target", loss, len(real))
        if self.prior == "beta_binomial":
            alpha, beta = self.prior_values
            loss = gate_distributions.beta_binomial(opened, each, alpha, beta) / each.clamp(min=1)
            context.loss("prior", self.prior_weight * loss.sum(), len(real))
        elif self.prior != "none":
            loss = torch.where(real, self._divergence(gates), 0).sum()
            context.loss("prior", self.prior_weight * loss, real.numel())

    def _divergence(self, gates: GateDistribution) -> Float[Tensor, "i n"]:
        """The KL divergence of each gate from the prior (nats)."""
        if not isinstance(gates, gate_distributions.HardKuma) or self.prior == "bernoulli":
            return gate_distributions.bernoulli_kl(gates, self.prior_values[0])
        first, second = self.prior_values
        return gates.kl_to_beta(first, second) if self.prior == "beta" else gates.kl_to_kumaraswamy(first, second)

    def _tell(
        self, tokens: VisualTokens, gates: GateDistribution, opened: Bool[Tensor, "i n"], context: StageContext
    ) -> None:
        """Leaves metrics and pictures: how open gates are, how many count as open, temperature and multiplier."""
        real, p = tokens.mask, gates.open.detach()
        each = real.sum(1).clamp(min=1)
        context.metric("open", (torch.where(real, p, 0).sum(1) / each).sum(), len(real))
        context.metric("open_hard", (opened.sum(1) / each).sum(), len(real))
        if self.distribution not in ("hardkuma", "hardkuma_reflected"):
            context.metric("temperature", p.new_tensor(self._temperature(context)), 1)
        if self.multiplier is not None:
            context.metric("multiplier", SPEED * self.multiplier.sum(), 1)
        if context.sink is not None and context.sink.wants_pictures:
            for row, there in enumerate(real):
                context.picture("open", row, p[row][there], tokens.yx[row][there])

    def init_weights(self) -> None:
        self.scorer.init_weights()
        with torch.no_grad():
            self.offset.copy_(torch.tensor(self.start))
        if self.multiplier is not None:
            nn.init.zeros_(self.multiplier)


def unbounded(value: float) -> float:
    """What ``BOUND`` makes this value of, or the nearest to it."""
    return BOUND * math.atanh(max(-0.999, min(0.999, value / BOUND)))
