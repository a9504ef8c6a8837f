"""Kumaraswamy in log space: against mpmath, finite with its gradients at both ends of both parameters."""

from __future__ import annotations

import math

import mpmath
import pytest
import torch

from beni.nn.kumaraswamy import (
    kl_to_beta,
    kl_to_kumaraswamy,
    log1mexp_exp,
    log_above,
    log_below,
    log_neg_log1mexp,
    log_sample,
    mean_log_complement,
)

DECADES = [10.0**k for k in range(-3, 7)]
MODERATE = [(0.05, 0.3), (0.3, 0.05), (0.7, 1.3), (2.0, 3.0), (5.0, 8.0), (20.0, 0.5), (0.5, 40.0), (1.0, 1.0)]
FAR = [(1e-3, 1e6), (1e6, 1e-3), (1e-3, 1e-3), (1e6, 1e6), (0.1, 1e4), (1e3, 0.02)]


def logs(pairs, dtype=torch.float64):
    return torch.tensor(pairs, dtype=dtype).log().unbind(-1)


def grid(dtype=torch.float32):
    pairs = [(a, b) for a in DECADES for b in DECADES]
    return tuple(part.clone().requires_grad_() for part in logs(pairs, dtype))


def mp_log1mexp(r):
    """log(1 - exp(-r)) where exp(-r) may be nothing beside 1."""
    return mpmath.log(-mpmath.expm1(-r)) if r < 40 else -mpmath.exp(-r)


def divergence(a, b, log_prior):
    """The integral over t = -b log(1 - x^a), which is exponentially distributed, with 20 digits."""
    mpmath.mp.dps = 20
    a, b = mpmath.mpf(a), mpmath.mpf(b)

    def integrand(t):
        log_x = mp_log1mexp(t / b) / a
        log_density = mpmath.log(a * b) + (a - 1) * log_x - (b - 1) * t / b
        return mpmath.exp(-t) * (log_density - log_prior(log_x))

    return float(mpmath.quad(integrand, [0, *(mpmath.mpf(10) ** k for k in range(-20, 2, 2)), 100]))


def log_beta(alpha, beta):
    norm = mpmath.log(mpmath.beta(alpha, beta))
    return lambda log_x: (alpha - 1) * log_x + (beta - 1) * mp_log1mexp(-log_x) - norm


def test_the_two_logarithms_are_exact_and_have_gradients_at_both_ends():
    r = torch.tensor([1e-13, 1e-3, 0.5, 0.7, 3.0, 29.0, 31.0, 700.0], dtype=torch.float64, requires_grad=True)
    mpmath.mp.dps = 400
    expected = [float(mpmath.log(-mpmath.log(-mpmath.expm1(-mpmath.mpf(float(x)))))) for x in r.detach()]
    out = log_neg_log1mexp(r)
    torch.testing.assert_close(out.detach(), torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=1e-12)
    w = torch.tensor([-800.0, -31.0, -29.0, -1.0, 0.0, 2.0, 5.0], dtype=torch.float64, requires_grad=True)
    expected = [float(mpmath.log(-mpmath.expm1(-mpmath.exp(mpmath.mpf(float(x)))))) for x in w.detach()]
    shut = log1mexp_exp(w)
    torch.testing.assert_close(shut.detach(), torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=1e-12)
    (out.sum() + shut.sum()).backward()
    assert r.grad.isfinite().all()
    assert w.grad.isfinite().all()
    assert w.grad[0] == 1


@pytest.mark.parametrize("log_t", [math.log(1 / 12), math.log(11 / 12)])
def test_masses_are_those_of_the_distribution_function(log_t):
    la, lb = logs(MODERATE)
    a, b = la.exp(), lb.exp()
    above = (1 - math.exp(log_t) ** a) ** b
    torch.testing.assert_close(log_above(la, lb, log_t).exp(), above, rtol=1e-9, atol=0)
    torch.testing.assert_close(log_below(la, lb, log_t).exp(), 1 - above, rtol=1e-9, atol=1e-15)


def test_samples_are_the_inverse_of_the_distribution_function():
    la, lb = logs([pair for pair in MODERATE if pair[1] > 0.1])  # the function as it stands rounds to 1 below
    for u in (0.01, 0.5, 0.99):
        x = log_sample(la, lb, torch.full_like(la, u)).exp()
        torch.testing.assert_close(1 - (1 - x ** la.exp()) ** lb.exp(), torch.full_like(la, u), rtol=1e-9, atol=0)


@pytest.mark.parametrize("u", [1e-6, 0.5, 1 - 1e-6])
@pytest.mark.parametrize(
    "of",
    [
        lambda la, lb, u: log_sample(la, lb, u),
        lambda la, lb, u: log_sample(la, lb, u).exp(),
        lambda la, lb, u: log_above(la, lb, u.log()),
        lambda la, lb, u: log_below(la, lb, u.log()),
        lambda la, lb, u: kl_to_beta(la, lb, 0.5, 1.0),
        lambda la, lb, u: kl_to_beta(la, lb, 1.0, 4.0),
        lambda la, lb, u: kl_to_kumaraswamy(la, lb, 0.5, 2.0),
    ],
    ids=["log_sample", "sample", "log_above", "log_below", "beta_a1", "beta", "kumaraswamy"],
)
def test_fp32_is_finite_with_its_gradients_from_1e_3_to_1e6(of, u):
    la, lb = grid()
    value = of(la, lb, torch.full_like(la, u))
    assert value.isfinite().all()
    value.sum().backward()
    assert la.grad.isfinite().all()
    assert lb.grad.isfinite().all()


def test_fp32_masses_are_those_of_fp64():
    la, lb = grid()
    for side in (log_above, log_below):
        exact = side(la.double(), lb.double(), math.log(1 / 12)).exp()
        torch.testing.assert_close(side(la, lb, math.log(1 / 12)).exp().double(), exact, rtol=0, atol=2e-5)


@pytest.mark.parametrize(("a", "b"), MODERATE + FAR)
@pytest.mark.parametrize(("alpha", "beta"), [(0.25, 1.0), (1.0, 4.0), (2.0, 9.0), (0.5, 0.5)])
def test_the_divergence_to_a_beta_is_the_integral(a, b, alpha, beta):
    la, lb = logs([(a, b)])
    expected = divergence(a, b, log_beta(alpha, beta))
    assert float(kl_to_beta(la, lb, alpha, beta)) == pytest.approx(expected, rel=1e-6, abs=1e-6)
    assert float(kl_to_beta(la.float(), lb.float(), alpha, beta)) == pytest.approx(expected, rel=1e-4, abs=1e-4)


@pytest.mark.parametrize(("a", "b"), MODERATE)
@pytest.mark.parametrize(("a0", "b0"), [(0.5, 1.0), (0.4, 3.0), (2.0, 0.3)])
def test_the_divergence_to_a_kumaraswamy_is_the_integral(a, b, a0, b0):
    def log_prior(log_x):
        return mpmath.log(a0 * b0) + (a0 - 1) * log_x + (b0 - 1) * mp_log1mexp(-a0 * log_x)

    la, lb = logs([(a, b)])
    assert float(kl_to_kumaraswamy(la, lb, a0, b0)) == pytest.approx(divergence(a, b, log_prior), rel=1e-6, abs=1e-6)


def test_a_divergence_from_itself_is_zero():
    la, lb = logs(MODERATE)
    for a, b, one_a, one_b in zip(la.exp(), lb.exp(), la, lb, strict=True):
        assert float(kl_to_kumaraswamy(one_a[None], one_b[None], float(a), float(b))) == pytest.approx(0, abs=1e-9)


def test_the_series_of_nalisnick_and_smyth_is_near_what_is_integrated():
    """Its ten terms are 0.02 and 0.2 nats away, hundreds of thousands come near."""
    for (a, b, beta), error, terms in (
        ((2.0, 3.0, 4.0), 0.02, 10),
        ((0.7, 1.3, 9.0), 0.2, 10),
        ((0.7, 1.3, 9.0), 0, 10**6),
    ):
        m = torch.arange(1, terms + 1, dtype=torch.float64)
        log_terms = torch.lgamma(m / a) + math.lgamma(b) - torch.lgamma(m / a + b) - (m + a * b).log()
        series = (beta - 1) * b * log_terms.exp().sum()
        exact = -(beta - 1) * mean_log_complement(*logs([(a, b)]))[0]
        assert float(exact - series) == pytest.approx(error, rel=0.15, abs=2e-3 if not error else 0)


def test_gradients_of_the_divergence_are_difference_quotients():
    la, lb = (part.clone().requires_grad_() for part in logs(MODERATE))
    assert torch.autograd.gradcheck(lambda x, y: kl_to_beta(x, y, 2.0, 3.0), (la, lb), rtol=1e-4)
    assert torch.autograd.gradcheck(lambda x, y: log_sample(x, y, torch.full_like(x, 0.3)), (la, lb), rtol=1e-4)
