"""The Kumaraswamy distribution in log space: samples, masses, and its KL divergence to Beta and Kumaraswamy priors.

``P(x <= t) = 1 - (1 - t^a)^b`` on (0, 1), with a and b given as their logarithms. Computed as it stands, that
underflows, rounds to 1 or has gradients of NaN at either end of a and b (so does ``torch.distributions.Kumaraswamy``);
here every ``log(1 - exp(-.))`` is computed from the logarithm of its argument, which is finite for a and b from 1e-3 to
1e6 in fp32, gradients included (compare "Stabilizing the Kumaraswamy Distribution", arXiv 2410.00660).

The divergence to Beta(alpha, beta) is that of Nalisnick and Smyth (arXiv 1605.06197). It is exact where beta is 1. Else
it has a series, of which the usual ten terms are off by up to 0.2 nats; here the one expectation without a closed form
is integrated by double exponential quadrature, whose nodes crowd where the integrand has its singularities.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

EULER = 0.57721566490153286
FAR = 30.0
"""``exp(-FAR)`` is nothing beside 1 in fp32, and 1e-13 of it in fp64."""
NODES = 96
"""Of the quadrature."""


def log_neg_log1mexp(r: Float[Tensor, "*g"]) -> Float[Tensor, "*g"]:
    """``log(-log(1 - exp(-r)))`` for r > 0; ``-r`` where r is large."""
    far = r > FAR
    near = torch.where(far, torch.ones_like(r), r)  # the branch that is not taken must have no NaN in its gradient
    return torch.where(far, -r, torch.log(-_log1mexp(near)))


def log1mexp_exp(w: Float[Tensor, "*g"]) -> Float[Tensor, "*g"]:
    """``log(1 - exp(-exp(w)))``; ``w`` where w is very negative."""
    far = w < -FAR
    near = torch.where(far, torch.zeros_like(w), w)
    return torch.where(far, w, _log1mexp(near.exp()))


def log_sample(
    log_a: Float[Tensor, "*g"], log_b: Float[Tensor, "*g"], uniform: Float[Tensor, "*g"]
) -> Float[Tensor, "*g"]:
    """log x of samples x, by inversion.

    Args:
        uniform: inside (0, 1).
    """
    r = -torch.log1p(-uniform) * torch.exp(-log_b)
    return -torch.exp(log_neg_log1mexp(r) - log_a)


def log_above(log_a: Float[Tensor, "*g"], log_b: Float[Tensor, "*g"], log_t: float | Tensor) -> Float[Tensor, "*g"]:
    """``log P(x > t)`` for a t inside (0, 1)."""
    return -torch.exp(_cloglog(log_a, log_b, log_t))


def log_below(log_a: Float[Tensor, "*g"], log_b: Float[Tensor, "*g"], log_t: float | Tensor) -> Float[Tensor, "*g"]:
    """``log P(x <= t)`` for a t inside (0, 1)."""
    return log1mexp_exp(_cloglog(log_a, log_b, log_t))


def kl_to_beta(
    log_a: Float[Tensor, "*g"], log_b: Float[Tensor, "*g"], alpha: float, beta: float
) -> Float[Tensor, "*g"]:
    """KL(Kumaraswamy(a, b) || Beta(alpha, beta)) in nats; exact for ``beta`` = 1, else to 1e-6 relative."""
    la, lb = log_a.double(), log_b.double()
    log_norm = math.lgamma(alpha) + math.lgamma(beta) - math.lgamma(alpha + beta)
    return _divergence(la, lb, la, alpha, beta, log_norm).to(log_a.dtype)


def kl_to_kumaraswamy(
    log_a: Float[Tensor, "*g"], log_b: Float[Tensor, "*g"], a0: float, b0: float
) -> Float[Tensor, "*g"]:
    """KL(Kumaraswamy(a, b) || Kumaraswamy(a0, b0)) in nats; exact for ``b0`` = 1. ``x^a0`` is Kumaraswamy(a/a0, b), so
    that it is computed as the divergence to a Beta is.
    """
    la, lb = log_a.double(), log_b.double()
    return _divergence(la, lb, la - math.log(a0), a0, b0, -math.log(a0) - math.log(b0)).to(log_a.dtype)


def mean_log_complement(log_a: Float[Tensor, "*g"], log_b: Float[Tensor, "*g"]) -> Float[Tensor, "*g"]:
    """E[log(1 - x)], which has no closed form.

    With ``t = -b log(1 - x^a)``, exponentially distributed, it is the integral of ``exp(-t) log(1 - x(t))`` over t > 0,
    and ``t = exp(s - exp(-s))`` makes the integrand fall double exponentially at both ends of s.
    """
    s = torch.linspace(-4.5, 4.2, NODES, dtype=log_a.dtype, device=log_a.device)
    log_t = s - torch.exp(-s)
    weight = torch.exp(log_t - log_t.exp()) * (1 + torch.exp(-s)) * (8.7 / (NODES - 1))
    r = torch.exp(log_t - log_b[..., None])
    return (weight * log1mexp_exp(log_neg_log1mexp(r) - log_a[..., None])).sum(-1)


def _divergence(la: Tensor, lb: Tensor, la_of_power: Tensor, first: float, second: float, log_norm: float) -> Tensor:
    """The divergence to a density ``x^(first-1) (1-y)^(second-1) / exp(log_norm)``, where y, a power of x, is
    Kumaraswamy with ``la_of_power`` and the same b.
    """
    b, ratio = lb.exp(), first * torch.exp(-la)
    value = la + lb + (ratio - 1) * (EULER + torch.digamma(b + 1)) + log_norm - 1 + torch.exp(-lb)
    return value if second == 1 else value - (second - 1) * mean_log_complement(la_of_power, lb)


def _cloglog(log_a: Tensor, log_b: Tensor, log_t: float | Tensor) -> Tensor:
    return log_b + log_neg_log1mexp(-log_t * log_a.exp())


def _log1mexp(r: Tensor) -> Tensor:
    """``log(1 - exp(-r))`` for r > 0 (Maechler, "Accurately computing log(1 - exp(-|a|))")."""
    small = r < math.log(2)
    low, high = torch.where(small, r, torch.ones_like(r)), torch.where(small, torch.ones_like(r), r)
    return torch.where(small, torch.log(-torch.expm1(-low)), torch.log1p(-torch.exp(-high)))
