"""What a stage makes of gates on its tokens: it reads them (``Stage.reads``) or hands them on with what they belong to.

A stage that does neither is not given any: a model refuses it behind a selector with gates.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from beni.conformance.subject import Subject, cast, gated, run, with_gates, without_grid
from beni.conformance.verdict import Excused, expect, largest
from beni.nn.gates import is_open
from beni.nn.streams import derive
from beni.stage import Stage
from beni.types import TokenSpec, VisualTokens

INF = float("inf")
RUBBISH = 1e3


@torch.no_grad()
def lets_no_closed_token_influence_an_open_one(subject: Subject) -> str:
    """Other features behind a gate of -inf change nothing, whether other tokens are left in a row or not."""
    spec = with_gates(subject.spec)
    stage, tokens = _stage(subject, spec), _tokens(subject, spec)
    made, worst = stage.spec(spec), 0.0
    for shut in (_some, torch.ones_like):
        closed = gated(tokens, lambda mask, shut=shut: torch.where(shut(mask), -INF, 0.5).double())
        for prompt in subject.prompts(stage):
            before, after = run(stage, closed, prompt), run(stage, _with_rubbish(closed), prompt)
            there = before.log_gate is not None
            expect(there == made.gated, f"spec() says gated={made.gated}; that there are gates is {there}")
            open_ = torch.ones_like(before.mask) if before.log_gate is None else is_open(before.log_gate)
            a, b = before.x[open_], after.x[open_]
            expect(bool(a.isfinite().all()), "closed tokens end in NaN")
            worst = max(worst, largest(a, b) / max(1.0, float(a.abs().max()))) if len(a) else worst
            expect(worst <= 1e-9, f"what stands behind closed gates changes an open token by {worst:.1e}")
    return f"largest change {worst:.1e}, gates " + ("handed on" if made.gated else "read")


@torch.no_grad()
def weighs_tokens_by_the_gates_it_reads(subject: Subject) -> str:
    """Open gates are none, -inf is a token that is not there, log(k) is a token that is there k times."""
    spec = with_gates(subject.spec)
    stage, tokens = _reader(subject, spec), _tokens(subject, spec)
    zeros = gated(tokens, lambda mask: torch.zeros(mask.shape, dtype=torch.float64))
    for prompt in subject.prompts(stage):
        plain, other = run(stage, tokens, prompt), run(stage, subject.gates(tokens), prompt)
        _same(plain.x, run(stage, zeros, prompt).x, "gates of 0 are not as none")
        expect(largest(plain.x, other.x) > 1e-6, "its reads name log_gate, but gates change nothing")
    loose = without_grid(spec)
    if subject.refuses(loose):
        return "open gates are none; tokens on a grid cannot be taken out or repeated"
    stage, tokens = _stage(subject, loose), _tokens(subject, loose)
    for prompt in subject.prompts(stage):
        closed = gated(tokens, lambda mask: torch.where(_some(mask), -INF, 0.0).double())
        absent = replace(tokens, mask=tokens.mask & ~_some(tokens.mask))
        _same(run(stage, absent, prompt).x, run(stage, closed, prompt).x, "a closed token is not as one that is absent")
        times = torch.arange(tokens.mask.shape[1]) % 3 + 1
        counted = gated(tokens, lambda mask, times=times: times.double().log().expand(mask.shape))
        places = torch.arange(len(times)).repeat_interleave(times).expand(len(tokens.x), -1)
        _same(
            run(stage, tokens.gather(places), prompt).x,
            run(stage, counted, prompt).x,
            "a gate of log(k) is not as k equal tokens",
        )
    return "0, -inf and log(k) as none, absent and k times"


def passes_gradients_to_the_gates_it_reads(subject: Subject) -> str:
    """The gradient along a random direction is the difference quotient; one behind a gate of -inf is 0, not NaN."""
    spec = with_gates(subject.spec)
    stage, tokens = _reader(subject, spec), _tokens(subject, spec)
    prompt, generator = subject.prompts(stage)[-1], torch.Generator().manual_seed(derive(0, "direction"))
    direction = torch.randn(tokens.mask.shape, generator=generator, dtype=torch.float64)
    start = subject.gates(tokens)
    assert start.log_gate is not None

    def result(moved: Tensor) -> Tensor:
        given = replace(start, log_gate=moved)
        if start.sources and start.sources[0].mask.shape == moved.shape:
            given = replace(given, sources=(replace(start.sources[0], log_gate=moved), *start.sources[1:]))
        return _objective(run(stage, given, prompt).x)

    gates = start.log_gate.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(result(gates), gates, allow_unused=True)
    expect(gradient is not None, "no gradient reaches the gates")
    said = float((gradient * direction).sum())
    with torch.no_grad():
        step = 1e-5
        counted = float(result(gates + step * direction) - result(gates - step * direction)) / (2 * step)
    expect(abs(said - counted) <= 1e-5 * max(1.0, abs(counted)), f"gradient {said:.6g}, difference {counted:.6g}")
    closed = torch.where(_some(start.mask), -INF, start.log_gate).requires_grad_()
    (gradient,) = torch.autograd.grad(result(closed), closed)
    expect(bool(gradient.isfinite().all()), "a closed gate ends in a gradient of NaN")
    expect(not gradient[_some(start.mask)].any(), "a closed gate has a gradient")
    return f"{said:.4g}, difference quotient {counted:.4g}"


def _stage(subject: Subject, spec: TokenSpec) -> Stage:
    """The stage for tokens of ``spec``, with random weights.

    Raises:
        Excused: when no model gives it gates.
    """
    if refusal := subject.refuses(spec):
        raise Excused(f"it refuses tokens with gates: {refusal.code}")
    stage = subject.randomised(spec).double()
    if "log_gate" not in stage.reads and not stage.spec(spec).gated:
        raise Excused("it neither reads gates nor hands them on: a model refuses gates before it")
    return stage


def _reader(subject: Subject, spec: TokenSpec) -> Stage:
    stage = _stage(subject, spec)
    if "log_gate" not in stage.reads:
        raise Excused("it hands gates on and reads none")
    return stage


def _tokens(subject: Subject, spec: TokenSpec) -> VisualTokens:
    """Without gates, which each property puts there itself."""
    return cast(subject.tokens(spec=with_gates(spec, False)), torch.float64)


def _some(mask: Tensor) -> Tensor:
    """True at about half of the places, others in each row, never all of one."""
    generator = torch.Generator().manual_seed(derive(0, "closed"))
    some = torch.rand(mask.shape, generator=generator) < 0.5
    some[:, 0] = False
    return some


def _with_rubbish(tokens: VisualTokens) -> VisualTokens:
    """The tokens with other features behind closed gates."""
    assert tokens.log_gate is not None
    shut = ~is_open(tokens.log_gate)[..., None]
    generator = torch.Generator().manual_seed(derive(0, "rubbish"))

    def dirty(x: Tensor) -> Tensor:
        return torch.where(shut, RUBBISH * torch.randn(x.shape, generator=generator, dtype=x.dtype), x)

    return replace(
        tokens,
        x=dirty(tokens.x),
        levels=None if tokens.levels is None else dirty(tokens.levels),
        sources=tuple(_with_rubbish(source) for source in tokens.sources),
    )


def _same(expected: Tensor, found: Tensor, what: str) -> None:
    worst = largest(expected, found) / max(1.0, float(expected.abs().max()))
    expect(worst <= 1e-9, f"{what}: a difference of {worst:.1e}")


def _objective(x: Tensor) -> Tensor:
    return (x * torch.randn(x.shape, generator=torch.Generator().manual_seed(1), dtype=x.dtype)).sum()
