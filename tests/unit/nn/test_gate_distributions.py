"""Gates: masses against samples, means against averages, log space against the formulas as they are published."""

from __future__ import annotations

import math

import mpmath
import pytest
import torch
import torch.nn.functional as F

from beni.nn.gate_distributions import (
    ALMOST_CLOSED,
    HIGH,
    LOW,
    BinaryConcrete,
    HardConcrete,
    HardKuma,
    bernoulli_kl,
    beta_binomial,
)

SAMPLES = 200_000
LOGITS = torch.tensor([-6.0, -2.0, -0.3, 0.0, 1.0, 4.0])
A = torch.tensor([0.1, 0.5, 1.0, 2.0, 8.0, 0.3])
B = torch.tensor([0.2, 2.0, 1.0, 5.0, 0.4, 30.0])
KINDS = {
    "concrete": lambda dtype: BinaryConcrete(LOGITS.to(dtype), 0.5, straight_through=False),
    "straight": lambda dtype: BinaryConcrete(LOGITS.to(dtype), 0.5, straight_through=True),
    "hard_concrete": lambda dtype: HardConcrete(LOGITS.to(dtype), 2 / 3),
    "kuma": lambda dtype: HardKuma(A.to(dtype).log(), B.to(dtype).log()),
    "reflected": lambda dtype: HardKuma(B.to(dtype).log(), A.to(dtype).log(), reflected=True),
}


def samples(gates, generator=0):
    like = gates.log_open
    noise = torch.rand(SAMPLES, *like.shape, generator=torch.Generator().manual_seed(generator))
    parameters = {k: v.expand(noise.shape) if isinstance(v, torch.Tensor) else v for k, v in vars(gates).items()}
    return type(gates)(**parameters).log_gate(noise.to(like.dtype)).exp()


def near(found, expected, spread):
    """Within four standard errors of the mean of ``SAMPLES`` values."""
    assert ((found - expected).abs() <= 4 * spread / SAMPLES**0.5 + 2e-6).all(), (found, expected)


@pytest.mark.parametrize("kind", ["hard_concrete", "kuma", "reflected"])
def test_masses_and_mean_of_clipped_gates_are_those_of_samples(kind):
    gates = KINDS[kind](torch.float32)
    z = samples(gates)
    for share, p in (((z > 0), gates.open), ((z == 0), gates.log_closed.exp()), ((z == 1), gates.one)):
        near(share.float().mean(0), p, (p * (1 - p)).sqrt())
    near(z.mean(0), gates.mean, z.std(0) + 1e-3)
    torch.testing.assert_close(gates.open + gates.log_closed.exp(), torch.ones_like(gates.open))


@pytest.mark.parametrize("temperature", [0.1, 0.5, 1.0, 3.0])
def test_a_relaxed_gate_is_beyond_one_half_as_often_as_it_is_open_at_every_temperature(temperature):
    gates = BinaryConcrete(LOGITS, temperature, straight_through=False)
    p = LOGITS.sigmoid()
    near((samples(gates) > 0.5).float().mean(0), p, (p * (1 - p)).sqrt())
    for found in (gates.open, gates.one, gates.mean, 1 - gates.log_closed.exp()):
        torch.testing.assert_close(found, p)


def test_means_of_relaxed_samples_are_not_the_probability():
    means = [samples(BinaryConcrete(torch.tensor([-2.0]), t, False)).mean() for t in (0.5, 1.0)]
    torch.testing.assert_close(torch.stack(means), torch.tensor([0.149, 0.206]), rtol=0, atol=3e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_log_gates_are_finite_or_closed_and_have_gradients_without_nan(kind):
    dtype = torch.float32
    extreme = torch.tensor([-90.0, -20.0, 0.0, 20.0, 90.0])
    log_a, log_b = torch.cartesian_prod(*(torch.linspace(math.log(1e-3), math.log(1e6), 10),) * 2).unbind(-1)
    made = {
        "concrete": (lambda x: BinaryConcrete(x, 0.3, False), extreme),
        "straight": (lambda x: BinaryConcrete(x, 0.3, True), extreme),
        "hard_concrete": (lambda x: HardConcrete(x, 2 / 3), extreme),
        "kuma": (lambda x: HardKuma(x, log_b), log_a),
        "reflected": (lambda x: HardKuma(x, log_b, True), log_a),
    }
    make, where = made[kind]
    for u in (0.0, 1e-4, 0.5, 0.9999, 1 - 2**-24):
        x = where.to(dtype).clone().requires_grad_()
        gates = make(x)
        log_gate = gates.log_gate(torch.full_like(x, u))
        assert (log_gate <= 0).all()
        assert not log_gate.isnan().any()
        for value in (gates.log_open, gates.log_closed, gates.one, gates.mean, bernoulli_kl(gates, 0.3)):
            assert value.isfinite().all()
            (gradient,) = torch.autograd.grad(value.sum(), x, retain_graph=True)
            assert gradient.isfinite().all()
        log_gate.exp().sum().backward()
        assert x.grad.isfinite().all()


def test_hard_concrete_is_the_published_formula():
    """AMLab's ``L0Dense``: quantile of the stretched variable, its masses and its penalty, in fp64."""
    alpha, u, beta = LOGITS.double(), torch.rand(6, dtype=torch.float64), 2 / 3
    y = torch.sigmoid((torch.log(u) - torch.log(1 - u) + alpha) / beta)
    expected = F.hardtanh(y * (HIGH - LOW) + LOW, 0, 1)
    gates = HardConcrete(alpha, beta)
    torch.testing.assert_close(gates.log_gate(u).exp(), expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(gates.open, torch.sigmoid(alpha - beta * math.log(-LOW / HIGH)))
    torch.testing.assert_close(gates.one, torch.sigmoid(alpha - beta * math.log((1 - LOW) / (HIGH - 1))))


def test_hardkuma_is_the_published_formula():
    """Bastings, Aziz and Titov's ``HardKuma``: inverse of the distribution function, stretch, clip; in fp64."""
    a, b, u = A.double(), B.double(), torch.tensor([0.03, 0.2, 0.4, 0.6, 0.8, 0.97], dtype=torch.float64)
    k = (1 - (1 - u) ** (1 / b)) ** (1 / a)
    gates = HardKuma(a.log(), b.log())
    torch.testing.assert_close(gates.log_gate(u).exp(), (LOW + (HIGH - LOW) * k).clamp(0, 1), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(gates.log_closed.exp(), 1 - (1 - (1 / 12) ** a) ** b)
    torch.testing.assert_close(gates.one, (1 - (11 / 12) ** a) ** b)


def test_a_reflected_gate_is_one_minus_the_gate():
    gates = HardKuma(A.double().log(), B.double().log())
    other = HardKuma(gates.log_a, gates.log_b, reflected=True)
    u = torch.linspace(0.05, 0.95, 6, dtype=torch.float64)
    torch.testing.assert_close(other.log_gate(u).exp(), 1 - gates.log_gate(u).exp())
    torch.testing.assert_close(other.one, gates.log_closed.exp())
    torch.testing.assert_close(other.log_closed.exp(), gates.one)
    torch.testing.assert_close(other.mean, 1 - gates.mean)
    torch.testing.assert_close(other.kl_to_beta(1.0, 4.0), gates.kl_to_beta(4.0, 1.0))
    torch.testing.assert_close(other.kl_to_kumaraswamy(0.5, 2.0), gates.kl_to_kumaraswamy(0.5, 2.0))


@pytest.mark.parametrize("kind", ["concrete", "hard_concrete", "kuma", "reflected"])
def test_the_gradient_of_a_sample_is_the_difference_quotient(kind):
    gates = KINDS[kind](torch.float64)
    u = torch.tensor([0.5, 0.7, 0.45, 0.3, 0.6, 0.8], dtype=torch.float64)
    names = [name for name in ("logits", "log_a", "log_b") if hasattr(gates, name)]

    def sample(*values):
        rest = {k: v for k, v in vars(gates).items() if k not in names}
        return type(gates)(**dict(zip(names, values, strict=True)), **rest).log_gate(u).exp()

    values = [getattr(gates, name).clone().requires_grad_() for name in names]
    assert torch.autograd.gradcheck(sample, values, atol=1e-6)


def test_a_straight_through_gate_has_the_gradient_of_a_factor_of_the_attention_weight():
    """As GA-Net (arXiv 1912.00349) and DynamicViT (arXiv 2106.02034) multiply: weights g exp(s), normed over all."""
    torch.manual_seed(0)
    scores, values = torch.randn(40, dtype=torch.float64), torch.randn(40, dtype=torch.float64)
    u = torch.rand(40, dtype=torch.float64)
    gradients, results = [], []
    for ours in (True, False):
        logits = torch.linspace(-3, 3, 40, dtype=torch.float64, requires_grad=True)
        gates = BinaryConcrete(logits, 0.7, straight_through=True)
        if ours:
            weights = (scores + gates.log_gate(u)).softmax(0)
        else:
            y = torch.sigmoid((logits + torch.logit(u)) / 0.7)
            g = (y > 0.5).double() + y - y.detach()
            weights = g * scores.exp() / (g * scores.exp()).sum()
        result = (weights * values).sum()
        (gradient,) = torch.autograd.grad(result, logits)
        gradients.append(gradient)
        results.append(result.detach())
    assert set(gates.log_gate(u).exp().round(decimals=9).tolist()) == {1.0, ALMOST_CLOSED}
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-5)
    assert gradients[0][logits.detach() < -2].abs().min() > 1e-6  # closed gates learn too


def test_the_divergence_of_bernoullis_is_what_torch_computes():
    for kind in ("concrete", "hard_concrete", "kuma"):
        gates = KINDS[kind](torch.float64)
        ours = bernoulli_kl(gates, 0.2)
        theirs = torch.distributions.kl_divergence(
            torch.distributions.Bernoulli(probs=gates.open.clamp(1e-12, 1 - 1e-12)),
            torch.distributions.Bernoulli(probs=torch.tensor(0.2, dtype=torch.float64)),
        )
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-9)


def test_the_beta_binomial_is_the_integral_over_the_rate_and_draws_towards_its_posterior():
    alpha, beta, n, k = 2.0, 5.0, 12, 4
    mpmath.mp.dps = 30
    density = lambda r: r ** (alpha - 1) * (1 - r) ** (beta - 1) / mpmath.beta(alpha, beta)  # noqa: E731
    expected = -mpmath.log(mpmath.quad(lambda r: density(r) * r**k * (1 - r) ** (n - k), [0, 1]))
    opened = torch.tensor([float(k)], dtype=torch.float64, requires_grad=True)
    value = beta_binomial(opened, torch.tensor([float(n)], dtype=torch.float64), alpha, beta)
    assert float(value.detach()) == pytest.approx(float(expected), rel=1e-12)
    value.sum().backward()
    rate = torch.tensor((alpha + k) / (alpha + beta + n))
    assert float(opened.grad) == pytest.approx(float(-(rate.log() - (1 - rate).log())), abs=0.07)


@pytest.mark.parametrize("kind", KINDS)
def test_fp32_is_near_fp64(kind):
    single, double = KINDS[kind](torch.float32), KINDS[kind](torch.float64)
    for name in ("log_open", "log_closed", "one", "mean", "open"):
        torch.testing.assert_close(getattr(single, name).double(), getattr(double, name), rtol=1e-4, atol=1e-5)
