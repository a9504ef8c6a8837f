"""Distributions of gates: numbers in [0, 1] that are exactly 0 with a probability that has a closed form.

A gate is used by its logarithm, which is added to the logits of attention (``beni.nn.gates``), so samples are given as
logarithms, and never as the logarithm of a number that has underflowed.

- ``BinaryConcrete``: a Bernoulli variable relaxed by logistic noise and a temperature (arXiv 1611.00712, 1611.01144).
- ``HardConcrete``: that, stretched beyond [0, 1] and clipped (arXiv 1712.01312).
- ``HardKuma``: a Kumaraswamy variable, stretched and clipped (arXiv 1905.08160).

A prior or target speaks of the probability that a gate is open, ``P(z > 0)``, not of the mean of samples, which differs
from it at any temperature but 0.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from beni.nn import kumaraswamy

EDGE = 1e-6
"""Noise is taken from [EDGE, 1 - EDGE]: its logit is finite then."""
ALMOST_CLOSED = 1e-6
"""What a closed gate counts as where its gradient goes straight through: at 0 attention would give it none."""
LOW, HIGH = -0.1, 1.1
"""The interval to which a variable is stretched before it is clipped to [0, 1]."""
NODES = [(float(x + 1) / 2, float(w) / 2) for x, w in zip(*np.polynomial.legendre.leggauss(32), strict=True)]
"""Gauss-Legendre nodes of [0, 1] with their weights: a mean is the integral of ``P(z > t)``."""


@dataclass(frozen=True)
class GateDistribution(ABC):
    """Independent gates, one for each element."""

    @abstractmethod
    def log_gate(self, uniform: Float[Tensor, "*g"]) -> Float[Tensor, "*g"]:
        """log z of one sample each, -inf where z is 0; with a gradient to the parameters.

        Args:
            uniform: noise in [0, 1).
        """

    @property
    @abstractmethod
    def log_open(self) -> Float[Tensor, "*g"]:
        """log P(z > 0)."""

    @property
    @abstractmethod
    def log_closed(self) -> Float[Tensor, "*g"]:
        """log P(z = 0)."""

    @property
    @abstractmethod
    def one(self) -> Float[Tensor, "*g"]:
        """P(z = 1)."""

    @property
    @abstractmethod
    def mean(self) -> Float[Tensor, "*g"]:
        """E[z]."""

    @property
    def open(self) -> Float[Tensor, "*g"]:
        """P(z > 0)."""
        return self.log_open.exp()


@dataclass(frozen=True)
class BinaryConcrete(GateDistribution):
    """Gates that are open with probability ``sigmoid(logits)``.

    A sample is ``y = sigmoid((logits + noise) / temperature)``, noise logistic; ``y > 1/2`` has the probability of an
    open gate at every temperature, the mean of y has not.

    Attributes:
        logits: of the probability that a gate is open.
        temperature: above 0; the lower, the nearer samples are to 0 and 1.
        straight_through: samples are 1 or ``ALMOST_CLOSED``, with the gradient that y as a factor of the attention
            weight would have (arXiv 1308.3432), so that closed gates learn what opening them would do.
    """

    logits: Float[Tensor, "*g"]
    temperature: float
    straight_through: bool

    def log_gate(self, uniform: Float[Tensor, "*g"]) -> Float[Tensor, "*g"]:
        noisy = (self.logits + torch.logit(uniform, EDGE)) / self.temperature
        if not self.straight_through:
            return F.logsigmoid(noisy)
        value = torch.where(noisy > 0, 1.0, ALMOST_CLOSED).to(noisy.dtype)
        y = noisy.sigmoid()
        return value.log() + (y - y.detach()) / value

    @property
    def log_open(self) -> Float[Tensor, "*g"]:
        return F.logsigmoid(self.logits)

    @property
    def log_closed(self) -> Float[Tensor, "*g"]:
        return F.logsigmoid(-self.logits)

    @property
    def one(self) -> Float[Tensor, "*g"]:
        return self.logits.sigmoid()

    @property
    def mean(self) -> Float[Tensor, "*g"]:
        return self.logits.sigmoid()


@dataclass(frozen=True)
class HardConcrete(GateDistribution):
    """``clip(s (HIGH - LOW) + LOW)`` of a relaxed Bernoulli variable s, so that both ends have a mass.

    Attributes:
        logits: log alpha of the paper.
        temperature: beta of the paper; its value there is 2/3.
    """

    logits: Float[Tensor, "*g"]
    temperature: float

    def log_gate(self, uniform: Float[Tensor, "*g"]) -> Float[Tensor, "*g"]:
        noisy = (self.logits + torch.logit(uniform, EDGE)) / self.temperature
        return _log_clipped(noisy.sigmoid() * (HIGH - LOW) + LOW)

    @property
    def log_open(self) -> Float[Tensor, "*g"]:
        return F.logsigmoid(self._above(0.0))

    @property
    def log_closed(self) -> Float[Tensor, "*g"]:
        return F.logsigmoid(-self._above(0.0))

    @property
    def one(self) -> Float[Tensor, "*g"]:
        return self._above(1.0).sigmoid()

    @property
    def mean(self) -> Float[Tensor, "*g"]:
        return sum((w * self._above(t).sigmoid() for t, w in NODES), torch.zeros_like(self.logits))

    def _above(self, t: float) -> Tensor:
        """The logit of P(s (HIGH - LOW) + LOW > t)."""
        share = (t - LOW) / (HIGH - LOW)
        return self.logits - self.temperature * math.log(share / (1 - share))


@dataclass(frozen=True)
class HardKuma(GateDistribution):
    """``clip(x (HIGH - LOW) + LOW)`` of a Kumaraswamy variable x, or of 1 - x.

    Attributes:
        log_a: logarithm of the first parameter; finite in fp32 for a from 1e-3 to 1e6, so b.
        log_b: logarithm of the second.
        reflected: the gate is made of 1 - x. With it the divergence to Beta(1, beta) is exact, without it that to
            Beta(alpha, 1).
    """

    log_a: Float[Tensor, "*g"]
    log_b: Float[Tensor, "*g"]
    reflected: bool = False

    def log_gate(self, uniform: Float[Tensor, "*g"]) -> Float[Tensor, "*g"]:
        x = kumaraswamy.log_sample(self.log_a, self.log_b, uniform.clamp(EDGE, 1 - EDGE)).exp()
        stretched = x * (HIGH - LOW) + LOW
        return _log_clipped(1 - stretched if self.reflected else stretched)

    @property
    def log_open(self) -> Float[Tensor, "*g"]:
        side = kumaraswamy.log_below if self.reflected else kumaraswamy.log_above
        return side(self.log_a, self.log_b, self._log_share(0.0))

    @property
    def log_closed(self) -> Float[Tensor, "*g"]:
        side = kumaraswamy.log_above if self.reflected else kumaraswamy.log_below
        return side(self.log_a, self.log_b, self._log_share(0.0))

    @property
    def one(self) -> Float[Tensor, "*g"]:
        side = kumaraswamy.log_below if self.reflected else kumaraswamy.log_above
        return side(self.log_a, self.log_b, self._log_share(1.0)).exp()

    @property
    def mean(self) -> Float[Tensor, "*g"]:
        side = kumaraswamy.log_below if self.reflected else kumaraswamy.log_above
        above = (w * side(self.log_a, self.log_b, self._log_share(t)).exp() for t, w in NODES)
        return sum(above, torch.zeros_like(self.log_a))

    def kl_to_beta(self, alpha: float, beta: float) -> Float[Tensor, "*g"]:
        """KL to Beta(alpha, beta) of the variable before it is stretched and clipped, an upper bound of that after."""
        first, second = (beta, alpha) if self.reflected else (alpha, beta)
        return kumaraswamy.kl_to_beta(self.log_a, self.log_b, first, second)

    def kl_to_kumaraswamy(self, a0: float, b0: float) -> Float[Tensor, "*g"]:
        """KL to Kumaraswamy(a0, b0), or to its reflection where the gate is reflected."""
        return kumaraswamy.kl_to_kumaraswamy(self.log_a, self.log_b, a0, b0)

    def _log_share(self, t: float) -> float:
        """Where x stands when the stretched variable is at t."""
        share = (t - LOW) / (HIGH - LOW)
        return math.log(1 - share if self.reflected else share)


def bernoulli_kl(gates: GateDistribution, rate: float) -> Float[Tensor, "*g"]:
    """KL(Bernoulli(P(open)) || Bernoulli(rate)) in nats."""
    opened = gates.open * (gates.log_open - math.log(rate))
    return opened + gates.log_closed.exp() * (gates.log_closed - math.log1p(-rate))


def beta_binomial(
    opened: Float[Tensor, "*r"], count: Float[Tensor, "*r"], alpha: float, beta: float
) -> Float[Tensor, "*r"]:
    """``-log P`` (nats) of ``opened`` gates of ``count`` with a common rate that is Beta(alpha, beta), the binomial
    coefficient left out.

    The posterior of the rate is Beta(alpha + opened, beta + count - opened), and the gradient draws the gates towards
    the end that its mean is nearer to.

    Args:
        opened: how many are open; an expected number will do.
    """
    k, n = opened.double(), count.double()
    log_norm = math.lgamma(alpha) + math.lgamma(beta) - math.lgamma(alpha + beta)
    value = torch.lgamma(k + alpha) + torch.lgamma(n - k + beta) - torch.lgamma(n + alpha + beta)
    return (log_norm - value).to(opened.dtype)


def _log_clipped(stretched: Tensor) -> Tensor:
    """The log of a stretched variable that is clipped to [0, 1]."""
    closed = stretched <= 0
    inside = torch.where(closed, torch.ones_like(stretched), stretched).clamp(max=1.0)
    return torch.where(closed, -torch.inf, inside.log())
